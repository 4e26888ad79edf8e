"""A stage ends when the `dvc` that started it is gone. Imports nothing heavy: it has to watch while the others load."""

import os
import sys
import threading
import time

import psutil


def end_with_dvc() -> None:
    """End this process when the `dvc` that started it is gone, or a program that runs DVC by its API.

    DVC's stage outlives a killed `dvc` otherwise, and goes on holding the GPU. `cmd` in dvc.yaml hands over dvc's
    process number as DVC_PID and puts the stage in the shell's place (`exec`), so that no process has to be known by
    its name. Every write is to a temporary name, so a hard end is safe.
    """
    if "DVC_STAGE" not in os.environ:
        return
    dvc = _process(int(os.environ.get("DVC_PID") or os.getppid()))
    if not _lives(dvc):
        sys.exit("error: the dvc that started this stage is gone")

    def watch():
        while _lives(dvc):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _process(pid):
    """The process of a number, or None where it is not the one that started this stage.

    DVC keeps a stage in its own session. Another session's process has adopted this one: dvc was gone before the shell
    could read its number.
    """
    try:
        return psutil.Process(pid) if os.getsid(pid) == os.getsid(0) else None
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def _lives(process):
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
