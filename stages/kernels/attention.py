"""Causal attention of packed rows, with the rotary position embedding. Packed rows follow one another without padding.

Long rows use PyTorch's FlashAttention-2 (Dao 2023), after a kernel that rotates queries and keys. It is slow on short
rows: most rows of a classifier's data fit one block of tokens. Their kernels have the rotary embedding fused in, and
one program computes one block of a row's queries for one head, by FlashAttention-2's formulas. These kernels also
compute long rows where PyTorch's do not run: in fp32, on GPUs before sm_80, and with heads of over 256 dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl

from stages.kernels.flash_attention import flash_backward, flash_forward, supports_flash
from stages.kernels.index_limits import check_index_range

# Rows of up to SHORT tokens fit a block of our kernels. Microseconds of forward and backward on an H200, for phi-2's
# heads and 8,192 tokens, ours / flash attention: rows of 64 tokens 277 / 617, of 128 656 / 548, of 1,024 3,224 / 1,098.
# Rows of 34 tokens with one of 512: 763 / 1,056, of 1,024: 1,244 / 1,382, of 2,048: 2,630 / 2,349. Rows of 34 tokens
# where up to 96 are expected: 463 / 918, up to 512: 637 / 995, up to 2,048: 1,298 / 1,418. With Llama's and Gemma's
# heads, too, flash attention is faster for rows from 128 tokens on. From benchmarks/attention_lengths.py.
SHORT, LONGEST_AMONG_SHORT = 64, 1024
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
    """Rotary embedding (Su et al. 2021), then causal attention within each row.

    As in transformers, dimension i of a head is rotated with dimension i + rotary / 2. Dimensions from `rotary` on are
    not rotated. Shapes: qkv [..., sum of `qkv_widths`], the output [..., num_heads * head_dim].
    """

    @staticmethod
    def forward(ctx, qkv: torch.Tensor, config: AttentionConfig, layout: RowLayout) -> torch.Tensor:
        flat = qkv.reshape(-1, qkv.shape[-1])
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

    If `takes_flash` is true, queries and keys are rotated in qkv itself. This needs no memory for a copy, and the
    backward finds them rotated. Only `attention_backward` reads them again: the product that computed them saves its
    input but not its output, `norm_heads` too, and gradient checkpointing computes them anew.

    Returns:
        the output [tokens, num_heads * head_dim], and each query's log-sum-exp, [num_heads, tokens], for the backward.
    """
    if takes_flash(qkv, config, layout):
        return forward_by_flash(qkv, config, layout)
    tokens = len(qkv)
    out = torch.empty((tokens, config.qkv_widths[0]), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((config.num_heads, tokens), dtype=torch.float32, device=qkv.device)
    check_index_range(max(qkv.stride(0), 2 * config.qkv_widths[0]) * tokens)
    options, blocks, programs = launch_options(qkv, config, layout, _block_size(qkv, config), layout.max_seqlen)
    _forward_kernel[(programs, config.num_heads)](
        qkv, out, lse, layout.cos, layout.sin, layout.cu_seqlens, len(layout.cu_seqlens) - 1, blocks, tokens,
        qkv.stride(0), config.num_heads * config.head_dim, config.scale * LOG2_E,
        NUM_HEADS=config.num_heads, num_stages=1, **options,
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
    if takes_flash(qkv, config, layout):
        return backward_by_flash(qkv, out, lse, dout, dqkv, config, layout)
    tokens, (q_width, kv_width, _) = len(qkv), config.qkv_widths
    dkv = dqkv[:, q_width : q_width + 2 * kv_width]
    shares_keys = config.num_heads > config.num_kv_heads
    # Where several heads share keys and values, each writes its own part of the gradient. The parts are added below.
    dkv_parts = torch.empty((tokens, 2 * q_width), dtype=dqkv.dtype, device=dqkv.device) if shares_keys else dkv
    tensors = (qkv, out, lse, dout, dqkv, dkv_parts, layout.cos, layout.sin, layout.cu_seqlens)
    rows = len(layout.cu_seqlens) - 1
    strides = (qkv.stride(0), dqkv.stride(0), dkv_parts.stride(0), q_width)
    scales = (config.scale, config.scale * LOG2_E)
    short = _block_size(qkv, config)  # up to this length a row needs no loop, and fewer registers
    options, _, programs = launch_options(qkv, config, layout, short, short)
    _short_backward_kernel[(programs, config.num_heads)](
        *tensors, rows, tokens, *strides, *scales, NUM_HEADS=config.num_heads, **options
    )
    if layout.max_seqlen > short:
        block = min(short, 32 if config.head_dim <= 128 else 16)
        options, blocks, programs = launch_options(qkv, config, layout, block, layout.max_seqlen)
        _backward_kernel[(programs, config.num_heads)](
            *tensors, rows, blocks, tokens, *strides, *scales,
            NUM_HEADS=config.num_heads, MAX_SHORT=short, num_stages=1, **options,
        )  # fmt: skip
    if shares_keys:
        kv_heads, head_dim = 2 * config.num_kv_heads, config.head_dim
        parts = dkv_parts.view(tokens, kv_heads, config.num_heads // config.num_kv_heads, head_dim)
        torch.sum(parts, dim=2, out=dkv.unflatten(1, (kv_heads, head_dim)))


def takes_flash(qkv: torch.Tensor, config: AttentionConfig, layout: RowLayout) -> bool:
    """Whether PyTorch's flash attention computes these rows, or the kernels below.

    It depends only on shapes, which a captured graph fixes: the average row is short or not, empty rows included.
    """
    rows = len(layout.cu_seqlens) - 1
    are_short = layout.max_seqlen <= SHORT or (len(qkv) <= SHORT * rows and layout.max_seqlen <= LONGEST_AMONG_SHORT)
    return not are_short and supports_flash(qkv, config.head_dim)


def forward_by_flash(
    qkv: torch.Tensor, config: AttentionConfig, layout: RowLayout, attend: Callable = flash_forward
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention_forward` by `attend`, which has the arguments of `flash_forward`."""
    tokens, block = len(qkv), _rotary_block(config)
    _rotate_kernel[(triton.cdiv(tokens, block), config.num_heads + config.num_kv_heads)](
        qkv, layout.cos, layout.sin, len(layout.cos), tokens, qkv.stride(0),
        BLOCK_M=block, **_part_sizes(config, layout),
    )  # fmt: skip
    out, lse = attend(
        *_split_heads(qkv, config), layout.cu_seqlens, layout.max_seqlen, config.scale, _window(config, layout) or None
    )
    out = out.view(tokens, -1)
    _zero_unused_kernel[(tokens,)](out, layout.cu_seqlens, len(layout.cu_seqlens) - 1, out.shape[1], BLOCK=1024)
    return out, lse


def backward_by_flash(
    qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, dout: torch.Tensor, dqkv: torch.Tensor,
    config: AttentionConfig, layout: RowLayout, attend_backward: Callable = flash_backward,
) -> None:  # fmt: skip
    """`attention_backward` by `attend_backward`, which has the arguments of `flash_backward`."""
    tokens, block, heads = len(qkv), _rotary_block(config), (len(qkv), config.num_heads, config.head_dim)
    dq, dk, dv = attend_backward(
        dout.view(heads), *_split_heads(qkv, config), out.view(heads), lse,
        layout.cu_seqlens, layout.max_seqlen, config.scale, _window(config, layout) or None,
    )  # fmt: skip
    _write_grads_kernel[(triton.cdiv(tokens, block), config.num_heads + 2 * config.num_kv_heads)](
        dq, dk, dv, dqkv, layout.cos, layout.sin, len(layout.cos), layout.cu_seqlens, len(layout.cu_seqlens) - 1,
        tokens, dqkv.stride(0),
        NUM_HEADS=config.num_heads, NUM_KV_HEADS=config.num_kv_heads, BLOCK_D=padded_size(config.head_dim),
        BLOCK_M=block, **_part_sizes(config, layout),
    )  # fmt: skip


def _split_heads(qkv: torch.Tensor, config: AttentionConfig) -> list[torch.Tensor]:
    """Views of queries, keys and values, each [tokens, heads, head_dim]."""
    parts = qkv[:, : sum(config.qkv_widths)].split(config.qkv_widths, dim=1)
    return [part.unflatten(1, (-1, config.head_dim)) for part in parts]


def _block_size(qkv: torch.Tensor, config: AttentionConfig) -> int:
    """Tokens of a block, at most 64.

    A block's tiles then fit the registers, and four tiles fit the shared memory of a multiprocessor.
    """
    block_d, block = padded_size(config.head_dim), 64
    if qkv.element_size() == 4:
        block = max(16, min(32, 4096 // block_d))
    while block > 16 and 4.5 * block * block_d * qkv.element_size() > shared_memory(qkv.device):
        block //= 2
    return block


def shared_memory(device: torch.device) -> float:
    """Bytes of shared memory that one program may use."""
    if device.type != "cuda":
        return float("inf")
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # PyTorch's hints lack it


def launch_options(
    qkv: torch.Tensor, config: AttentionConfig, layout: RowLayout, block: int, max_seqlen: int
) -> tuple[dict[str, int | bool], int, int]:
    """The kernels' constants, the blocks of a row of `max_seqlen` tokens, and the programs for each head.

    The programs cover all rows, then the tokens after the last row.
    """
    options: dict[str, int | bool] = {
        **_part_sizes(config, layout),
        "HEADS_PER_KV": config.num_heads // config.num_kv_heads, "NUM_KV_HEADS": config.num_kv_heads,
        "BLOCK_D": padded_size(config.head_dim), "BLOCK_M": block,
        "ANGLE_BY_TOKEN": len(layout.cos) == len(qkv), "WINDOW": _window(config, layout),
        "num_warps": 8 if config.head_dim > 128 or qkv.element_size() == 4 else 4,
    }  # fmt: skip
    blocks = triton.cdiv(max_seqlen, block)
    return options, blocks, (len(layout.cu_seqlens) - 1) * blocks + triton.cdiv(len(qkv), block)


def _window(config: AttentionConfig, layout: RowLayout) -> int:
    """The window, or 0 if no row is longer than it."""
    return config.window if config.window is not None and config.window < layout.max_seqlen else 0


def _part_sizes(config: AttentionConfig, layout: RowLayout) -> dict[str, int]:
    """The kernels' constants for the parts of a head's vector."""
    rotary_half = layout.cos.shape[1] // 2
    pass_dim = config.head_dim - 2 * rotary_half
    return {
        "HEAD_DIM": config.head_dim, "ROTARY_HALF": rotary_half, "PASS_DIM": pass_dim,
        "BLOCK_HALF": padded_size(rotary_half), "BLOCK_PASS": padded_size(pass_dim),
    }  # fmt: skip


def _rotary_block(config: AttentionConfig) -> int:
    """Tokens of a block of the kernels that only rotate: 16 to 256."""
    return 4096 // padded_size(config.head_dim)


def padded_size(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


# A kernel is compiled once for all numbers of rows and tokens, divisible by 16 or not.
#
# In all kernels below: a block has BLOCK_M tokens, of queries and of keys. offs_m and offs_n are their positions in the
# row, tokens_m and tokens_n their rows in the tensors. A head's vector has three parts: the two halves that are rotated
# with one another, and the dimensions that pass unrotated.


@triton.jit
def load_rotated(
    base_ptr, stride, tokens, mask, positions, cos_ptr, sin_ptr,
    ROTARY_HALF: tl.constexpr, PASS_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_PASS: tl.constexpr,
) -> tuple:  # fmt: skip
    """Load a block of one head and rotate it; returns its three parts."""
    offs_half, offs_pass = tl.arange(0, BLOCK_HALF), tl.arange(0, BLOCK_PASS)
    half_mask = mask[:, None] & (offs_half < ROTARY_HALF)[None, :]
    half_ptrs = base_ptr + tokens[:, None] * stride + offs_half[None, :]
    first = tl.load(half_ptrs, half_mask, 0).to(tl.float32)
    second = tl.load(half_ptrs + ROTARY_HALF, half_mask, 0).to(tl.float32)
    angles = positions[:, None] * (2 * ROTARY_HALF) + offs_half[None, :]
    cos = tl.load(cos_ptr + angles, half_mask, 0).to(tl.float32)
    sin = tl.load(sin_ptr + angles, half_mask, 0).to(tl.float32)
    dtype = base_ptr.dtype.element_ty
    pass_mask = mask[:, None] & (offs_pass < PASS_DIM)[None, :]
    passed = tl.load(base_ptr + 2 * ROTARY_HALF + tokens[:, None] * stride + offs_pass[None, :], pass_mask, 0)
    return (first * cos - second * sin).to(dtype), (second * cos + first * sin).to(dtype), passed


@triton.jit
def store_rotated_grad(
    base_ptr, stride, tokens, mask, positions, cos_ptr, sin_ptr, first, second, passed,
    ROTARY_HALF: tl.constexpr, PASS_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_PASS: tl.constexpr,
) -> None:  # fmt: skip
    """Rotate a block's gradient back and store it."""
    offs_half, offs_pass = tl.arange(0, BLOCK_HALF), tl.arange(0, BLOCK_PASS)
    half_mask = mask[:, None] & (offs_half < ROTARY_HALF)[None, :]
    angles = positions[:, None] * (2 * ROTARY_HALF) + offs_half[None, :]
    cos = tl.load(cos_ptr + angles, half_mask, 0).to(tl.float32)
    sin = tl.load(sin_ptr + angles, half_mask, 0).to(tl.float32)
    dtype = base_ptr.dtype.element_ty
    half_ptrs = base_ptr + tokens[:, None] * stride + offs_half[None, :]
    tl.store(half_ptrs, (first * cos + second * sin).to(dtype), half_mask)
    tl.store(half_ptrs + ROTARY_HALF, (second * cos - first * sin).to(dtype), half_mask)
    pass_mask = mask[:, None] & (offs_pass < PASS_DIM)[None, :]
    pass_ptrs = base_ptr + 2 * ROTARY_HALF + tokens[:, None] * stride + offs_pass[None, :]
    tl.store(pass_ptrs, passed.to(dtype), pass_mask)


@triton.jit(do_not_specialize=["angles", "tokens"])
def _rotate_kernel(
    qk_ptr, cos_ptr, sin_ptr, angles, tokens, stride_qk,
    HEAD_DIM: tl.constexpr, ROTARY_HALF: tl.constexpr, PASS_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_PASS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Rotate one head of a block of tokens in place; token i with the angles i modulo their number."""
    tokens_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = tokens_m < tokens
    head_ptr = qk_ptr + tl.program_id(1) * HEAD_DIM
    first, second, _ = load_rotated(
        head_ptr, stride_qk, tokens_m.to(tl.int64), mask_m, tokens_m % angles, cos_ptr, sin_ptr,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip
    tl.debug_barrier()  # in a small block several threads load one element, and one of them stores it
    offs_half = tl.arange(0, BLOCK_HALF)
    mask = mask_m[:, None] & (offs_half < ROTARY_HALF)[None, :]
    half_ptrs = head_ptr + tokens_m.to(tl.int64)[:, None] * stride_qk + offs_half[None, :]
    tl.store(half_ptrs, first, mask)
    tl.store(half_ptrs + ROTARY_HALF, second, mask)


@triton.jit(do_not_specialize=["rows"])
def _zero_unused_kernel(out_ptr, cu_seqlens_ptr, rows, columns, BLOCK: tl.constexpr):
    """Zero a token's output if it comes after the last row; out: [tokens, columns], contiguous."""
    token = tl.program_id(0)
    if token >= tl.load(cu_seqlens_ptr + rows):
        for first in range(0, columns, BLOCK):
            offsets = first + tl.arange(0, BLOCK)
            zeros = tl.zeros((BLOCK,), out_ptr.dtype.element_ty)
            tl.store(out_ptr + token.to(tl.int64) * columns + offsets, zeros, offsets < columns)


@triton.jit(do_not_specialize=["angles", "rows", "tokens"])
def _write_grads_kernel(
    dq_ptr, dk_ptr, dv_ptr, dqkv_ptr, cos_ptr, sin_ptr, angles, cu_seqlens_ptr, rows, tokens, stride_dqkv,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr, PASS_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_PASS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Rotate the gradient of one head of a block of tokens back and write it into its columns of dqkv.

    The heads are those of queries, then of keys, then of values, which have no rotation. Tokens after the last row get
    zeros. dq, dk, dv: contiguous.
    """
    head, tokens_m = tl.program_id(1), tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = tokens_m < tokens
    is_used = tokens_m < tl.load(cu_seqlens_ptr + rows)
    tokens_64 = tokens_m.to(tl.int64)
    out_ptr = dqkv_ptr + head * HEAD_DIM
    if head >= NUM_HEADS + NUM_KV_HEADS:
        offs_d = tl.arange(0, BLOCK_D)
        mask_d = (offs_d < HEAD_DIM)[None, :]
        dv_ptrs = dv_ptr + (head - NUM_HEADS - NUM_KV_HEADS) * HEAD_DIM
        dv_ptrs += tokens_64[:, None] * (NUM_KV_HEADS * HEAD_DIM) + offs_d[None, :]
        dv = tl.load(dv_ptrs, is_used[:, None] & mask_d, 0)
        tl.store(out_ptr + tokens_64[:, None] * stride_dqkv + offs_d[None, :], dv, mask_m[:, None] & mask_d)
        return
    stride = tl.where(head < NUM_HEADS, NUM_HEADS, NUM_KV_HEADS) * HEAD_DIM
    grad_ptr = dq_ptr + head * HEAD_DIM
    if head >= NUM_HEADS:
        grad_ptr = dk_ptr + (head - NUM_HEADS) * HEAD_DIM
    offs_half, offs_pass = tl.arange(0, BLOCK_HALF), tl.arange(0, BLOCK_PASS)
    grad_ptrs = grad_ptr + tokens_64[:, None] * stride
    half_mask = is_used[:, None] & (offs_half < ROTARY_HALF)[None, :]
    first = tl.load(grad_ptrs + offs_half[None, :], half_mask, 0).to(tl.float32)
    second = tl.load(grad_ptrs + ROTARY_HALF + offs_half[None, :], half_mask, 0).to(tl.float32)
    pass_mask = is_used[:, None] & (offs_pass < PASS_DIM)[None, :]
    passed = tl.load(grad_ptrs + 2 * ROTARY_HALF + offs_pass[None, :], pass_mask, 0)
    store_rotated_grad(
        out_ptr, stride_dqkv, tokens_64, mask_m, tokens_m % angles, cos_ptr, sin_ptr, first, second, passed,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip


@triton.jit
def dot_parts(q1, q2, q3, k1, k2, k3, PASS_DIM: tl.constexpr) -> tl.tensor:
    """Products of two blocks of vectors, [BLOCK_M, BLOCK_M], from their three parts."""
    scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
    scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee")
    if PASS_DIM > 0:
        scores = tl.dot(q3, tl.trans(k3), scores, input_precision="ieee")
    return scores


@triton.jit(do_not_specialize=["rows", "tokens"])
def _forward_kernel(
    qkv_ptr, out_ptr, lse_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, rows, blocks, tokens, stride_qkv, stride_out, scale,
    NUM_HEADS: tl.constexpr, HEADS_PER_KV: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr, PASS_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_PASS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, ANGLE_BY_TOKEN: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One block of a row's queries, for one head; or zeros for a block of the tokens after the last row."""
    row, block, head = tl.program_id(0) // blocks, tl.program_id(0) % blocks, tl.program_id(1)
    offs_d, offs_block = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    if row >= rows:
        end = tl.load(cu_seqlens_ptr + rows)
        tokens_m = end + (tl.program_id(0) - rows * blocks) * BLOCK_M + offs_block
        out_ptrs = out_ptr + tokens_m[:, None] * stride_out + head * HEAD_DIM + offs_d[None, :]
        out_mask = (tokens_m < tokens)[:, None] & (offs_d < HEAD_DIM)[None, :]
        tl.store(out_ptrs, tl.zeros((BLOCK_M, BLOCK_D), out_ptr.dtype.element_ty), out_mask)
        return
    start = tl.load(cu_seqlens_ptr + row)
    length = tl.load(cu_seqlens_ptr + row + 1) - start
    if block * BLOCK_M >= length:
        return
    k_ptr = qkv_ptr + NUM_HEADS * HEAD_DIM + head // HEADS_PER_KV * HEAD_DIM
    offs_m = block * BLOCK_M + offs_block
    tokens_m = start + offs_m
    positions_m = tokens_m if ANGLE_BY_TOKEN else offs_m
    q1, q2, q3 = load_rotated(
        qkv_ptr + head * HEAD_DIM, stride_qkv, tokens_m, offs_m < length, positions_m, cos_ptr, sin_ptr,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip
    acc = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    row_max = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for back in range(0, block + 1):  # from the queries' own block backwards: there a query sees at least itself
        offs_n = (block - back) * BLOCK_M + offs_block
        tokens_n = start + offs_n
        k1, k2, k3 = load_rotated(
            k_ptr, stride_qkv, tokens_n, offs_n < length, tokens_n if ANGLE_BY_TOKEN else offs_n, cos_ptr, sin_ptr,
            ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
        )  # fmt: skip
        scores = dot_parts(q1, q2, q3, k1, k2, k3, PASS_DIM) * scale
        causal_mask = (offs_n[None, :] <= offs_m[:, None]) & (offs_n < length)[None, :]
        if WINDOW > 0:
            causal_mask &= offs_m[:, None] - offs_n[None, :] < WINDOW
        scores = tl.where(causal_mask, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        p = tl.exp2(scores - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(p, 1)
        v_ptrs = k_ptr + NUM_KV_HEADS * HEAD_DIM + tokens_n[:, None] * stride_qkv + offs_d[None, :]
        v = tl.load(v_ptrs, (offs_n < length)[:, None] & (offs_d < HEAD_DIM)[None, :], 0)
        acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
        row_max = new_max
    out_mask = (offs_m < length)[:, None] & (offs_d < HEAD_DIM)[None, :]
    out_ptrs = out_ptr + tokens_m[:, None] * stride_out + head * HEAD_DIM + offs_d[None, :]
    tl.store(out_ptrs, (acc / row_sum[:, None]).to(out_ptr.dtype.element_ty), out_mask)
    tl.store(lse_ptr + head * tokens + tokens_m, row_max + tl.log2(row_sum), offs_m < length)


@triton.jit(do_not_specialize=["rows", "tokens"])
def _short_backward_kernel(
    qkv_ptr, out_ptr, lse_ptr, dout_ptr, dqkv_ptr, dkv_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, rows, tokens,
    stride_qkv, stride_dqkv, stride_dkv, stride_out, scale, scale_log2,
    NUM_HEADS: tl.constexpr, HEADS_PER_KV: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr, PASS_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_PASS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, ANGLE_BY_TOKEN: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """A whole row of up to BLOCK_M tokens, for one head; or zeros for a block of the tokens after the last row."""
    row, head = tl.program_id(0), tl.program_id(1)
    offs_d, offs_m = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    k_ptr, dk_ptr = qkv_ptr + (NUM_HEADS + head // HEADS_PER_KV) * HEAD_DIM, dkv_ptr + head * HEAD_DIM
    dv_ptr = dk_ptr + (NUM_KV_HEADS * HEADS_PER_KV) * HEAD_DIM
    if row >= rows:
        tokens_m = tl.load(cu_seqlens_ptr + rows) + (row - rows) * BLOCK_M + offs_m
        mask = (tokens_m < tokens)[:, None] & (offs_d < HEAD_DIM)[None, :]
        zeros = tl.zeros((BLOCK_M, BLOCK_D), dqkv_ptr.dtype.element_ty)
        tl.store(dqkv_ptr + head * HEAD_DIM + tokens_m[:, None] * stride_dqkv + offs_d[None, :], zeros, mask)
        tl.store(dk_ptr + tokens_m[:, None] * stride_dkv + offs_d[None, :], zeros, mask)
        tl.store(dv_ptr + tokens_m[:, None] * stride_dkv + offs_d[None, :], zeros, mask)
        return
    start = tl.load(cu_seqlens_ptr + row)
    length = tl.load(cu_seqlens_ptr + row + 1) - start
    if length > BLOCK_M:
        return
    tokens_m, mask_m = start + offs_m, offs_m < length
    positions = tokens_m if ANGLE_BY_TOKEN else offs_m
    mask = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    k1, k2, k3 = load_rotated(
        k_ptr, stride_qkv, tokens_m, mask_m, positions, cos_ptr, sin_ptr, ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS
    )
    q1, q2, q3 = load_rotated(
        qkv_ptr + head * HEAD_DIM, stride_qkv, tokens_m, mask_m, positions, cos_ptr, sin_ptr,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip
    v = tl.load(k_ptr + NUM_KV_HEADS * HEAD_DIM + tokens_m[:, None] * stride_qkv + offs_d[None, :], mask, 0)
    offs_out = tokens_m[:, None] * stride_out + head * HEAD_DIM + offs_d[None, :]
    do = tl.load(dout_ptr + offs_out, mask, 0)
    delta = tl.sum(do.to(tl.float32) * tl.load(out_ptr + offs_out, mask, 0).to(tl.float32), 1)
    scores = dot_parts(q1, q2, q3, k1, k2, k3, PASS_DIM) * scale_log2
    causal_mask = (offs_m[None, :] <= offs_m[:, None]) & mask_m[:, None]
    if WINDOW > 0:
        causal_mask &= offs_m[:, None] - offs_m[None, :] < WINDOW
    lse = tl.load(lse_ptr + head * tokens + tokens_m, mask_m, 0)
    p = tl.where(causal_mask, tl.exp2(scores - lse[:, None]), 0.0)
    dv = tl.dot(tl.trans(p.to(v.dtype)), do, input_precision="ieee")
    tl.store(dv_ptr + tokens_m[:, None] * stride_dkv + offs_d[None, :], dv.to(dkv_ptr.dtype.element_ty), mask)
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = (p * (dp - delta[:, None]) * scale).to(v.dtype)
    dq1, dq2 = tl.dot(ds, k1, input_precision="ieee"), tl.dot(ds, k2, input_precision="ieee")
    dq3 = tl.zeros((BLOCK_M, BLOCK_PASS), dtype=tl.float32)
    if PASS_DIM > 0:
        dq3 = tl.dot(ds, k3, input_precision="ieee")
    store_rotated_grad(
        dqkv_ptr + head * HEAD_DIM, stride_dqkv, tokens_m, mask_m, positions, cos_ptr, sin_ptr, dq1, dq2, dq3,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip
    ds = tl.trans(ds)
    dk1, dk2 = tl.dot(ds, q1, input_precision="ieee"), tl.dot(ds, q2, input_precision="ieee")
    dk3 = tl.zeros((BLOCK_M, BLOCK_PASS), dtype=tl.float32)
    if PASS_DIM > 0:
        dk3 = tl.dot(ds, q3, input_precision="ieee")
    store_rotated_grad(
        dk_ptr, stride_dkv, tokens_m, mask_m, positions, cos_ptr, sin_ptr, dk1, dk2, dk3,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "tokens"])
def _backward_kernel(
    qkv_ptr, out_ptr, lse_ptr, dout_ptr, dqkv_ptr, dkv_ptr, cos_ptr, sin_ptr, cu_seqlens_ptr, rows, blocks, tokens,
    stride_qkv, stride_dqkv, stride_dkv, stride_out, scale, scale_log2,
    NUM_HEADS: tl.constexpr, HEADS_PER_KV: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr, PASS_DIM: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_PASS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, ANGLE_BY_TOKEN: tl.constexpr, WINDOW: tl.constexpr,
    MAX_SHORT: tl.constexpr,
):  # fmt: skip
    """One block of a row of over MAX_SHORT tokens, for one head of queries.

    The program writes the gradient of the block's queries, and this head's part in that of the block's keys and values.
    Here offs_m are the block's tokens, offs_q those of a block of queries that see them, offs_n those of earlier keys.
    """
    row, block, head = tl.program_id(0) // blocks, tl.program_id(0) % blocks, tl.program_id(1)
    offs_d, offs_block = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    k_ptr, dk_ptr = qkv_ptr + (NUM_HEADS + head // HEADS_PER_KV) * HEAD_DIM, dkv_ptr + head * HEAD_DIM
    if row >= rows:
        return
    start = tl.load(cu_seqlens_ptr + row)
    length = tl.load(cu_seqlens_ptr + row + 1) - start
    if length <= MAX_SHORT or block * BLOCK_M >= length:
        return
    offs_m = block * BLOCK_M + offs_block
    tokens_m = start + offs_m
    positions_m = tokens_m if ANGLE_BY_TOKEN else offs_m
    mask_m = offs_m < length
    k1, k2, k3 = load_rotated(
        k_ptr, stride_qkv, tokens_m, mask_m, positions_m, cos_ptr, sin_ptr,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip
    mask = mask_m[:, None] & (offs_d < HEAD_DIM)[None, :]
    v = tl.load(k_ptr + NUM_KV_HEADS * HEAD_DIM + tokens_m[:, None] * stride_qkv + offs_d[None, :], mask, 0)
    dtype = v.dtype
    dk1 = tl.zeros((BLOCK_M, BLOCK_HALF), dtype=tl.float32)
    dk2 = tl.zeros((BLOCK_M, BLOCK_HALF), dtype=tl.float32)
    dk3 = tl.zeros((BLOCK_M, BLOCK_PASS), dtype=tl.float32)
    dv = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for query_block in range(block, tl.cdiv(length, BLOCK_M)):  # the first is the block itself
        offs_q = query_block * BLOCK_M + offs_block
        tokens_q = start + offs_q
        q1, q2, q3 = load_rotated(
            qkv_ptr + head * HEAD_DIM, stride_qkv, tokens_q, offs_q < length, tokens_q if ANGLE_BY_TOKEN else offs_q,
            cos_ptr, sin_ptr, ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
        )  # fmt: skip
        offs_out = tokens_q[:, None] * stride_out + head * HEAD_DIM + offs_d[None, :]
        mask_q = (offs_q < length)[:, None] & (offs_d < HEAD_DIM)[None, :]
        do = tl.load(dout_ptr + offs_out, mask_q, 0)
        delta = tl.sum(do.to(tl.float32) * tl.load(out_ptr + offs_out, mask_q, 0).to(tl.float32), 1)
        scores = dot_parts(q1, q2, q3, k1, k2, k3, PASS_DIM) * scale_log2
        lse = tl.load(lse_ptr + head * tokens + tokens_q, offs_q < length, 0)
        causal_mask = (offs_m[None, :] <= offs_q[:, None]) & mask_m[None, :] & (offs_q < length)[:, None]
        if WINDOW > 0:
            causal_mask &= offs_q[:, None] - offs_m[None, :] < WINDOW
        p = tl.where(causal_mask, tl.exp2(scores - lse[:, None]), 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = (p * (dp - delta[:, None]) * scale).to(dtype)
        dv = tl.dot(tl.trans(p.to(dtype)), do, dv, input_precision="ieee")
        dk1 = tl.dot(tl.trans(ds), q1, dk1, input_precision="ieee")
        dk2 = tl.dot(tl.trans(ds), q2, dk2, input_precision="ieee")
        if PASS_DIM > 0:
            dk3 = tl.dot(tl.trans(ds), q3, dk3, input_precision="ieee")
        if query_block == block:
            dq1 = tl.dot(ds, k1, input_precision="ieee")
            dq2 = tl.dot(ds, k2, input_precision="ieee")
            dq3 = tl.zeros((BLOCK_M, BLOCK_PASS), dtype=tl.float32)
            if PASS_DIM > 0:
                dq3 = tl.dot(ds, k3, input_precision="ieee")
            for key_block in range(0, block):
                offs_n = key_block * BLOCK_M + offs_block
                tokens_n = start + offs_n
                early_k1, early_k2, early_k3 = load_rotated(
                    k_ptr, stride_qkv, tokens_n, offs_n < length, tokens_n if ANGLE_BY_TOKEN else offs_n,
                    cos_ptr, sin_ptr, ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
                )  # fmt: skip
                early_v = tl.load(
                    k_ptr + NUM_KV_HEADS * HEAD_DIM + tokens_n[:, None] * stride_qkv + offs_d[None, :],
                    (offs_n < length)[:, None] & (offs_d < HEAD_DIM)[None, :], 0,
                )  # fmt: skip
                early_scores = dot_parts(q1, q2, q3, early_k1, early_k2, early_k3, PASS_DIM) * scale_log2
                early_p = tl.exp2(early_scores - lse[:, None])
                early_mask = (offs_q < length)[:, None] & (offs_n < length)[None, :]
                if WINDOW > 0:
                    early_mask &= offs_q[:, None] - offs_n[None, :] < WINDOW
                early_p = tl.where(early_mask, early_p, 0.0)
                early_dp = tl.dot(do, tl.trans(early_v), input_precision="ieee")
                ds = (early_p * (early_dp - delta[:, None]) * scale).to(dtype)
                dq1 = tl.dot(ds, early_k1, dq1, input_precision="ieee")
                dq2 = tl.dot(ds, early_k2, dq2, input_precision="ieee")
                if PASS_DIM > 0:
                    dq3 = tl.dot(ds, early_k3, dq3, input_precision="ieee")
            store_rotated_grad(
                dqkv_ptr + head * HEAD_DIM, stride_dqkv, tokens_m, mask_m, positions_m, cos_ptr, sin_ptr,
                dq1, dq2, dq3, ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
            )  # fmt: skip
    store_rotated_grad(
        dk_ptr, stride_dkv, tokens_m, mask_m, positions_m, cos_ptr, sin_ptr, dk1, dk2, dk3,
        ROTARY_HALF, PASS_DIM, BLOCK_HALF, BLOCK_PASS,
    )  # fmt: skip
    dv_ptrs = dk_ptr + (NUM_KV_HEADS * HEADS_PER_KV) * HEAD_DIM + tokens_m[:, None] * stride_dkv + offs_d[None, :]
    tl.store(dv_ptrs, dv.to(dkv_ptr.dtype.element_ty), mask)
