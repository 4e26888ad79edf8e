"""Dropout whose masks take no memory.

A mask is a hash of (step, place in the model, element): it is the same when a checkpointed layer is computed again, and
goes on as before when a run is resumed.
"""

import torch
import triton
import triton.language as tl

from stages.kernels.index_limits import check_index_range

SITES_PER_LAYER = 64  # more dropouts than one decoder layer has


class DropoutMasks:
    """Where the dropout masks come from.

    Attributes:
        seed: int64 scalar on the device, another one at each step.
        site: number of the place in the model that the next dropout has.
    """

    def __init__(self, device: torch.device) -> None:
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.site = 0

    def set_step(self, seed: int, step: int) -> None:
        """Choose the masks of a step."""
        self.seed.fill_((seed * 0x9E3779B1 + step * 0x85EBCA77) & 0x7FFFFFFF)

    def next_sites(self, count: int) -> int:
        """The first of `count` places that follow one another."""
        self.site += count
        return self.site - count

    def start_layer(self, number: int) -> None:
        """Called where decoder layer `number` begins: a layer that checkpointing computes again finds its masks."""
        self.site = number * SITES_PER_LAYER


class SeededDropout(torch.autograd.Function):
    """Dropout whose mask is drawn anew in the backward instead of being saved."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, p: float, seed: torch.Tensor, site: int) -> torch.Tensor:
        ctx.p, ctx.seed, ctx.site = p, seed, site
        return apply_dropout([x.contiguous()], p, seed, site)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return apply_dropout([dy.contiguous()], ctx.p, ctx.seed, ctx.site), None, None, None


def apply_dropout(
    xs: list[torch.Tensor], p: float, seed: torch.Tensor, site: int, base: torch.Tensor | None = None
) -> torch.Tensor:
    """base + dropout(x) of one or two tensors, all contiguous and of one shape.

    The masks follow from `seed` and the places `site`, `site` + 1 alone.

    Args:
        p: share of the elements that become 0, in steps of 2^-16; the others are multiplied by 1 / (1 - p).
        seed: of `DropoutMasks`.
    """
    x, out = xs[0], torch.empty_like(xs[0])
    check_index_range(x.numel())
    _dropout_kernel[(triton.cdiv(x.numel(), 2048),)](
        x, xs[-1], x if base is None else base, out, seed, x.numel(), drop_threshold(p), dropout_scale(p), site,
        COUNT=len(xs), ADDS=base is not None, DROPS=p > 0, BLOCK=2048, num_warps=8,
    )  # fmt: skip
    return out


def apply_two_masks(dy: torch.Tensor, p: float, seed: torch.Tensor, site: int) -> tuple[torch.Tensor, torch.Tensor]:
    """dy by the masks of the places `site` and `site` + 1: the gradients of what `apply_dropout` sums up."""
    if p == 0:
        return dy, dy
    first, second = torch.empty_like(dy), torch.empty_like(dy)
    check_index_range(dy.numel())
    _apply_two_masks_kernel[(triton.cdiv(dy.numel(), 2048),)](
        dy, first, second, seed, dy.numel(), drop_threshold(p), dropout_scale(p), site, BLOCK=2048, num_warps=8
    )
    return first, second


def drop_threshold(p: float) -> int:
    """Hashes of 16 bits below it are dropped; at least one of them is kept unless p is 1."""
    return min(round(p * 2**16), 2**16 - (p < 1))


def dropout_scale(p: float) -> float:
    """Factor of what is kept, so that the mean stays as it is."""
    return 1 / (1 - drop_threshold(p) / 2**16) if p < 1 else 0.0


@triton.jit(do_not_specialize=["site", "limit"])
def _dropout_kernel(
    x, other, base, out, seed, n, limit, scale, site,
    COUNT: tl.constexpr, ADDS: tl.constexpr, DROPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    inside = index < n
    value = tl.load(x + index, inside, 0).to(tl.float32)
    if DROPS:
        value = tl.where(dropout_mask(pair, seed, site, limit), value * scale, 0.0)
    if COUNT == 2:
        second = tl.load(other + index, inside, 0).to(tl.float32)
        if DROPS:
            second = tl.where(dropout_mask(pair, seed, site + 1, limit), second * scale, 0.0)
        value += second
    if ADDS:
        value += tl.load(base + index, inside, 0).to(tl.float32)
    tl.store(out + index, value.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["site", "limit"])
def _apply_two_masks_kernel(dy, first, second, seed, n, limit, scale, site, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    inside = index < n
    value = tl.load(dy + index, inside, 0).to(tl.float32) * scale
    kind = first.dtype.element_ty
    tl.store(first + index, tl.where(dropout_mask(pair, seed, site, limit), value, 0.0).to(kind), inside)
    tl.store(second + index, tl.where(dropout_mask(pair, seed, site + 1, limit), value, 0.0).to(kind), inside)


@triton.jit
def dropout_mask(pair, seed, site, limit) -> tl.tensor:
    """Whether dropout keeps the elements 2 * pair and 2 * pair + 1, side by side: one hash has 16 bits for each."""
    key = _mix(tl.load(seed).to(tl.uint32) ^ _mix(site.to(tl.uint32)))
    bits = _mix(pair.to(tl.uint32) ^ key)
    return tl.interleave(bits & 0xFFFF, bits >> 16) >= limit.to(tl.uint32)


@triton.jit
def _mix(h):
    """A 32-bit integer hash of low bias: "lowbias32", Wellons 2018. It costs a tenth of Philox."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)
