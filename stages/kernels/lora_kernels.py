"""LoRA's kernels: the down-projection, A's gradient and the input's gradient, each with dropout inside.

The kernels never write a copy of an input after dropout. In all kernels:

- x is [tokens, in], a is [n, R, in]: the A matrices of n modules that share the input x, in x's precision.
- u is [tokens, n * R], the down-projections of all modules. R is LoRA's rank r, padded by `padded_rank`; rows of A
  from r on are zero.
- The masks are those of `dropout.DropoutMasks`, of the sites `site` to `site` + n - 1.
- Sums have a fixed order: the same inputs give the same bytes. The only atomic operation counts programs.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from stages.kernels.activation import activation
from stages.kernels.dropout import drop_threshold, dropout_mask, dropout_scale, load_positions
from stages.kernels.index_limits import check_index_range

MANY_TOKENS = 2048


class Tiles(NamedTuple):
    """A program's block of tokens (m) and of the input's columns (k), and Triton's options.

    Attributes:
        programs: a sum is split until there are so many programs.
    """

    block_m: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    programs: int = 512  # about four for each multiprocessor of a large GPU


# The best of 18 blocks and options each, and of numbers of splits, on an H200 with phi-2's qkv + fc1, dense and fc2.
# write_a_grads: 128, 103, 134 -> 86, 37, 93 us at 8,448 tokens with the tiles for many (limit of the memory: 10, 10,
# 41). down_project of fc2: 90 -> 82 us at 4,608 tokens. Otherwise no tiles were better for all three.
TILES = {"down_project": Tiles(32, 64), "a_grads": Tiles(128, 32), "input_grad": Tiles(32, 64)}
MANY_TOKENS_TILES = TILES | {"down_project": Tiles(32, 64, programs=1024), "a_grads": Tiles(64, 64, programs=1024)}


def choose_tiles(kernel: str, x: torch.Tensor) -> Tiles:
    """The tiles of a kernel for x [tokens, columns]."""
    tiles = (MANY_TOKENS_TILES if len(x) >= MANY_TOKENS else TILES)[kernel]
    if x.element_size() == 4:  # 128 tokens, or 64 columns, exceed the shared memory of smaller GPUs
        return tiles._replace(block_m=min(tiles.block_m, 64), block_k=TILES[kernel].block_k)
    return tiles


def choose_splits(size: int, block: int, programs: int, tiles: Tiles) -> tuple[int, int]:
    """Split `size` elements if there are fewer than `tiles.programs` programs -> splits, elements of each.

    A split has whole blocks, at least four.
    """
    splits = max(1, min(tiles.programs // programs + 1, size // (4 * block)))
    split_size = triton.cdiv(triton.cdiv(size, splits), block) * block
    return triton.cdiv(size, split_size), split_size


def padded_rank(r: int) -> int:
    """LoRA's rank as the kernels compute it: one block of a power of two, at least 16, or blocks of 64."""
    return max(16, triton.next_power_of_2(r)) if r <= 64 else triton.cdiv(r, 64) * 64


