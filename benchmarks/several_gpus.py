"""Measure rows a second of the training, and of the evaluation, on one GPU and on several, with as many rows as SNLI.

    python benchmarks/several_gpus.py MODEL DATA --batch-sizes 16 128 --out one.json
    torchrun --nproc-per-node=2 benchmarks/several_gpus.py MODEL DATA --batch-sizes 32 256 --out two.json

Alternate the two commands on one machine, with CUDA_VISIBLE_DEVICES=0 before the first. Figures of two machines are not
comparable.

MODEL is a folder (benchmarks/random_model.py makes one), DATA a folder of SNLI's rows. If it has fewer rows than
--rows, they are repeated. A batch size counts the rows on all GPUs together.

`--texts 512` trains on longer texts instead, made of SNLI's: they have 2 to 100 % of so many tokens, ten batches are a
pass over them, and each timed block should be a pass (`--warm-up 10 --steps 50`). `--evaluate 98240` predicts so many
test rows as `eval_base` and `eval_lora` do.
"""

import argparse
import dataclasses
import functools
import json
import resource
import statistics
from pathlib import Path

import compare
import numpy as np
import pyarrow as pa
import recipes
import torch
from gpu_timing import GB, Clock, Timing, clean, median_seconds

from stages.data import dataset, split_files, tokenization
from stages.data.batching import TokenizedRows
from stages.model.devices import pick_device
from stages.runtime import distributed, errors, params
from stages.runtime.usage_recorder import Recorder

SNLI = 549_367  # training rows with a gold label
BLOCKS = 5


def all_rows(inputs: recipes.Inputs, folder: Path, count: int) -> TokenizedRows:
    """All labelled training rows of a folder, repeated to `count` rows."""
    p = inputs.params
    splits = split_files.read_splits(folder, recipes.manifest_of(folder, "data")["files"], p.data)
    _, rows = dataset.prepare_rows(splits, p.data, inputs.task.template)
    train = dataset.resolve_unlabelled(rows["train"], "drop", inputs.task)
    tokenized = tokenization.tokenize_rows(train, inputs.tokenizer, p.tokenize.template, p.tokenize.max_length)
    return repeat(TokenizedRows.from_lists(tokenized["input_ids"], tokenized["label"]), count)


def repeat(rows: TokenizedRows, count: int) -> TokenizedRows:
    """The rows one after another, again and again, up to `count` rows."""
    numbers = np.arange(count) % len(rows)
    texts = pa.ListArray.from_arrays(rows.offsets, rows.tokens)
    return TokenizedRows(texts.take(pa.array(numbers)), rows.labels[numbers])


def time_training(
    inputs: recipes.Inputs, batch_size: int, texts: int | None, steps: int, warm_up: int, device: torch.device
) -> dict:
    """Time `steps` steps after a warm-up in which the graphs are captured; `texts`: tokens of the longest text."""
    if texts:
        inputs = recipes.with_long_texts(inputs, texts, compare.LONG_BATCHES * batch_size)
    clean()
    timing = Timing(warm_up, steps // BLOCKS, BLOCKS)
    trainer, clock = recipes.train_ours(inputs, batch_size, timing.steps), Clock(timing)
    trainer.add_callback(clock)
    with Recorder(device) as recorder:
        trainer.train()
        torch.cuda.synchronize()
    speeds = [1e3 * batch_size / ms for ms in clock.blocks()]
    speed, step = statistics.median(speeds), trainer.captured_step
    return {
        "gpus": distributed.world_size(),
        "batch_size": batch_size,
        "texts": texts or compare.SHORT,
        "steps": timing.steps - warm_up,
        "rows_per_second": speed,
        "slowest": min(speeds),
        "fastest": max(speeds),
        "ms_per_step": 1e3 * batch_size / speed,
        "hours_an_epoch": len(inputs.rows["ours"]) / speed / 3600,
        "all_reduce_ms": 1e3 * median_seconds(functools.partial(distributed.all_reduce, step.lora.buffer)),
        "capture_seconds": step.capture_seconds,
        "graphs": len(step.graphs),
        "plan": str(step.plan),
        "nvml_used_gb": max(sample["memory_gb"] for sample in recorder.samples),
        "host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[], metavar="ROWS")
    parser.add_argument("--texts", type=int, metavar="TOKENS", help="of the longest text; default: SNLI's texts")
    parser.add_argument("--evaluate", type=int, metavar="ROWS", help="also predict so many test rows")
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
    if arguments.evaluate:
        rows["test"] = repeat(rows["test"], arguments.evaluate)
    inputs = dataclasses.replace(inputs, rows=rows)
    measure = functools.partial(
        time_training, inputs, texts=arguments.texts, steps=arguments.steps, warm_up=arguments.warm_up, device=device
    )
    results = {
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "rows": len(rows["ours"]),
        "training": [measure(batch_size=size) for size in arguments.batch_sizes],
    }
    if arguments.evaluate:
        results["evaluation"] = [{"gpus": distributed.world_size(), **line} for line in compare.evaluate_ours(inputs)]
    if distributed.is_main():
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")
        for line in results["training"] + results.get("evaluation", []):
            print(json.dumps(line))
    distributed.shut_down()


if __name__ == "__main__":
    errors.run(main)
