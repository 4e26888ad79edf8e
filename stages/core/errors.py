"""The one exception that a user's mistake raises, and what running a stage means."""

import os
import re
import sys
import threading
import time
from pathlib import Path

import psutil


class UserError(Exception):
    """Something the user can put right: one line that names the file, the key or the column, and what is allowed."""


class StepUnavailable(Exception):
    """Why a model or a machine can't have the captured training step."""


def run(main):
    """Run a stage's `main()`; a `UserError` becomes one line on stderr and exit code 1."""
    end_with_dvc()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)


def end_with_dvc():
    """End this process when the `dvc` that started it is gone.

    DVC's stage outlives a killed `dvc` otherwise, and goes on holding the GPU. Between the two stands a shell,
    so the parent's death alone says nothing. Every write is to a temporary name, so a hard end is safe.
    """
    if "DVC_STAGE" not in os.environ:
        return
    parents = psutil.Process().parents()
    dvc = next((i for i, process in enumerate(parents) if _runs(process, "dvc")), None)
    if dvc is None:  # called from a Python program; else it was killed while this process started
        dvc = next((i for i, p in enumerate(parents) if _runs(p, "python") and _session(p) == os.getsid(0)), None)
    if dvc is None:
        sys.exit("error: the dvc that started this stage is gone")
    watched = parents[: dvc + 1]

    def alive(process):
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def watch():
        while all(alive(process) for process in watched):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _runs(process, program):
    """Whether a process is a program, or Python running it."""
    try:
        return any(re.fullmatch(rf"{program}[\w.-]*", Path(word).name) for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def _session(process):
    try:
        return os.getsid(process.pid)
    except OSError:
        return None
