"""Time and memory of a training on one GPU, and the lower limit of a step's time."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from transformers import Trainer, TrainerCallback, TrainerState

from stages.runtime import distributed
from stages.runtime.usage_recorder import Recorder

DEVICE = torch.device("cuda", distributed.local_rank())
GB = 1e9


@dataclass(frozen=True)
class Timing:
    """`warm_up` steps that are not timed, then `blocks` blocks of `block` steps."""

    warm_up: int
    block: int
    blocks: int

    @property
    def steps(self) -> int:
        """The number of all steps."""
        return self.warm_up + self.block * self.blocks

    @classmethod
    def of(cls, rows: int, batch_size: int, passes: float, most_blocks: int = 7) -> "Timing":
        """One pass over the rows in up to seven equal blocks, after `passes` passes to warm up.

        Args:
            most_blocks: only so many of these blocks are timed.
        """
        steps = math.ceil(rows / batch_size)
        blocks = max(count for count in range(1, 8) if steps % count == 0)
        return cls(math.ceil(passes * steps), steps // blocks, min(blocks, most_blocks))


class Clock(TrainerCallback):
    """Records CUDA events: at `start`, after the first step, after the warm-up, after each block.

    It synchronises only when the training has ended: a synchronisation costs a captured step about a millisecond.

    Attributes:
        lengths: tokens of the rows of each batch, or each part of a batch, that was made.
        made_until: the number of these at the end of each step.
    """

    def __init__(self, timing: Timing) -> None:
        self.timing, self.first, self.ends = timing, [], []
        self.lengths, self.made_until = [], []

    def start(self) -> None:
        """Call it after the model is loaded and before the training, which begins with captures."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.first.append(mark())

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        self.made_until.append(len(self.lengths))
        if state.global_step == 1:
            self.first.append(mark())
        if ends_block(state.global_step, self.timing):
            self.ends.append(mark())

    def blocks(self) -> list[float]:
        """Milliseconds a step of each block, in order. Call it after a synchronisation."""
        return [span / self.timing.block for span in spans(self.ends)]

    def count_lengths(self, collate: Callable) -> Callable:
        """Wrap a function that makes a batch, or a part of one, from rows."""

        def collate_and_count(rows: list[dict], **shape: object) -> object:
            self.lengths.append([len(row["input_ids"]) for row in rows])
            return collate(rows, **shape)

        return collate_and_count

    def timed_lengths(self) -> list[list[int]]:
        """Those of `lengths` that the timed steps computed."""
        return self.lengths[self.made_until[self.timing.warm_up - 1] : self.made_until[self.timing.steps - 1]]


