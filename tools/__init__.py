"""Commands for finished runs, one file for each: `python -m tools.NAME`.

`init`, `predict`, `evaluate`, `compare`, `sweep`, `export` and `verify` are the commands. The other modules are used by
them.
"""
