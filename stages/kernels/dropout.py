"""Dropout whose masks take no memory.

A mask is a hash of (step, place in the model, element): it is the same when a checkpointed layer is computed again, and
goes on as before when a run is resumed.
"""

import torch
import triton
import triton.language as tl

from stages.kernels.launch import grid

SITES_PER_LAYER = 64  # more dropouts than one decoder layer has


class Masks:
    """Where the dropout masks come from.

    Attributes:
        seed: int64 scalar on the device, another one at each step.
        site: number of the place in the model that the next dropout has.
    """

    def __init__(self, device: torch.device) -> None:
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.site = 0

    def set(self, seed: int, step: int) -> None:
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
        return dropped(x.contiguous(), 1, p, seed, site)[0]

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return dropped(dy.contiguous(), 1, ctx.p, ctx.seed, ctx.site)[0], None, None, None


def dropped(x: torch.Tensor, count: int, p: float, seed: torch.Tensor, site: int) -> torch.Tensor:
    """dropout(x) by each of `count` masks.

    The masks follow from `seed` and the places `site`, `site` + 1, … alone.

    Args:
        x: contiguous.
        p: share of the elements that become 0; the others are multiplied by 1 / (1 - p).
        seed: of `Masks`.

    Returns:
        [count, *x.shape]; a view of x where p is 0.
    """
    if p == 0:
        return x.expand(count, *x.shape)
    out = torch.empty((count, *x.shape), dtype=x.dtype, device=x.device)
    _launch(_dropout_kernel, x, out, x.numel(), count, p, seed, site)
    return out


def add_dropped_(out: torch.Tensor, x: torch.Tensor, p: float, seed: torch.Tensor, site: int) -> torch.Tensor:
    """out += the sum of dropout(x[i]), in place, with the masks of `dropped`; x is [count, *out.shape]."""
    _launch(_add_dropped_kernel, x, out, out.numel(), len(x), p, seed, site)
    return out


def _launch(kernel, x, out, n, count, p, seed, site):
    kernel[grid(n, count * n, 2048)](
        x, out, seed, n, int(p * 2**32), 1 / (1 - p), site, COUNT=count, BLOCK=2048, num_warps=8
    )


@triton.jit(do_not_specialize=["site", "threshold"])
def _dropout_kernel(x, out, seed, n, threshold, scale, site, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    value = tl.load(x + index, inside).to(tl.float32) * scale
    for i in tl.static_range(COUNT):
        kept = tl.where(_keeps(index, seed, site + i, threshold), value, 0.0)
        tl.store(out + i * n + index, kept.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["site", "threshold"])
def _add_dropped_kernel(x, out, seed, n, threshold, scale, site, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    total = tl.load(out + index, inside).to(tl.float32)
    for i in tl.static_range(COUNT):
        value = tl.load(x + i * n + index, inside).to(tl.float32) * scale
        total += tl.where(_keeps(index, seed, site + i, threshold), value, 0.0)
    tl.store(out + index, total.to(out.dtype.element_ty), inside)


@triton.jit
def _keeps(index, seed, site, threshold):
    """Whether dropout keeps an element."""
    key = _mix(tl.load(seed).to(tl.uint32) ^ _mix(site.to(tl.uint32)))
    return _mix(index.to(tl.uint32) ^ key) >= threshold.to(tl.uint32)


@triton.jit
def _mix(h):
    """A 32-bit integer hash of low bias: "lowbias32", Wellons 2018. It costs a tenth of Philox."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)
