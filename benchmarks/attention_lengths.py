"""Time attention by our kernels and by PyTorch's flash attention, for rows of several lengths.

    python benchmarks/attention_lengths.py --heads phi-2

Both include the rotary embedding. PyTorch's backward is deterministic, as ours is; "not deterministic" is its backward
otherwise. The times are microseconds, medians of CUDA graph replays. Lines such as "34 (max 128)" have rows of 34
tokens, and 128 as the longest length that the kernels get; "2048 + 34" has one long row.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpu_timing import DEVICE, mark, spans
from markdown_table import print_header, print_line

from stages.kernels.attention import AttentionConfig, RowLayout, attention_backward, attention_forward
from stages.kernels.rotary import rotate

HEADS = {  # the attention, and how many dimensions of a head are rotated
    "phi-2": (AttentionConfig(32, 32, 80, 80**-0.5), 32),
    "llama-8b": (AttentionConfig(32, 8, 128, 128**-0.5), 128),
    "gemma-270m": (AttentionConfig(4, 1, 256, 256**-0.5, window=512), 256),
}
LENGTHS = (32, 64, 128, 192, 256, 512, 1024, 2048)
SHORT = 34  # tokens of SNLI's rows, on average
CALLS, REPLAYS = 10, 15  # a graph has CALLS calls


@dataclass(frozen=True)
class Rows:
    """The lengths of a batch's rows, and the largest length that the kernels expect."""

    name: str
    lengths: list[int]
    max_seqlen: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", choices=HEADS, default="phi-2", help="whose attention; default: %(default)s")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 1024], help="of a batch, about")
    args = parser.parse_args()
    config, rotary = HEADS[args.heads]
    print(f"{args.heads}: {config}")
    print_header(
        "tokens",
        "rows of",
        "ours, forward",
        "backward",
        "PyTorch's, forward",
        "backward",
        "not deterministic",
        "ours / PyTorch's",
    )
    for tokens in args.tokens:
        for rows in make_batches(tokens):
            inputs = make_inputs(rows, config, rotary)
            ours, pytorch = time_ours(config, *inputs), time_pytorch(config, *inputs)
            times = [f"{time:,.0f}" for time in (*ours, *pytorch)]
            print_line(f"{sum(rows.lengths):,}", rows.name, *times, f"{sum(ours) / sum(pytorch[:2]):.2f}")


def make_batches(tokens: int) -> list[Rows]:
    """Rows of one length, short rows among which a long one is expected, and short rows with a long one."""
    equal = [Rows(str(n), [n] * (tokens // n), n) for n in LENGTHS if n <= tokens]
    shorts = [SHORT] * (tokens // SHORT)
    expected = [Rows(f"{SHORT} (max {n})", shorts, n) for n in (64, 96, 128, 512, 2048)]
    mixed = [Rows(f"{n} + {SHORT}", [n, *[SHORT] * ((tokens - n) // SHORT)], n) for n in LENGTHS[2:] if n < tokens]
    return equal + expected + mixed


def make_inputs(rows: Rows, config: AttentionConfig, rotary: int) -> tuple[RowLayout, torch.Tensor, torch.Tensor]:
    """The layout, random qkv, and a random gradient of the output."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    tokens, columns = sum(rows.lengths), sum(config.qkv_widths)
    angles = torch.rand(tokens, rotary // 2, device=DEVICE, generator=generator).repeat(1, 2)
    cu_seqlens = torch.tensor([0, *rows.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(DEVICE)
    layout = RowLayout(cu_seqlens, rows.max_seqlen, angles.cos().bfloat16(), angles.sin().bfloat16())
    qkv = torch.randn(tokens, columns, device=DEVICE, generator=generator).bfloat16()
    return layout, qkv, torch.randn(tokens, config.qkv_widths[0], device=DEVICE, generator=generator).bfloat16()


def time_ours(config: AttentionConfig, layout: RowLayout, qkv: torch.Tensor, dout: torch.Tensor) -> tuple[float, float]:
    """Microseconds of forward and backward."""
    dqkv = torch.empty_like(qkv)
    out, lse = attention_forward(qkv, config, layout)
    forward = time_in_graph(lambda: attention_forward(qkv, config, layout))
    return forward, time_in_graph(lambda: attention_backward(qkv, out, lse, dout, dqkv, config, layout))


def time_pytorch(
    config: AttentionConfig, layout: RowLayout, qkv: torch.Tensor, dout: torch.Tensor
) -> tuple[float, float, float]:
    """Microseconds of forward, deterministic backward and other backward, by what `torch.nn.attention.varlen` calls."""
    heads = [part.unflatten(1, (-1, config.head_dim)) for part in qkv.split(config.qkv_widths, dim=1)]
    rows = [layout.cu_seqlens, layout.cu_seqlens, layout.max_seqlen, layout.max_seqlen]
    window = -1 if config.window is None or config.window >= layout.max_seqlen else config.window - 1
    options = {"scale": config.scale, "window_size_left": window, "window_size_right": 0}
    unused, minus_sin = torch.empty(0, device=DEVICE), -layout.sin  # the state of a dropout; rotates back

    def compute_forward() -> list[torch.Tensor]:
        rotate(qkv, config.num_heads + config.num_kv_heads, config.head_dim, layout.cos, layout.sin)
        return torch.ops.aten._flash_attention_forward(*heads, *rows, 0.0, True, False, **options)[:2]

    def compute_backward() -> None:
        dq, dk, _ = torch.ops.aten._flash_attention_backward(
            dout.view(out.shape), *heads, out, lse, *rows, 0.0, True, unused, unused, **options
        )
        for gradient in (dq, dk):
            rotate(gradient.flatten(1), gradient.shape[1], config.head_dim, layout.cos, minus_sin)

    out, lse = compute_forward()
    forward, unordered = time_in_graph(compute_forward), time_in_graph(compute_backward)
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # mypy sees no property
    deterministic = time_in_graph(compute_backward)
    torch.set_deterministic_debug_mode("default")
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    return forward, deterministic, unordered


def time_in_graph(call: Callable[[], object]) -> float:
    """Microseconds of a call, the median of replays of a graph that has the call several times."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    graph.replay()
    events = [mark()]
    for _ in range(REPLAYS):
        graph.replay()
        events.append(mark())
    torch.cuda.synchronize()
    return statistics.median(spans(events)) / CALLS * 1e3


if __name__ == "__main__":
    main()
