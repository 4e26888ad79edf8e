"""A GPU for each process that uses one: it holds a lock by the GPU's UUID, and waits where none is free.

The system takes the lock back however the process ends. Locks lie in the temporary folder, one folder a user: others'
processes have other locks, and so have those in another container or with another TMPDIR. Imports nothing heavy:
CUDA_VISIBLE_DEVICES has to be set before the libraries are imported, since bitsandbytes asks CUDA for its GPUs then.
"""

import fcntl
import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stages.runtime import distributed, params
from stages.runtime.errors import UserError

DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU
POLL_SECONDS = 1.0  # seconds between two looks for a free GPU
RANK_POLL_SECONDS = 0.05  # the same for this run's other ranks, who are seldom late
SELECTED_BY = "STAGE_HOLDS_GPU"  # in the environment: this process or one above it has done what follows


def select_gpu_from_params() -> None:
    """`select_gpu` a GPU for as long as this process lives, where params.yaml here says `device: cuda`."""
    try:
        wanted = params.load().device == "cuda"
    except UserError:  # whoever needs the parameters will say it
        return
    if wanted:
        select_gpu()


def select_gpu() -> None:
    """Lock the first free of the GPUs that CUDA shows, and have CUDA show that one alone. Waits where none is free.

    A launcher's ranks each lock the GPU that they will use, which CUDA knows by the rank's number among those of the
    machine. They are shown all. A process that one with a GPU has started uses that one's.
    """
    if SELECTED_BY in os.environ:
        return
    os.environ[SELECTED_BY] = str(os.getpid())
    if distributed.is_launched():
        _take_as_rank(list_visible_gpus())
        return
    names = list_mig_slices() or list_visible_gpus()
    if names:
        taken = _wait_for(names)
        if len(names) > 1:  # transformers takes cuda:0, whatever torch.cuda.set_device says
            os.environ["CUDA_VISIBLE_DEVICES"] = taken


def list_mig_slices() -> list[str]:
    """The MIG slices that CUDA_VISIBLE_DEVICES names: CUDA shows a process the first of them alone."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return names if all(name.startswith("MIG-") for name in names) else []


def list_visible_gpus() -> list[str]:
    """UUIDs of the GPUs that CUDA shows, in its order; none where it can't be asked, as on a machine without."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ and len(only := list_machine_gpus()) == 1:
        return only  # asking CUDA would take half a second
    script = Path(__file__).with_name("visible_gpus.py")
    return subprocess.run([sys.executable, "-IS", str(script)], capture_output=True, text=True).stdout.split()


def list_machine_gpus() -> list[str]:
    """UUIDs of the machine's GPUs as NVIDIA's driver for Linux tells them, in no order that means anything.

    Of a GPU that nothing has used yet it may tell question marks: that one is missing.
    """
    told = "".join(file.read_text() for file in DRIVER_FOLDER.glob("*/information"))
    return re.findall(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)$", told, re.MULTILINE)


def _take_as_rank(names):
    """Lock this rank's GPU, and wait until all ranks of this machine have theirs.

    In the order of the UUIDs, each after the one before it: two runs that want the same GPUs never hold half each. No
    rank goes on alone: it would wait for the others in NCCL, which gives up after minutes.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    if len(names) < here:
        return  # the stage will refuse
    launcher = os.getppid()
    begun = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[19]  # in ticks: no clock moves it
    run = f"{launcher}-{begun}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    mine, order = names[distributed.local_rank()], sorted(names[:here])
    if place := order.index(mine):
        _wait_for_rank(order[place - 1], run)
    _wait_for([mine], run)
    _wait_for_rank(order[-1], run)


def _wait_for_rank(name, run):
    while _holder(name)[1:] != [run]:
        time.sleep(RANK_POLL_SECONDS)


def _wait_for(names, run=""):
    """Lock the first free one of some GPUs -> its name. One line says that this waits, and for whom."""
    said = False
    while True:
        for name in names:
            if _lock(name, run):
                return name
        if not said:
            held = ", ".join(f"{name} is held by process {(_holder(name) or ['?'])[0]}" for name in names)
            print(f"waiting for a GPU: {held}", flush=True)
            said = True
        time.sleep(POLL_SECONDS)


def _lock(name, run):
    """Whether a GPU is this process's now. Who holds it stands in the file: process and run."""
    file = os.fdopen(os.open(_path(name), os.O_RDWR | os.O_CREAT, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    os.register_at_fork(after_in_child=file.close)  # a child may live longer; this keeps the file open here
    file.truncate(0)
    file.write(f"{os.getpid()} {run}")
    file.flush()
    return True


def _holder(name):
    """[process] or [process, run] that held a GPU last; [] where none did, or it is just about to say so."""
    try:
        return _path(name).read_text().split()
    except FileNotFoundError:
        return []


@functools.cache
def _folder():
    folder = Path(tempfile.gettempdir(), f"gpus-in-use-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():  # in a folder for all, anyone may take a name
        sys.exit(f"error: {folder} belongs to another user, and holds no locks for this one; set TMPDIR")
    return folder


def _path(name):
    return _folder() / f"{name.partition('-')[2].replace('/', '-')}.lock"
