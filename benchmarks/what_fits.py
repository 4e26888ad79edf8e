"""Train with only a part of the GPU's memory free, and record what the planner chooses: time and memory of each line.

    python benchmarks/what_fits.py MODEL DATA --free-gb 8 12 16 24 40 80 --texts snli 512 2048 --out FILE

MODEL and DATA are as in benchmarks/compare.py. Another process (memory_holder.py) holds the rest of the card.
So much as --free-gb is left for everything that the training needs, its CUDA context too. The training has the
parameters of params.yaml, 16 rows a batch (8 with 2,048 tokens), a few steps and one validation of 100 rows. The base
is loaded once, with the least memory with which it can be.

If the plan is the largest one (weights kept, batches in one part, no checkpointing), more memory would not change it,
and the sizes above are left out. A line that fails has its error.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compare
import gpu_timing
import recipes
import speed_tables
import torch

from stages.model.base_cache import cache_base
from stages.runtime import errors, params

TIMING = gpu_timing.Timing(warm_up=3, block=1, blocks=6)  # the first step captures
HOLDER = Path(__file__).with_name("memory_holder.py")


class MemoryHolder:
    """Another process that holds GPU memory. Start it before this process uses the GPU."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.free_gb = int(self._read("free")) / gpu_timing.GB

    def leave_free(self, gb: float) -> None:
        self.process.stdin.write(f"{gb}\n")
        self.process.stdin.flush()
        self._read("holds")

    def _read(self, expected: str) -> str:
        answer = self.process.stdout.readline().strip()
        if not answer.startswith(expected):
            raise RuntimeError(f"benchmarks/memory_holder.py: {answer or 'has ended'}")
        return answer.removeprefix(expected)


@contextlib.contextmanager
def start_holder() -> Iterator[MemoryHolder]:
    command = [sys.executable, str(HOLDER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield MemoryHolder(process)
        finally:
            process.stdin.close()


def measure(inputs: recipes.Inputs, batch_size: int, holder: MemoryHolder, free_gb: float) -> dict[str, Any]:
    """Train and validate -> plan, time and memory, or the error.

    Args:
        free_gb: what this process may use in all.
    """
    trainers = []

    def make_trainer(steps: int) -> Any:
        trainers.append(recipes.train_ours(inputs, batch_size, steps))
        return trainers[0]

    gpu_timing.clean()
    try:
        holder.leave_free(free_gb)
        line = gpu_timing.time_training(make_trainer, TIMING)
        if "error" not in line:
            trainers[0].evaluate()
            line |= gpu_timing.memory()
            line["used_gb"] = line["peak_reserved_gb"] + outside_pytorch_gb(free_gb)
    except torch.OutOfMemoryError:
        traceback.print_exc()
        line = {"error": "out of memory"}
    except Exception as error:  # the other lines are worth having
        line = {"error": errors.type_and_first_line(error)}
    step = getattr(trainers[0], "captured_step", None) if trainers else None
    return line | describe_plan(getattr(step, "plan", None))


def outside_pytorch_gb(free_gb: float) -> float:
    """GB that this process uses and PyTorch does not count, such as its CUDA context."""
    free, _ = torch.cuda.mem_get_info()
    return free_gb - (free + torch.cuda.memory_reserved()) / gpu_timing.GB


def describe_plan(plan: Any) -> dict[str, Any]:
    """The fields of a plan that a table needs. Earlier versions of the code have none."""
    if plan is None:
        return {}
    return {"plan": str(plan), "keep_weights": plan.keep_weights, "checkpointing": plan.checkpointing}


def with_precision(inputs: recipes.Inputs, precision: str) -> recipes.Inputs:
    p = inputs.params
    return dataclasses.replace(
        inputs, params=p.model_copy(update={"model": p.model.model_copy(update={"precision": precision})})
    )


def list_lines(arguments: argparse.Namespace) -> list[tuple[float, str, str | int]]:
    """(GB, precision, texts) of each line, the smallest first, so that the base is loaded with the least memory."""
    auto = [(gb, "auto", texts) for gb in sorted(arguments.free_gb) for texts in arguments.texts]
    return auto + [(gb, "fp16", texts) for gb in sorted(arguments.fp16_gb) for texts in arguments.texts]


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """The lines for the terminal."""
    yield f"\n{'model':14}{'free GB':>8}{'texts':>7}{'precision':>10}{'ms':>9}{'peak GB':>9}{'used GB':>9}  plan"
    for line in lines:
        start = f"{line['model']:14}{line['free_gb']:8g}{line['texts']:>7}{line['precision']:>10}"
        if "error" in line:
            yield f"{start}  {line['error'][:80]}  {line.get('plan', '')}"
        else:
            yield (
                f"{start}{line['ms_median']:9.1f}{line['peak_allocated_gb']:9.2f}{line['used_gb']:9.2f}"
                f"  {line.get('plan', '')}"
            )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--free-gb", nargs="*", type=float, default=[8, 12, 16, 24, 40, 80], metavar="GB")
    parser.add_argument(
        "--texts", nargs="+", type=compare.read_texts, default=[compare.SHORT, 512, 2048], metavar="TEXTS",
        help="snli, SNLI's own, or the tokens of the longest of longer texts",
    )  # fmt: skip
    parser.add_argument(
        "--fp16-gb", nargs="*", type=float, default=[], metavar="GB", help="also with model.precision: fp16, as on a T4"
    )
    parser.add_argument("--commit", help="the commit of the code, if Git has none")
    parser.add_argument("--add", action="store_true", help="add to the results that --out has")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    if not torch.cuda.is_available():
        raise errors.UserError("benchmarks/what_fits.py: PyTorch sees no CUDA GPU on this machine")
    compare.check_code()
    model, code = arguments.model.resolve().name, arguments.commit or compare.commit()
    with start_holder() as holder, cache_base():
        results = compare.open_results(arguments.out, arguments.add, code, model)
        earlier = results.get("lines", [])
        short, lines, largest = recipes.load_inputs(arguments.model, arguments.data, params.load()), [], set()
        for gb, precision, texts in list_lines(arguments):
            if (precision, texts) in largest or gb > holder.free_gb:
                continue
            inputs, batch_size = with_precision(short, precision), 16
            if texts != compare.SHORT:
                batch_size = recipes.long_batch_size(texts)
                inputs = recipes.with_long_texts(inputs, texts, compare.LONG_BATCHES * batch_size)
            line = measure(inputs, batch_size, holder, gb)
            described = {"model": model, "free_gb": gb, "texts": texts, "precision": precision, "commit": code}
            lines.append(described | {"batch_size": batch_size, **line})
            arguments.out.write_text(json.dumps(results | {"lines": earlier + lines}, indent=2) + "\n")
            if speed_tables.is_largest(line):
                largest.add((precision, texts))
    print(*table(lines), sep="\n")


if __name__ == "__main__":
    errors.run(main)
