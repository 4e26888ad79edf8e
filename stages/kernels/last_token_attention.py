"""Causal attention of one query for each row: that of the token which is classified.

The last decoder layer needs the attention of no other token. One program computes the query heads of one row that share
keys and values, over all keys of the row that the token sees. So each gradient of a key or value has one writer.
"""

import torch
import triton
import triton.language as tl

from stages.kernels.attention import (
    LOG2_E,
    Attention,
    AttentionConfig,
    RowLayout,
    dot_parts,
    launch_options,
    load_rotated,
    padded_size,
    store_rotated_grad,
)
from stages.kernels.index_limits import check_index_range


def attend_last(q: torch.Tensor, kv: torch.Tensor, config: AttentionConfig, layout: RowLayout) -> torch.Tensor:
    """Attention of the queries of the tokens `layout.last`, or of all tokens if that is None.

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
        flat_q, flat_kv = q.reshape(-1, q.shape[-1]), kv.reshape(-1, kv.shape[-1])
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
    """Attention of each row's token `layout.last`, rotary embedding included. That of a row without tokens is 0.

    Args:
        q: [rows, columns], whose first columns are the queries.
        kv: keys and values of all tokens, [tokens, 2 * num_kv_heads * head_dim].

    Returns:
        the output [rows, num_heads * head_dim], and each query's log-sum-exp, base 2, [rows, num_heads].
    """
    out = torch.empty((len(q), config.qkv_widths[0]), dtype=q.dtype, device=q.device)
    lse = torch.empty((len(q), config.num_heads), dtype=torch.float32, device=q.device)
    options, _ = _options(q, kv, config, layout)
    _forward_kernel[(len(q), config.num_kv_heads)](
        q, kv, out, lse, layout.cos, layout.sin, layout.cu_seqlens, layout.last, q.stride(0), kv.stride(0),
        config.scale * LOG2_E, **options,
    )  # fmt: skip
    return out, lse


def last_token_backward(
    q: torch.Tensor, kv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, dout: torch.Tensor, dq: torch.Tensor,
    config: AttentionConfig, layout: RowLayout,
) -> torch.Tensor:  # fmt: skip
    """Write the gradient of the queries into the first columns of dq, and return that of kv.

    It is 0 for tokens that the classified one does not see, and for tokens after the last row.
    """
    dkv = torch.empty_like(kv)
    options, programs = _options(q, kv, config, layout)
    _backward_kernel[(programs, config.num_kv_heads)](
        q, kv, out, lse, dout, dq, dkv, layout.cos, layout.sin, layout.cu_seqlens, layout.last, len(q), len(kv),
        q.stride(0), kv.stride(0), dq.stride(0), config.scale, config.scale * LOG2_E, **options,
    )  # fmt: skip
    return dkv


def _options(
    q: torch.Tensor, kv: torch.Tensor, config: AttentionConfig, layout: RowLayout
) -> tuple[dict[str, int | bool], int]:
    """The kernels' constants, and the backward's programs for each head: rows, then blocks of tokens after them."""
    check_index_range(kv.numel(), q.stride(0) * len(q))
    block = max(16, min(64, 4096 // padded_size(config.head_dim)))
    options, _, programs = launch_options(kv, config, layout, block, block)
    return options | {"BLOCK_G": padded_size(config.num_heads // config.num_kv_heads), "num_stages": 1}, programs


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
def _forward_kernel(
    q_ptr, kv_ptr, out_ptr, lse_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, last_ptr, stride_q, stride_kv, scale,
    HEADS_PER_KV: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr, PASS_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_PASS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, ANGLE_BY_TOKEN: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_G: tl.constexpr,
):  # fmt: skip
    """The query heads of one row that share keys and values."""
    row, kv_head = tl.program_id(0), tl.program_id(1)
    start, length, token, last = _load_row(cu_seqlens_ptr, last_ptr, row)
    offs_g, offs_d, offs_block = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    mask_g, first = offs_g < HEADS_PER_KV, kv_head * HEADS_PER_KV * HEAD_DIM
    position = (token if ANGLE_BY_TOKEN else last) + tl.zeros((BLOCK_G,), dtype=tl.int32)
    q1, q2, q3 = load_rotated(
        q_ptr + row * stride_q + first, HEAD_DIM, offs_g, mask_g, position, cos_ptr, sin_ptr,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip
    k_ptr = kv_ptr + kv_head * HEAD_DIM
    acc = tl.zeros((BLOCK_G, BLOCK_D), dtype=tl.float32)
    row_max = tl.full((BLOCK_G,), float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_G,), dtype=tl.float32)
    first_key = tl.maximum(last - WINDOW + 1, 0) if WINDOW > 0 else 0
    for block in range(first_key // BLOCK_M, tl.cdiv(tl.minimum(last + 1, length), BLOCK_M)):
        offs_n = block * BLOCK_M + offs_block
        tokens_n, mask_n = start + offs_n, (offs_n >= first_key) & (offs_n <= last)
        k1, k2, k3 = load_rotated(
            k_ptr, stride_kv, tokens_n, mask_n, tokens_n if ANGLE_BY_TOKEN else offs_n, cos_ptr, sin_ptr,
            ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
        )  # fmt: skip
        scores = dot_parts(q1, q2, q3, k1, k2, k3, PASS_DIM) * scale
        scores = tl.where(mask_n[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        p = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(p, 1)
        v_ptrs = k_ptr + NUM_KV_HEADS * HEAD_DIM + tokens_n[:, None] * stride_kv + offs_d[None, :]
        v = tl.load(v_ptrs, mask_n[:, None] & (offs_d < HEAD_DIM)[None, :], 0)
        acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        row_max = new_max
    row_sum = tl.where(row_sum > 0, row_sum, 1.0)  # of a row without tokens
    out_ptrs = out_ptr + row * (NUM_KV_HEADS * HEADS_PER_KV * HEAD_DIM) + first
    out_ptrs += offs_g[:, None] * HEAD_DIM + offs_d[None, :]
    out = (acc / row_sum[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptrs, out, mask_g[:, None] & (offs_d < HEAD_DIM)[None, :])
    lse_ptrs = lse_ptr + (row * NUM_KV_HEADS + kv_head) * HEADS_PER_KV + offs_g
    tl.store(lse_ptrs, row_max + tl.log2(row_sum), mask_g)


@triton.jit(do_not_specialize=["rows", "tokens"])
def _backward_kernel(
    q_ptr, kv_ptr, out_ptr, lse_ptr, dout_ptr, dq_ptr, dkv_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, last_ptr, rows,
    tokens, stride_q, stride_kv, stride_dq, scale, scale_log2,
    HEADS_PER_KV: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr, PASS_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_PASS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, ANGLE_BY_TOKEN: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_G: tl.constexpr,
):  # fmt: skip
    """The query heads of one row that share keys and values; or zeros for a block of the tokens after the last row."""
    row, kv_head = tl.program_id(0), tl.program_id(1)
    offs_g, offs_d, offs_block = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    dk_ptr, mask_d = dkv_ptr + kv_head * HEAD_DIM, offs_d < HEAD_DIM
    dv_ptr = dk_ptr + NUM_KV_HEADS * HEAD_DIM
    if row >= rows:
        tokens_n = tl.load(cu_seqlens_ptr + rows).to(tl.int32) + (row - rows) * BLOCK_M + offs_block
        offsets, mask = tokens_n[:, None] * stride_kv + offs_d[None, :], (tokens_n < tokens)[:, None] & mask_d[None, :]
        zeros = tl.zeros((BLOCK_M, BLOCK_D), dkv_ptr.dtype.element_ty)
        tl.store(dk_ptr + offsets, zeros, mask)
        tl.store(dv_ptr + offsets, zeros, mask)
        return
    start, length, token, last = _load_row(cu_seqlens_ptr, last_ptr, row)
    mask_g, first = offs_g < HEADS_PER_KV, kv_head * HEADS_PER_KV * HEAD_DIM
    position = (token if ANGLE_BY_TOKEN else last) + tl.zeros((BLOCK_G,), dtype=tl.int32)
    q1, q2, q3 = load_rotated(
        q_ptr + row * stride_q + first, HEAD_DIM, offs_g, mask_g, position, cos_ptr, sin_ptr,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip
    offs_out = row * (NUM_KV_HEADS * HEADS_PER_KV * HEAD_DIM) + first + offs_g[:, None] * HEAD_DIM + offs_d[None, :]
    do = tl.load(dout_ptr + offs_out, mask_g[:, None] & mask_d[None, :], 0)
    out = tl.load(out_ptr + offs_out, mask_g[:, None] & mask_d[None, :], 0)
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    lse = tl.load(lse_ptr + (row * NUM_KV_HEADS + kv_head) * HEADS_PER_KV + offs_g, mask_g, 0)
    dq1 = tl.zeros((BLOCK_G, BLOCK_HALF), dtype=tl.float32)
    dq2 = tl.zeros((BLOCK_G, BLOCK_HALF), dtype=tl.float32)
    dq3 = tl.zeros((BLOCK_G, BLOCK_PASS), dtype=tl.float32)
    k_ptr = kv_ptr + kv_head * HEAD_DIM
    first_key = last - WINDOW + 1 if WINDOW > 0 else 0
    for block in range(0, tl.cdiv(length, BLOCK_M)):
        offs_n = block * BLOCK_M + offs_block
        tokens_n, mask_n = start + offs_n, offs_n < length
        positions_n = tokens_n if ANGLE_BY_TOKEN else offs_n
        offsets, mask = tokens_n[:, None] * stride_kv + offs_d[None, :], mask_n[:, None] & mask_d[None, :]
        k1, k2, k3 = load_rotated(
            k_ptr, stride_kv, tokens_n, mask_n, positions_n, cos_ptr, sin_ptr,
            ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
        )  # fmt: skip
        v = tl.load(k_ptr + NUM_KV_HEADS * HEAD_DIM + offsets, mask, 0)
        scores = dot_parts(q1, q2, q3, k1, k2, k3, PASS_DIM) * scale_log2
        seen = (offs_n >= first_key) & (offs_n <= last)
        p = tl.where(seen[None, :], tl.exp2(scores - lse[:, None]), 0.0)
        dv = tl.dot(tl.trans(p.to(v.dtype)), do, input_precision="ieee")
        tl.store(dv_ptr + offsets, dv.to(dkv_ptr.dtype.element_ty), mask)
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = (p * (dp - delta[:, None]) * scale).to(v.dtype)
        dq1 = tl.dot(ds, k1, dq1, input_precision="ieee")
        dq2 = tl.dot(ds, k2, dq2, input_precision="ieee")
        if PASS_DIM > 0:
            dq3 = tl.dot(ds, k3, dq3, input_precision="ieee")
        ds = tl.trans(ds)
        dk1, dk2 = tl.dot(ds, q1, input_precision="ieee"), tl.dot(ds, q2, input_precision="ieee")
        dk3 = tl.zeros((BLOCK_M, BLOCK_PASS), dtype=tl.float32)
        if PASS_DIM > 0:
            dk3 = tl.dot(ds, q3, input_precision="ieee")
        store_rotated_grad(
            dk_ptr, stride_kv, tokens_n, mask_n, positions_n, cos_ptr, sin_ptr, dk1, dk2, dk3,
            ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
        )  # fmt: skip
    store_rotated_grad(
        dq_ptr + row * stride_dq + first, HEAD_DIM, offs_g, mask_g, position, cos_ptr, sin_ptr, dq1, dq2, dq3,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip
