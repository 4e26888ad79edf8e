"""RMS norms and layer norms with frozen weights, each in one kernel with the additions around it.

Liger Kernel 0.8.5 and PyTorch have no norm before an addition (Gemma's), and no norm of heads inside a projected
tensor. Liger's kernels fail in Triton's interpreter, and importing one of them imports 1,481 modules.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import triton
import triton.language as tl

from stages.kernels.index_limits import check_index_range

# What each norm class of transformers or PyTorch adds to its weight.
OFFSETS = (
    dict.fromkeys(("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"), 0.0)
    | dict.fromkeys(("GemmaRMSNorm", "Gemma3RMSNorm"), 1.0)
    | {"LayerNorm": 0.0}
)
MIN_TILE = 1024  # a program computes at least this many elements, in whole rows


class Norm(NamedTuple):
    """x / sqrt(mean(x²) + eps) · (weight + offset), computed in fp32 and rounded once (Zhang and Sennrich 2019).

    With a bias it is a layer norm (Ba et al. 2016): x - mean(x) takes x's place, and the bias is added.

    Attributes:
        weight: [columns].
        offset: a value of `OFFSETS`.
        bias: [columns], of a layer norm; None: an RMS norm.
    """

    weight: torch.Tensor
    eps: float
    offset: float
    bias: torch.Tensor | None = None

    @classmethod
    def from_module(cls, module: Any) -> Self:
        """The norm that a module computes; module: of a class in `OFFSETS`."""
        offset = OFFSETS[type(module).__name__]
        if isinstance(module, torch.nn.LayerNorm):
            bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
            return cls(module.weight, module.eps, offset, bias)
        return cls(module.weight, module.eps if offset else module.variance_epsilon, offset)


_NO_NORM = (None, 0.0, 0.0, None)


def add_norm(
    x: torch.Tensor, y: torch.Tensor | None = None, *, norm: Norm, norm_y: Norm | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm(total), total) for total = x + norm_y(y).

    Use the returned `total` from here on, even where it equals x: the kernel of the backward then adds its gradient to
    the norm's.

    Args:
        x: [..., columns].
        y: of x's shape; None: nothing is added.
        norm_y: an RMS norm; None: y is added as it is.

    Raises:
        RuntimeError: in the backward, where a norm's weight or bias is not frozen.
    """
    return _AddNorm.apply(x, y, *(norm_y or _NO_NORM)[:3], *norm)


def add_normed(x: torch.Tensor, y: torch.Tensor, norm_y: Norm) -> torch.Tensor:
    """x + norm_y(y); shapes and errors are those of `add_norm`."""
    return _AddNorm.apply(x, y, *norm_y[:3], *_NO_NORM)[1]


