"""Run stages on several ranks. As a script under torchrun, this runs stages in one folder after another.

    torchrun --nproc-per-node=2 -m helpers.processes train_qlora:FOLDER eval_base:FOLDER

`broken:FOLDER` runs `train_qlora` and interrupts it after its first checkpoint. `terminated:FOLDER` runs it and sends
SIGTERM to the last rank in its third step. With OTHER_CODE in the environment, rank 1 runs the code in that folder.
With MAY_FAIL, the first task is run as by `python -m`: an error is printed in one line, and the process ends.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

from helpers.project import ROOT
from helpers.stages import run_module, stage_env

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


class Interrupted(Exception):
    """A training was interrupted on purpose."""


def run_tasks(tasks: Iterable[str]) -> None:
    """Run tasks of the form `STAGE:FOLDER`, one after another."""
    if os.environ.get("RANK") == "1" and "OTHER_CODE" in os.environ:
        sys.path.insert(0, os.environ["OTHER_CODE"])
    from stages.runtime import distributed, errors, shutdown
    from stages.training import timed_checkpoints
    from stages.training.checkpoints import WholeCheckpoints
    from stages.training.trainer import ClassifierTrainer

    on_save, training_step = WholeCheckpoints.on_save, ClassifierTrainer.training_step

    def save_and_interrupt(*arguments, **options):
        on_save(*arguments, **options)
        raise Interrupted

    def step_and_signal(self, *arguments, **options):
        if self.state.global_step == 2 and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            while not shutdown.requested():  # another thread receives it
                time.sleep(0.01)
        return training_step(self, *arguments, **options)

    for task in tasks:
        stage, _, folder = task.partition(":")
        os.chdir(folder)
        if stage == "broken":
            with mock.patch.object(WholeCheckpoints, "on_save", save_and_interrupt), contextlib.suppress(Interrupted):
                importlib.import_module("stages.train_qlora").main()
        elif stage == "terminated":
            timed_checkpoints.QUESTION_SECONDS = 0.0  # ask at each step
            ClassifierTrainer.training_step = step_and_signal
            importlib.import_module("stages.train_qlora").main()
        else:
            main = importlib.import_module(f"stages.{stage}").main
            errors.run(main) if "MAY_FAIL" in os.environ else main()  # `run` ends the connections of the ranks


def run_on_ranks(count: int, tasks: Iterable[str], **env: str) -> str:
    """Run stages on `count` ranks of this machine -> their output. A single rank runs without a launcher."""
    launcher = [*TORCHRUN, f"--nproc-per-node={count}"] if count > 1 else [sys.executable]
    env = stage_env(**env)
    env["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests'}"
    process = subprocess.run([*launcher, "-m", "helpers.processes", *tasks], env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def run_on_forked_ranks(count: int, tasks: Iterable[str]) -> str:
    """As `run_on_ranks`, but the ranks are forks, which need no time for imports. It is not for a GPU."""
    process = try_on_forked_ranks(count, tasks)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def try_on_forked_ranks(count: int, tasks: Iterable[str], **env: str) -> subprocess.CompletedProcess:
    """`run_on_forked_ranks`, for tasks that may fail -> their outcome."""
    env = stage_env(**env)
    env["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests'}"
    return run_module("helpers.forked_ranks", [count, *tasks], ROOT / "tests", env)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds} s"
        time.sleep(0.02)


def alive(pids: Iterable[int]) -> list[int]:
    """The process numbers in `pids` whose processes run."""
    from stages.runtime.processes import is_running  # here: `run_tasks` may have to import other code first

    return list(filter(is_running, pids))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def without_dropout(model: Path, folder: Path) -> Path:
    """Copy a model and set its dropout to 0, so only rounding can differ between numbers of ranks."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    no_dropout = {key: 0.0 for key in config if key.endswith(("_pdrop", "_dropout"))}
    (folder / "config.json").write_text(json.dumps(config | no_dropout))
    return folder


if __name__ == "__main__":
    run_tasks(sys.argv[1:])
