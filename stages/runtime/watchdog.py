"""The watchdog: a thread that ends a stage when the `dvc` that started it is gone.

Without it a stage outlives a killed `dvc` and keeps its GPU. A stage may end at any moment, because every output is
written under a temporary name first. A training first saves a checkpoint (`shutdown`). This module imports nothing
heavy: it has to watch while the libraries load.
"""

import os
import sys
import threading
import time

import psutil

from stages.runtime import distributed, shutdown
from stages.runtime.processes import is_running

POLL_SECONDS = 0.5


def start() -> None:
    """Start the thread. It ends this process with exit code 1 when `dvc` or the launcher is gone.

    A program that runs DVC by its Python API counts as `dvc`. `cmd` in dvc.yaml passes the process number of `dvc` as
    DVC_PID. It starts the stage, or its launcher, by `exec`, so no shell is between the two.
    """
    watched = [_find_parent(os.getppid())] if distributed.is_launched() else []
    if "DVC_STAGE" in os.environ:
        dvc = _find_parent(int(os.environ.get("DVC_PID") or os.getppid()))
        if "SLURM_STEP_ID" not in os.environ or is_running(dvc):  # Slurm, not dvc, starts the tasks of `srun`
            watched.append(dvc)
    if not all(map(is_running, watched)):
        sys.exit("error: the `dvc` that started this stage has ended; run `dvc repro` again")

    def watch() -> None:
        while all(map(is_running, watched)):
            time.sleep(POLL_SECONDS)
        shutdown.request("`dvc` or the launcher has ended", exit_code=1)
        os._exit(1)

    if watched:
        threading.Thread(target=watch, daemon=True).start()


def _find_parent(pid: int) -> psutil.Process | None:
    """Return the process `pid`, or None if it is not the one that started this stage.

    DVC starts a stage, or its launcher, in the session of `dvc`. If the process is in another session, `dvc` was killed
    before the shell read its number, and the process is the one that has adopted the shell.
    """
    session = os.getsid(os.getppid() if distributed.is_launched() else 0)  # torchrun gives a rank its own session
    try:
        return psutil.Process(pid) if os.getsid(pid) == session else None
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