def norm_heads(projected: torch.Tensor, q_norm: Norm, k_norm: Norm, heads: int, kv_heads: int) -> torch.Tensor:
    """Norm each head of the queries and keys in a projected tensor; the values stay as they are.

    Args:
        projected: [..., (heads + 2 * kv_heads) * head_dim]: queries, keys, values.
        q_norm, k_norm: RMS norms, weights [head_dim]; both have the same eps and offset.

    Raises:
        RuntimeError: in the backward, where a norm's weight is not frozen.
    """
    if q_norm[1:3] != k_norm[1:3]:
        raise ValueError("the norms of queries and keys differ in eps or offset; the fused kernel needs them equal")
    return _NormHeads.apply(projected, *q_norm[:3], k_norm.weight, heads, kv_heads)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: torch.Tensor, y: torch.Tensor | None, weight_y: torch.Tensor | None, eps_y: float, offset_y: float,
        weight: torch.Tensor | None, eps: float, offset: float, bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:  # fmt: skip
        x = x.contiguous()
        y = None if y is None else y.contiguous()
        total = x if y is None else torch.empty_like(x)
        normed = None if weight is None else torch.empty_like(x)
        ctx.save_for_backward(total, y, weight_y, weight)
        ctx.scalars, ctx.centers = (eps_y, offset_y, eps, offset), bias is not None
        _launch(_add_norm_kernel, x.shape, x, y, weight_y, weight, bias, total, normed, *ctx.scalars)
        return normed, total

    @staticmethod
    def backward(ctx, d_normed: torch.Tensor | None, d_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        _check_frozen(ctx, 2, 5, 8)
        total, y, weight_y, weight = ctx.saved_tensors
        d_total = d_total.contiguous()
        d_normed = None if d_normed is None else d_normed.contiguous()  # None where there is no norm
        dx = d_total if weight is None else torch.empty_like(total)
        dy = dx if weight_y is None else torch.empty_like(total)
        _launch(
            _add_norm_backward_kernel, total.shape, d_total, d_normed, total, y, weight_y, weight, dx, dy, *ctx.scalars,
            CENTERS=ctx.centers,
        )  # fmt: skip
        return dx, None if y is None else dy, *[None] * 7


class _NormHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, projected: torch.Tensor, q_weight: torch.Tensor, eps: float, offset: float, k_weight: torch.Tensor,
        heads: int, kv_heads: int,
    ) -> torch.Tensor:  # fmt: skip
        projected = projected.contiguous()
        ctx.save_for_backward(projected, q_weight, k_weight)
        ctx.scalars = heads, heads + kv_heads, heads + 2 * kv_heads, eps, offset
        return _launch_norm_heads(projected, None, q_weight, k_weight, ctx.scalars)

    @staticmethod
    def backward(ctx, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        _check_frozen(ctx, 1, 4)
        projected, q_weight, k_weight = ctx.saved_tensors
        dx = _launch_norm_heads(projected, d_out.contiguous(), q_weight, k_weight, ctx.scalars)
        return dx, None, None, None, None, None, None


def _launch_norm_heads(
    projected: torch.Tensor, d_out: torch.Tensor | None, q_weight: torch.Tensor, k_weight: torch.Tensor,
    scalars: tuple[float, ...],
) -> torch.Tensor:  # fmt: skip
    """The normed tensor, or with d_out the gradient of `projected`."""
    out = torch.empty_like(projected)
    shape = (projected.numel() // len(q_weight), len(q_weight))
    _launch(_norm_heads_kernel, shape, projected, d_out, q_weight, k_weight, out, *scalars)
    return out


def _check_frozen(ctx: Any, *weight_inputs: int) -> None:
    """Raise if a weight or bias needs a gradient, which the kernels do not compute: it would silently get none."""
    if any(ctx.needs_input_grad[i] for i in weight_inputs):
        raise RuntimeError("a norm's weight or bias is not frozen; the fused norms compute no gradient of them")


def _launch(
    kernel: triton.JITFunction, shape: Sequence[int], *args: torch.Tensor | float | None, **options: bool
) -> None:
    """Launch a kernel over all rows of shape[-1] columns."""
    columns = shape[-1]
    block_n = triton.next_power_of_2(columns)
    rows, block_m = math.prod(shape[:-1]), max(1, MIN_TILE // block_n)
    warps = min(16, max(4, block_n // 512))
    check_index_range(rows * columns)
    programs = triton.cdiv(rows, block_m)
    kernel[(programs,)](*args, rows, columns, BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps, **options)


@triton.jit
def _add_norm_kernel(
    x_ptr, y_ptr, weight_y_ptr, weight_ptr, bias_ptr, total_ptr, normed_ptr, eps_y, offset_y, eps, offset, rows,
    columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m, offs_n = _tile_offsets(BLOCK_M, BLOCK_N)
    mask, offsets = (offs_m < rows) & (offs_n < columns), offs_m * columns + offs_n
    total = tl.load(x_ptr + offsets, mask, 0).to(tl.float32)
    if y_ptr is not None:
        y = tl.load(y_ptr + offsets, mask, 0).to(tl.float32)
        if weight_y_ptr is not None:
            y = y * _inverse_rms(y, columns, eps_y) * _load_scale(weight_y_ptr, offs_n, columns, offset_y)
        rounded = (total + y).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + offsets, rounded, mask)
        total = rounded.to(tl.float32)  # the backward reads the rounded total, so the norm is computed from it
    if weight_ptr is not None:
        if bias_ptr is not None:
            total = _center(total, offs_n, columns)
        normed = total * _inverse_rms(total, columns, eps) * _load_scale(weight_ptr, offs_n, columns, offset)
        if bias_ptr is not None:
            normed += _load_scale(bias_ptr, offs_n, columns, 0.0)
        tl.store(normed_ptr + offsets, normed.to(normed_ptr.dtype.element_ty), mask)


@triton.jit
def _add_norm_backward_kernel(
    d_total_ptr, d_normed_ptr, total_ptr, y_ptr, weight_y_ptr, weight_ptr, dx_ptr, dy_ptr, eps_y, offset_y, eps, offset,
    rows, columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CENTERS: tl.constexpr,
):  # fmt: skip
    offs_m, offs_n = _tile_offsets(BLOCK_M, BLOCK_N)
    mask, offsets = (offs_m < rows) & (offs_n < columns), offs_m * columns + offs_n
    grad = tl.load(d_total_ptr + offsets, mask, 0).to(tl.float32)
    if weight_ptr is not None:
        total = tl.load(total_ptr + offsets, mask, 0).to(tl.float32)
        d_normed = tl.load(d_normed_ptr + offsets, mask, 0).to(tl.float32)
        if CENTERS:
            total = _center(total, offs_n, columns)
        d_norm = _norm_grad(d_normed * _load_scale(weight_ptr, offs_n, columns, offset), total, columns, eps)
        grad += _center(d_norm, offs_n, columns) if CENTERS else d_norm
        tl.store(dx_ptr + offsets, grad.to(dx_ptr.dtype.element_ty), mask)
    if weight_y_ptr is not None:
        y = tl.load(y_ptr + offsets, mask, 0).to(tl.float32)
        grad = _norm_grad(grad * _load_scale(weight_y_ptr, offs_n, columns, offset_y), y, columns, eps_y)
        tl.store(dy_ptr + offsets, grad.to(dy_ptr.dtype.element_ty), mask)


@triton.jit
def _norm_heads_kernel(
    x_ptr, d_out_ptr, q_weight_ptr, k_weight_ptr, out_ptr, heads, normed_heads, all_heads, eps, offset, rows, columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The norm of each head, or with d_out_ptr the gradient of the input. A row is one head of one token."""
    offs_m, offs_n = _tile_offsets(BLOCK_M, BLOCK_N)
    mask, offsets = (offs_m < rows) & (offs_n < columns), offs_m * columns + offs_n
    head = offs_m % all_heads
    q_scale = _load_scale(q_weight_ptr, offs_n, columns, offset)
    k_scale = _load_scale(k_weight_ptr, offs_n, columns, offset)
    scale = tl.where(head < heads, q_scale, k_scale)
    x = tl.load(x_ptr + offsets, mask, 0).to(tl.float32)
    if d_out_ptr is None:
        unnormed = x
        normed = x * _inverse_rms(x, columns, eps) * scale
    else:
        unnormed = tl.load(d_out_ptr + offsets, mask, 0).to(tl.float32)
        normed = _norm_grad(unnormed * scale, x, columns, eps)
    tl.store(out_ptr + offsets, tl.where(head < normed_heads, normed, unnormed).to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _tile_offsets(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def _load_scale(weight_ptr, offs_n, columns, offset):
    return tl.load(weight_ptr + offs_n, offs_n < columns, 0).to(tl.float32) + offset


@triton.jit
def _center(x, offs_n, columns):
    """x - mean(x) of each row; zeros beyond the columns, as in x."""
    return tl.where(offs_n < columns, x - tl.sum(x, axis=1, keep_dims=True) / columns, 0.0)


@triton.jit
def _inverse_rms(x, columns, eps):
    return tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / columns + eps)


@triton.jit
def _norm_grad(dy, x, columns, eps):
    """The gradient of x from that of y = x · _inverse_rms(x)."""
    inverse = _inverse_rms(x, columns, eps)
    return inverse * (dy - x * (inverse * inverse * tl.sum(dy * x, axis=1, keep_dims=True) / columns))