def mark() -> torch.cuda.Event:
    """Record an event on the current stream."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def ends_block(step: int, timing: Timing) -> bool:
    """Whether the warm-up or a block ends with this step, counted from 1."""
    return step >= timing.warm_up and (step - timing.warm_up) % timing.block == 0


def spans(events: Sequence[torch.cuda.Event]) -> list[float]:
    """Milliseconds from each event to the next."""
    return [earlier.elapsed_time(later) for earlier, later in pairwise(events)]


class AlternatingRecorder(Clock):
    """A clock that starts a recorder in every second block. The first block has none.

    The recorder samples once a second. Each block ends with a synchronisation, so that all its steps run with the
    recorder, or all without it.
    """

    recorder = None

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if not ends_block(state.global_step, self.timing):
            return
        torch.cuda.synchronize()
        if self.recorder:
            self.recorder.__exit__()
        self.recorder = Recorder(DEVICE).__enter__() if len(self.ends) % 2 == 0 else None


def time_training(make_trainer: Callable[[int], Trainer], timing: Timing) -> dict:
    """Train for `timing.steps` steps, and measure time and memory.

    Args:
        make_trainer: returns a Trainer for a number of steps.

    Returns:
        Seconds of the first step, milliseconds a step, rows and tokens a second, peak memory in GB; or
        {"error": "out of memory"}.
    """
    clean()
    trainer = make_trainer(timing.steps)
    clock = Clock(timing)
    trainer.add_callback(clock)
    for name in ("data_collator", "collate_part", "collate_packed"):  # the last one: of earlier versions of our Trainer
        if hasattr(trainer, name):
            setattr(trainer, name, clock.count_lengths(getattr(trainer, name)))
    with Recorder(DEVICE, interval=0.1) as recorder:
        try:
            clock.start()
            trainer.train()
        except torch.OutOfMemoryError:
            return {"error": "out of memory"}
        torch.cuda.synchronize()
        peaks = memory() | {"nvml_used_gb": max(sample["memory_gb"] for sample in recorder.samples)}
    times = clock.blocks()
    mean, lengths, steps = statistics.mean(times), clock.timed_lengths(), timing.block * timing.blocks
    seconds = mean * steps / 1e3
    step = getattr(trainer, "captured_step", None)
    captured = [graph is not None for graph in step.graphs.values()] if step else []
    return {
        "first_step_seconds": spans(clock.first)[0] / 1e3,
        "ms_per_step": mean,
        "ms_median": statistics.median(times),
        "ms_fastest": min(times),
        "ms_slowest": max(times),
        "block_ms_per_step": times,
        "steps_per_block": timing.block,
        "rows_per_second": sum(map(len, lengths)) / seconds,
        "tokens_per_second": sum(map(sum, lengths)) / seconds,
        "parts_per_step": len(lengths) / steps,
        "capture_seconds": step.capture_seconds if step else 0.0,
        "graphs": captured.count(True),
        "lengths_without_graph": captured.count(False),
        **peaks,
    }


def time_recorder(make_trainer: Callable[[int], Trainer], timing: Timing) -> dict:
    """The cost of the recorder: ms a step with and without it, and ms for one sample."""
    clean()
    trainer = make_trainer(timing.steps)
    clock = AlternatingRecorder(timing)
    trainer.add_callback(clock)
    trainer.train()
    times, samples = clock.blocks(), []
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
        "blocks_each": timing.blocks // 2,
        "steps_per_block": timing.block,
        "ms_per_sample": statistics.median(samples),
    }


def rows_per_second(rows: int, call: Callable, *inputs: object) -> float:
    """Time a call that ends with the answers on the host, and so needs no synchronisation."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call(*inputs)
    return rows / (time.perf_counter() - begin)


def spread(speeds: Sequence[float]) -> dict:
    """The median and the extremes of repeated measurements, in rows a second."""
    return {
        "rows_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "repeats": len(speeds),
    }


def memory() -> dict[str, float]:
    """PyTorch's peak memory since `clean`, in GB."""
    return {
        "peak_allocated_gb": torch.cuda.max_memory_allocated(DEVICE) / GB,
        "peak_reserved_gb": torch.cuda.max_memory_reserved(DEVICE) / GB,
    }


def clean() -> None:
    """Free the memory of the last measurement, and reset the peak."""
    torch.compiler.reset()  # compiled code holds a reference to its model
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # of the last training's streams: some 0.1 GB
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def limits(frozen_weights: int, tokens_per_step: float) -> dict[str, float]:
    """The lower limit of a training step's time.

    The frozen products run twice, forward and for the input's gradient, at this GPU's measured rate. Each reads the
    4-bit weights once (0.5 byte a weight, and 4 bytes for 64 weights), at the GPU's measured bandwidth.
    """
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    source = torch.empty(4 * 2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    seconds_product = median_seconds(lambda: a @ a)
    seconds_copy = median_seconds(lambda: target.copy_(source))
    flops, bytes_moved = 4 * frozen_weights * tokens_per_step, 2 * frozen_weights * (0.5 + 4 / 64)
    rate, bandwidth = 2 * 8192**3 / seconds_product, 2 * source.numel() / seconds_copy
    return {
        "matrix_tflops": rate / 1e12,
        "bandwidth_tb_per_second": bandwidth / 1e12,
        "tokens_per_step": tokens_per_step,
        "product_ms": flops / rate * 1e3,
        "fewest_gb_moved": bytes_moved / GB,
        "moved_ms": bytes_moved / bandwidth * 1e3,
    }


def median_seconds(call: Callable[[], object], repeats: int = 20) -> float:
    """The median seconds of a call on the GPU, after three calls to warm up."""
    for _ in range(3):
        call()
    seconds = []
    for _ in range(repeats):
        events = [mark()]
        call()
        events.append(mark())
        torch.cuda.synchronize()
        seconds += [span / 1e3 for span in spans(events)]
    return sorted(seconds)[repeats // 2]
