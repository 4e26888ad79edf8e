"""Compare time and memory of three recipes on one GPU: the notebook's, the HF Trainer with good settings, and ours.

    python benchmarks/compare.py MODEL DATA --out benchmarks/results/h100.json

MODEL is a folder with a causal language model. Random weights are enough, because time and memory do not depend on
their values (benchmarks/random_phi.py makes a model of phi-2's shape). DATA is a folder with SNLI's splits.

After warm-up and captures, each recipe trains on 1,000 rows once. CUDA events time blocks of steps without a
synchronisation. "Ms a step" is the mean of all blocks, since batches differ in length. The results also have the
fastest and the slowest block, and the first step, which compiles, loads kernels and captures.

`--torch-compile` adds the recipe with `torch_compile=True`, whose first step takes minutes. The recipe with Liger
Kernel needs `pip install liger-kernel`.

To compare two checkouts on one machine, alternate them, so that a drift of the machine becomes visible:

    for turn in 1 2; do for code in A B; do (
        cd $code && PYTHONPATH=. python THIS/benchmarks/compare.py MODEL DATA --out OUT/$code-$turn.json --only ours
    ); done; done

This measures the code and the params.yaml of the current folder, with the timing code of THIS checkout.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import gpu_timing
import recipes
import speed_tables
import torch
from tqdm.auto import tqdm

import stages
from stages.model.classifier import Classifier
from stages.runtime import errors, params

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "triton", "liger-kernel")
Line = tuple[recipes.Recipe, int]  # a recipe at a batch size


def plan(only: list[str] | None, batch_sizes: list[int] | None, torch_compile: bool) -> list[Line]:
    """The recipes to train, in order.

    Args:
        only: names of recipes. None: all recipes except those with `on_request`; the first is measured again at the
            end, to show a drift of the machine.
        batch_sizes: None: those of each recipe.
        torch_compile: add the recipes with `on_request`.
    """
    if only is None:
        chosen = [recipe for recipe in recipes.RECIPES if torch_compile or not recipe.on_request]
    else:
        chosen = [recipe for recipe in recipes.RECIPES if recipe.name in only]
    sizes = batch_sizes or sorted({size for recipe in chosen for size in recipe.batch_sizes})
    lines = [(recipe, size) for size in sizes for recipe in chosen if batch_sizes or size in recipe.batch_sizes]
    return lines if only else lines + lines[:1]


def time_recipe(inputs: recipes.Inputs, recipe: recipes.Recipe, batch_size: int) -> dict:
    """Train one recipe -> its line in the results."""
    make_trainer = functools.partial(recipe.make_trainer, inputs, batch_size)
    timing = gpu_timing.Timing.of(len(inputs.rows["ours"]), batch_size, recipe.warm_up)
    try:
        measured = gpu_timing.time_training(make_trainer, timing)
    except recipes.NotApplicable as error:
        measured = {"error": str(error)}
    print(recipe.name, batch_size, measured.get("error") or [round(t, 1) for t in measured["block_ms_per_step"]])
    return {"variant": recipe.name, "batch_size": batch_size, **measured}


def evaluate_notebook(inputs: recipes.Inputs) -> list[dict]:
    """Rows a second of base and tuned: one row at a time, padded to 128 tokens."""
    pad, results = functools.partial(inputs.tokenizer.pad, padding="max_length", max_length=128), []
    ids = [pad({"input_ids": [row["input_ids"]]}, return_tensors="pt") for row in inputs.rows["notebook test"][:80]]
    parts = [ids[start : start + 16] for start in range(0, len(ids), 16)]
    for name, make in (("notebook, base", recipes.notebook_base), ("notebook, tuned", recipes.notebook_model)):
        gpu_timing.clean()
        classifier = make(inputs).eval()
        speeds = [gpu_timing.rows_per_second(16, recipes.one_by_one, classifier, part) for part in parts]
        results.append({"variant": name, "batch_size": 1, **gpu_timing.spread(speeds[1:]), **gpu_timing.memory()})
        del classifier
    return results


def evaluate_ours(inputs: recipes.Inputs, repeats: int = 3) -> list[dict]:
    """Rows a second of base and tuned: all test rows, in batches as in `eval_base` and `eval_lora`."""
    rows, p, results = inputs.rows["test"], inputs.params, []
    for name in ("ours, base", "ours, tuned"):
        gpu_timing.clean()
        model = recipes.our_base(inputs)
        if name == "ours, tuned":
            model = recipes.our_model(inputs, model).eval()
        ours = Classifier(model, inputs.tokenizer, p.batches, p.tokenize.max_length)
        torch.cuda.reset_peak_memory_stats()  # the peak does not include loading
        speeds = [gpu_timing.rows_per_second(len(rows), ours.predict, rows, p.eval.batch_size, name)
                  for _ in range(repeats + 1)]  # fmt: skip
        first = {"first_rows_per_second": speeds[0], "rows": len(rows)}  # includes compiling and loading kernels
        size = p.eval.batch_size
        results.append(
            {"variant": name, "batch_size": size, **first, **gpu_timing.spread(speeds[1:]), **gpu_timing.memory()}
        )
        del ours, model
    return results


EVALUATIONS = {"evaluation, notebook": evaluate_notebook, "evaluation, ours": evaluate_ours}


def cpu_name() -> str:
    """The processor's name, from /proc/cpuinfo if it exists."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """{name: version} of Python and of the installed `LIBRARIES`."""
    installed = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            installed[library] = version(library)
    return installed


