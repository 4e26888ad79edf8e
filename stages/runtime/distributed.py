"""The processes of one run: torchrun and `accelerate launch` start one for each GPU, and call it a rank.

A stage that was started without them is rank 0 of 1, and nothing here communicates.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

GRACE = 3.0  # seconds that a rank's error may come after the one that tells why
APART = 0.5  # seconds between two ranks that would say the same: torchrun looks ten times a second


def is_launched() -> bool:
    """Whether a launcher started this process; both of them say so."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def rank() -> int:
    """This process's number among all of the run."""
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """Processes of the run, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def local_rank() -> int:
    """This process's number among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this is the rank that writes, prints and draws bars."""
    return rank() == 0


def progress_bar_disabled() -> bool | None:
    """`tqdm`'s `disable`: the first rank has a bar where there is a terminal, the others have none."""
    return None if is_main() else True


def init_process_group(device: Any) -> None:
    """Find the other ranks, by the addresses that the launcher has put into the environment.

    Args:
        device: torch.device of this rank. GPUs speak by NCCL, CPUs by Gloo.
    """
    if not is_launched():
        return
    import torch

    if torch.distributed.is_initialized():  # by a stage before this one
        return
    if device.type == "cuda":
        torch.distributed.init_process_group("nccl", device_id=device)
    else:
        torch.distributed.init_process_group("gloo")
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as this process lives
    print(f"{world_size()} processes" if world_size() > 1 else "1 process, as by `launcher: python`")


def broadcast(value: Any) -> Any:
    """The first rank's `value`, on every rank."""
    if world_size() == 1:
        return value
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def all_gather(value: Any) -> list:
    """Every rank's `value`, in their order, on every rank."""
    if world_size() == 1:
        return [value]
    import torch

    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def all_reduce(tensor: Any) -> None:
    """Replace a tensor by the sum of all ranks' tensors, in place."""
    if world_size() > 1:
        import torch

        torch.distributed.all_reduce(tensor)


def shut_down() -> None:
    """Called when all is done."""
    if is_launched():
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def fail(message: str, at_once: bool) -> NoReturn:
    """Say why a launched rank ends, and end it; its launcher then ends the others.

    Ranks that fail for one reason say it once: the launcher has ended the others by the time that they would. So has it
    with those that only met the silence of the one that failed.

    Args:
        at_once: this rank knows the reason and is the one to tell it.
    """
    if not at_once:
        time.sleep(GRACE + APART * rank())
    print(message, file=sys.stderr, flush=True)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun ends with a report, where this stands as the cause
        told = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": told}))
    os._exit(1)  # an orderly end would wait for the other ranks
