"""Stages in processes of their own, and what a failed one owes its user."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from helpers.project import ROOT


def stage_env(**changes: str) -> dict[str, str]:
    """Environment of a stage's process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **changes}


def run_stage(stage: str, folder: Path, **env: str) -> subprocess.CompletedProcess:
    """Run one stage in a folder that holds a params.yaml."""
    return subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=stage_env(**env), capture_output=True, text=True
    )


@functools.cache
def _forks(hash_seed: str) -> subprocess.Popen:
    """The process of stage_forks.py, started once; it ends when its input does, with this process."""
    forks = Path(__file__).with_name("stage_forks.py")
    command = [sys.executable, "-P", str(forks)]  # -P: `stages` is the project's, not the file beside it
    env = stage_env(PYTHONHASHSEED=hash_seed)
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_stage_in_each(stage: str, folders: Iterable[Path], **env: str) -> dict[str, SimpleNamespace]:
    """Run a stage in each of many folders, or several (`download,tokenize`): `run_in_each`."""
    return run_in_each([f"stages.{name}" for name in stage.split(",")], folders, **env)


def run_in_each(
    modules: Iterable[str], folders: Iterable[Path], arguments: Iterable[object] = (), **env: str
) -> dict[str, SimpleNamespace]:
    """Run the `main` of modules in each of many folders, one after another; each folder gets a fork.

    Args:
        modules: as `python -m` names them.
        arguments: of the command line.

    Returns:
        {folder's name: namespace with returncode, stdout, stderr}
    """
    env, folders, arguments = stage_env(**env), list(map(str, folders)), list(map(str, arguments))
    forks = _forks(env.get("PYTHONHASHSEED", "random"))
    with tempfile.NamedTemporaryFile("w+") as log:
        request = {"modules": list(modules), "folders": folders, "arguments": arguments, "env": env}
        request["log"] = log.name
        try:
            print(json.dumps(request), file=forks.stdin, flush=True)
            answer = forks.stdout.readline()
        except BaseException:  # a test's time is up: the answer would be taken for the next one's
            forks.kill()
            _forks.cache_clear()
            raise
        assert answer == "0\n", Path(log.name).read_text()
    return {
        Path(folder).name: SimpleNamespace(**json.loads(Path(f"{folder}.result").read_text())) for folder in folders
    }


def error_line(done: subprocess.CompletedProcess | SimpleNamespace) -> str:
    """The one line that a failed stage owes its user."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def assert_refused(done: SimpleNamespace, said: Iterable[str]) -> None:
    """A stage failed with one line that holds all words of `said`, and wrote nothing."""
    line = error_line(done)
    assert all(words in line for words in said), line
    assert done.written == []


def written(folder: Path) -> list[str]:
    """Files that a stage left in its folder, params.yaml aside."""
    return sorted(
        str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and p.name != "params.yaml"
    )
