"""Causal attention of packed rows, with the rotary position embedding. Packed rows follow one another without padding.

Queries and keys are rotated in place. Then one program computes one block of a row's queries, or of its keys, for one
head, by FlashAttention-2's formulas (Dao 2023); in the backward one program computes a whole short row. Each gradient
has one writer, so equal inputs give equal bytes.

PyTorch's flash attention of such rows (`torch.nn.attention.varlen`) is slower. Microseconds of forward and backward on
an H200, for phi-2's heads and 8,192 tokens, ours / PyTorch's deterministic: rows of 32 tokens 260 / 907, of 256 421 /
570, of 2,048 1,291 / 1,798, rows of 34 tokens with one of 2,048 1,124 / 2,282. PyTorch's other mode adds gradients in
any order. It is up to a quarter faster than its deterministic one, and slower than ours for these heads. With Llama's
and Gemma's heads ours take 33 to 95% of the deterministic time. From benchmarks/attention_lengths.py.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl

from stages.kernels.head_vectors import (
    add_weighted,
    dot_vectors,
    load_vectors,
    multiply_vectors,
    padded_size,
    split_head,
    store_vectors,
    zero_vectors,
)
from stages.kernels.index_limits import check_index_range
from stages.kernels.rotary import rotate, rotate_back

LOG2_E = 1.4426950408889634  # GPUs have an instruction for 2^x, none for e^x


@dataclass(frozen=True)
class RowLayout:
    """Where each row of a batch begins, and the rotary embedding of its tokens.

    Attributes:
        cu_seqlens: int32 [rows + 1], as in flash-attention: row i has the tokens cu_seqlens[i] to
            cu_seqlens[i + 1] - 1. Tokens after the last row belong to no row, and their attention is 0.
        max_seqlen: the largest number of tokens that a row may have.
        cos, sin: [tokens, rotary] by token; or [max_seqlen, rotary] by position, if all rows have max_seqlen tokens.
        last: int64 [rows], the token of each row that is classified, 0 for a row without tokens; None for padded rows.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    cos: torch.Tensor
    sin: torch.Tensor
    last: torch.Tensor | None = None

    @classmethod
    def from_layer_inputs(
        cls, x: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor],
        cu_seq_lens_q: torch.Tensor | None, max_length_q: int | None, last: torch.Tensor | None,
    ) -> Self:  # fmt: skip
        """The layout of the inputs that transformers passes to a decoder layer.

        Args:
            x: hidden states, [1, tokens, hidden] of packed rows or [rows, length, hidden] of padded ones.
            cu_seq_lens_q, max_length_q, last: `cu_seqlens`, `max_seqlen`, `last` of packed rows; None for padded ones.
        """
        cos, sin = (table.reshape(-1, table.shape[-1]).contiguous() for table in position_embeddings)
        if cu_seq_lens_q is not None and max_length_q is not None:
            return cls(cu_seq_lens_q, max_length_q, cos, sin, last)
        rows, length, _ = x.shape
        starts = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=x.device)
        return cls(starts, length, cos, sin)


@dataclass(frozen=True)
class AttentionConfig:
    """The shape of an attention.

    Attributes:
        scale: factor of the products of queries and keys.
        window: a token sees the last `window` tokens, itself included; None: all tokens of its row up to itself.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None

    @property
    def qkv_widths(self) -> list[int]:
        """Columns of queries, keys and values in the tensor that holds all three."""
        return [self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim, self.num_kv_heads * self.head_dim]


class Attention(torch.autograd.Function):
    """Rotary embedding, then causal attention within each row. Queries and keys in qkv are overwritten.

    Shapes: qkv [..., sum of `qkv_widths`], the output [..., num_heads * head_dim].
    """

    @staticmethod
    def forward(ctx, qkv: torch.Tensor, config: AttentionConfig, layout: RowLayout) -> torch.Tensor:
        flat = qkv.detach().reshape(-1, qkv.shape[-1])
        out, lse = attention_forward(flat, config, layout)
        ctx.config, ctx.layout = config, layout
        ctx.save_for_backward(flat, out, lse)
        return out.view(*qkv.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dout: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        flat, out, lse = ctx.saved_tensors
        dqkv = torch.empty_like(flat)
        attention_backward(flat, out, lse, dout.reshape(out.shape).contiguous(), dqkv, ctx.config, ctx.layout)
        return dqkv.view(*dout.shape[:-1], -1), None, None


def fits_shared_memory(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether tiles of this width fit every GPU's shared memory. A T4 has too little for large heads in fp32."""
    return head_dim <= 128 or dtype.itemsize == 2


