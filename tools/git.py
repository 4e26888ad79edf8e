"""Run Git for `compare`, `sweep` and `verify`. This module is no command of its own."""

import subprocess
from pathlib import Path

NOT_FOUND = 127  # the exit code that a shell gives for a missing program


def run_git(*arguments: str, at: str | Path = ".") -> subprocess.CompletedProcess[bytes]:
    """Run `git` in a folder. If Git is not installed, the result has the exit code `NOT_FOUND` and a message."""
    command = ["git", *arguments]
    try:
        return subprocess.run(command, cwd=at, capture_output=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, NOT_FOUND, b"", b"not found; install it, or put it on PATH")


def stderr_line(process: subprocess.CompletedProcess[bytes]) -> str:
    """What Git wrote to stderr, in one line."""
    return " ".join(process.stderr.decode(errors="replace").split())


def repository_problem() -> str | None:
    """Why Git does not work in this folder, in Git's own words; None if it does.

    There may be no repository, or another user may own it.
    """
    process = run_git("rev-parse", "--git-dir")
    return f"git: {stderr_line(process)}" if process.returncode else None
