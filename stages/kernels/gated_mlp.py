"""The gate of an MLP, activation(gate) · up, in one kernel.

Liger Kernel 0.8.5 and PyTorch take gate and up as two tensors: a projected tensor would be copied apart, and its
gradient put together again.
"""

import torch
import triton
import triton.language as tl

from stages.kernels.activation import activation
from stages.kernels.index_limits import check_index_range

BLOCK = 1024


class GatedActivation(torch.autograd.Function):
    """activation(gate) · up, computed in fp32 and rounded once.

    Shapes: [..., 2 * width], gate and up side by side, to [..., width]. The activation is SiLU, or GELU in its form
    with tanh (Shazeer 2020: SwiGLU, GEGLU).
    """

    @staticmethod
    def forward(ctx, gate_up: torch.Tensor, is_gelu: bool) -> torch.Tensor:
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        ctx.is_gelu = is_gelu
        width = gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], width)
        _launch(_gated_kernel, gate_up, out, width, is_gelu)
        return out

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        grad = torch.empty_like(gate_up)
        _launch(_gated_backward_kernel, gate_up, dy.contiguous(), grad, dy.shape[-1], ctx.is_gelu)
        return grad, None


def _launch(kernel, gate_up, *args):
    n = gate_up.numel() // 2
    check_index_range(2 * n)
    kernel[(triton.cdiv(n, BLOCK),)](gate_up, *args[:-1], n, GELU=args[-1], BLOCK=BLOCK)


@triton.jit
def _gated_kernel(gate_up, out, width, n, GELU: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    at = index + index // width * width
    gate, up = tl.load(gate_up + at, inside, 0).to(tl.float32), tl.load(gate_up + at + width, inside, 0)
    active, _ = activation(gate, GELU)
    tl.store(out + index, (active * up.to(tl.float32)).to(out.dtype.element_ty), inside)


@triton.jit
def _gated_backward_kernel(gate_up, dy, grad, width, n, GELU: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    at = index + index // width * width
    gate, up = tl.load(gate_up + at, inside, 0).to(tl.float32), tl.load(gate_up + at + width, inside, 0)
    d = tl.load(dy + index, inside, 0).to(tl.float32)
    active, slope = activation(gate, GELU)
    tl.store(grad + at, (d * up.to(tl.float32) * slope).to(grad.dtype.element_ty), inside)
    tl.store(grad + at + width, (d * active).to(grad.dtype.element_ty), inside)
