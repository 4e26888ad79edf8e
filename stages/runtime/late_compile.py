"""bitsandbytes imported without PyTorch's compiler; the rooms that use it import this before all else.

While it is imported, bitsandbytes wraps a few functions in `torch.compile`, which loads all of TorchInductor and takes
a sixth of the seconds in which a stage starts. The functions are those of processors for which it has no kernels, and
of its optimizers; no stage calls one. Here `torch.compile` does what it always does, but at a function's first call.
"""

import functools
from collections.abc import Callable

import torch


def compile_late(function: Callable | None = None, **options: object) -> Callable:
    """`torch.compile`, as a function or as a decorator, that compiles when it is called for the first time."""
    if function is None:
        return functools.partial(compile_late, **options)

    @functools.cache
    def compiled():
        return _compile(function, **options)

    @functools.wraps(function)
    def call(*arguments, **named):
        return compiled()(*arguments, **named)

    return call


_compile = torch.compile
torch.compile = compile_late
try:
    import bitsandbytes  # noqa: F401
finally:
    torch.compile = _compile
