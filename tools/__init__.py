"""Commands for finished runs, one file for each: `python -m tools.NAME`.

`predict`, `compare`, `sweep`, `export` and `verify` are the commands. `git`, `read_runs` and `group_runs` are modules
that they use.
"""
