"""Dropout without stored masks.

A mask is a hash of the step, the dropout's number in the model and the element. The backward computes it again, and so
does a layer that is recomputed by gradient checkpointing. A resumed run gets the masks of an uninterrupted one.
"""

import torch
import triton
import triton.language as tl

from stages.kernels.index_limits import check_index_range

SITES_PER_LAYER = 64  # more dropouts than one decoder layer has


class DropoutMasks:
    """The state from which dropout masks are computed.

    Attributes:
        seed: int64 scalar on the device, different at each step.
        site: number of the next dropout in the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.site = 0

    def set_step(self, seed: int, step: int) -> None:
        """Choose the masks of a step."""
        self.seed.fill_((seed * 0x9E3779B1 + step * 0x85EBCA77) & 0x7FFFFFFF)

    def reserve_sites(self, count: int) -> int:
        """Reserve `count` consecutive sites and return the first."""
        self.site += count
        return self.site - count

    def start_layer(self, number: int) -> None:
        """Go to the first site of decoder layer `number`, so that a recomputed layer gets the same masks."""
        self.site = number * SITES_PER_LAYER


class SeededDropout(torch.autograd.Function):
    """Dropout whose backward computes the mask again instead of saving it."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, p: float, seed: torch.Tensor, site: int) -> torch.Tensor:
        ctx.p, ctx.seed, ctx.site = p, seed, site
        return apply_dropout([x.contiguous()], p, seed, site)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return apply_dropout([dy.contiguous()], ctx.p, ctx.seed, ctx.site), None, None, None


def apply_dropout(
    xs: list[torch.Tensor], p: float, seed: torch.Tensor, site: int, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """residual + the sum of dropout(x) for one or two tensors x, all contiguous and of one shape.

    Args:
        p: share of the elements that are set to 0, in steps of 2^-16; the others are multiplied by 1 / (1 - p).
        seed: of `DropoutMasks`.
        site: of the first tensor's mask; a second tensor has `site` + 1.
    """
    x, out = xs[0], torch.empty_like(xs[0])
    check_index_range(x.numel())
    _dropout_kernel[(triton.cdiv(x.numel(), 2048),)](
        x, xs[-1], x if residual is None else residual, out, seed, x.numel(), drop_threshold(p), dropout_scale(p), site,
        INPUTS=len(xs), ADD_RESIDUAL=residual is not None, DROPOUT=p > 0, BLOCK=2048, num_warps=8,
    )  # fmt: skip
    return out


def apply_two_masks(dy: torch.Tensor, p: float, seed: torch.Tensor, site: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the two tensors of `apply_dropout`: dy by the masks `site` and `site` + 1. dy: contiguous."""
    if p == 0:
        return dy, dy
    dx1, dx2 = torch.empty_like(dy), torch.empty_like(dy)
    check_index_range(dy.numel())
    _two_masks_kernel[(triton.cdiv(dy.numel(), 2048),)](
        dy, dx1, dx2, seed, dy.numel(), drop_threshold(p), dropout_scale(p), site, BLOCK=2048, num_warps=8
    )
    return dx1, dx2


def drop_threshold(p: float) -> int:
    """Elements with a 16-bit hash below it are set to 0. Unless p is 1, at least one hash value is not below it."""
    return min(round(p * 2**16), 2**16 - (p < 1))


def dropout_scale(p: float) -> float:
    """Factor of the elements that are not set to 0, so that the mean stays the same."""
    return 1 / (1 - drop_threshold(p) / 2**16) if p < 1 else 0.0


@triton.jit(do_not_specialize=["site", "threshold"])
def _dropout_kernel(
    x_ptr, x2_ptr, residual_ptr, out_ptr, seed_ptr, n, threshold, scale, site,
    INPUTS: tl.constexpr, ADD_RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pairs = tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    mask = offsets < n
    out = tl.load(x_ptr + offsets, mask, 0).to(tl.float32)
    if DROPOUT:
        out = tl.where(dropout_mask(pairs, seed_ptr, site, threshold), out * scale, 0.0)
    if INPUTS == 2:
        x2 = tl.load(x2_ptr + offsets, mask, 0).to(tl.float32)
        if DROPOUT:
            x2 = tl.where(dropout_mask(pairs, seed_ptr, site + 1, threshold), x2 * scale, 0.0)
        out += x2
    if ADD_RESIDUAL:
        out += tl.load(residual_ptr + offsets, mask, 0).to(tl.float32)
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["site", "threshold"])
def _two_masks_kernel(dy_ptr, dx1_ptr, dx2_ptr, seed_ptr, n, threshold, scale, site, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pairs = tl.program_id(0) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    mask = offsets < n
    dy = tl.load(dy_ptr + offsets, mask, 0).to(tl.float32) * scale
    dtype = dx1_ptr.dtype.element_ty
    tl.store(dx1_ptr + offsets, tl.where(dropout_mask(pairs, seed_ptr, site, threshold), dy, 0.0).to(dtype), mask)
    tl.store(dx2_ptr + offsets, tl.where(dropout_mask(pairs, seed_ptr, site + 1, threshold), dy, 0.0).to(dtype), mask)


@triton.jit
def dropout_mask(pairs, seed_ptr, site, threshold) -> tl.tensor:
    """True where the element is not set to 0. One 32-bit hash serves two elements, 2 * pair and 2 * pair + 1."""
    key = _hash(tl.load(seed_ptr).to(tl.uint32) ^ _hash(site.to(tl.uint32)))
    bits = _hash(pairs.to(tl.uint32) ^ key)
    return tl.interleave(bits & 0xFFFF, bits >> 16) >= threshold.to(tl.uint32)


@triton.jit
def _hash(h):
    """The 32-bit integer hash "lowbias32" (Wellons 2018). It costs a tenth of Philox."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)
