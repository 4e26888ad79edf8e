"""Pick the device of a stage and the precision of its products."""

import contextlib
from collections.abc import Iterator

import torch

from stages.runtime import distributed, params
from stages.runtime.errors import UserError


def pick_device(name: str, threads: int | None) -> torch.device:
    """Return the torch device for `device` of params.yaml: the CPU, or the GPU of this rank.

    Args:
        name: "cuda" or "cpu".
        threads: CPU threads that PyTorch may use, or None for its own choice.

    Raises:
        UserError: this machine has no GPU, or fewer than the launcher has started processes.
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
            "allowed: one for each GPU, as torchrun --nproc-per-node=gpu starts them"
        )
    torch.cuda.set_device(distributed.local_rank())
    return torch.device("cuda", distributed.local_rank())


def pick_precision(model_params: params.ModelSettings, device: torch.device) -> str:
    """Resolve `model.precision: auto`: fp32 on a CPU, bf16 on a GPU that supports it, else fp16 for 4-bit products.

    Args:
        model_params: the section `model` of params.yaml.
    """
    if model_params.precision != "auto":
        return model_params.precision
    if device.type == "cpu":
        return "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if model_params.quantization == "nf4" else "fp32"


@contextlib.contextmanager
def report_out_of_memory(message: str) -> Iterator[None]:
    """Turn PyTorch's out-of-memory error in this block into a `UserError` with this message."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(message) from error
