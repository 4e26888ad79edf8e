"""Stages in processes of their own, and what a failed one owes its user."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from helpers.project import ROOT


def stage_env(**changes):
    """Environment of a stage's process."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **changes}


def run_stage(stage, folder, **env):
    """Run one stage in a folder that holds a params.yaml."""
    return subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=stage_env(**env), capture_output=True, text=True
    )


def run_stage_in_each(stage, folders, **env):
    """Run one stage in each of many folders; its modules are imported once, and each folder gets a fork.

    Returns:
        {folder's name: namespace with returncode, stdout, stderr}
    """
    folders = [str(folder) for folder in folders]
    forks = Path(__file__).with_name("stage_forks.py")
    command = [sys.executable, "-P", str(forks), stage, *folders]  # -P: `stages` is the project's, not this file
    done = subprocess.run(command, env=stage_env(**env), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        Path(folder).name: SimpleNamespace(**json.loads(Path(f"{folder}.result").read_text())) for folder in folders
    }


def error_line(done):
    """The one line that a failed stage owes its user."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def assert_refused(done, said):
    """A stage failed with one line that holds all words of `said`, and wrote nothing."""
    line = error_line(done)
    assert all(words in line for words in said), line
    assert done.written == []


def written(folder):
    """Files that a stage left in its folder, params.yaml aside."""
    return sorted(
        str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and p.name != "params.yaml"
    )
