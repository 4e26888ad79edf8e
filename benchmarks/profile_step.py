"""Print the kernels of one of our training steps, sorted by total GPU time, and the sums by kind.

    python benchmarks/profile_step.py MODEL DATA --batch-size 16

MODEL and DATA are as in benchmarks/compare.py. The script trains on one batch repeatedly. After the step is captured,
it profiles five steps, with the Trainer's work between them.
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
from transformers import TrainerCallback, TrainerState

from stages.runtime import errors, params

WARM_UP, STEPS = 5, 5  # the first step captures; the steps after the warm-up are profiled
MAX_KERNELS = 40  # in the printed list
KINDS = {  # a kernel has the first kind whose pattern matches its name
    "attention": r"attend|attention|rotate|flash|fmha|sdpa",
    "matrix products": r"nvjet|gemm|cutlass|xmma|cublas|splitKreduce",
    "4-bit weights": r"quantize",
    "optimizer and clipping": r"multi_tensor_apply|adam",
    "copies and fills": r"^Mem(cpy|set)|copy|fill",
    "others, of PyTorch": r"at::|at_cuda_detail|cub::",
    "others, most of Triton": r"",
}


@dataclass(frozen=True)
class Kernel:
    """A kernel in one step, averaged over the profiled steps: name, number of calls, milliseconds of all calls."""

    name: str
    count: float
    ms: float


class Profile(TrainerCallback):
    """Profiles the GPU from step `WARM_UP` to the end of the training."""

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        if state.global_step == WARM_UP:
            torch.cuda.synchronize()
            self.profiler = profile(activities=[ProfilerActivity.CUDA]).__enter__()

    def on_train_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        torch.cuda.synchronize()
        self.profiler.__exit__(None, None, None)


def kernels(events: Sequence, steps: int) -> list[Kernel]:
    """The kernels of a profile of `steps` steps, the longest first.

    Args:
        events: `key_averages()` of a torch.profiler.
    """
    on_gpu = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    per_step = [Kernel(e.key, e.count / steps, e.self_device_time_total / steps / 1e3) for e in on_gpu]
    return sorted(per_step, key=lambda kernel: -kernel.ms)


def sum_by_kind(profiled: Sequence[Kernel]) -> list[Kernel]:
    """The sums of kernels by `KINDS`, the longest first."""
    sums = dict.fromkeys(KINDS, (0.0, 0.0))
    for kernel in profiled:
        kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel.name, re.IGNORECASE))
        count, ms = sums[kind]
        sums[kind] = count + kernel.count, ms + kernel.ms
    return sorted((Kernel(kind, *values) for kind, values in sums.items()), key=lambda kernel: -kernel.ms)


def lines(profiled: Sequence[Kernel]) -> list[str]:
    """Table lines for the terminal: calls a step, milliseconds, name."""
    return [f"{kernel.count:8.1f}{kernel.ms:10.3f}  {kernel.name[:100]}" for kernel in profiled]


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
    profiler = Profile()
    trainer.add_callback(profiler)
    trainer.train()

    profiled = kernels(profiler.profiler.key_averages(), STEPS)
    lengths = [len(row["input_ids"]) for row in batch]
    print(f"\na step of {len(batch)} rows, {sum(lengths)} tokens without padding, the longest row {max(lengths)}:")
    print(f"{sum(k.count for k in profiled):.0f} kernels, {sum(k.ms for k in profiled):.2f} ms on the GPU")
    print("\n   times        ms  kind", *lines(sum_by_kind(profiled)), sep="\n")
    print("\n   times        ms  kernel", *lines(profiled[:MAX_KERNELS]), sep="\n")


if __name__ == "__main__":
    errors.run(main)
