"""Rotary position embedding in one kernel instead of a dozen."""

import torch
import triton
import triton.language as tl

from stages.kernels.launch import grid


class Rotary(torch.autograd.Function):
    """Rotary position embedding of the first dimensions of each head (Su et al. 2021).

    As in transformers, dimension i turns with i + rotated / 2. Shapes: x [batch, length, heads, head_dim]; cos, sin
    [1, length, rotated]; the rest of head_dim stays as it is.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(x.contiguous(), cos, sin, sign=1.0)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return rotated(dy.contiguous(), *ctx.saved_tensors, sign=-1.0), None, None  # the transposed rotation


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    """x with the first cos.shape[-1] dimensions of each head rotated; `sign` -1 rotates back."""
    out = torch.empty_like(x)
    _, length, heads, head_dim = x.shape
    _rotary_kernel[grid(x.numel(), x.numel(), 1024)](
        x, out, cos, sin, sign, x.numel(), length, heads, head_dim, cos.shape[-1], BLOCK=1024
    )
    return out


@triton.jit
def _rotary_kernel(x, out, cos, sin, sign, n, length, heads, head_dim, rotated, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    dim = index % head_dim
    turns = inside & (dim < rotated)
    angle = index // (heads * head_dim) % length * rotated + dim
    first = dim < rotated // 2
    partner = index + tl.where(first, rotated // 2, -(rotated // 2))
    value = tl.load(x + index, inside).to(tl.float32)
    other = tl.load(x + partner, turns, 0).to(tl.float32) * tl.where(first, -sign, sign)
    turned = value * tl.load(cos + angle, turns, 0).to(tl.float32) + other * tl.load(sin + angle, turns, 0).to(
        tl.float32
    )
    tl.store(out + index, tl.where(turns, turned, value).to(out.dtype.element_ty), inside)
