"""How many blocks a kernel is launched with."""

import triton

from stages.runtime.errors import UserError


def grid(n, elements, block):
    """Blocks for n of `elements` that a kernel counts by 32-bit indices."""
    if elements >= 2**31:
        raise UserError("a batch is too large for 32-bit indices: train.batch_size or eval.batch_size must be smaller")
    return (triton.cdiv(n, block),)
