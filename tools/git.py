"""Git, as `compare`, `sweep` and `verify` call it. No command of its own."""

import subprocess
from pathlib import Path

NOT_FOUND = 127  # a shell's exit code for a program that is not there


def run_git(*arguments: str, at: str | Path = ".") -> subprocess.CompletedProcess[bytes]:
    """Run `git` in a folder; if it is not installed, the result says so, with the exit code `NOT_FOUND`."""
    command = ["git", *arguments]
    try:
        return subprocess.run(command, cwd=at, capture_output=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, NOT_FOUND, b"", b"not found; install it, or put it on PATH")


def stderr_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """What Git wrote to stderr, as one line."""
    return " ".join(done.stderr.decode(errors="replace").split())


def repository_problem() -> str | None:
    """Why Git can't be used in this folder, in Git's own words: no repository, or that of another user. Else None."""
    done = run_git("rev-parse", "--git-dir")
    return f"git: {stderr_line(done)}" if done.returncode else None
