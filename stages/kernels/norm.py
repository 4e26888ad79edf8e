"""RMS norms in one kernel with the additions around them; their weights are frozen.

Liger Kernel 0.8.5 and PyTorch have no norm before an addition (Gemma's) and none of heads inside a projected tensor;
Liger's don't run in Triton's interpreter either, and importing one of them imports 1,481 modules.
"""

import math
from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl

from stages.kernels.index_limits import check_index_range

# What is added to the weight in the norms of transformers' classes.
OFFSETS = dict.fromkeys(("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"), 0.0) | dict.fromkeys(
    ("GemmaRMSNorm", "Gemma3RMSNorm"), 1.0
)
TILE = 1024  # elements that a program takes at least, as far as whole rows allow


class RMSNorm(NamedTuple):
    """x / sqrt(mean(x²) + eps) · (weight + offset), computed in fp32 and rounded once (Zhang and Sennrich 2019).

    Attributes:
        weight: [columns].
        offset: of `OFFSETS`.
    """

    weight: torch.Tensor
    eps: float
    offset: float

    @classmethod
    def from_module(cls, module: torch.nn.Module) -> Self:
        """A norm of transformers, of a class in `OFFSETS`."""
        offset = OFFSETS[type(module).__name__]
        return cls(module.weight, module.eps if offset else module.variance_epsilon, offset)


_NONE = (None, 0.0, 0.0)


