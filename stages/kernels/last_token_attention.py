"""Causal attention of one query for each row: that of the token which is classified.

The last decoder layer needs the attention of no other token. One program computes the query heads of one row that share
keys and values, over all keys of the row that the token sees. So each gradient of a key or value has one writer.
"""

import torch
import triton
import triton.language as tl

from stages.kernels.attention import LOG2_E, Attention, AttentionConfig, RowLayout, attention_constants
from stages.kernels.head_vectors import (
    add_weighted,
    dot_vectors,
    load_vectors,
    multiply_vectors,
    padded_size,
    store_vectors,
    zero_vectors,
)
from stages.kernels.index_limits import check_index_range
from stages.kernels.rotary import rotate, rotate_back


def attend_last(q: torch.Tensor, kv: torch.Tensor, config: AttentionConfig, layout: RowLayout) -> torch.Tensor:
    """Attention of the queries of the tokens `layout.last`, or of all tokens if that is None.

    Queries and keys are overwritten.

    Args:
        q: [1, rows, num_heads * head_dim], or [..., num_heads * head_dim] of all tokens.
        kv: keys and values of all tokens, [..., 2 * num_kv_heads * head_dim].

    Returns:
        a tensor of q's shape.
    """
    if layout.last is None:
        return Attention.apply(torch.cat([q, kv], dim=-1), config, layout)
    return _LastTokenAttention.apply(q, kv, config, layout)


