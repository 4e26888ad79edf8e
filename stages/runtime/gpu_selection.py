"""How a GPU is chosen for a stage: the process locks the first free one, and waits if all are in use.

A lock is a file named by the GPU's UUID. The system releases it when the process ends, however it ends. The files are
in a folder of the user in the temporary folder. So processes of another user, in another container or with another
TMPDIR do not see each other's locks.

This module imports nothing heavy. CUDA_VISIBLE_DEVICES has to be set before the libraries are imported, because
bitsandbytes asks CUDA for its GPUs while it is imported.
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
from stages.runtime.stage_table import GPU_STAGES

DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")  # has a folder for each GPU
POLL_SECONDS = 1.0  # between two attempts to lock a GPU
RANK_POLL_SECONDS = 0.05  # between two looks for another rank of this run, which is seldom late
SELECTED_BY = "STAGE_HOLDS_GPU"  # environment variable: number of the process that has selected a GPU for its children


def select_gpu_for_stage() -> None:
    """Select a GPU if DVC or a launcher has started this process as a stage that uses one."""
    if distributed.is_launched() or os.environ["DVC_STAGE"].rpartition(":")[2] in GPU_STAGES:
        select_gpu_from_params()


def select_gpu_from_params() -> None:
    """Select a GPU if params.yaml in the current folder has `device: cuda`."""
    try:
        device = params.load().device
    except UserError:  # the stage loads params.yaml too, and reports the error
        return
    if device == "cuda":
        select_gpu()


def select_gpu() -> None:
    """Lock the first free GPU for as long as this process lives, and hide the others from CUDA. Wait until one is free.

    If a launcher has started this process, it locks the GPU whose number is its local rank, and hides none. A child of
    a process that has selected a GPU uses the same one.
    """
    if SELECTED_BY in os.environ:
        return
    os.environ[SELECTED_BY] = str(os.getpid())
    if distributed.is_launched():
        _lock_gpu_of_rank(list_visible_gpus())
        return
    gpus = list_mig_slices() or list_visible_gpus()
    if gpus:
        gpu = _lock_first_free(gpus)
        if len(gpus) > 1:  # transformers uses cuda:0, even after torch.cuda.set_device
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def list_mig_slices() -> list[str]:
    """The MIG slices in CUDA_VISIBLE_DEVICES, if it names only such. CUDA shows a process only the first of them."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return names if all(name.startswith("MIG-") for name in names) else []


def list_visible_gpus() -> list[str]:
    """UUIDs of the GPUs that CUDA shows, in CUDA's order. Empty on a machine without CUDA."""
    gpus = list_machine_gpus()
    if "CUDA_VISIBLE_DEVICES" not in os.environ and len(gpus) == 1:
        return gpus  # asking CUDA would take half a second
    script = Path(__file__).with_name("visible_gpus.py")
    return subprocess.run([sys.executable, "-IS", str(script)], capture_output=True, text=True).stdout.split()


def list_machine_gpus() -> list[str]:
    """UUIDs of the machine's GPUs as NVIDIA's driver for Linux lists them, in an arbitrary order.

    The driver may list question marks for a GPU that nothing has used yet. That GPU is missing here.
    """
    text = "".join(file.read_text() for file in DRIVER_FOLDER.glob("*/information"))
    return re.findall(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)$", text, re.MULTILINE)


def _lock_gpu_of_rank(gpus: list[str]) -> None:
    """Lock this rank's GPU, and wait until every rank of this machine has locked its own.

    The ranks lock in the order of the UUIDs, each after the one before it. So two runs that need the same GPUs never
    hold half of them each. A rank that started earlier would wait for the others in NCCL, which gives up after minutes.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    if len(gpus) < ranks:
        return  # the stage reports it
    launcher = os.getppid()
    start_ticks = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[19]  # not changed by a clock
    run = f"{launcher}-{start_ticks}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    gpu, order = gpus[distributed.local_rank()], sorted(gpus[:ranks])
    if position := order.index(gpu):
        _wait_for_rank(order[position - 1], run)
    _lock_first_free([gpu], run)
    _wait_for_rank(order[-1], run)


def _wait_for_rank(gpu: str, run: str) -> None:
    """Wait until a rank of this run has locked `gpu`."""
    while _read_holder(gpu)[1:] != [run]:
        time.sleep(RANK_POLL_SECONDS)


def _lock_first_free(gpus: list[str], run: str = "") -> str:
    """Lock the first free GPU and return it. If all are locked, print once which processes hold them, and wait."""
    waiting = False
    while True:
        for gpu in gpus:
            if _lock(gpu, run):
                return gpu
        if not waiting:
            holders = ", ".join(f"{gpu} is held by process {(_read_holder(gpu) or ['?'])[0]}" for gpu in gpus)
            print(f"waiting for a GPU: {holders}", flush=True)
            waiting = True
        time.sleep(POLL_SECONDS)


def _lock(gpu: str, run: str) -> bool:
    """Try to lock a GPU, and write this process and its run into the lock file. Return whether it succeeded."""
    file = os.fdopen(os.open(_lock_path(gpu), os.O_RDWR | os.O_CREAT, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    os.register_at_fork(after_in_child=file.close)  # a child may live longer; this also keeps the file open here
    file.truncate(0)
    file.write(f"{os.getpid()} {run}")
    file.flush()
    return True


def _read_holder(gpu: str) -> list[str]:
    """[process] or [process, run] that locked a GPU last. [] if none did, or if it has not written its number yet."""
    try:
        return _lock_path(gpu).read_text().split()
    except FileNotFoundError:
        return []


@functools.cache
def _lock_folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"gpus-in-use-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():  # in a folder that all users share, anybody may create this name
        sys.exit(
            f"error: {folder}, the folder of GPU locks, belongs to another user; set TMPDIR to a folder of your own"
        )
    return folder


def _lock_path(gpu: str) -> Path:
    return _lock_folder() / f"{gpu.partition('-')[2].replace('/', '-')}.lock"