def attention_forward(
    qkv: torch.Tensor, config: AttentionConfig, layout: RowLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of qkv [tokens, columns], whose first columns are queries, keys and values.

    Queries and keys are rotated in qkv itself. This needs no memory for a copy, and the backward finds them rotated.
    Only `attention_backward` reads them again: the product that computed them saves its input but not its output,
    `norm_heads` too, and gradient checkpointing computes them anew.

    Returns:
        the output [tokens, num_heads * head_dim]; each query's log-sum-exp, base 2, [num_heads, tokens].
    """
    tokens, rows = len(qkv), len(layout.cu_seqlens) - 1
    check_index_range(max(qkv.stride(0), 2 * config.qkv_widths[0]) * tokens)
    rotate(qkv, config.num_heads + config.num_kv_heads, config.head_dim, layout.cos, layout.sin)
    out = torch.empty((tokens, config.qkv_widths[0]), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((config.num_heads, tokens), dtype=torch.float32, device=qkv.device)
    tiles = choose_tiles("forward", qkv, config.head_dim)
    if tokens <= tiles.kept * rows:  # most rows are short
        tiles = tiles._replace(looped=min(tiles.looped, 32))
    blocks = triton.cdiv(layout.max_seqlen, tiles.kept)
    _attention_forward_kernel[(rows * blocks + triton.cdiv(tokens, tiles.kept), config.num_heads)](
        qkv, out, lse, layout.cu_seqlens, rows, blocks, tokens, qkv.stride(0), out.stride(0), config.scale * LOG2_E,
        BLOCK_Q=tiles.kept, BLOCK_K=tiles.looped, num_warps=tiles.num_warps, num_stages=2,
        **attention_constants(config, layout),
    )  # fmt: skip
    return out, lse


def attention_backward(
    qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, dout: torch.Tensor, dqkv: torch.Tensor,
    config: AttentionConfig, layout: RowLayout,
) -> None:  # fmt: skip
    """Write the gradient of queries, keys and values into the first columns of dqkv.

    Args:
        qkv: as `attention_forward` left it.
        out, lse: from `attention_forward`.
        dout: the output's gradient, contiguous.
    """
    tokens, rows = len(qkv), len(layout.cu_seqlens) - 1
    check_index_range(dqkv.stride(0) * tokens)
    cos_sin_starts = (layout.cos, layout.sin, layout.cu_seqlens)
    strides, numbers = (qkv.stride(0), dqkv.stride(0)), (out.stride(0), config.scale, config.scale * LOG2_E)
    constants = attention_constants(config, layout)
    short, (q_width, kv_width, _) = choose_tiles("short", qkv, config.head_dim), config.qkv_widths
    shares_keys = config.num_heads > config.num_kv_heads
    dkv = dqkv[:, q_width : q_width + 2 * kv_width]
    # Where several heads share keys and values, each writes its own part of the gradient. The parts are added below.
    parts = torch.empty((tokens, 2 * q_width), dtype=dqkv.dtype, device=dqkv.device) if shares_keys else dkv
    programs = rows + triton.cdiv(tokens, short.kept)
    options = {"BLOCK_M": short.kept, "num_warps": short.num_warps, "num_stages": 1, **constants}
    _attention_short_backward_kernel[(programs, config.num_heads)](
        qkv, out, lse, dout, dqkv, parts, *cos_sin_starts, len(layout.cos), rows, tokens, *strides,
        parts.stride(0), *numbers, **options,
    )  # fmt: skip
    if shares_keys:
        _attention_sum_heads_kernel[(programs, 2 * config.num_kv_heads)](
            parts, dqkv, *cos_sin_starts, len(layout.cos), rows, tokens, parts.stride(0), dqkv.stride(0), **options
        )
    if layout.max_seqlen <= short.kept:
        return
    delta, tiles = torch.empty_like(lse), choose_tiles("queries", qkv, config.head_dim)
    blocks = triton.cdiv(layout.max_seqlen, tiles.kept)
    _attention_query_backward_kernel[(rows * blocks, config.num_heads)](
        qkv, out, lse, delta, dout, dqkv, *cos_sin_starts, len(layout.cos), rows, blocks, tokens, short.kept, *strides,
        *numbers, BLOCK_Q=tiles.kept, BLOCK_K=tiles.looped, num_warps=tiles.num_warps, num_stages=2, **constants,
    )  # fmt: skip
    tiles = choose_tiles("keys", qkv, config.head_dim)
    _attention_key_backward_kernel[(rows * triton.cdiv(layout.max_seqlen, tiles.kept), config.num_kv_heads)](
        qkv, lse, delta, dout, dqkv, *cos_sin_starts, len(layout.cos), rows, tokens, short.kept, *strides,
        *numbers, BLOCK_Q=tiles.looped, BLOCK_K=tiles.kept, num_warps=tiles.num_warps, num_stages=2, **constants,
    )  # fmt: skip


class Tiles(NamedTuple):
    """The blocks of tokens of a program: one that it keeps, and those of a row that it loops over."""

    kept: int
    looped: int
    num_warps: int


# By the most columns of a head's vector. The best of 3 to 8 each, on an H200 for phi-2's, Llama's and Gemma's heads.
TILES = {
    "forward": {128: Tiles(64, 64, 4), 256: Tiles(64, 64, 8)},
    "short": {128: Tiles(64, 0, 4), 256: Tiles(64, 0, 8)},
    "queries": {128: Tiles(64, 64, 4), 256: Tiles(64, 64, 8)},
    "keys": {96: Tiles(64, 128, 4), 128: Tiles(64, 32, 4), 256: Tiles(64, 32, 8)},
}
# Blocks of vectors in the shared memory, an estimate. The short kernel has products of tokens there, too.
TENSORS_KEPT = {"forward": 1, "short": 4.5, "queries": 2, "keys": 2}


def choose_tiles(kernel: str, qkv: torch.Tensor, head_dim: int) -> Tiles:
    """The tiles of a kernel, so that they fit the shared memory. It holds two looped blocks of each of two tensors."""
    columns = sum(split_head(head_dim))
    if qkv.element_size() == 4:
        block = max(16, min(32, 4096 // padded_size(head_dim)))
        tiles = Tiles(block, 0 if kernel == "short" else block, 4 if head_dim <= 128 else 8)
    else:
        tiles = next(tiles for most, tiles in TILES[kernel].items() if columns <= most or most == 256)
    limit = shared_memory(qkv.device) / (columns * qkv.element_size())
    while TENSORS_KEPT[kernel] * tiles.kept + 4 * tiles.looped > limit and max(tiles[:2]) > 16:
        tiles = tiles._replace(looped=tiles.looped // 2) if tiles.looped > 16 else tiles._replace(kept=tiles.kept // 2)
    return tiles


def shared_memory(device: torch.device) -> float:
    """Bytes of shared memory that one program may use."""
    if device.type != "cuda":
        return float("inf")
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # PyTorch's hints lack it


def attention_constants(config: AttentionConfig, layout: RowLayout) -> dict[str, int]:
    """The kernels' constants."""
    first, second = split_head(config.head_dim)
    rotary_half = layout.cos.shape[1] // 2
    return {
        "NUM_HEADS": config.num_heads, "NUM_KV_HEADS": config.num_kv_heads, "HEAD_DIM": config.head_dim,
        "BLOCK_1": first, "BLOCK_2": second or 16, "ROTARY_HALF": rotary_half, "BLOCK_HALF": padded_size(rotary_half),
        "WINDOW": window_of(config, layout),
    }  # fmt: skip


def window_of(config: AttentionConfig, layout: RowLayout) -> int:
    """The window, or 0 if no row is longer than it."""
    return config.window if config.window is not None and config.window < layout.max_seqlen else 0


# A kernel is compiled once for all numbers of rows and tokens, divisible by 16 or not. In all kernels below: offs_q and
# offs_k are the positions of a block's queries and keys in their row; rows_q and rows_k are their rows in the tensors.


@triton.jit
def _sees(offs_q, offs_k, WINDOW: tl.constexpr) -> tl.tensor:
    """Whether a query sees a key; the arguments broadcast."""
    seen = offs_k <= offs_q
    if WINDOW > 0:
        seen &= offs_q - offs_k < WINDOW
    return seen


@triton.jit
def _key_ranges(
    first, length, WINDOW: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The first key that a query of a block sees, the first that not all of them see, and the end. In whole BLOCK_K.

    Scores are masked only from the second on. A window masks all of them.
    """
    first_masked = first // BLOCK_K * BLOCK_K
    first_key = first_masked * 0
    if WINDOW > 0:
        first_key = tl.maximum(first - WINDOW + 1, 0) // BLOCK_K * BLOCK_K
        first_masked = first_key
    return first_key, first_masked, tl.minimum(first + BLOCK_Q, length)


@triton.jit(do_not_specialize=["rows", "blocks", "tokens"])
def _attention_forward_kernel(
    qkv_ptr, out_ptr, lse_ptr, cu_seqlens_ptr, rows, blocks, tokens, stride_qkv, stride_out, scale,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr, ROTARY_HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of a row's queries, for one head; or zeros for a block of the tokens after the last row.

    Programs of a row's last blocks have the most keys, and begin first.
    """
    row, block, head = tl.program_id(0) % rows, blocks - 1 - tl.program_id(0) // rows, tl.program_id(1)
    offs_q, head_out_ptr = tl.arange(0, BLOCK_Q), out_ptr + head * HEAD_DIM
    if block < 0:
        tokens_q = tl.load(cu_seqlens_ptr + rows) + (tl.program_id(0) - rows * blocks) * BLOCK_Q + offs_q
        acc1, acc2 = zero_vectors(BLOCK_Q, BLOCK_1, BLOCK_2)
        store_vectors(head_out_ptr, stride_out, tokens_q, tokens_q < tokens, acc1, acc2, HEAD_DIM, BLOCK_1, BLOCK_2)
        return
    start = tl.load(cu_seqlens_ptr + row)
    length = tl.load(cu_seqlens_ptr + row + 1) - start
    first = block * BLOCK_Q
    if first >= length:
        return
    offs_q += first
    mask_q = offs_q < length
    q1, q2 = load_vectors(qkv_ptr + head * HEAD_DIM, stride_qkv, start + offs_q, mask_q, HEAD_DIM, BLOCK_1, BLOCK_2)
    k_ptr = qkv_ptr + (NUM_HEADS + head // (NUM_HEADS // NUM_KV_HEADS)) * HEAD_DIM
    v_ptr = k_ptr + NUM_KV_HEADS * HEAD_DIM
    acc1, acc2 = zero_vectors(BLOCK_Q, BLOCK_1, BLOCK_2)
    row_max = tl.full((BLOCK_Q,), float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    keys = _key_ranges(first, length, WINDOW, BLOCK_Q, BLOCK_K)
    for masked in tl.static_range(2):
        for key in range(keys[masked], keys[masked + 1], BLOCK_K):
            offs_k = key + tl.arange(0, BLOCK_K)
            mask_k = offs_k < length
            k1, k2 = load_vectors(k_ptr, stride_qkv, start + offs_k, mask_k, HEAD_DIM, BLOCK_1, BLOCK_2)
            scores = dot_vectors(q1, q2, k1, k2, HEAD_DIM, BLOCK_1)
            if masked:
                # Not minus infinity: with a window, a query may see no key of the first block, and its maximum must be
                # a number. A power of two: times scale it is exact, or the subtraction below, an FMA, may overflow.
                scores = tl.where(_sees(offs_q[:, None], offs_k[None, :], WINDOW), scores, -(2.0**100))
            new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
            p = tl.exp2(scores * scale - new_max[:, None])
            rescale = tl.exp2(row_max - new_max)
            row_sum = row_sum * rescale + tl.sum(p, 1)
            v1, v2 = load_vectors(v_ptr, stride_qkv, start + offs_k, mask_k, HEAD_DIM, BLOCK_1, BLOCK_2)
            acc1, acc2 = add_weighted(
                acc1 * rescale[:, None], acc2 * rescale[:, None], p.to(v1.dtype), v1, v2, HEAD_DIM, BLOCK_1
            )
            row_max = new_max
    acc1, acc2 = acc1 / row_sum[:, None], acc2 / row_sum[:, None]
    store_vectors(head_out_ptr, stride_out, start + offs_q, mask_q, acc1, acc2, HEAD_DIM, BLOCK_1, BLOCK_2)
    tl.store(lse_ptr + head * tokens + start + offs_q, row_max + tl.log2(row_sum), mask_q)


@triton.jit(do_not_specialize=["angles", "rows", "tokens"])
def _attention_short_backward_kernel(
    qkv_ptr, out_ptr, lse_ptr, dout_ptr, dqkv_ptr, dkv_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, angles, rows, tokens,
    stride_qkv, stride_dqkv, stride_dkv, stride_out, scale, scale_log2,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr, ROTARY_HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A whole row of up to BLOCK_M tokens, for one head; or zeros for a block of the tokens after the last row.

    dkv is for the gradient of keys and values; where several heads share them, for each head's part in it, not rotated.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    offs, kv_head = tl.arange(0, BLOCK_M), head // (NUM_HEADS // NUM_KV_HEADS)
    dq_ptr, dk_ptr = dqkv_ptr + head * HEAD_DIM, dkv_ptr + head * HEAD_DIM
    dv_ptr = dk_ptr + NUM_HEADS * HEAD_DIM
    dq1, dq2 = zero_vectors(BLOCK_M, BLOCK_1, BLOCK_2)
    if row >= rows:
        rows_m = tl.load(cu_seqlens_ptr + rows) + (row - rows) * BLOCK_M + offs
        mask = rows_m < tokens
        store_vectors(dq_ptr, stride_dqkv, rows_m, mask, dq1, dq2, HEAD_DIM, BLOCK_1, BLOCK_2)
        store_vectors(dk_ptr, stride_dkv, rows_m, mask, dq1, dq2, HEAD_DIM, BLOCK_1, BLOCK_2)
        store_vectors(dv_ptr, stride_dkv, rows_m, mask, dq1, dq2, HEAD_DIM, BLOCK_1, BLOCK_2)
        return
    start = tl.load(cu_seqlens_ptr + row)
    length = tl.load(cu_seqlens_ptr + row + 1) - start
    if length > BLOCK_M:
        return
    mask, rows_m = offs < length, start + offs
    k_ptr = qkv_ptr + (NUM_HEADS + kv_head) * HEAD_DIM
    v_ptr = k_ptr + NUM_KV_HEADS * HEAD_DIM
    k1, k2 = load_vectors(k_ptr, stride_qkv, rows_m, mask, HEAD_DIM, BLOCK_1, BLOCK_2)
    v1, v2 = load_vectors(v_ptr, stride_qkv, rows_m, mask, HEAD_DIM, BLOCK_1, BLOCK_2)
    q1, q2 = load_vectors(qkv_ptr + head * HEAD_DIM, stride_qkv, rows_m, mask, HEAD_DIM, BLOCK_1, BLOCK_2)
    do1, do2 = load_vectors(dout_ptr + head * HEAD_DIM, stride_out, rows_m, mask, HEAD_DIM, BLOCK_1, BLOCK_2)
    out1, out2 = load_vectors(out_ptr + head * HEAD_DIM, stride_out, rows_m, mask, HEAD_DIM, BLOCK_1, BLOCK_2)
    delta = multiply_vectors(do1, do2, out1, out2, HEAD_DIM, BLOCK_1)
    lse = tl.load(lse_ptr + head * tokens + rows_m, mask, 0)
    scores = dot_vectors(q1, q2, k1, k2, HEAD_DIM, BLOCK_1) * scale_log2
    seen = _sees(offs[:, None], offs[None, :], WINDOW) & mask[:, None]
    p = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
    ds = (p * (dot_vectors(do1, do2, v1, v2, HEAD_DIM, BLOCK_1) - delta[:, None]) * scale).to(k1.dtype)
    dq1, dq2 = add_weighted(dq1, dq2, ds, k1, k2, HEAD_DIM, BLOCK_1)
    store_vectors(dq_ptr, stride_dqkv, rows_m, mask, dq1, dq2, HEAD_DIM, BLOCK_1, BLOCK_2)
    dv1, dv2 = zero_vectors(BLOCK_M, BLOCK_1, BLOCK_2)
    dv1, dv2 = add_weighted(dv1, dv2, tl.trans(p.to(k1.dtype)), do1, do2, HEAD_DIM, BLOCK_1)
    store_vectors(dv_ptr, stride_dkv, rows_m, mask, dv1, dv2, HEAD_DIM, BLOCK_1, BLOCK_2)
    dk1, dk2 = zero_vectors(BLOCK_M, BLOCK_1, BLOCK_2)
    dk1, dk2 = add_weighted(dk1, dk2, tl.trans(ds), q1, q2, HEAD_DIM, BLOCK_1)
    store_vectors(dk_ptr, stride_dkv, rows_m, mask, dk1, dk2, HEAD_DIM, BLOCK_1, BLOCK_2)
    rotate_back(dq_ptr, stride_dqkv, rows_m, mask, rows_m, cos_ptr, sin_ptr, angles, ROTARY_HALF, BLOCK_HALF)
    if NUM_HEADS == NUM_KV_HEADS:
        rotate_back(dk_ptr, stride_dkv, rows_m, mask, rows_m, cos_ptr, sin_ptr, angles, ROTARY_HALF, BLOCK_HALF)


@triton.jit(do_not_specialize=["angles", "rows", "tokens"])
def _attention_sum_heads_kernel(
    dkv_ptr, dqkv_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, angles, rows, tokens, stride_dkv, stride_dqkv,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr, ROTARY_HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A block of the gradient of one head of keys or values: the sum of `_attention_short_backward_kernel`'s parts."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    row, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + tl.minimum(row, rows))
    length = tokens - start  # all tokens after the last row
    if row < rows:
        length = tl.load(cu_seqlens_ptr + row + 1) - start
        if length > BLOCK_M:
            return
    offs = tl.maximum(row - rows, 0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask, rows_m = offs < length, start + offs
    sum1, sum2 = zero_vectors(BLOCK_M, BLOCK_1, BLOCK_2)
    for part in tl.static_range(GROUP):
        part_ptr = dkv_ptr + (head * GROUP + part) * HEAD_DIM
        x1, x2 = load_vectors(part_ptr, stride_dkv, rows_m, mask, HEAD_DIM, BLOCK_1, BLOCK_2)
        sum1 += x1
        if HEAD_DIM > BLOCK_1:
            sum2 += x2
    out_ptr = dqkv_ptr + (NUM_HEADS + head) * HEAD_DIM
    store_vectors(out_ptr, stride_dqkv, rows_m, mask, sum1, sum2, HEAD_DIM, BLOCK_1, BLOCK_2)
    if head < NUM_KV_HEADS:
        rotate_back(out_ptr, stride_dqkv, rows_m, mask, rows_m, cos_ptr, sin_ptr, angles, ROTARY_HALF, BLOCK_HALF)


@triton.jit(do_not_specialize=["angles", "rows", "blocks", "tokens", "longest_short"])
def _attention_query_backward_kernel(
    qkv_ptr, out_ptr, lse_ptr, delta_ptr, dout_ptr, dqkv_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, angles, rows, blocks,
    tokens, longest_short, stride_qkv, stride_dqkv, stride_out, scale, scale_log2,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr, ROTARY_HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of queries, for one head; and their delta, for `_attention_key_backward_kernel`.

    Rows of up to longest_short tokens are left to `_attention_short_backward_kernel`.
    """
    row, block, head = tl.program_id(0) % rows, blocks - 1 - tl.program_id(0) // rows, tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + row)
    length = tl.load(cu_seqlens_ptr + row + 1) - start
    first = block * BLOCK_Q
    if length <= longest_short or first >= length:
        return
    offs_q = first + tl.arange(0, BLOCK_Q)
    mask_q, rows_q = offs_q < length, start + offs_q
    q1, q2 = load_vectors(qkv_ptr + head * HEAD_DIM, stride_qkv, rows_q, mask_q, HEAD_DIM, BLOCK_1, BLOCK_2)
    do1, do2 = load_vectors(dout_ptr + head * HEAD_DIM, stride_out, rows_q, mask_q, HEAD_DIM, BLOCK_1, BLOCK_2)
    out1, out2 = load_vectors(out_ptr + head * HEAD_DIM, stride_out, rows_q, mask_q, HEAD_DIM, BLOCK_1, BLOCK_2)
    delta = multiply_vectors(do1, do2, out1, out2, HEAD_DIM, BLOCK_1)
    tl.store(delta_ptr + head * tokens + rows_q, delta, mask_q)
    lse = tl.load(lse_ptr + head * tokens + rows_q, mask_q, 0)
    k_ptr = qkv_ptr + (NUM_HEADS + head // (NUM_HEADS // NUM_KV_HEADS)) * HEAD_DIM
    v_ptr = k_ptr + NUM_KV_HEADS * HEAD_DIM
    dq1, dq2 = zero_vectors(BLOCK_Q, BLOCK_1, BLOCK_2)
    keys = _key_ranges(first, length, WINDOW, BLOCK_Q, BLOCK_K)
    for masked in tl.static_range(2):
        for key in range(keys[masked], keys[masked + 1], BLOCK_K):
            offs_k = key + tl.arange(0, BLOCK_K)
            mask_k, rows_k = offs_k < length, start + offs_k
            k1, k2 = load_vectors(k_ptr, stride_qkv, rows_k, mask_k, HEAD_DIM, BLOCK_1, BLOCK_2)
            v1, v2 = load_vectors(v_ptr, stride_qkv, rows_k, mask_k, HEAD_DIM, BLOCK_1, BLOCK_2)
            p = tl.exp2(dot_vectors(q1, q2, k1, k2, HEAD_DIM, BLOCK_1) * scale_log2 - lse[:, None])
            if masked:
                p = tl.where(_sees(offs_q[:, None], offs_k[None, :], WINDOW), p, 0.0)
            ds = p * (dot_vectors(do1, do2, v1, v2, HEAD_DIM, BLOCK_1) - delta[:, None])
            dq1, dq2 = add_weighted(dq1, dq2, ds.to(k1.dtype), k1, k2, HEAD_DIM, BLOCK_1)
    dq_ptr = dqkv_ptr + head * HEAD_DIM
    store_vectors(dq_ptr, stride_dqkv, rows_q, mask_q, dq1 * scale, dq2 * scale, HEAD_DIM, BLOCK_1, BLOCK_2)
    rotate_back(dq_ptr, stride_dqkv, rows_q, mask_q, rows_q, cos_ptr, sin_ptr, angles, ROTARY_HALF, BLOCK_HALF)


@triton.jit(do_not_specialize=["angles", "rows", "tokens", "longest_short"])
def _attention_key_backward_kernel(
    qkv_ptr, lse_ptr, delta_ptr, dout_ptr, dqkv_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, angles, rows, tokens,
    longest_short, stride_qkv, stride_dqkv, stride_out, scale, scale_log2,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr, ROTARY_HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradients of one block of keys and of their values, over all query heads that share them.

    The scores are transposed: [keys, queries].
    """
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    row, block, kv_head = tl.program_id(0) % rows, tl.program_id(0) // rows, tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + row)
    length = tl.load(cu_seqlens_ptr + row + 1) - start
    first = block * BLOCK_K
    if length <= longest_short or first >= length:
        return
    offs_k = first + tl.arange(0, BLOCK_K)
    mask_k, rows_k = offs_k < length, start + offs_k
    k_ptr, dk_ptr = qkv_ptr + (NUM_HEADS + kv_head) * HEAD_DIM, dqkv_ptr + (NUM_HEADS + kv_head) * HEAD_DIM
    v_ptr, dv_ptr = k_ptr + NUM_KV_HEADS * HEAD_DIM, dk_ptr + NUM_KV_HEADS * HEAD_DIM
    k1, k2 = load_vectors(k_ptr, stride_qkv, rows_k, mask_k, HEAD_DIM, BLOCK_1, BLOCK_2)
    v1, v2 = load_vectors(v_ptr, stride_qkv, rows_k, mask_k, HEAD_DIM, BLOCK_1, BLOCK_2)
    dk1, dk2 = zero_vectors(BLOCK_K, BLOCK_1, BLOCK_2)
    dv1, dv2 = zero_vectors(BLOCK_K, BLOCK_1, BLOCK_2)
    end = tl.minimum(length, first + BLOCK_K + WINDOW - 1) if WINDOW > 0 else length
    for head in range(kv_head * GROUP, kv_head * GROUP + GROUP):
        for query in range(first // BLOCK_Q * BLOCK_Q, end, BLOCK_Q):
            offs_q = query + tl.arange(0, BLOCK_Q)
            mask_q, rows_q = offs_q < length, start + offs_q
            q1, q2 = load_vectors(qkv_ptr + head * HEAD_DIM, stride_qkv, rows_q, mask_q, HEAD_DIM, BLOCK_1, BLOCK_2)
            scores = dot_vectors(k1, k2, q1, q2, HEAD_DIM, BLOCK_1) * scale_log2
            lse = tl.load(lse_ptr + head * tokens + rows_q, mask_q, 0)
            seen = _sees(offs_q[None, :], offs_k[:, None], WINDOW) & mask_q[None, :]
            p = tl.where(seen, tl.exp2(scores - lse[None, :]), 0.0)
            do1, do2 = load_vectors(dout_ptr + head * HEAD_DIM, stride_out, rows_q, mask_q, HEAD_DIM, BLOCK_1, BLOCK_2)
            dv1, dv2 = add_weighted(dv1, dv2, p.to(k1.dtype), do1, do2, HEAD_DIM, BLOCK_1)
            delta = tl.load(delta_ptr + head * tokens + rows_q, mask_q, 0)
            ds = p * (dot_vectors(v1, v2, do1, do2, HEAD_DIM, BLOCK_1) - delta[None, :])
            dk1, dk2 = add_weighted(dk1, dk2, ds.to(k1.dtype), q1, q2, HEAD_DIM, BLOCK_1)
    store_vectors(dv_ptr, stride_dqkv, rows_k, mask_k, dv1, dv2, HEAD_DIM, BLOCK_1, BLOCK_2)
    store_vectors(dk_ptr, stride_dqkv, rows_k, mask_k, dk1 * scale, dk2 * scale, HEAD_DIM, BLOCK_1, BLOCK_2)
    rotate_back(dk_ptr, stride_dqkv, rows_k, mask_k, rows_k, cos_ptr, sin_ptr, angles, ROTARY_HALF, BLOCK_HALF)
