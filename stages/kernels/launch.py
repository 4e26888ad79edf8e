"""How many blocks a kernel is launched with."""

import triton

from stages.runtime.errors import UserError


def grid(n: int, elements: int, block: int) -> tuple[int]:
    """Number of programs that a kernel is launched with, `block` of n elements each.

    Args:
        elements: the largest number that the kernel counts to; its indices have 32 bits.

    Raises:
        UserError: where they do not fit.
    """
    if elements >= 2**31:
        raise UserError("a batch is too large for 32-bit indices: train.batch_size or eval.batch_size must be smaller")
    return (triton.cdiv(n, block),)
