"""Causal attention of short rows, with their rotary position embedding inside: one kernel forward, one backward.

The kernels of PyTorch are made for long rows. Here a block of a row's queries is one program, for each head: most rows
of a classifier's data fit one block. Rows stand end to end, without padding (Dao 2023 has the formulas of the blocks).
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl

from stages.kernels.index_limits import check_index_range


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of a batch stand.

    Attributes:
        starts: int64 [rows + 1]: row i has the tokens from starts[i] to before starts[i + 1]. What stands behind the
            last row belongs to none: the attention there is 0.
        longest: no row has more tokens.
        cos, sin: [tokens, rotated] of each token's position, or [longest, rotated] of each position in a row.
    """

    starts: torch.Tensor
    longest: int
    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def from_layer_inputs(
        cls, x: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor],
        cu_seq_lens_q: torch.Tensor | None, max_length_q: int | None,
    ) -> Self:  # fmt: skip
        """From what transformers gives to a decoder layer.

        Args:
            x: hidden states, [1, tokens, hidden] of rows end to end, or [rows, length, hidden].
            cu_seq_lens_q, max_length_q: `starts` and `longest` of rows end to end; else None.
        """
        cos, sin = (t.reshape(-1, t.shape[-1]).contiguous() for t in position_embeddings)
        if cu_seq_lens_q is not None:
            return cls(cu_seq_lens_q, max_length_q, cos, sin)
        rows, length, _ = x.shape
        return cls(torch.arange(0, rows * length + 1, length, device=x.device), length, cos, sin)


@dataclass(frozen=True)
class AttentionConfig:
    """The shape of an attention: heads of queries, of keys and values, elements of each, factor of the products.

    A token sees the last `window` tokens, itself among them; None: all of its row up to itself.
    """

    queries: int
    keys: int
    size: int
    scale: float
    window: int | None = None

    @property
    def widths(self) -> list[int]:
        """Columns of queries, keys and values where they stand side by side."""
        return [self.queries * self.size, self.keys * self.size, self.keys * self.size]