def add_norm(
    x: torch.Tensor, y: torch.Tensor | None = None, norm_y: RMSNorm | None = None, norm: RMSNorm | None = None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(norm(total), total) for total = x + norm_y(y); what is None is left out.

    Go on with the `total` that it returns, even where it is x: its gradients, from there and from the norm, are then
    added inside the backward's one kernel.

    Args:
        x, y: [..., columns].

    Raises:
        RuntimeError: in the backward, where a norm's weight is not frozen.
    """
    return _AddNorm.apply(x, y, *(norm_y or _NONE), *(norm or _NONE))


def norm_heads(projected: torch.Tensor, q_norm: RMSNorm, k_norm: RMSNorm, heads: int, kv_heads: int) -> torch.Tensor:
    """A projected tensor with each head of its queries and keys normed; the values stay as they are.

    Args:
        projected: [..., (heads + 2 * kv_heads) * head_dim], queries, keys and values side by side.
        q_norm, k_norm: weights [head_dim]; eps and offset are the same in both.

    Raises:
        RuntimeError: in the backward, where a norm's weight is not frozen.
    """
    if q_norm[1:] != k_norm[1:]:
        raise ValueError("norms of queries and keys with a different eps or offset")
    return _NormHeads.apply(projected, *q_norm, k_norm.weight, heads, kv_heads)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, weight_y, eps_y, offset_y, weight, eps, offset):
        x, y = x.contiguous(), None if y is None else y.contiguous()
        total = x if y is None else torch.empty_like(x)
        normed = None if weight is None else torch.empty_like(x)
        ctx.save_for_backward(total, y, weight_y, weight)
        ctx.scalars = eps_y, offset_y, eps, offset
        _launch(_add_norm_kernel, x.shape, x, y, weight_y, weight, total, normed, *ctx.scalars)
        return normed, total

    @staticmethod
    def backward(ctx, d_normed, d_total):
        _check_frozen(ctx, 2, 5)
        total, y, weight_y, weight = ctx.saved_tensors
        d_total, d_normed = d_total.contiguous(), None if weight is None else d_normed.contiguous()
        dx = d_total if weight is None else torch.empty_like(total)
        dy = dx if weight_y is None else torch.empty_like(total)
        _launch(
            _add_norm_backward_kernel, total.shape, d_total, d_normed, total, y, weight_y, weight, dx, dy, *ctx.scalars
        )
        return dx, None if y is None else dy, None, None, None, None, None, None


class _NormHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, projected, q_weight, eps, offset, k_weight, heads, kv_heads):
        projected = projected.contiguous()
        ctx.save_for_backward(projected, q_weight, k_weight)
        ctx.scalars = heads, heads + kv_heads, heads + 2 * kv_heads, eps, offset
        return _NormHeads._computed(projected, None, q_weight, k_weight, ctx.scalars)

    @staticmethod
    def backward(ctx, d_out):
        _check_frozen(ctx, 1, 4)
        projected, q_weight, k_weight = ctx.saved_tensors
        dx = _NormHeads._computed(projected, d_out.contiguous(), q_weight, k_weight, ctx.scalars)
        return dx, None, None, None, None, None, None

    @staticmethod
    def _computed(projected, d_out, q_weight, k_weight, scalars):
        out = torch.empty_like(projected)
        shape = (projected.numel() // len(q_weight), len(q_weight))
        _launch(_norm_heads_kernel, shape, projected, d_out, q_weight, k_weight, out, *scalars)
        return out


def _check_frozen(ctx, *places):
    if any(ctx.needs_input_grad[place] for place in places):  # its gradient would stay 0 without a word
        raise RuntimeError("the fused norms give no gradient of their weights, and a norm's weight is not frozen")


def _launch(kernel, shape, *args):
    """A kernel over rows of shape[-1] columns."""
    columns = shape[-1]
    block = triton.next_power_of_2(columns)
    rows, together = math.prod(shape[:-1]), max(1, TILE // block)
    warps = min(16, max(4, block // 512))
    check_index_range(rows * columns)
    programs = triton.cdiv(rows, together)
    kernel[(programs,)](*args, rows, columns, ROWS=together, BLOCK=block, num_warps=warps)


@triton.jit
def _add_norm_kernel(
    x, y, weight_y, weight, total, normed, eps_y, offset_y, eps, offset, rows, columns,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = _tile(ROWS, BLOCK)
    inside, at = (row < rows) & (column < columns), row * columns + column
    value = tl.load(x + at, inside, 0).to(tl.float32)
    if y is not None:
        added = tl.load(y + at, inside, 0).to(tl.float32)
        if weight_y is not None:
            added = added * _inverse_rms(added, columns, eps_y) * _scale(weight_y, column, columns, offset_y)
        rounded = (value + added).to(total.dtype.element_ty)
        tl.store(total + at, rounded, inside)
        value = rounded.to(tl.float32)  # the backward reads it so
    if weight is not None:
        out = value * _inverse_rms(value, columns, eps) * _scale(weight, column, columns, offset)
        tl.store(normed + at, out.to(normed.dtype.element_ty), inside)


@triton.jit
def _add_norm_backward_kernel(
    d_total, d_normed, total, y, weight_y, weight, dx, dy, eps_y, offset_y, eps, offset, rows, columns,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = _tile(ROWS, BLOCK)
    inside, at = (row < rows) & (column < columns), row * columns + column
    grad = tl.load(d_total + at, inside, 0).to(tl.float32)
    if weight is not None:
        value = tl.load(total + at, inside, 0).to(tl.float32)
        scaled = tl.load(d_normed + at, inside, 0).to(tl.float32) * _scale(weight, column, columns, offset)
        grad += _norm_grad(scaled, value, columns, eps)
        tl.store(dx + at, grad.to(dx.dtype.element_ty), inside)
    if weight_y is not None:
        value = tl.load(y + at, inside, 0).to(tl.float32)
        grad = _norm_grad(grad * _scale(weight_y, column, columns, offset_y), value, columns, eps_y)
        tl.store(dy + at, grad.to(dy.dtype.element_ty), inside)


@triton.jit
def _norm_heads_kernel(
    x, d_out, q_weight, k_weight, out, heads, normed_heads, all_heads, eps, offset, rows, columns,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The norm of each head, or where d_out is given the input's gradient."""
    row, column = _tile(ROWS, BLOCK)
    inside, at = (row < rows) & (column < columns), row * columns + column
    head = row % all_heads
    q_scale, k_scale = _scale(q_weight, column, columns, offset), _scale(k_weight, column, columns, offset)
    scale = tl.where(head < heads, q_scale, k_scale)
    value = tl.load(x + at, inside, 0).to(tl.float32)
    if d_out is None:
        plain = value
        normed = value * _inverse_rms(value, columns, eps) * scale
    else:
        plain = tl.load(d_out + at, inside, 0).to(tl.float32)
        normed = _norm_grad(plain * scale, value, columns, eps)
    tl.store(out + at, tl.where(head < normed_heads, normed, plain).to(out.dtype.element_ty), inside)


@triton.jit
def _tile(ROWS: tl.constexpr, BLOCK: tl.constexpr):
    return tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]


@triton.jit
def _scale(weight, column, columns, offset):
    return tl.load(weight + column, column < columns, 0).to(tl.float32) + offset


@triton.jit
def _inverse_rms(x, columns, eps):
    return tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / columns + eps)


@triton.jit
def _norm_grad(scaled, x, columns, eps):
    """The gradient of x, `scaled` being that of x · _inverse_rms(x)."""
    inverse = _inverse_rms(x, columns, eps)
    return inverse * (scaled - x * (inverse * inverse * tl.sum(scaled * x, axis=1, keep_dims=True) / columns))