def down_project(
    x: torch.Tensor, a: torch.Tensor, p: float, seed: torch.Tensor, site: int, positions: torch.Tensor | None = None,
    gelu: bool = False,
) -> torch.Tensor:  # fmt: skip
    """[f | u], [tokens, in + n * R], where f is x or gelu(x) and u_i = dropout_i(f) A_i'.

    Args:
        x: of any strides.
        p, seed, site, positions: of `dropout.Dropout`.
        gelu: apply GELU's tanh form.
    """
    tokens, in_features = x.shape
    n, lora_rank, _ = a.shape
    width = n * lora_rank
    if p == 0 and padded_rank(width) == width:  # without masks the modules are one, which reads x once
        n, lora_rank = 1, width
    out = torch.empty((tokens, in_features + width), dtype=x.dtype, device=x.device)
    check_index_range(tokens * x.stride(0), out.numel())
    x = x if x.stride(1) == 1 else x.contiguous()  # Jamba's mixer projects a transposed tensor
    block_r = min(lora_rank, 64)
    tiles = choose_tiles("down_project", x)
    # Programs with the same x have adjacent numbers, so they run at the same time, and one of them reads x from memory.
    grid = n * (lora_rank // block_r), triton.cdiv(tokens, tiles.block_m)
    splits, split_size = choose_splits(in_features, tiles.block_k, grid[0] * grid[1], tiles)
    # Partial sums are fp32, so that their sum is rounded once. A single split writes u itself.
    parts = torch.empty((splits, tokens, width), dtype=torch.float32, device=x.device) if splits > 1 else out
    _down_project_kernel[(*grid, splits)](
        x, a, out, parts, _make_counters(x.device, tiles.programs), seed, positions, tokens, in_features, x.stride(0),
        out.stride(0), width, split_size, drop_threshold(p), dropout_scale(p), site, GELU=gelu, LORA_RANK=lora_rank,
        BLOCK_R=block_r, BLOCK_M=tiles.block_m, BLOCK_K=tiles.block_k, DROPOUT=p > 0, SPLIT=splits > 1,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return out


@functools.cache
def _make_counters(device: torch.device, count: int) -> torch.Tensor:
    """Zeros, which each kernel leaves at zero, so `down_project` must not run on two streams at the same time.

    Splits are made only for at most `Tiles.programs` blocks of u.
    """
    return torch.zeros(count, dtype=torch.int32, device=device)


def write_a_grads(
    grads: torch.Tensor, offsets: torch.Tensor, r: int, du: torch.Tensor, x: torch.Tensor, p: float, seed: torch.Tensor,
    site: int, positions: torch.Tensor | None, add: bool,
) -> None:  # fmt: skip
    """Write A_i's gradient du_i' dropout_i(x), [r, in], to grads[offsets[i]:], or add it to the values there.

    Args:
        grads: fp32, flat.
        offsets: int64 [n].
        du: [tokens, n * R], rows may have any stride.
    """
    tokens, in_features = x.shape
    lora_rank, n = du.shape[1] // len(offsets), len(offsets)
    check_index_range(tokens * x.stride(0), tokens * du.stride(0))
    block_r = min(lora_rank, 64)
    tiles = choose_tiles("a_grads", x)
    grid = n * (lora_rank // block_r), triton.cdiv(in_features, tiles.block_k)
    splits, split_size = choose_splits(tokens, tiles.block_m, grid[0] * grid[1], tiles)
    parts = grads  # a single split writes the gradient itself
    if splits > 1:
        parts = torch.empty((splits, n * lora_rank, in_features), dtype=torch.float32, device=x.device)
    _a_grads_kernel[(*grid, splits)](
        du, x, grads, parts, offsets, seed, positions, tokens, in_features, du.stride(0), x.stride(0), split_size,
        drop_threshold(p), dropout_scale(p), site, r, LORA_RANK=lora_rank, BLOCK_R=block_r, BLOCK_M=tiles.block_m,
        BLOCK_K=tiles.block_k, DROPOUT=p > 0, ADD=add, SPLIT=splits > 1, num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )  # fmt: skip
    if splits > 1:
        _sum_a_grads_kernel[(triton.cdiv(in_features, 1024), n * r)](
            parts, grads, offsets, in_features, splits, r, LORA_RANK=lora_rank, ADD=add, MODULES=n, BLOCK=1024
        )


def compute_input_grad(
    dfu: torch.Tensor, a: torch.Tensor, p: float, seed: torch.Tensor, site: int, positions: torch.Tensor | None = None,
    gelu: bool = False, x: torch.Tensor | None = None, out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The gradient of x: df plus the sum of dropout_i(du_i A_i), times GELU's derivative where f = gelu(x).

    Args:
        dfu: [df | du], [tokens, in + n * R].
        x: the input of `down_project`, needed with `gelu`.
        out: where to write the gradient, [tokens, in], rows of any stride; None: a new tensor.
    """
    n, lora_rank, in_features = a.shape
    tokens = len(dfu)
    if out is None:
        out = torch.empty((tokens, in_features), dtype=dfu.dtype, device=dfu.device)
    x = out if x is None else x
    check_index_range(dfu.numel(), tokens * out.stride(0), tokens * x.stride(0))
    block_r = min(lora_rank, 64)
    tiles = choose_tiles("input_grad", dfu)
    _input_grad_kernel[(triton.cdiv(tokens, tiles.block_m), triton.cdiv(in_features, tiles.block_k))](
        dfu, a, x, out, seed, positions, tokens, in_features, dfu.stride(0), x.stride(0), out.stride(0),
        drop_threshold(p), dropout_scale(p), site, GELU=gelu, MODULES=n, LORA_RANK=lora_rank, BLOCK_R=block_r,
        BLOCK_M=tiles.block_m, BLOCK_K=tiles.block_k, DROPOUT=p > 0, num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )  # fmt: skip
    return out


# In all kernels below: offs_m are tokens, offs_k columns of the input, offs_r columns of LoRA's rank.


@triton.jit(do_not_specialize=["site", "threshold"])
def _down_project_kernel(
    x_ptr, a_ptr, out_ptr, parts_ptr, counters_ptr, seed_ptr, positions_ptr, tokens, in_features, stride_x, stride_out,
    stride_parts, split_size, threshold, scale, site,
    GELU: tl.constexpr, LORA_RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    DROPOUT: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A block of u, over one split of the input's columns. Programs for u's first columns copy f too."""
    blocks: tl.constexpr = LORA_RANK // BLOCK_R
    module = tl.program_id(0) // blocks
    offs_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_r = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    positions = load_positions(positions_ptr, offs_m, offs_m < tokens)
    first = tl.program_id(2) * split_size
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for start in range(first, tl.minimum(first + split_size, in_features), BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        mask = (offs_m < tokens)[:, None] & (offs_k < in_features)[None, :]
        x = tl.load(x_ptr + offs_m[:, None] * stride_x + offs_k[None, :], mask, 0)
        if GELU:
            active, _ = activation(x.to(tl.float32), True)
            x = active.to(x.dtype)
        if tl.program_id(0) == 0:
            tl.store(out_ptr + offs_m[:, None] * stride_out + offs_k[None, :], x, mask)
        if DROPOUT:
            keep = dropout_mask(positions, start, in_features, seed_ptr, site + module, threshold, BLOCK_K)
            x = tl.where(keep, x, 0.0)
        a_ptrs = a_ptr + (module * LORA_RANK + offs_r)[:, None] * in_features + offs_k[None, :]
        a = tl.load(a_ptrs, (offs_k < in_features)[None, :], 0)
        acc = tl.dot(x, tl.trans(a), acc, input_precision="ieee")
    if DROPOUT:
        acc *= scale
    offs_u, mask = module * LORA_RANK + offs_r, (offs_m < tokens)[:, None]
    u_ptrs = out_ptr + offs_m[:, None] * stride_out + in_features + offs_u[None, :]
    if SPLIT:
        offs_part = offs_m[:, None] * stride_parts + offs_u[None, :]
        split_ptr = parts_ptr + tl.program_id(2).to(tl.int64) * tokens * stride_parts
        tl.store(split_ptr + offs_part, acc, mask)
        tl.debug_barrier()  # all threads have written before one of them counts this program
        counter_ptr = counters_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        # The last program sums the splits. A kernel of its own took 3 us, 96 times in a step of phi-2.
        if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == tl.num_programs(2) - 1:
            acc = _sum_splits(parts_ptr, tokens, stride_parts, offs_part, mask, BLOCK_M, BLOCK_R)
            tl.store(u_ptrs, acc.to(out_ptr.dtype.element_ty), mask)
            tl.store(counter_ptr, 0)
    else:
        tl.store(u_ptrs, acc.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _sum_splits(parts_ptr, tokens, stride_parts, offs_part, mask, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr):
    """The sum of a block of all splits. Several are loaded together, because each load waits for the L2 cache."""
    TOGETHER: tl.constexpr = 4096 // (BLOCK_M * BLOCK_R) if BLOCK_M * BLOCK_R < 4096 else 1
    acc = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for first in range(0, tl.num_programs(2), TOGETHER):
        splits = (first + tl.arange(0, TOGETHER))[:, None, None]
        ptrs = parts_ptr + splits.to(tl.int64) * tokens * stride_parts + offs_part[None, :, :]
        # The L1 cache may have other programs' old values.
        parts = tl.load(ptrs, (splits < tl.num_programs(2)) & mask[None, :, :], 0, cache_modifier=".cg")
        acc += tl.sum(parts, axis=0)
    return acc


@triton.jit(do_not_specialize=["site", "threshold"])
def _a_grads_kernel(
    du_ptr, x_ptr, grads_ptr, parts_ptr, offsets_ptr, seed_ptr, positions_ptr, tokens, in_features, stride_du, stride_x,
    split_size, threshold, scale, site, r,
    LORA_RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    DROPOUT: tl.constexpr, ADD: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A block of A's gradient, over one split of the tokens."""
    blocks: tl.constexpr = LORA_RANK // BLOCK_R
    module = tl.program_id(0) // blocks
    first = tl.program_id(1) * BLOCK_K
    offs_k = first + tl.arange(0, BLOCK_K)
    offs_r = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    acc = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.float32)
    first_token = tl.program_id(2) * split_size
    for start in range(first_token, tl.minimum(first_token + split_size, tokens), BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        x_ptrs = x_ptr + offs_m[:, None] * stride_x + offs_k[None, :]
        x = tl.load(x_ptrs, (offs_m < tokens)[:, None] & (offs_k < in_features)[None, :], 0)
        if DROPOUT:
            positions = load_positions(positions_ptr, offs_m, offs_m < tokens)
            keep = dropout_mask(positions, first, in_features, seed_ptr, site + module, threshold, BLOCK_K)
            x = tl.where(keep, x, 0.0)
        du_ptrs = du_ptr + offs_m[:, None] * stride_du + (module * LORA_RANK + offs_r)[None, :]
        du = tl.load(du_ptrs, (offs_m < tokens)[:, None], 0)
        acc = tl.dot(tl.trans(du), x, acc, input_precision="ieee")
    if DROPOUT:
        acc *= scale
    if SPLIT:
        offs_part = tl.program_id(2).to(tl.int64) * tl.num_programs(0) * BLOCK_R + module * LORA_RANK + offs_r
        tl.store(parts_ptr + offs_part[:, None] * in_features + offs_k[None, :], acc, (offs_k < in_features)[None, :])
    else:
        grad_ptrs = grads_ptr + tl.load(offsets_ptr + module) + offs_r[:, None] * in_features + offs_k[None, :]
        mask = (offs_r < r)[:, None] & (offs_k < in_features)[None, :]
        if ADD:
            acc += tl.load(grad_ptrs, mask, 0)
        tl.store(grad_ptrs, acc, mask)


@triton.jit
def _sum_a_grads_kernel(
    parts_ptr, grads_ptr, offsets_ptr, in_features, splits, r,
    LORA_RANK: tl.constexpr, ADD: tl.constexpr, MODULES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of A's gradient as the sum of its splits."""
    module, row = tl.program_id(1) // r, tl.program_id(1) % r
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < in_features
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(splits):
        offs_part = (split * MODULES + module) * LORA_RANK + row
        acc += tl.load(parts_ptr + offs_part.to(tl.int64) * in_features + offsets, mask, 0)
    grad_ptrs = grads_ptr + tl.load(offsets_ptr + module) + row * in_features + offsets
    if ADD:
        acc += tl.load(grad_ptrs, mask, 0)
    tl.store(grad_ptrs, acc, mask)


@triton.jit(do_not_specialize=["site", "threshold"])
def _input_grad_kernel(
    dfu_ptr, a_ptr, x_ptr, out_ptr, seed_ptr, positions_ptr, tokens, in_features, stride_dfu, stride_x, stride_out,
    threshold, scale, site,
    GELU: tl.constexpr, MODULES: tl.constexpr, LORA_RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """A block of x's gradient, over all modules."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    positions = load_positions(positions_ptr, offs_m, offs_m < tokens)
    first = tl.program_id(1) * BLOCK_K
    offs_k = first + tl.arange(0, BLOCK_K)
    mask = (offs_m < tokens)[:, None] & (offs_k < in_features)[None, :]
    dx = tl.load(dfu_ptr + offs_m[:, None] * stride_dfu + offs_k[None, :], mask, 0).to(tl.float32)
    for module in tl.static_range(MODULES):
        acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
        for block in range(0, LORA_RANK, BLOCK_R):
            offs_u = module * LORA_RANK + block + tl.arange(0, BLOCK_R)
            du_ptrs = dfu_ptr + offs_m[:, None] * stride_dfu + in_features + offs_u[None, :]
            du = tl.load(du_ptrs, (offs_m < tokens)[:, None], 0)
            a = tl.load(a_ptr + offs_u[:, None] * in_features + offs_k[None, :], (offs_k < in_features)[None, :], 0)
            acc = tl.dot(du, a, acc, input_precision="ieee")
        if DROPOUT:
            keep = dropout_mask(positions, first, in_features, seed_ptr, site + module, threshold, BLOCK_K)
            acc = tl.where(keep, acc * scale, 0.0)
        dx += acc
    if GELU:
        x = tl.load(x_ptr + offs_m[:, None] * stride_x + offs_k[None, :], mask, 0).to(tl.float32)
        _, slope = activation(x, True)
        dx *= slope
    tl.store(out_ptr + offs_m[:, None] * stride_out + offs_k[None, :], dx.to(out_ptr.dtype.element_ty), mask)
