"""Where the project's files are; its parameters and results as Git has them."""

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

# What a user changes by using the project: parameters by `dvc exp run -S`, results by any run. The tests take these as
# Git has them, staged or committed, so that an experiment in the workspace is no failure.
OF_THE_USER = ("params.yaml", "dvc.lock", "metrics", *(f"demo/{n}" for n in ("params.yaml", "dvc.lock", "metrics")))


def _as_git_has(paths: Iterable[str]) -> tempfile.TemporaryDirectory:
    """A temporary folder with these files and folders as Git's index has them; outside of Git, as they lie here."""
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


_committed = _as_git_has(OF_THE_USER)  # kept, since the folder goes with it
COMMITTED = Path(_committed.name)
