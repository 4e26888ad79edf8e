"""What people ask of a finished run: one file a command, `python -m tools.NAME`; they share `git`."""
