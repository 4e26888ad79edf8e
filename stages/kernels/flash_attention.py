"""PyTorch's FlashAttention-2 (Dao 2023) of packed rows. `torch.nn.attention.varlen` calls the same two operations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils.deterministic


def supports_flash(x: torch.Tensor, head_dim: int) -> bool:
    """Whether the functions below take heads of this width in columns of x [tokens, columns].

    They need 16 bits an element, a GPU from sm_80 on, and vectors that can be read 16 bytes at a time. Some builds of
    PyTorch lack them.
    """
    return (
        x.is_cuda
        and x.dtype.itemsize == 2
        and head_dim <= 256
        and head_dim % 8 == 0
        and x.stride(0) % 8 == 0
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def flash_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, scale: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Causal attention within each row.

    Args:
        q: [tokens, heads, head_dim], with contiguous vectors.
        k, v: [tokens, heads or fewer, head_dim], with contiguous vectors.
        cu_seqlens: int32 [rows + 1], as in `RowLayout`.
        max_seqlen: the largest number of tokens that a row may have.
        window: a token sees the last `window` tokens, itself included; None: all tokens of its row up to itself.

    Returns:
        the output [tokens, heads, head_dim], uninitialized after the last row; each query's log-sum-exp, for
        `flash_backward`.
    """
    left = -1 if window is None else window - 1
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, 0.0, True, False,
        scale=scale, window_size_left=left, window_size_right=0,
    )  # fmt: skip
    return out, lse


def flash_backward(
    dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    cu_seqlens: torch.Tensor, max_seqlen: int, scale: float, window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The gradients of q, k and v: contiguous, uninitialized after the last row, and equal bytes in each run."""
    left = -1 if window is None else window - 1
    unused = torch.empty(0, device=q.device)  # the state of a dropout
    with _deterministic_mode():
        return torch.ops.aten._flash_attention_backward(
            dout, q, k, v, out, lse, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, 0.0, True, unused, unused,
            scale=scale, window_size_left=left, window_size_right=0,
        )  # fmt: skip


@contextmanager
def _deterministic_mode() -> Iterator[None]:
    """Let the backward add q's gradients in a fixed order. It has no argument for this, it reads the global mode.

    Otherwise it adds them by atomic additions. In this mode each of n = ceil(multiprocessors / (rows * heads)) groups
    of programs adds to its own zeroed fp32 copy of q's gradient: n * (tokens + 128 * rows) vectors, instead of one
    copy. On an H200, n is 1 for 5 rows or more of 32 heads.
    """
    mode = torch.get_deterministic_debug_mode()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # mypy sees no property
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
