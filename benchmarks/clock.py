"""Time and memory on one GPU: a training's ms a step, rows a second, and the least that a step can take."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from transformers import Trainer, TrainerCallback

from stages.runtime.recorder import Recorder

DEVICE = torch.device("cuda", 0)
GB = 1e9


class Clock(TrainerCallback):
    """Milliseconds a step, by blocks of `block` steps, after `warm_up` steps."""

    def __init__(self, warm_up: int, block: int) -> None:
        self.warm_up, self.block, self.times = warm_up, block, []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # captures are to count, loading is not

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step >= self.warm_up and (state.global_step - self.warm_up) % self.block == 0:
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    def blocks(self) -> list[float]:
        """Milliseconds a step of each block, in their order."""
        return [(b - a) / self.block * 1e3 for a, b in pairwise(self.times)]


class RecorderByTurns(Clock):
    """The same, with a recorder that samples once a second in every second block, the first without."""

    recorder = None

    def on_step_end(self, args, state, control, **kwargs) -> None:
        ended = len(self.times)
        super().on_step_end(args, state, control, **kwargs)
        if len(self.times) == ended:
            return
        if self.recorder:
            self.recorder.__exit__()
        self.recorder = Recorder(DEVICE).__enter__() if len(self.times) % 2 == 0 else None


def time_training(make_trainer: Callable[[int], Trainer], warm_up: int, block: int, blocks: int) -> dict:
    """Train for warm_up + block * blocks steps.

    Args:
        make_trainer: gives a Trainer for a number of steps.

    Returns:
        milliseconds a step, rows and tokens a second, peak memory in GB; or {"error": "out of memory"}.
    """
    clean()
    trainer = make_trainer(warm_up + block * blocks)
    clock = Clock(warm_up, block)
    trainer.add_callback(clock)
    lengths = []  # of each batch's rows
    collate = trainer.data_collator

    def counting(batch):
        lengths.append([len(row["input_ids"]) for row in batch])
        return collate(batch)

    trainer.data_collator = counting
    with Recorder(DEVICE, interval=0.1) as recorder:
        try:
            trainer.train()
        except torch.OutOfMemoryError:
            return {"error": "out of memory"}
        torch.cuda.synchronize()
        used = memory() | {"nvml_used_gb": max(sample["memory_gb"] for sample in recorder.samples)}
    times = clock.blocks()
    mean = statistics.mean(times)
    measured = lengths[warm_up : warm_up + block * blocks]
    step = getattr(trainer, "fast_step", None)
    captured = [graph is not None for graph in step.graphs.values()] if step else []
    return {
        "ms_per_step": mean,
        "ms_median": statistics.median(times),
        "ms_fastest": min(times),
        "ms_slowest": max(times),
        "block_ms_per_step": times,
        "steps_per_block": block,
        "rows_per_second": statistics.mean(map(len, measured)) / mean * 1e3,
        "tokens_per_second": statistics.mean(map(sum, measured)) / mean * 1e3,
        "capture_seconds": step.capture_seconds if step else 0.0,
        "graphs": captured.count(True),
        "lengths_without_graph": captured.count(False),
        **used,
    }


def time_recorder(make_trainer: Callable[[int], Trainer], block: int = 63, blocks: int = 12) -> dict:
    """What watching costs: ms a step with the recorder on in every second block, and ms to take one sample."""
    clean()
    trainer = make_trainer(block * (blocks + 2))
    turns = RecorderByTurns(2 * block, block)  # two epochs capture the graphs
    trainer.add_callback(turns)
    trainer.train()
    times, samples = turns.blocks(), []
    with Recorder(DEVICE) as recorder:
        for _ in range(100):
            begin = time.perf_counter()
            recorder.mark("now")
            samples.append((time.perf_counter() - begin) * 1e3)
    return {
        "ms_per_step_without": statistics.median(times[::2]),
        "ms_per_step_with": statistics.median(times[1::2]),
        "ms_fastest": min(times),
        "ms_slowest": max(times),
        "blocks_each": blocks // 2,
        "steps_per_block": block,
        "ms_per_sample": statistics.median(samples),
    }


def rows_per_second(rows: int, call: Callable, *inputs) -> float:
    """`call` ends with the answers on the host, so nothing is left to wait for."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call(*inputs)
    return rows / (time.perf_counter() - begin)


def spread(speeds: Sequence[float]) -> dict:
    """Median and extremes of repeated measurements, rows a second."""
    return {
        "rows_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "repeats": len(speeds),
    }


def memory() -> dict[str, float]:
    """PyTorch's peak since `clean`, in GB."""
    return {
        "peak_allocated_gb": torch.cuda.max_memory_allocated(DEVICE) / GB,
        "peak_reserved_gb": torch.cuda.max_memory_reserved(DEVICE) / GB,
    }


def clean() -> None:
    """Give back the memory of what was measured before, and forget its peak."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def limits(frozen_weights: int, tokens_per_step: float) -> dict[str, float]:
    """The least that a training step can take.

    The frozen products forward and for the input's gradient, at this GPU's measured rate; and the 4-bit weights read
    once for each (0.5 byte a weight, 4 bytes for 64 of them), at its measured bandwidth.
    """
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    source = torch.empty(4 * 2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    seconds_product = median_seconds(lambda: a @ a)
    seconds_copy = median_seconds(lambda: target.copy_(source))
    flops, moved = 4 * frozen_weights * tokens_per_step, 2 * frozen_weights * (0.5 + 4 / 64)
    rate, bandwidth = 2 * 8192**3 / seconds_product, 2 * source.numel() / seconds_copy
    return {
        "matrix_tflops": rate / 1e12,
        "bandwidth_tb_per_second": bandwidth / 1e12,
        "tokens_per_step": tokens_per_step,
        "product_ms": flops / rate * 1e3,
        "fewest_gb_moved": moved / GB,
        "moved_ms": moved / bandwidth * 1e3,
    }


def median_seconds(call: Callable[[], object], repeats: int = 20) -> float:
    """Seconds on the GPU, after three calls to warm up."""
    for _ in range(3):
        call()
    seconds = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return sorted(seconds)[repeats // 2]
