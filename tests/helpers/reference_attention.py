"""Attention by its definition, row by row, to compare kernels with."""

import itertools

import torch


def attend_by_row(qkv, config, layout):
    """Rotary embedding and attention of `stages.kernels.attention`, under autograd; 0 after the last row."""
    half, positions = layout.cos.shape[1] // 2, torch.arange(len(qkv), device=qkv.device) % len(layout.cos)
    cos, sin = (table[positions, None].to(qkv.dtype) for table in (layout.cos, layout.sin))
    end = layout.cu_seqlens[-1]

    def rotate(x):
        rotary, passed = x[..., : 2 * half], x[..., 2 * half :]
        swapped = torch.cat((-rotary[..., half:], rotary[..., :half]), dim=-1)
        return torch.cat((rotary * cos[:end] + swapped * sin[:end], passed), dim=-1)

    parts = qkv[:end, : sum(config.qkv_widths)].split(config.qkv_widths, dim=1)
    q, k, v = (part.unflatten(1, (-1, config.head_dim)) for part in parts)
    out = attend_without_rotation(rotate(q), rotate(k), v, layout.cu_seqlens, config.scale, config.window)
    return torch.nn.functional.pad(out.flatten(1), (0, 0, 0, len(qkv) - len(out)))


def attend_without_rotation(q, k, v, cu_seqlens, scale, window):
    """Causal attention within each row: q [tokens, heads, head_dim] to the same; k and v may have fewer heads."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    outputs = []
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) * scale
        is_seen = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).tril()
        is_seen &= ~is_seen.tril(-(window or len(is_seen)))
        weights = scores.masked_fill(~is_seen, float("-inf")).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v[start:end]))
    return torch.cat(outputs)
