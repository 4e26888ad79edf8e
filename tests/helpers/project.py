"""Paths of the project, and the parameters and results in Git's index."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
NANO = DEMO / "assets" / "nano-phi"
SHARED = ROOT.parent / "shared"
CPU = torch.device("cpu")

# `dvc exp run -S` changes the parameters, and every run changes the results. The tests use Git's version of these
# files, staged or committed, so an experiment in the workspace makes no test fail.
USERS_FILES = ("params.yaml", "dvc.lock", "metrics", *(f"demo/{n}" for n in ("params.yaml", "dvc.lock", "metrics")))


def _copy_from_index(paths: Iterable[str]) -> tempfile.TemporaryDirectory:
    """Copy files and folders from Git's index, or from the workspace where there is no Git, to a temporary folder."""
    folder = tempfile.TemporaryDirectory()
    git = shutil.which("git") and subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode == 0
    if git:
        listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, check=True).stdout
        command = ["git", "checkout-index", "-z", "--stdin", f"--prefix={folder.name}/"]
        subprocess.run(command, cwd=ROOT, input=listed, check=True)
    else:
        for path in (ROOT / path for path in paths):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            if path.exists():
                (folder.name / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                copy(path, folder.name / path.relative_to(ROOT))
    return folder


_committed = _copy_from_index(USERS_FILES)  # the folder is removed with this object
COMMITTED = Path(_committed.name)
