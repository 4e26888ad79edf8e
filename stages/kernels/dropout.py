"""Dropout without stored masks.

A mask is a hash of the step, the dropout's number in the model, the token's position in the batch, and the column. The
backward computes it again, and so does a layer that is recomputed by gradient checkpointing. A resumed run gets the
masks of an uninterrupted one. A batch gets the same masks on any number of GPUs, and in any number of parts.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from stages.kernels.index_limits import check_index_range

SITES_PER_LAYER = 64  # more dropouts than one decoder layer has
BLOCK_M, BLOCK_N = 4, 512  # rows and columns of a program's block


class Dropout(NamedTuple):
    """What the masks of one or more dropouts depend on. The kernels take its fields as arguments.

    Attributes:
        p: share of the elements that are set to 0, in steps of 2^-16; the others are multiplied by 1 / (1 - p).
        seed: of `DropoutMasks`.
        site: of the first mask; the next ones have the next numbers.
        positions: int32 [tokens], the position of each token in the whole batch. None: the row of the tensor.
    """

    p: float
    seed: torch.Tensor
    site: int = 0
    positions: torch.Tensor | None = None


class DropoutMasks:
    """The state from which dropout masks are computed.

    Attributes:
        seed: int64 scalar on the device, different at each step.
        site: number of the next dropout in the model.
        positions: of `Dropout`, for the tokens of the current part of a batch.
        selected: the positions of the tokens that the rest of the current layer computes; None: of all.
    """

    def __init__(self, device: torch.device) -> None:
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.site = 0
        self.positions: torch.Tensor | None = None
        self.selected: torch.Tensor | None = None

    def set_step(self, seed: int, step: int) -> None:
        """Choose the masks of a step."""
        self.seed.fill_((seed * 0x9E3779B1 + step * 0x85EBCA77) & 0x7FFFFFFF)

    def make_dropout(self, p: float, count: int, tokens: int) -> Dropout:
        """Reserve `count` consecutive sites for tensors of `tokens` rows.

        Tensors whose rows are not the batch's tokens, such as those of an expert, get masks by their own rows.
        """
        self.site += count
        positions = self.positions if self.selected is None else self.selected
        is_batch = positions is not None and len(positions) == tokens
        return Dropout(p, self.seed, self.site - count, positions if is_batch else None)

    def select(self, tokens: torch.Tensor) -> None:
        """Compute only these tokens in the rest of the layer; tokens: int64 [selected], rows of the layer's input."""
        self.selected = tokens.int() if self.positions is None else self.positions[tokens]

    def start_layer(self, number: int) -> None:
        """Go to the first site of decoder layer `number`, so that a recomputed layer gets the same masks."""
        self.site, self.selected = number * SITES_PER_LAYER, None


class SeededDropout(torch.autograd.Function):
    """Dropout whose backward computes the mask again instead of saving it."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, dropout: Dropout) -> torch.Tensor:
        ctx.dropout = dropout
        return apply_dropout([x.contiguous()], *dropout)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        return apply_dropout([dy.contiguous()], *ctx.dropout), None


def apply_dropout(
    xs: list[torch.Tensor], p: float, seed: torch.Tensor, site: int, positions: torch.Tensor | None = None,
    *, residual: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """residual + the sum of dropout(x) for one or two tensors x, all contiguous and of one shape [..., columns].

    Args:
        p, seed, site, positions: of `Dropout`; a second tensor has the site `site` + 1.
    """
    x, out = xs[0], torch.empty_like(xs[0])
    grid, rows, columns = _split_blocks(x)
    _dropout_kernel[grid](
        x, xs[-1], x if residual is None else residual, out, seed, positions, rows, columns,
        drop_threshold(p), dropout_scale(p), site,
        INPUTS=len(xs), ADD_RESIDUAL=residual is not None, DROPOUT=p > 0, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
    )  # fmt: skip
    return out


def apply_two_masks(
    dy: torch.Tensor, p: float, seed: torch.Tensor, site: int, positions: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the two tensors of `apply_dropout`: dy by the masks `site` and `site` + 1. dy: contiguous."""
    if p == 0:
        return dy, dy
    dx1, dx2 = torch.empty_like(dy), torch.empty_like(dy)
    grid, rows, columns = _split_blocks(dy)
    _two_masks_kernel[grid](
        dy, dx1, dx2, seed, positions, rows, columns, drop_threshold(p), dropout_scale(p), site,
        BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
    )  # fmt: skip
    return dx1, dx2


