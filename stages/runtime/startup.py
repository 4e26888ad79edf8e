"""What makes a stage start sooner."""

from collections.abc import Callable
from typing import Any


def import_bitsandbytes() -> None:
    """Import bitsandbytes without PyTorch's compiler.

    While bitsandbytes is imported, it wraps a few functions in `torch.compile`, which loads all of TorchInductor. The
    functions are for processors that have no bitsandbytes kernels and for its optimizers. No stage calls one of them,
    so they stay uncompiled.
    """
    import torch

    def leave_uncompiled(function: Callable | None = None, **options: object) -> Any:
        return function or leave_uncompiled  # used as `@torch.compile` and as `@torch.compile(...)`

    torch_compile = torch.compile
    torch.compile = leave_uncompiled
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = torch_compile
