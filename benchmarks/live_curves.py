"""Measure what live curves cost a training step on a GPU.

    python benchmarks/live_curves.py MODEL DATA --out benchmarks/results/h200-live-curves.json

MODEL and DATA are those of benchmarks/compare.py. Our recipe is trained several times in turn: without points, with the
points of the progress bar only (`train.report_to: none`), and with each logger that is installed. CUDA events time
blocks of an epoch's steps without a synchronisation. The results have the median of all blocks of a variant, and its
ratio to that without points.
"""

import argparse
import functools
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gpu_timing
import recipes
import torch
from transformers import Trainer

from stages.runtime import errors, files, params
from stages.runtime.usage_recorder import read_versions
from stages.training.live_curves import LOGGERS, LiveCurves, prepare
from stages.training.live_losses import LiveLosses

BATCH_SIZE, WITHOUT = 16, "without points"


def installed_loggers(p: params.Params) -> Iterator[tuple[str, LiveCurves]]:
    """The loggers whose packages are installed, each with its name."""
    for name in LOGGERS:
        try:
            curves = prepare(p.model_copy(update={"train": p.train.model_copy(update={"report_to": name})}))
        except errors.UserError as error:
            print(error)
            continue
        assert curves
        yield name, curves


def make_trainer(inputs: recipes.Inputs, variant: str, curves: LiveCurves | None, steps: int) -> Trainer:
    """The Trainer of our recipe, with the live losses of a variant."""
    trainer = recipes.train_ours(inputs, BATCH_SIZE, steps)
    live_losses = next(one for one in trainer.callback_handler.callbacks if isinstance(one, LiveLosses))
    if variant == WITHOUT:
        trainer.remove_callback(live_losses)
    elif curves:
        live_losses.receivers = [*live_losses.receivers, curves.log_steps]
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("data", type=Path, help="folder of SNLI's splits")
    parser.add_argument("--out", type=Path, required=True, help="file of the results")
    parser.add_argument("--turns", type=int, default=3, help="trainings of each variant; default: 3")
    parser.add_argument("--epochs", type=int, default=10, help="timed epochs of each training; default: 10")
    arguments = parser.parse_args()

    p, out = params.load(), arguments.out.resolve()
    inputs = recipes.load_inputs(arguments.model.resolve(), arguments.data.resolve(), p)
    os.environ.setdefault("WANDB_MODE", "offline")
    os.chdir(tempfile.mkdtemp())  # the loggers write here
    loggers: dict[str, LiveCurves | None] = {WITHOUT: None, "none": None, **dict(installed_loggers(p))}
    epoch = -(-len(inputs.rows["ours"]) // BATCH_SIZE)
    timing = gpu_timing.Timing(recipes.CAPTURE_PASSES * epoch, epoch, arguments.epochs)
    times: dict[str, list[float]] = {variant: [] for variant in loggers}
    for turn in range(arguments.turns):
        for variant, curves in loggers.items():
            if curves:
                curves.start(Path(f"checkpoints/{turn}"), None)
            result = gpu_timing.time_training(functools.partial(make_trainer, inputs, variant, curves), timing)
            if curves:
                assert curves.active, "the logger has failed"
                curves.end()
            times[variant] += result["block_ms_per_step"]
            print(f"turn {turn + 1}, {variant}: {result['ms_median']:.3f} ms a step", flush=True)

    medians = {variant: statistics.median(blocks) for variant, blocks in times.items()}
    results = {
        variant: {
            "ms_per_step": medians[variant],
            "ratio": medians[variant] / medians[WITHOUT],
            "ms_fastest": min(blocks),
            "ms_slowest": max(blocks),
        }
        for variant, blocks in times.items()
    }
    for variant, result in results.items():
        print(
            f"{variant}: {result['ms_per_step']:.3f} ms a step, {result['ms_fastest']:.3f} to "
            f"{result['ms_slowest']:.3f}, ratio {result['ratio']:.4f}"
        )
    machine = {"gpu": torch.cuda.get_device_name(), "versions": read_versions(gpu_timing.DEVICE)}
    files.write_json(out, {**machine, "turns": arguments.turns, "steps_per_block": epoch, "variants": results})


if __name__ == "__main__":
    errors.run(main)