class Attention(torch.autograd.Function):
    """Rotary embedding (Su et al. 2021), then causal attention within each row.

    As in transformers, dimension i of a head turns with i + rotated / 2, and what is beyond `rotated` stays.
    qkv [..., widths of `AttentionConfig`], the output [..., queries * size].
    """

    @staticmethod
    def forward(ctx, qkv: torch.Tensor, heads: AttentionConfig, rows: RowLayout) -> torch.Tensor:
        flat = qkv.reshape(-1, qkv.shape[-1])
        out, lse = attention_forward(flat, heads, rows)
        ctx.heads, ctx.rows = heads, rows
        ctx.save_for_backward(flat, out, lse)
        return out.view(*qkv.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dout: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        flat, out, lse = ctx.saved_tensors
        dqkv = torch.empty_like(flat)
        attention_backward(flat, out, lse, dout.reshape(out.shape).contiguous(), dqkv, ctx.heads, ctx.rows)
        return dqkv.view(*dout.shape[:-1], -1), None, None


def fits_shared_memory(size: int, dtype: torch.dtype) -> bool:
    """Whether tiles of heads of this size fit the shared memory of every GPU: in fp32 those of a T4 are too small."""
    return size <= 128 or dtype.itemsize == 2


def attention_forward(qkv: torch.Tensor, heads: AttentionConfig, rows: RowLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of [tokens, columns]: queries, keys and values are its first columns.

    Returns:
        [tokens, queries * size], and the logarithm of each query's sum, base 2, [queries, tokens].
    """
    tokens = len(qkv)
    out = torch.empty((tokens, heads.widths[0]), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((heads.queries, tokens), dtype=torch.float32, device=qkv.device)
    check_index_range(max(qkv.stride(0), 2 * heads.widths[0]) * tokens)
    settings, blocks, programs = _launch(qkv, heads, rows, _block(qkv, heads), rows.longest)
    _forward_kernel[(programs, heads.queries)](
        qkv, out, lse, rows.cos, rows.sin, rows.starts, len(rows.starts) - 1, blocks, tokens, qkv.stride(0),
        heads.queries * heads.size, heads.scale * LOG2_E, QUERIES=heads.queries, num_stages=1, **settings,
    )  # fmt: skip
    return out, lse


def attention_backward(
    qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, dout: torch.Tensor, dqkv: torch.Tensor,
    heads: AttentionConfig, rows: RowLayout,
) -> None:  # fmt: skip
    """Write the gradient of the queries, keys and values into the first columns of dqkv."""
    tokens, (queries, keys, _) = len(qkv), heads.widths
    dkv = dqkv[:, queries : queries + 2 * keys]
    shared = heads.queries > heads.keys  # then each head of queries has its own part in the gradient
    parts = torch.empty((tokens, 2 * queries), dtype=dqkv.dtype, device=dqkv.device) if shared else dkv
    given = (qkv, out, lse, dout, dqkv, parts, rows.cos, rows.sin, rows.starts, len(rows.starts) - 1)
    sizes = (tokens, qkv.stride(0), dqkv.stride(0), parts.stride(0), queries, heads.scale, heads.scale * LOG2_E)
    short = _block(qkv, heads)  # rows of so many tokens need no loop, and fewer registers
    settings, _, programs = _launch(qkv, heads, rows, short, short)
    _short_backward_kernel[(programs, heads.queries)](*given, *sizes, QUERIES=heads.queries, **settings)
    if rows.longest > short:
        block = min(short, 32 if heads.size <= 128 else 16)
        settings, blocks, programs = _launch(qkv, heads, rows, block, rows.longest)
        _backward_kernel[(programs, heads.queries)](
            *given, blocks, *sizes, QUERIES=heads.queries, SHORT=short, num_stages=1, **settings
        )
    if shared:
        grouped = parts.view(tokens, 2 * heads.keys, heads.queries // heads.keys, heads.size)
        torch.sum(grouped, dim=2, out=dkv.unflatten(1, (2 * heads.keys, heads.size)))


def _block(qkv, heads):
    """Tokens of a block, at most 64: its tiles fit the registers, and four of them a multiprocessor's shared memory."""
    padded, block = _padded(heads.size), 64
    if qkv.element_size() == 4:
        block = max(16, min(32, 4096 // padded))
    if qkv.is_cuda:
        room = torch.cuda.get_device_properties(qkv.device).shared_memory_per_block_optin
        while block > 16 and 4.5 * block * padded * qkv.element_size() > room:
            block //= 2
    return block


LOG2_E = 1.4426950408889634  # the exponential of base 2 is the one that a GPU has


def _launch(qkv, heads, rows, block, longest):
    """The kernels' constants; blocks of a row of `longest` tokens; programs of all rows and of what is behind them."""
    half = rows.cos.shape[1] // 2
    rest = heads.size - 2 * half
    settings = {
        "GROUP": heads.queries // heads.keys, "KEYS": heads.keys, "SIZE": heads.size, "HALF": half, "REST": rest,
        "HALF_PADDED": _padded(half), "REST_PADDED": _padded(rest), "PADDED": _padded(heads.size), "BLOCK": block,
        "BY_TOKEN": len(rows.cos) == len(qkv), "WINDOW": _window(heads, rows),
        "num_warps": 8 if heads.size > 128 or qkv.element_size() == 4 else 4,
    }  # fmt: skip
    blocks = triton.cdiv(longest, block)
    return settings, blocks, (len(rows.starts) - 1) * blocks + triton.cdiv(len(qkv), block)


def _window(heads, rows):
    """The window where a row may be longer, else 0."""
    return heads.window if heads.window is not None and heads.window < rows.longest else 0


def _padded(size):
    return max(16, triton.next_power_of_2(size))


@triton.jit
def _parts(
    base, stride, t, there, position, cos, sin,
    HALF: tl.constexpr, REST: tl.constexpr, HALF_PADDED: tl.constexpr, REST_PADDED: tl.constexpr,
):  # fmt: skip
    """A block of one head, rotated, in three parts: the two halves that turn with one another, and the rest."""
    half, rest = tl.arange(0, HALF_PADDED), tl.arange(0, REST_PADDED)
    inside = there[:, None] & (half < HALF)[None, :]
    place = base + t[:, None] * stride + half[None, :]
    first = tl.load(place, inside, 0).to(tl.float32)
    second = tl.load(place + HALF, inside, 0).to(tl.float32)
    angle = position[:, None] * (2 * HALF) + half[None, :]
    c, s = tl.load(cos + angle, inside, 0).to(tl.float32), tl.load(sin + angle, inside, 0).to(tl.float32)
    kind = base.dtype.element_ty
    others = there[:, None] & (rest < REST)[None, :]
    last = tl.load(base + 2 * HALF + t[:, None] * stride + rest[None, :], others, 0)
    return (first * c - second * s).to(kind), (second * c + first * s).to(kind), last


@triton.jit
def _store_parts(
    base, stride, t, there, position, cos, sin, first, second, last,
    HALF: tl.constexpr, REST: tl.constexpr, HALF_PADDED: tl.constexpr, REST_PADDED: tl.constexpr,
):  # fmt: skip
    """The gradient of a block, turned back and written."""
    half, rest = tl.arange(0, HALF_PADDED), tl.arange(0, REST_PADDED)
    inside = there[:, None] & (half < HALF)[None, :]
    angle = position[:, None] * (2 * HALF) + half[None, :]
    c, s = tl.load(cos + angle, inside, 0).to(tl.float32), tl.load(sin + angle, inside, 0).to(tl.float32)
    kind = base.dtype.element_ty
    place = base + t[:, None] * stride + half[None, :]
    tl.store(place, (first * c + second * s).to(kind), inside)
    tl.store(place + HALF, (second * c - first * s).to(kind), inside)
    others = there[:, None] & (rest < REST)[None, :]
    tl.store(base + 2 * HALF + t[:, None] * stride + rest[None, :], last.to(kind), others)


@triton.jit
def _product(first, second, last, others_first, others_second, others_last, REST: tl.constexpr):
    """Products of two blocks' rows, [block, block]."""
    total = tl.dot(first, tl.trans(others_first), input_precision="ieee")
    total = tl.dot(second, tl.trans(others_second), total, input_precision="ieee")
    if REST > 0:
        total = tl.dot(last, tl.trans(others_last), total, input_precision="ieee")
    return total


@triton.jit
def _forward_kernel(
    qkv, out, lse, cos, sin, starts, rows, blocks, tokens, stride, out_stride, scale,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    REST: tl.constexpr, HALF_PADDED: tl.constexpr, REST_PADDED: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, BY_TOKEN: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    row, block, head = tl.program_id(0) // blocks, tl.program_id(0) % blocks, tl.program_id(1)
    d, local = tl.arange(0, PADDED), tl.arange(0, BLOCK)
    if row >= rows:
        t = tl.load(starts + rows).to(tl.int32) + (tl.program_id(0) - rows * blocks) * BLOCK + local
        place = out + t[:, None] * out_stride + head * SIZE + d[None, :]
        tl.store(place, tl.zeros((BLOCK, PADDED), out.dtype.element_ty), (t < tokens)[:, None] & (d < SIZE)[None, :])
        return
    start = tl.load(starts + row).to(tl.int32)
    length = tl.load(starts + row + 1).to(tl.int32) - start
    if block * BLOCK >= length:
        return
    key_base = qkv + QUERIES * SIZE + head // GROUP * SIZE
    i = block * BLOCK + local
    t = start + i
    position = t if BY_TOKEN else i
    q1, q2, q3 = _parts(
        qkv + head * SIZE, stride, t, i < length, position, cos, sin, HALF, REST, HALF_PADDED, REST_PADDED
    )
    total = tl.zeros((BLOCK, PADDED), dtype=tl.float32)
    largest = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((BLOCK,), dtype=tl.float32)
    for back in range(0, block + 1):  # a query's own block first, in which it sees at least itself
        j = (block - back) * BLOCK + local
        s = start + j
        k1, k2, k3 = _parts(
            key_base, stride, s, j < length, s if BY_TOKEN else j, cos, sin, HALF, REST, HALF_PADDED, REST_PADDED
        )
        scores = _product(q1, q2, q3, k1, k2, k3, REST) * scale
        seen = (j[None, :] <= i[:, None]) & (j < length)[None, :]
        if WINDOW > 0:
            seen &= i[:, None] - j[None, :] < WINDOW
        scores = tl.where(seen, scores, float("-inf"))
        above = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(scores - above[:, None])
        shrink = tl.exp2(largest - above)
        weight = weight * shrink + tl.sum(p, 1)
        place = key_base + KEYS * SIZE + s[:, None] * stride + d[None, :]
        v = tl.load(place, (j < length)[:, None] & (d < SIZE)[None, :], 0)
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None], input_precision="ieee")
        largest = above
    there = (i < length)[:, None] & (d < SIZE)[None, :]
    place = out + t[:, None] * out_stride + head * SIZE + d[None, :]
    tl.store(place, (total / weight[:, None]).to(out.dtype.element_ty), there)
    tl.store(lse + head * tokens + t, largest + tl.log2(weight), i < length)


@triton.jit
def _short_backward_kernel(
    qkv, out, lse, dout, dqkv, dkv, cos, sin, starts, rows, tokens, stride, grad_stride, dkv_stride, out_stride, scale,
    scale_2,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    REST: tl.constexpr, HALF_PADDED: tl.constexpr, REST_PADDED: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, BY_TOKEN: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Of a whole row of up to BLOCK tokens, and zeros for a block of what is behind the rows."""
    row, head = tl.program_id(0), tl.program_id(1)
    d, i = tl.arange(0, PADDED), tl.arange(0, BLOCK)
    keys, dkeys = qkv + (QUERIES + head // GROUP) * SIZE, dkv + head * SIZE
    dvalues = dkeys + (KEYS * GROUP) * SIZE
    if row >= rows:
        t = tl.load(starts + rows).to(tl.int32) + (row - rows) * BLOCK + i
        there = (t < tokens)[:, None] & (d < SIZE)[None, :]
        nothing = tl.zeros((BLOCK, PADDED), dqkv.dtype.element_ty)
        tl.store(dqkv + head * SIZE + t[:, None] * grad_stride + d[None, :], nothing, there)
        tl.store(dkeys + t[:, None] * dkv_stride + d[None, :], nothing, there)
        tl.store(dvalues + t[:, None] * dkv_stride + d[None, :], nothing, there)
        return
    start = tl.load(starts + row).to(tl.int32)
    length = tl.load(starts + row + 1).to(tl.int32) - start
    if length > BLOCK:
        return
    t, mine = start + i, i < length
    position = t if BY_TOKEN else i
    inside = mine[:, None] & (d < SIZE)[None, :]
    k1, k2, k3 = _parts(keys, stride, t, mine, position, cos, sin, HALF, REST, HALF_PADDED, REST_PADDED)
    q1, q2, q3 = _parts(qkv + head * SIZE, stride, t, mine, position, cos, sin, HALF, REST, HALF_PADDED, REST_PADDED)
    v = tl.load(keys + KEYS * SIZE + t[:, None] * stride + d[None, :], inside, 0)
    place = t[:, None] * out_stride + head * SIZE + d[None, :]
    do = tl.load(dout + place, inside, 0)
    delta = tl.sum(do.to(tl.float32) * tl.load(out + place, inside, 0).to(tl.float32), 1)
    scores = _product(q1, q2, q3, k1, k2, k3, REST) * scale_2
    seen = (i[None, :] <= i[:, None]) & mine[:, None]
    if WINDOW > 0:
        seen &= i[:, None] - i[None, :] < WINDOW
    p = tl.where(seen, tl.exp2(scores - tl.load(lse + head * tokens + t, mine, 0)[:, None]), 0.0)
    dv = tl.dot(tl.trans(p.to(v.dtype)), do, input_precision="ieee")
    tl.store(dvalues + t[:, None] * dkv_stride + d[None, :], dv.to(dkv.dtype.element_ty), inside)
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = (p * (dp - delta[:, None]) * scale).to(v.dtype)
    d1, d2 = tl.dot(ds, k1, input_precision="ieee"), tl.dot(ds, k2, input_precision="ieee")
    d3 = tl.zeros((BLOCK, REST_PADDED), dtype=tl.float32)
    if REST > 0:
        d3 = tl.dot(ds, k3, input_precision="ieee")
    _store_parts(
        dqkv + head * SIZE, grad_stride, t, mine, position, cos, sin, d1, d2, d3, HALF, REST, HALF_PADDED, REST_PADDED
    )
    ds = tl.trans(ds)
    d1, d2 = tl.dot(ds, q1, input_precision="ieee"), tl.dot(ds, q2, input_precision="ieee")
    if REST > 0:
        d3 = tl.dot(ds, q3, input_precision="ieee")
    _store_parts(dkeys, dkv_stride, t, mine, position, cos, sin, d1, d2, d3, HALF, REST, HALF_PADDED, REST_PADDED)


@triton.jit
def _backward_kernel(
    qkv, out, lse, dout, dqkv, dkv, cos, sin, starts, rows, blocks, tokens, stride, grad_stride, dkv_stride, out_stride,
    scale, scale_2,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    REST: tl.constexpr, HALF_PADDED: tl.constexpr, REST_PADDED: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, BY_TOKEN: tl.constexpr, WINDOW: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """Of one block of a row of over SHORT tokens: the gradient of its queries, and what this head of queries adds to
    that of its keys and values."""
    row, block, head = tl.program_id(0) // blocks, tl.program_id(0) % blocks, tl.program_id(1)
    d, local = tl.arange(0, PADDED), tl.arange(0, BLOCK)
    keys, dkeys = qkv + (QUERIES + head // GROUP) * SIZE, dkv + head * SIZE
    if row >= rows:
        return
    start = tl.load(starts + row).to(tl.int32)
    length = tl.load(starts + row + 1).to(tl.int32) - start
    if length <= SHORT or block * BLOCK >= length:
        return
    i = block * BLOCK + local
    t = start + i
    position = t if BY_TOKEN else i
    mine = i < length
    k1, k2, k3 = _parts(keys, stride, t, mine, position, cos, sin, HALF, REST, HALF_PADDED, REST_PADDED)
    inside = mine[:, None] & (d < SIZE)[None, :]
    v = tl.load(keys + KEYS * SIZE + t[:, None] * stride + d[None, :], inside, 0)
    kind = v.dtype
    dk1 = tl.zeros((BLOCK, HALF_PADDED), dtype=tl.float32)
    dk2 = tl.zeros((BLOCK, HALF_PADDED), dtype=tl.float32)
    dk3 = tl.zeros((BLOCK, REST_PADDED), dtype=tl.float32)
    dv = tl.zeros((BLOCK, PADDED), dtype=tl.float32)
    for query_block in range(block, tl.cdiv(length, BLOCK)):  # the first is the block itself
        n = query_block * BLOCK + local
        s = start + n
        q1, q2, q3 = _parts(
            qkv + head * SIZE, stride, s, n < length, s if BY_TOKEN else n, cos, sin, HALF, REST, HALF_PADDED,
            REST_PADDED,
        )  # fmt: skip
        place = s[:, None] * out_stride + head * SIZE + d[None, :]
        there = (n < length)[:, None] & (d < SIZE)[None, :]
        do = tl.load(dout + place, there, 0)
        delta = tl.sum(do.to(tl.float32) * tl.load(out + place, there, 0).to(tl.float32), 1)
        scores = _product(q1, q2, q3, k1, k2, k3, REST) * scale_2
        sums = tl.load(lse + head * tokens + s, n < length, 0)
        seen = (i[None, :] <= n[:, None]) & mine[None, :] & (n < length)[:, None]
        if WINDOW > 0:
            seen &= n[:, None] - i[None, :] < WINDOW
        p = tl.where(seen, tl.exp2(scores - sums[:, None]), 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = (p * (dp - delta[:, None]) * scale).to(kind)
        dv = tl.dot(tl.trans(p.to(kind)), do, dv, input_precision="ieee")
        dk1 = tl.dot(tl.trans(ds), q1, dk1, input_precision="ieee")
        dk2 = tl.dot(tl.trans(ds), q2, dk2, input_precision="ieee")
        if REST > 0:
            dk3 = tl.dot(tl.trans(ds), q3, dk3, input_precision="ieee")
        if query_block == block:
            dq1 = tl.dot(ds, k1, input_precision="ieee")
            dq2 = tl.dot(ds, k2, input_precision="ieee")
            dq3 = tl.zeros((BLOCK, REST_PADDED), dtype=tl.float32)
            if REST > 0:
                dq3 = tl.dot(ds, k3, input_precision="ieee")
            for key_block in range(0, block):
                j = key_block * BLOCK + local
                o = start + j
                l1, l2, l3 = _parts(
                    keys, stride, o, j < length, o if BY_TOKEN else j, cos, sin, HALF, REST,
                    HALF_PADDED, REST_PADDED,
                )  # fmt: skip
                w = tl.load(
                    keys + KEYS * SIZE + o[:, None] * stride + d[None, :],
                    (j < length)[:, None] & (d < SIZE)[None, :], 0,
                )  # fmt: skip
                before = tl.exp2(_product(q1, q2, q3, l1, l2, l3, REST) * scale_2 - sums[:, None])
                shown = (n < length)[:, None] & (j < length)[None, :]
                if WINDOW > 0:
                    shown &= n[:, None] - j[None, :] < WINDOW
                before = tl.where(shown, before, 0.0)
                dbefore = tl.dot(do, tl.trans(w), input_precision="ieee")
                ds = (before * (dbefore - delta[:, None]) * scale).to(kind)
                dq1 = tl.dot(ds, l1, dq1, input_precision="ieee")
                dq2 = tl.dot(ds, l2, dq2, input_precision="ieee")
                if REST > 0:
                    dq3 = tl.dot(ds, l3, dq3, input_precision="ieee")
            _store_parts(
                dqkv + head * SIZE, grad_stride, t, mine, position, cos, sin, dq1, dq2, dq3, HALF, REST,
                HALF_PADDED, REST_PADDED,
            )  # fmt: skip
    _store_parts(dkeys, dkv_stride, t, mine, position, cos, sin, dk1, dk2, dk3, HALF, REST, HALF_PADDED, REST_PADDED)
    place = dkeys + (KEYS * GROUP) * SIZE + t[:, None] * dkv_stride + d[None, :]
    tl.store(place, dv.to(dkv.dtype.element_ty), inside)
