"""The notebook's recipe, an ordinary Trainer with good settings and ours, on one GPU in one process: time, memory.

    python benchmarks/compare.py MODEL DATA --out benchmarks/results/h100.json

MODEL is a folder with phi-2 or a model of its shape (benchmarks/random_phi.py): neither time nor memory depends on the
weights' values. DATA is a folder with SNLI's splits. After warm-up and captures each recipe takes as many steps as
take 1,000 rows once. They are timed in blocks, with a synchronization between two. Ms a step is that of all blocks
together, since batches differ in length; beside it stand the fastest and the slowest block.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import clock
import recipes
import table
import torch
from tqdm.auto import tqdm

from stages.model.classifier import Classifier
from stages.runtime import errors, params

PLAN = [  # recipe, batch size, steps to warm up, steps a block, blocks; ours captures for up to two epochs
    # of the 1,000 rows: 7 blocks of 9 batches of 16, or 4 of 2 of 128
    *[(name, 16, 8, 9, 7) for name in ("notebook", "trainer at its best", "ours, eager")],
    *[(name, 16, 126, 9, 7) for name in ("ours", "ours, dequantizing each", "ours, checkpointing")],
    *[(name, 128, 2, 2, 4) for name in ("notebook", "trainer at its best")],
    *[(name, 128, 24, 2, 4) for name in ("ours", "ours, dequantizing each")],
    ("notebook", 16, 8, 9, 7),  # once more at the end: a machine that has drifted would show
]


def time_recipe(inputs: recipes.Inputs, name: str, batch_size: int, warm_up: int, block: int, blocks: int) -> dict:
    """One line of the table of trainings."""
    make_trainer = functools.partial(recipes.TRAINERS[name], inputs, batch_size)
    measured = clock.time_training(make_trainer, warm_up, block, blocks)
    print(name, batch_size, [round(t, 1) for t in measured.get("block_ms_per_step", [])])
    return {"variant": name, "batch_size": batch_size, **measured}


def time_evaluation(inputs: recipes.Inputs, repeats: int = 3) -> list[dict]:
    """Rows a second, base and tuned: the notebook's one at a time, padded to 128, and ours."""
    tokenizer, rows, p, results = inputs.tokenizer, inputs.rows["test"], inputs.params, []
    ids = [tokenizer.pad({"input_ids": [r["input_ids"]]}, padding="max_length", max_length=128, return_tensors="pt")
           for r in inputs.rows["notebook test"][:80]]  # fmt: skip
    for name, make in (("notebook, base", recipes.notebook_base), ("notebook, tuned", recipes.notebook_model)):
        clock.clean()
        classifier = make(inputs).eval()
        parts = [ids[start : start + 16] for start in range(0, len(ids), 16)]
        speeds = [clock.rows_per_second(16, recipes.one_by_one, classifier, part) for part in parts]
        results.append({"variant": name, "batch_size": 1, **clock.spread(speeds[1:]), **clock.memory()})
        del classifier
    clock.clean()
    model = recipes.our_base(inputs)
    for name in ("ours, base", "ours, tuned"):
        if name == "ours, tuned":
            model = recipes.our_model(inputs, model).eval()
        ours = Classifier(model, tokenizer, p.batches, p.tokenize.max_length)
        torch.cuda.reset_peak_memory_stats()
        speeds = [clock.rows_per_second(len(rows), ours.predict, rows, p.eval.batch_size, name)
                  for _ in range(repeats + 1)]  # fmt: skip
        first = {"first_rows_per_second": speeds[0], "rows": len(rows)}  # kernels are compiled and loaded in it
        size = p.eval.batch_size
        results.append({"variant": name, "batch_size": size, **first, **clock.spread(speeds[1:]), **clock.memory()})
    return results


def cpu_name() -> str:
    """The processor's name, where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", help="commit of the code, where Git can't tell")
    arguments = parser.parse_args()

    if not torch.cuda.is_available():
        raise errors.UserError("benchmarks/compare.py: PyTorch sees no CUDA GPU on this machine; it measures on one")
    inputs = recipes.load_inputs(arguments.model, arguments.data, params.load())
    results = {
        "gpu": torch.cuda.get_device_name(clock.DEVICE),
        "cpu": f"{os.cpu_count()} cores, {cpu_name()}",  # eager recipes wait for it
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")},
        "command": "python " + " ".join(sys.argv),
        "commit": arguments.commit or subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "model": arguments.model.resolve().name,
        "training": [],
        "evaluation": [],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)

    def write():  # as it comes, so that a run that is cut short leaves what it measured
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")

    for line in tqdm(PLAN, desc="training"):
        results["training"].append(time_recipe(inputs, *line))
        write()
    results["evaluation"] = time_evaluation(inputs)
    write()
    results["recorder"] = clock.time_recorder(functools.partial(recipes.train_ours, inputs, 16))
    write()
    ours = next(r for r in results["training"] if r["variant"] == "ours")
    clock.clean()
    tokens = ours["tokens_per_second"] * ours["ms_per_step"] / 1e3
    results["limits"] = clock.limits(recipes.frozen_weights(arguments.model), tokens)
    write()
    table.show(results)


if __name__ == "__main__":
    errors.run(main)
