"""A stage ends when the `dvc` that started it is gone. Imports nothing heavy: it has to watch while the others load."""

import os
import sys
import threading
import time

import psutil

from stages.runtime import distributed


def end_with_dvc() -> None:
    """End this process when the `dvc` that started it is gone, or a program that runs DVC by its API, or its launcher.

    DVC's stage outlives a killed `dvc` otherwise, and goes on holding the GPU. `cmd` in dvc.yaml hands over dvc's
    process number as DVC_PID and puts the stage, or its launcher, in the shell's place (`exec`), so that no process has
    to be known by its name. Every write is to a temporary name, so a hard end is safe.
    """
    watched = [_process(os.getppid())] if distributed.is_launched() else []
    if "DVC_STAGE" in os.environ:
        dvc = _process(int(os.environ.get("DVC_PID") or os.getppid()))
        if "SLURM_STEP_ID" not in os.environ or _lives(dvc):  # srun's tasks are no processes of dvc's
            watched.append(dvc)
    if not all(map(_lives, watched)):
        sys.exit("error: the dvc that started this stage is gone")

    def watch():
        while all(map(_lives, watched)):
            time.sleep(0.5)
        os._exit(1)

    if watched:
        threading.Thread(target=watch, daemon=True).start()


def _process(pid):
    """The process of a number, or None where it is not the one that started this stage.

    DVC keeps a stage in its own session, and a launcher is such a stage. Another session's process has adopted this
    one: dvc was gone before the shell could read its number.
    """
    session = os.getsid(os.getppid() if distributed.is_launched() else 0)  # torchrun gives a rank one of its own
    try:
        return psutil.Process(pid) if os.getsid(pid) == session else None
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def _lives(process):
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
