"""The device a stage works on, and the precision it computes in."""

import contextlib
from collections.abc import Iterator

import torch

from stages.runtime import distributed, params
from stages.runtime.errors import UserError


def pick_device(name: str, threads: int | None) -> torch.device:
    """The torch device of params.yaml's `device`, on a GPU the one of this rank; one line where there is none.

    Args:
        name: "cuda" or "cpu".
        threads: CPU threads that PyTorch may use, or None for its own choice.
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "params.yaml: device: cuda, but PyTorch sees no CUDA GPU on this machine; "
            "`make demo` runs the same pipeline at CPU size"
        )
    if name == "cpu":
        return torch.device("cpu")
    if distributed.local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"params.yaml: launcher: starts more processes than this machine has GPUs ({torch.cuda.device_count()}); "
            "allowed: one for each GPU, as torchrun --nproc-per-node=gpu has it"
        )
    torch.cuda.set_device(distributed.local_rank())
    return torch.device("cuda", distributed.local_rank())


def pick_precision(group: params.Model, device: torch.device) -> str:
    """What `auto` means on a device: bf16 where the GPU has it, else fp16 for 4-bit products; fp32 on a CPU.

    Args:
        group: the group `model` of params.yaml.
    """
    if group.precision != "auto":
        return group.precision
    if device.type == "cpu":
        return "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if group.quantization == "nf4" else "fp32"


@contextlib.contextmanager
def report_out_of_memory(message: str) -> Iterator[None]:
    """Running out of the GPU's memory inside is the user's mistake, told by `message`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(message) from error
