"""The gate of an MLP, activation(gate) · up, in one kernel (Shazeer 2020: SwiGLU, GEGLU).

Liger Kernel 0.8.5 and PyTorch take gate and up as two tensors. Here both are columns of one projected tensor. Splitting
it would cost a copy, and concatenating the two gradients another.
"""

import torch
import triton
import triton.language as tl

from stages.kernels.activation import activation
from stages.kernels.index_limits import check_index_range

BLOCK = 1024


class GatedActivation(torch.autograd.Function):
    """activation(gate) · up, computed in fp32 and rounded once.

    The activation is SiLU or GELU's tanh form. Shapes: [..., 2 * width], gate then up, to [..., width].
    """

    @staticmethod
    def forward(ctx, gate_up: torch.Tensor, is_gelu: bool) -> torch.Tensor:
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        ctx.is_gelu = is_gelu
        width = gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], width)
        _launch(_forward_kernel, gate_up, out, width=width, is_gelu=is_gelu)
        return out

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        grad = torch.empty_like(gate_up)
        _launch(_backward_kernel, gate_up, dy.contiguous(), grad, width=dy.shape[-1], is_gelu=ctx.is_gelu)
        return grad, None


def _launch(
    kernel: triton.JITFunction, gate_up: torch.Tensor, *tensors: torch.Tensor, width: int, is_gelu: bool
) -> None:
    n = gate_up.numel() // 2
    check_index_range(2 * n)
    kernel[(triton.cdiv(n, BLOCK),)](gate_up, *tensors, width, n, GELU=is_gelu, BLOCK=BLOCK)


@triton.jit
def _forward_kernel(gate_up_ptr, out_ptr, width, n, GELU: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    offs_gate = offsets + offsets // width * width
    gate = tl.load(gate_up_ptr + offs_gate, mask, 0).to(tl.float32)
    up = tl.load(gate_up_ptr + offs_gate + width, mask, 0)
    active, _ = activation(gate, GELU)
    tl.store(out_ptr + offsets, (active * up.to(tl.float32)).to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _backward_kernel(gate_up_ptr, dy_ptr, grad_ptr, width, n, GELU: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    offs_gate = offsets + offsets // width * width
    gate = tl.load(gate_up_ptr + offs_gate, mask, 0).to(tl.float32)
    up = tl.load(gate_up_ptr + offs_gate + width, mask, 0)
    dy = tl.load(dy_ptr + offsets, mask, 0).to(tl.float32)
    active, slope = activation(gate, GELU)
    dtype = grad_ptr.dtype.element_ty
    tl.store(grad_ptr + offs_gate, (dy * up.to(tl.float32) * slope).to(dtype), mask)
    tl.store(grad_ptr + offs_gate + width, (dy * active).to(dtype), mask)
