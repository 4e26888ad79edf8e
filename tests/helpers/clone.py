"""A temporary copy of this repository in which `dvc` can run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from helpers.parameters import set_key
from helpers.project import COMMITTED, ROOT, USERS_FILES
from helpers.stages import run_module, stage_env

SHORT = {"data.train_rows": 96, "data.validation_rows": 30, "data.test_rows": 60, "train.epochs": 1}
RECORDER = Path(__file__).with_name("recorder")  # its sitecustomize.py logs which parameters and files a stage reads


class Clone:
    """A new Git repository with this one's files. DVC's caches and configuration are in its folder too.

    The code is the workspace's; parameters and results are those of Git's index.

    Args:
        figures: whether `analyze` draws the report's pictures in forks; else it leaves them blank.

    Attributes:
        folder: root of the repository.
        reads: folder with the logs of what the stages read, two files a stage. Only stages in new processes log.
        env: environment of the commands that run in it.
    """

    def __init__(self, top: Path, omit: tuple[str, ...] = ("tests/",), figures: bool = True):
        self.folder, self.reads = top / "clone", top / "reads"
        self.reads.mkdir()
        self.env = stage_env(
            PYTHONPATH=str(RECORDER),
            RECORD_READS=str(self.reads),
            **{
                f"DVC_{name}": str(top / name.lower())
                for name in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR")
            },
            **{f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        )
        if not figures:
            self.env["BLANK_FIGURES"] = "1"
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            exists = (ROOT / name).is_file() or (ROOT / name).is_symlink()
            if exists and not name.startswith((*omit, *USERS_FILES)):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.folder / name, follow_symlinks=False)
        shutil.copytree(COMMITTED, self.folder, dirs_exist_ok=True)
        self.git("init", "--quiet")
        self.git("config", "user.name", "test")
        self.git("config", "user.email", "test")
        self.commit("the project")

    def git(self, *arguments: str) -> str:
        """Run `git` -> its output."""
        process = subprocess.run(["git", *arguments], cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return process.stdout

    def commit(self, message: str) -> None:
        """Commit all files."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def change_params(self, changes: dict[str, object]) -> None:
        """Set dotted keys in demo/params.yaml. With `SHORT`, the pipeline needs little more time than its imports."""
        path = self.folder / "demo/params.yaml"
        raw = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            set_key(raw, key, value)
        path.write_text(yaml.safe_dump(raw, sort_keys=False))

    def take_run(self, demo: Path) -> None:
        """Copy the last run of a demo folder: dvc.lock, metrics, DVC's run cache, and the files that dvc.lock lists.

        `dvc repro` then restores these outs, and runs only stages whose code, parameters or data differ. DVC sees no
        change of a library: until the demo has run again, the outs are those of the library before.
        """
        if not (demo / "dvc.lock").exists() or not (demo / ".dvc/cache/runs").exists():
            return
        shutil.copy(demo / "dvc.lock", self.folder / "demo")
        for name in ("metrics", ".dvc/cache/runs"):
            shutil.copytree(demo / name, self.folder / "demo" / name, dirs_exist_ok=True)
        stages = yaml.safe_load((demo / "dvc.lock").read_text())["stages"].values()
        hashes = [out["md5"] for stage in stages for out in stage["outs"]]
        for md5 in hashes:  # it grows by the files of folders
            name = f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"
            if (demo / name).exists():  # the cache has no metrics, and `dvc gc` may have removed other files
                (self.folder / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(demo / name, self.folder / "demo" / name)
                hashes += [file["md5"] for file in json.loads((demo / name).read_text())] if md5[-4:] == ".dir" else []

    def dvc(self, *arguments: str, below: str = "demo", **env: str) -> subprocess.CompletedProcess:
        """Run `dvc` and its stages in forks -> its outcome, with the attribute of `with_stages`."""
        return with_stages(run_module("dvc", arguments, self.folder / below, {**self.env, **env}))

    def dvc_in_new_processes(self, *arguments: str, below: str = "demo", **env: str) -> subprocess.CompletedProcess:
        """Run `dvc` and its stages as a user does: each starts a new Python."""
        command = [sys.executable, "-m", "dvc", *arguments]
        env = {**self.env, **env}
        return with_stages(subprocess.run(command, cwd=self.folder / below, env=env, capture_output=True, text=True))

    def metrics(self) -> dict[str, dict]:
        """{name: content} of the JSON files in demo/metrics and its folders."""
        return {path.stem: json.loads(path.read_text()) for path in (self.folder / "demo/metrics").rglob("*.json")}


def with_stages(process: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """Add the attribute `ran` to the outcome of `dvc`: the names of the stages that ran."""
    process.ran = re.findall(r"Running stage '(?:.*:)?(\w+)'", process.stdout)
    return process