def _split_blocks(x: torch.Tensor) -> tuple[tuple[int, int], int, int]:
    """The programs for all blocks of x, and its rows and columns."""
    check_index_range(x.numel())
    columns = x.shape[-1]
    rows = x.numel() // columns
    return (triton.cdiv(rows, BLOCK_M), triton.cdiv(columns, BLOCK_N)), rows, columns


def drop_threshold(p: float) -> int:
    """Elements with a 16-bit hash below it are set to 0. Unless p is 1, at least one hash value is not below it."""
    return min(round(p * 2**16), 2**16 - (p < 1))


def dropout_scale(p: float) -> float:
    """Factor of the elements that are not set to 0, so that the mean stays the same."""
    return 1 / (1 - drop_threshold(p) / 2**16) if p < 1 else 0.0


@triton.jit(do_not_specialize=["site", "threshold"])
def _dropout_kernel(
    x_ptr, x2_ptr, residual_ptr, out_ptr, seed_ptr, positions_ptr, rows, columns, threshold, scale, site,
    INPUTS: tl.constexpr, ADD_RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    first, offsets, mask, positions = _load_block(positions_ptr, rows, columns, BLOCK_M, BLOCK_N)
    out = tl.load(x_ptr + offsets, mask, 0).to(tl.float32)
    if DROPOUT:
        keep = dropout_mask(positions, first, columns, seed_ptr, site, threshold, BLOCK_N)
        out = tl.where(keep, out * scale, 0.0)
    if INPUTS == 2:
        x2 = tl.load(x2_ptr + offsets, mask, 0).to(tl.float32)
        if DROPOUT:
            keep = dropout_mask(positions, first, columns, seed_ptr, site + 1, threshold, BLOCK_N)
            x2 = tl.where(keep, x2 * scale, 0.0)
        out += x2
    if ADD_RESIDUAL:
        out += tl.load(residual_ptr + offsets, mask, 0).to(tl.float32)
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["site", "threshold"])
def _two_masks_kernel(
    dy_ptr, dx1_ptr, dx2_ptr, seed_ptr, positions_ptr, rows, columns, threshold, scale, site,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    first, offsets, mask, positions = _load_block(positions_ptr, rows, columns, BLOCK_M, BLOCK_N)
    dy = tl.load(dy_ptr + offsets, mask, 0).to(tl.float32) * scale
    dtype = dx1_ptr.dtype.element_ty
    keep = dropout_mask(positions, first, columns, seed_ptr, site, threshold, BLOCK_N)
    tl.store(dx1_ptr + offsets, tl.where(keep, dy, 0.0).to(dtype), mask)
    keep = dropout_mask(positions, first, columns, seed_ptr, site + 1, threshold, BLOCK_N)
    tl.store(dx2_ptr + offsets, tl.where(keep, dy, 0.0).to(dtype), mask)


@triton.jit
def _load_block(positions_ptr, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A program's first column, and its elements' offsets, which of them exist, and their rows' positions."""
    offs_m, first = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_N
    offs_n = first + tl.arange(0, BLOCK_N)
    mask = (offs_m < rows)[:, None] & (offs_n < columns)[None, :]
    positions = load_positions(positions_ptr, offs_m, offs_m < rows)
    return first, offs_m[:, None] * columns + offs_n[None, :], mask, positions


@triton.jit
def dropout_mask(positions, first, columns, seed_ptr, site, threshold, BLOCK_N: tl.constexpr) -> tl.tensor:
    """True where an element of a tile is not set to 0: tokens at `positions`, BLOCK_N columns from `first`, even.

    One 32-bit hash serves the two columns 2 * pair and 2 * pair + 1.
    """
    pairs = positions[:, None] * ((columns + 1) // 2) + (first // 2 + tl.arange(0, BLOCK_N // 2))[None, :]
    bits = _hash_pairs(pairs, seed_ptr, site)
    return tl.interleave(bits & 0xFFFF, bits >> 16) >= threshold.to(tl.uint32)


@triton.jit
def load_positions(positions_ptr, rows, mask) -> tl.tensor:
    """The positions in the batch of a tensor's rows; `rows` themselves if positions_ptr is None."""
    positions = rows
    if positions_ptr is not None:
        positions = tl.load(positions_ptr + rows, mask, 0)
    return positions


@triton.jit
def _hash_pairs(pairs, seed_ptr, site):
    key = _hash(tl.load(seed_ptr).to(tl.uint32) ^ _hash(site.to(tl.uint32)))
    return _hash(pairs.to(tl.uint32) ^ key)


@triton.jit
def _hash(h):
    """The 32-bit integer hash "lowbias32" (Wellons 2018). It costs a tenth of Philox."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)
