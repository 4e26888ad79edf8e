"""Measure rows a second of the training on one GPU and on several, with as many rows as SNLI.

    python benchmarks/several_gpus.py MODEL DATA --batch-sizes 16 128 --out one.json
    torchrun --nproc-per-node=2 benchmarks/several_gpus.py MODEL DATA --batch-sizes 32 256 --out two.json

Alternate the two commands on one machine, with CUDA_VISIBLE_DEVICES=0 before the first. Figures of two machines are not
comparable.

MODEL is a folder (benchmarks/random_model.py makes one), DATA a folder of SNLI's rows. If it has fewer rows than
--rows, they are repeated. A batch size counts the rows on all GPUs together.
"""

import argparse
import dataclasses
import functools
import json
import resource
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import recipes
import torch
from gpu_timing import GB, Clock, Timing, clean

from stages.data import dataset, split_files, tokenization
from stages.data.batching import TokenizedRows
from stages.model.devices import pick_device
from stages.runtime import distributed, errors, params
from stages.runtime.usage_recorder import Recorder

SNLI = 549_367  # training rows with a gold label
BLOCKS = 5


def all_rows(inputs: recipes.Inputs, folder: Path, count: int) -> TokenizedRows:
    """All training rows of a folder, repeated to `count` rows."""
    p = inputs.params
    splits = split_files.read_splits(folder, recipes.manifest_of(folder, "data")["files"], p.data)
    _, rows = dataset.prepare_rows(splits, p.data, inputs.task.template)
    train = dataset.resolve_unlabelled(rows["train"], "drop", inputs.task)
    tokenized = tokenization.tokenize_rows(train, inputs.tokenizer, p.tokenize.template, p.tokenize.max_length)
    table = pa.table({"input_ids": pa.array(tokenized["input_ids"], pa.list_(pa.int32())), "label": tokenized["label"]})
    return TokenizedRows.from_table(table.take(np.arange(count) % len(table)), inputs.task.labels)


def time_training(inputs: recipes.Inputs, batch_size: int, steps: int, warm_up: int, device: torch.device) -> dict:
    """Time `steps` steps after a warm-up in which the graphs are captured."""
    clean()
    timing = Timing(warm_up, steps // BLOCKS, BLOCKS)
    trainer, clock = recipes.train_ours(inputs, batch_size, timing.steps), Clock(timing)
    trainer.add_callback(clock)
    with Recorder(device) as recorder:
        trainer.train()
        torch.cuda.synchronize()
    speeds = [1e3 * batch_size / ms for ms in clock.blocks()]
    speed = statistics.median(speeds)
    return {
        "gpus": distributed.world_size(),
        "batch_size": batch_size,
        "steps": timing.steps - warm_up,
        "rows_per_second": speed,
        "slowest": min(speeds),
        "fastest": max(speeds),
        "ms_per_step": 1e3 * batch_size / speed,
        "hours_an_epoch": len(inputs.rows["ours"]) / speed / 3600,
        "capture_seconds": trainer.captured_step.capture_seconds,
        "graphs": len(trainer.captured_step.graphs),
        "nvml_used_gb": max(sample["memory_gb"] for sample in recorder.samples),
        "host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch-sizes", type=int, nargs="+", required=True, metavar="ROWS")
    parser.add_argument("--rows", type=int, default=SNLI, help="training rows; default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="timed steps; default: %(default)s")
    parser.add_argument(
        "--warm-up", type=int, default=60, metavar="STEPS", help="steps before the timing; default: %(default)s"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = pick_device("cuda", None)
    distributed.init_process_group(device)
    inputs = recipes.load_inputs(arguments.model, arguments.data, params.load())
    rows = inputs.rows | {"ours": all_rows(inputs, arguments.data, arguments.rows)}
    inputs = dataclasses.replace(inputs, rows=rows)
    measure = functools.partial(time_training, inputs, steps=arguments.steps, warm_up=arguments.warm_up, device=device)
    lines = [measure(batch_size=size) for size in arguments.batch_sizes]
    if distributed.is_main():
        machine = {"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__, "rows": len(rows["ours"])}
        arguments.out.write_text(json.dumps(machine | {"training": lines}, indent=2) + "\n")
        for line in lines:
            print(json.dumps(line))


if __name__ == "__main__":
    errors.run(main)
