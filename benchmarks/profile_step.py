"""What a step of ours spends the GPU's time on: its kernels, by their total time, and sums by kind.

    python benchmarks/profile_step.py MODEL DATA --batch-size 16

MODEL and DATA as for benchmarks/compare.py. One batch is trained on again and again; once its step is captured, five
of them are profiled, with what the Trainer does between two.
"""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import recipes
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from stages.runtime import errors, params

WARM_UP, STEPS = 5, 5  # the first step captures; those after the warm-up are profiled
SHOWN = 40  # kernels
KINDS = {  # the first that a kernel's name matches
    "attention": r"attend|attention|flash|fmha|sdpa",
    "matrix products": r"nvjet|gemm|cutlass|xmma|cublas|splitKreduce",
    "4-bit weights": r"quantize",
    "optimizer and clipping": r"multi_tensor_apply|adam",
    "copies and fills": r"^Mem(cpy|set)|copy|fill",
    "others, of PyTorch": r"at::|at_cuda_detail|cub::",
    "others, most of Triton": r"",
}


@dataclass(frozen=True)
class Kernel:
    """A kernel in one step, a mean of those profiled: its name, how often it ran, milliseconds together."""

    name: str
    count: float
    ms: float


class Profile(TrainerCallback):
    """Profiles the GPU from step `WARM_UP` to the training's end."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == WARM_UP:
            torch.cuda.synchronize()
            self.profiler = profile(activities=[ProfilerActivity.CUDA]).__enter__()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        torch.cuda.synchronize()
        self.profiler.__exit__(None, None, None)


def kernels(events: Sequence, steps: int) -> list[Kernel]:
    """The kernels of a profile of so many steps, those that took longest first.

    Args:
        events: `key_averages()` of a torch.profiler.
    """
    of_the_gpu = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    found = [Kernel(e.key, e.count / steps, e.self_device_time_total / steps / 1e3) for e in of_the_gpu]
    return sorted(found, key=lambda kernel: -kernel.ms)


def by_kind(found: Sequence[Kernel]) -> list[Kernel]:
    """Their sums by `KINDS`, the longest first."""
    sums = dict.fromkeys(KINDS, (0.0, 0.0))
    for kernel in found:
        kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel.name, re.IGNORECASE))
        count, ms = sums[kind]
        sums[kind] = count + kernel.count, ms + kernel.ms
    return sorted((Kernel(kind, *values) for kind, values in sums.items()), key=lambda kernel: -kernel.ms)


def lines(found: Sequence[Kernel]) -> list[str]:
    """A table for the terminal: how often a step, milliseconds, name."""
    return [f"{kernel.count:8.1f}{kernel.ms:10.3f}  {kernel.name[:100]}" for kernel in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch-size", type=int, default=16, metavar="ROWS", help="default: %(default)s")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise errors.UserError("benchmarks/profile_step.py: PyTorch sees no CUDA GPU on this machine")

    inputs = recipes.load_inputs(arguments.model, arguments.data, params.load())
    by_length = sorted(inputs.rows["ours"], key=lambda row: len(row["input_ids"]))
    start = (len(by_length) - arguments.batch_size) // 2
    batch = by_length[start : start + arguments.batch_size]  # rows of middle length
    inputs = dataclasses.replace(inputs, rows=inputs.rows | {"ours": batch})
    trainer = recipes.train_ours(inputs, arguments.batch_size, WARM_UP + STEPS)
    watch = Profile()
    trainer.add_callback(watch)
    trainer.train()

    found = kernels(watch.profiler.key_averages(), STEPS)
    lengths = [len(row["input_ids"]) for row in batch]
    print(f"\na step of {len(batch)} rows, {sum(lengths)} tokens without padding, the longest row {max(lengths)}:")
    print(f"{sum(k.count for k in found):.0f} kernels, {sum(k.ms for k in found):.2f} ms on the GPU")
    print("\n   times        ms  kind", *lines(by_kind(found)), sep="\n")
    print("\n   times        ms  kernel", *lines(found[:SHOWN]), sep="\n")


if __name__ == "__main__":
    errors.run(main)
