"""The kernels of LoRA: its products of rank r, with dropout inside: no dropped copy of the input is ever written.

In all of them: x [tokens, in], a [n, R, in] (A of n modules that share x, in x's precision), u [tokens, n * R]. R is
LoRA's r filled up (`padded_rank`), rows of A beyond r are zero. Masks are those of
`dropout.DropoutMasks`, the places `site` to `site` + n - 1. No atomics: the same inputs give the same bytes.
"""

import torch
import triton
import triton.language as tl

from stages.kernels.activation import activation
from stages.kernels.dropout import drop_threshold, dropout_mask, dropout_scale
from stages.kernels.index_limits import check_index_range

PROGRAMS = 512  # about four for each multiprocessor of a large GPU


def padded_rank(r: int) -> int:
    """R: columns that the kernels give to LoRA's rank: one block of a power of two, or blocks of 64."""
    return max(16, triton.next_power_of_2(r)) if r <= 64 else triton.cdiv(r, 64) * 64


def down_project(
    x: torch.Tensor, a: torch.Tensor, p: float, seed: torch.Tensor, site: int, gelu: bool = False
) -> torch.Tensor:
    """[f | dropout_i(f) A_i'] for i = 1 to n, f = x or gelu(x): f with u beside it, [tokens, in + n * R].

    Args:
        x: rows of any stride, [tokens, in].
        p: share of the elements that dropout takes.
        gelu: in its form with tanh.
    """
    tokens, columns = x.shape
    n, ranks, _ = a.shape
    out = torch.empty((tokens, columns + n * ranks), dtype=x.dtype, device=x.device)
    check_index_range(tokens * x.stride(0), out.numel())
    block, high, wide = min(ranks, 64), 32, 64
    programs = triton.cdiv(tokens, high) * n * (ranks // block)
    splits = max(1, min(PROGRAMS // programs + 1, columns // (4 * wide)))
    width = triton.cdiv(triton.cdiv(columns, splits), wide) * wide
    splits = triton.cdiv(columns, width)
    # In fp32, which the sum over the splits wants; one split goes to its place at once.
    parts = torch.empty((splits, tokens, n * ranks), dtype=torch.float32, device=x.device) if splits > 1 else out
    _down_kernel[(triton.cdiv(tokens, high), n * (ranks // block), splits)](
        x, a, out, parts, seed, tokens, columns, x.stride(0), out.stride(0), n * ranks, width,
        drop_threshold(p), dropout_scale(p), site,
        GELU=gelu, RANKS=ranks, BLOCK=block, TOKENS=high, COLUMNS=wide, DROPS=p > 0, SPLIT=splits > 1,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _sum_kernel[(triton.cdiv(tokens * n * ranks, 1024),)](
            parts, out, tokens, columns, out.stride(0), n * ranks, splits, BLOCK=1024
        )
    return out


def write_a_grads(
    grads: torch.Tensor, offsets: torch.Tensor, r: int, du: torch.Tensor, x: torch.Tensor, p: float, seed: torch.Tensor,
    site: int, add: bool,
) -> None:  # fmt: skip
    """grads[offsets[i]:] = du_i' dropout_i(x), each [r, in]; or added to what is there.

    Args:
        grads: fp32, flat.
        offsets: int64 [n].
        du: [tokens, n * R], rows of any stride.
    """
    tokens, columns = x.shape
    ranks, n = du.shape[1] // len(offsets), len(offsets)
    check_index_range(tokens * x.stride(0), tokens * du.stride(0))
    block, high = min(ranks, 64), 64 if x.element_size() == 4 else 128  # in fp32 for the shared memory of smaller GPUs
    _a_grads_kernel[(triton.cdiv(columns, 32), n * (ranks // block))](
        du, x, grads, offsets, seed, tokens, columns, du.stride(0), x.stride(0), drop_threshold(p), dropout_scale(p),
        site, r,
        RANKS=ranks, BLOCK=block, TOKENS=high, COLUMNS=32, DROPS=p > 0, ADDS=add, num_warps=4, num_stages=3,
    )  # fmt: skip


def compute_input_grad(
    dfu: torch.Tensor, a: torch.Tensor, p: float, seed: torch.Tensor, site: int, gelu: bool = False,
    x: torch.Tensor | None = None, out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The gradient of x: df plus the sum of dropout_i(du_i A_i), times the slope of gelu where f = gelu(x).

    Args:
        dfu: [df | du], [tokens, in + n * R].
        x: what `down_project` took, where `gelu`.
        out: where to write, [tokens, in], rows of any stride; else a new tensor.
    """
    n, ranks, columns = a.shape
    tokens = len(dfu)
    if out is None:
        out = torch.empty((tokens, columns), dtype=dfu.dtype, device=dfu.device)
    x = out if x is None else x
    check_index_range(dfu.numel(), tokens * out.stride(0), tokens * x.stride(0))
    high, wide = 32, 64
    _input_grad_kernel[(triton.cdiv(tokens, high), triton.cdiv(columns, wide))](
        dfu, a, x, out, seed, tokens, columns, dfu.stride(0), x.stride(0), out.stride(0), drop_threshold(p),
        dropout_scale(p), site,
        GELU=gelu, MODULES=n, RANKS=ranks, BLOCK=min(ranks, 64), TOKENS=high, COLUMNS=wide,
        DROPS=p > 0, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["site", "limit"])
def _down_kernel(
    x, a, out, parts, seed, tokens, columns, x_stride, out_stride, parts_stride, width, limit, scale, site,
    GELU: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
    DROPS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = RANKS // BLOCK
    module = tl.program_id(1) // blocks
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    j = (tl.program_id(1) % blocks) * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(2) * width
    total = tl.zeros((TOKENS, BLOCK), dtype=tl.float32)
    for start in range(first, tl.minimum(first + width, columns), COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        there = (t < tokens)[:, None] & (k < columns)[None, :]
        value = tl.load(x + t[:, None] * x_stride + k[None, :], there, 0)
        if GELU:
            active, _ = activation(value.to(tl.float32), True)
            value = active.to(value.dtype)
        if tl.program_id(1) == 0:
            tl.store(out + t[:, None] * out_stride + k[None, :], value, there)
        if DROPS:
            value = tl.where(_keeps(t, start, columns, seed, site + module, limit, COLUMNS), value, 0.0)
        weight = tl.load(a + (module * RANKS + j)[:, None] * columns + k[None, :], (k < columns)[None, :], 0)
        total = tl.dot(value, tl.trans(weight), total, input_precision="ieee")
    if DROPS:
        total *= scale
    place = module * RANKS + j
    if SPLIT:
        target = parts + tl.program_id(2).to(tl.int64) * tokens * parts_stride + t[:, None] * parts_stride
        tl.store(target + place[None, :], total, (t < tokens)[:, None])
    else:
        tl.store(
            out + t[:, None] * out_stride + columns + place[None, :],
            total.to(out.dtype.element_ty),
            (t < tokens)[:, None],
        )


@triton.jit
def _keeps(t, first, columns, seed, site, limit, COLUMNS: tl.constexpr):
    """`keeps` of a tile: the tokens t, `COLUMNS` columns from `first` on, which is even."""
    pairs = first // 2 + tl.arange(0, COLUMNS // 2)
    return dropout_mask(t[:, None] * ((columns + 1) // 2) + pairs[None, :], seed, site, limit)


@triton.jit
def _sum_kernel(parts, out, tokens, columns, out_stride, width, splits, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < tokens * width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(splits):
        total += tl.load(parts + split * tokens * width + index, inside, 0)
    place = index // width * out_stride + columns + index % width
    tl.store(out + place, total.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["site", "limit"])
def _a_grads_kernel(
    du, x, grads, offsets, seed, tokens, columns, du_stride, x_stride, limit, scale, site, r,
    RANKS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DROPS: tl.constexpr,
    ADDS: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = RANKS // BLOCK
    module = tl.program_id(1) // blocks
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    j = (tl.program_id(1) % blocks) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    for start in range(0, tokens, TOKENS):
        t = start + tl.arange(0, TOKENS)
        value = tl.load(x + t[:, None] * x_stride + k[None, :], (t < tokens)[:, None] & (k < columns)[None, :], 0)
        if DROPS:
            kept = _keeps(t, tl.program_id(0) * COLUMNS, columns, seed, site + module, limit, COLUMNS)
            value = tl.where(kept, value, 0.0)
        grad = tl.load(du + t[:, None] * du_stride + (module * RANKS + j)[None, :], (t < tokens)[:, None], 0)
        total = tl.dot(tl.trans(grad), value, total, input_precision="ieee")
    if DROPS:
        total *= scale
    target = grads + tl.load(offsets + module) + j[:, None] * columns + k[None, :]
    there = (j < r)[:, None] & (k < columns)[None, :]
    if ADDS:
        total += tl.load(target, there, 0)
    tl.store(target, total, there)


@triton.jit(do_not_specialize=["site", "limit"])
def _input_grad_kernel(
    dfu, a, x, out, seed, tokens, columns, stride, x_stride, out_stride, limit, scale, site,
    GELU: tl.constexpr, MODULES: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = (t < tokens)[:, None] & (k < columns)[None, :]
    total = tl.load(dfu + t[:, None] * stride + k[None, :], there, 0).to(tl.float32)
    for module in tl.static_range(MODULES):
        grown = tl.zeros((TOKENS, COLUMNS), dtype=tl.float32)
        for block in range(0, RANKS, BLOCK):
            j = module * RANKS + block + tl.arange(0, BLOCK)
            grad = tl.load(dfu + t[:, None] * stride + columns + j[None, :], (t < tokens)[:, None], 0)
            weight = tl.load(a + j[:, None] * columns + k[None, :], (k < columns)[None, :], 0)
            grown = tl.dot(grad, weight, grown, input_precision="ieee")
        if DROPS:
            kept = _keeps(t, tl.program_id(1) * COLUMNS, columns, seed, site + module, limit, COLUMNS)
            grown = tl.where(kept, grown * scale, 0.0)
        total += grown
    if GELU:
        _, slope = activation(tl.load(x + t[:, None] * x_stride + k[None, :], there, 0).to(tl.float32), True)
        total *= slope
    tl.store(out + t[:, None] * out_stride + k[None, :], total.to(out.dtype.element_ty), there)