def commit() -> str:
    """The commit of the current folder. It ends in -dirty if files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.check_output(command, text=True).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise errors.UserError(
            "benchmarks/compare.py: Git has no commit for this folder: name it with --commit"
        ) from error


def check_code() -> None:
    """Check that Python imports stages/ from the current folder, whose commit the result will name."""
    if Path(stages.__file__).parent.parent != Path.cwd():
        raise errors.UserError(
            f"benchmarks/compare.py: Python imports stages/ from {Path(stages.__file__).parent.parent}, not from the "
            "current folder: set PYTHONPATH=."
        )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    names = [*(recipe.name for recipe in recipes.RECIPES), *EVALUATIONS]
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help=f"measure only these: {', '.join(map(repr, names))}"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="ROWS", help="the batch sizes of all recipes")
    parser.add_argument("--torch-compile", action="store_true", help="time torch_compile=True too")
    parser.add_argument("--commit", help="the commit of the code, if Git has none")
    arguments = parser.parse_args()
    if min(arguments.batch_sizes or [1]) < 1:
        parser.error("--batch-sizes: allowed: 1 and more")
    return arguments


def main() -> None:
    arguments = read_arguments()
    if not torch.cuda.is_available():
        raise errors.UserError(
            "benchmarks/compare.py: PyTorch sees no CUDA GPU on this machine; run it on a machine with one"
        )
    check_code()
    inputs = recipes.load_inputs(arguments.model, arguments.data, params.load())
    results = {
        "gpu": torch.cuda.get_device_name(gpu_timing.DEVICE),
        "cpu": f"{os.cpu_count()} cores, {cpu_name()}",  # eager recipes depend on it
        "versions": versions(),
        "command": shlex.join(["python", *sys.argv]),
        "commit": arguments.commit or commit(),
        "model": arguments.model.resolve().name,
        "training": [],
        "evaluation": [],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:  # after each measurement, so that an interrupted run keeps its results
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")

    for recipe, batch_size in tqdm(plan(arguments.only, arguments.batch_sizes, arguments.torch_compile)):
        results["training"].append(time_recipe(inputs, recipe, batch_size))
        write()
    for name, evaluate in EVALUATIONS.items():
        if not arguments.only or name in arguments.only:
            results["evaluation"] += evaluate(inputs)
            write()
    if not arguments.only:
        epoch = math.ceil(len(inputs.rows["ours"]) / 16)
        timing = gpu_timing.Timing(recipes.CAPTURE_PASSES * epoch, epoch, 12)
        results["recorder"] = gpu_timing.time_recorder(functools.partial(recipes.train_ours, inputs, 16), timing)
        write()
        ours = next(r for r in results["training"] if r["variant"] == "ours")
        gpu_timing.clean()
        tokens = ours["tokens_per_second"] * ours["ms_per_step"] / 1e3
        results["limits"] = gpu_timing.limits(recipes.frozen_weights(arguments.model), tokens)
        write()
    speed_tables.show(results)


if __name__ == "__main__":
    errors.run(main)
