"""The processes of one run, called ranks: torchrun and `accelerate launch` start one for each GPU.

Without a launcher there is one process, rank 0 of 1, and the functions here do not communicate. A function that
communicates must be called by all ranks, in the same order.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch  # the functions that need PyTorch import it themselves: this module is loaded before it

CAUSE_SECONDS = 3.0  # a rank that does not print at once waits this long for the rank that caused its failure
RANK_SECONDS = 0.5  # and this much longer for each rank before it: torchrun checks the ranks ten times a second


def is_launched() -> bool:
    """Whether torchrun or `accelerate launch` started this process: both set these variables."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def rank() -> int:
    """This process's number among all processes of the run."""
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """Number of processes of the run, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def local_rank() -> int:
    """This process's number among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this is rank 0, the only one that writes files, prints and shows progress bars."""
    return rank() == 0


def init_process_group(device: "torch.device") -> None:
    """Connect the ranks, by NCCL on GPUs and by Gloo on CPUs. From here on only rank 0 prints."""
    if not is_launched():
        return
    import torch

    if torch.distributed.is_initialized():  # by an earlier stage in this process
        return
    if device.type == "cuda":
        torch.distributed.init_process_group("nccl", device_id=device)
    else:
        torch.distributed.init_process_group("gloo")
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open as long as this process lives
    print(f"{world_size()} processes" if world_size() > 1 else "1 process, as with `launcher: python`")


def broadcast(value: Any) -> Any:
    """Return rank 0's `value` on every rank."""
    if world_size() == 1:
        return value
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def all_gather(value: Any) -> list:
    """Return the `value` of every rank, in the order of the ranks, on every rank."""
    if world_size() == 1:
        return [value]
    import torch

    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def all_reduce(tensor: "torch.Tensor") -> None:
    """Replace a tensor, in place, by its sum over all ranks."""
    if world_size() > 1:
        import torch

        torch.distributed.all_reduce(tensor)


def shut_down() -> None:
    """Disconnect the ranks at the end of a run."""
    if is_launched():
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def fail(message: str, immediately: bool) -> NoReturn:
    """Print why this rank fails and end it. The launcher then ends the other ranks.

    A reason is printed once, by the rank that caused it. The other ranks, which fail for the same reason or because
    they lost their connection, wait first. The launcher ends them before they print.

    Args:
        immediately: True for rank 0 if it knows the reason.
    """
    if not immediately:
        time.sleep(CAUSE_SECONDS + RANK_SECONDS * rank())
    print(message, file=sys.stderr, flush=True)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun's report shows its content as the cause
        report = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": report}))
    os._exit(1)  # an orderly end would wait for the other ranks