class _LastTokenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: torch.Tensor, kv: torch.Tensor, config: AttentionConfig, layout: RowLayout) -> torch.Tensor:
        flat_q, flat_kv = q.detach().reshape(-1, q.shape[-1]), kv.detach().reshape(-1, kv.shape[-1])
        out, lse = last_token_forward(flat_q, flat_kv, config, layout)
        ctx.config, ctx.layout = config, layout
        ctx.save_for_backward(flat_q, flat_kv, out, lse)
        return out.view(q.shape)

    @staticmethod
    def backward(ctx, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, kv, out, lse = ctx.saved_tensors
        dq = torch.empty_like(q)
        dkv = last_token_backward(q, kv, out, lse, dout.reshape(out.shape).contiguous(), dq, ctx.config, ctx.layout)
        return dq.view(dout.shape), dkv.view(*dout.shape[:-2], -1, kv.shape[-1]), None, None


def last_token_forward(
    q: torch.Tensor, kv: torch.Tensor, config: AttentionConfig, layout: RowLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each row's token `layout.last`. That of a row without tokens is 0.

    Queries and keys are rotated in place, as in `attention_forward`.

    Args:
        q: [rows, columns], whose first columns are the queries.
        kv: keys and values of all tokens, [tokens, 2 * num_kv_heads * head_dim].

    Returns:
        the output [rows, num_heads * head_dim], and each query's log-sum-exp, base 2, [rows, num_heads].
    """
    check_index_range(kv.numel(), q.stride(0) * len(q))
    rotate(q, config.num_heads, config.head_dim, layout.cos, layout.sin, layout.last)
    rotate(kv, config.num_kv_heads, config.head_dim, layout.cos, layout.sin)
    out = torch.empty((len(q), config.qkv_widths[0]), dtype=q.dtype, device=q.device)
    lse = torch.empty((len(q), config.num_heads), dtype=torch.float32, device=q.device)
    _last_attention_forward_kernel[(len(q), config.num_kv_heads)](
        q, kv, out, lse, layout.cu_seqlens, layout.last, q.stride(0), kv.stride(0), config.scale * LOG2_E,
        **_constants(kv, config, layout),
    )  # fmt: skip
    return out, lse


def last_token_backward(
    q: torch.Tensor, kv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, dout: torch.Tensor, dq: torch.Tensor,
    config: AttentionConfig, layout: RowLayout,
) -> torch.Tensor:  # fmt: skip
    """Write the gradient of the queries into the first columns of dq, and return that of kv.

    It is 0 for tokens that the classified one does not see, and for tokens after the last row.
    """
    dkv, constants = torch.empty_like(kv), _constants(kv, config, layout)
    programs = len(q) + triton.cdiv(len(kv), int(constants["BLOCK_M"]))  # rows, then blocks of tokens after them
    _last_attention_backward_kernel[(programs, config.num_kv_heads)](
        q, kv, out, lse, dout, dq, dkv, layout.cos, layout.sin, layout.cu_seqlens, layout.last, len(layout.cos),
        len(q), len(kv), q.stride(0), kv.stride(0), dq.stride(0), config.scale, config.scale * LOG2_E, **constants,
    )  # fmt: skip
    return dkv


def _constants(kv: torch.Tensor, config: AttentionConfig, layout: RowLayout) -> dict[str, int]:
    return attention_constants(config, layout) | {
        "BLOCK_M": max(16, min(64, 4096 // padded_size(config.head_dim))),
        "BLOCK_G": padded_size(config.num_heads // config.num_kv_heads),
        "num_warps": 8 if config.head_dim > 128 or kv.element_size() == 4 else 4, "num_stages": 1,
    }  # fmt: skip


# In both kernels: offs_g are the query heads that share keys and values, offs_n a block of keys: their positions in the
# row. tokens_n are the keys' rows in the tensors. `last` is the query's position in its row.


@triton.jit
def _load_row(cu_seqlens_ptr, last_ptr, row):
    """The row's first token, its length, and the token that is classified: of the tensor, and in the row."""
    start = tl.load(cu_seqlens_ptr + row).to(tl.int32)
    length = tl.load(cu_seqlens_ptr + row + 1).to(tl.int32) - start
    token = tl.load(last_ptr + row).to(tl.int32)
    return start, length, token, tl.maximum(token - start, 0)  # a row without tokens has token 0


@triton.jit
def _last_attention_forward_kernel(
    q_ptr, kv_ptr, out_ptr, lse_ptr, cu_seqlens_ptr, last_ptr, stride_q, stride_kv, scale,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr, ROTARY_HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """The query heads of one row that share keys and values."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    row, kv_head = tl.program_id(0), tl.program_id(1)
    start, length, _, last = _load_row(cu_seqlens_ptr, last_ptr, row)
    offs_g = tl.arange(0, BLOCK_G)
    mask_g, first = offs_g < GROUP, kv_head * GROUP * HEAD_DIM
    q1, q2 = load_vectors(q_ptr + row * stride_q + first, HEAD_DIM, offs_g, mask_g, HEAD_DIM, BLOCK_1, BLOCK_2)
    k_ptr = kv_ptr + kv_head * HEAD_DIM
    v_ptr = k_ptr + NUM_KV_HEADS * HEAD_DIM
    acc1, acc2 = zero_vectors(BLOCK_G, BLOCK_1, BLOCK_2)
    row_max = tl.full((BLOCK_G,), float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_G,), dtype=tl.float32)
    first_key = tl.maximum(last - WINDOW + 1, 0) if WINDOW > 0 else 0
    for block in range(first_key // BLOCK_M, tl.cdiv(tl.minimum(last + 1, length), BLOCK_M)):
        offs_n = block * BLOCK_M + tl.arange(0, BLOCK_M)
        rows_n, mask_n = start + offs_n, (offs_n >= first_key) & (offs_n <= last)
        k1, k2 = load_vectors(k_ptr, stride_kv, rows_n, mask_n, HEAD_DIM, BLOCK_1, BLOCK_2)
        scores = dot_vectors(q1, q2, k1, k2, HEAD_DIM, BLOCK_1) * scale
        scores = tl.where(mask_n[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        p = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(p, 1)
        v1, v2 = load_vectors(v_ptr, stride_kv, rows_n, mask_n, HEAD_DIM, BLOCK_1, BLOCK_2)
        acc1, acc2 = acc1 * rescale[:, None], acc2 * rescale[:, None]
        acc1, acc2 = add_weighted(acc1, acc2, p.to(v1.dtype), v1, v2, HEAD_DIM, BLOCK_1)
        row_max = new_max
    row_sum = tl.where(row_sum > 0, row_sum, 1.0)  # of a row without tokens
    out_row_ptr = out_ptr + row * (NUM_HEADS * HEAD_DIM) + first
    acc1, acc2 = acc1 / row_sum[:, None], acc2 / row_sum[:, None]
    store_vectors(out_row_ptr, HEAD_DIM, offs_g, mask_g, acc1, acc2, HEAD_DIM, BLOCK_1, BLOCK_2)
    tl.store(lse_ptr + row * NUM_HEADS + kv_head * GROUP + offs_g, row_max + tl.log2(row_sum), mask_g)


@triton.jit(do_not_specialize=["angles", "rows", "tokens"])
def _last_attention_backward_kernel(
    q_ptr, kv_ptr, out_ptr, lse_ptr, dout_ptr, dq_ptr, dkv_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, last_ptr, angles,
    rows, tokens, stride_q, stride_kv, stride_dq, scale, scale_log2,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr, ROTARY_HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """The query heads of one row that share keys and values; or zeros for a block of the tokens after the last row."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    row, kv_head = tl.program_id(0), tl.program_id(1)
    offs_g, offs_block = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_M)
    dk_ptr = dkv_ptr + kv_head * HEAD_DIM
    dv_ptr = dk_ptr + NUM_KV_HEADS * HEAD_DIM
    zero1, zero2 = zero_vectors(BLOCK_M, BLOCK_1, BLOCK_2)
    if row >= rows:
        rows_n = tl.load(cu_seqlens_ptr + rows).to(tl.int32) + (row - rows) * BLOCK_M + offs_block
        store_vectors(dk_ptr, stride_kv, rows_n, rows_n < tokens, zero1, zero2, HEAD_DIM, BLOCK_1, BLOCK_2)
        store_vectors(dv_ptr, stride_kv, rows_n, rows_n < tokens, zero1, zero2, HEAD_DIM, BLOCK_1, BLOCK_2)
        return
    start, length, token, last = _load_row(cu_seqlens_ptr, last_ptr, row)
    mask_g, first = offs_g < GROUP, kv_head * GROUP * HEAD_DIM
    out_row = row * (NUM_HEADS * HEAD_DIM) + first
    q1, q2 = load_vectors(q_ptr + row * stride_q + first, HEAD_DIM, offs_g, mask_g, HEAD_DIM, BLOCK_1, BLOCK_2)
    do1, do2 = load_vectors(dout_ptr + out_row, HEAD_DIM, offs_g, mask_g, HEAD_DIM, BLOCK_1, BLOCK_2)
    out1, out2 = load_vectors(out_ptr + out_row, HEAD_DIM, offs_g, mask_g, HEAD_DIM, BLOCK_1, BLOCK_2)
    delta = multiply_vectors(do1, do2, out1, out2, HEAD_DIM, BLOCK_1)
    lse = tl.load(lse_ptr + row * NUM_HEADS + kv_head * GROUP + offs_g, mask_g, 0)
    dq1, dq2 = zero_vectors(BLOCK_G, BLOCK_1, BLOCK_2)
    k_ptr = kv_ptr + kv_head * HEAD_DIM
    v_ptr = k_ptr + NUM_KV_HEADS * HEAD_DIM
    first_key = last - WINDOW + 1 if WINDOW > 0 else 0
    for block in range(0, tl.cdiv(length, BLOCK_M)):
        offs_n = block * BLOCK_M + offs_block
        rows_n, mask_n = start + offs_n, offs_n < length
        k1, k2 = load_vectors(k_ptr, stride_kv, rows_n, mask_n, HEAD_DIM, BLOCK_1, BLOCK_2)
        v1, v2 = load_vectors(v_ptr, stride_kv, rows_n, mask_n, HEAD_DIM, BLOCK_1, BLOCK_2)
        scores = dot_vectors(q1, q2, k1, k2, HEAD_DIM, BLOCK_1) * scale_log2
        seen = (offs_n >= first_key) & (offs_n <= last)
        p = tl.where(seen[None, :], tl.exp2(scores - lse[:, None]), 0.0)
        dv1, dv2 = add_weighted(zero1, zero2, tl.trans(p.to(k1.dtype)), do1, do2, HEAD_DIM, BLOCK_1)
        store_vectors(dv_ptr, stride_kv, rows_n, mask_n, dv1, dv2, HEAD_DIM, BLOCK_1, BLOCK_2)
        dp = dot_vectors(do1, do2, v1, v2, HEAD_DIM, BLOCK_1)
        ds = (p * (dp - delta[:, None])).to(k1.dtype)
        dq1, dq2 = add_weighted(dq1, dq2, ds, k1, k2, HEAD_DIM, BLOCK_1)
        dk1, dk2 = add_weighted(zero1, zero2, tl.trans(ds), q1, q2, HEAD_DIM, BLOCK_1)
        store_vectors(dk_ptr, stride_kv, rows_n, mask_n, dk1 * scale, dk2 * scale, HEAD_DIM, BLOCK_1, BLOCK_2)
        rotate_back(dk_ptr, stride_kv, rows_n, mask_n, rows_n, cos_ptr, sin_ptr, angles, ROTARY_HALF, BLOCK_HALF)
    dq_row_ptr = dq_ptr + row * stride_dq + first
    store_vectors(dq_row_ptr, HEAD_DIM, offs_g, mask_g, dq1 * scale, dq2 * scale, HEAD_DIM, BLOCK_1, BLOCK_2)
    tokens_g = token + tl.zeros((BLOCK_G,), dtype=tl.int32)
    rotate_back(dq_row_ptr, HEAD_DIM, offs_g, mask_g, tokens_g, cos_ptr, sin_ptr, angles, ROTARY_HALF, BLOCK_HALF)
