"""The notebook's recipe, an ordinary Trainer with good settings and ours, on one GPU in one process: time, memory.

    python benchmarks/compare.py MODEL DATA --out benchmarks/results/h100.json

MODEL is a folder with a causal language model; neither time nor memory depends on its weights' values, so that for
phi-2 its shape is enough (benchmarks/random_phi.py). DATA is a folder with SNLI's splits. After warm-up and captures
each recipe takes as many steps as take 1,000 rows once. They are timed in blocks, by events on the GPU that nothing
waits for. Ms a step is that of all blocks together, since batches differ in length; beside it stand the fastest and the
slowest block, and what the first step took: it compiles, loads kernels, captures.

The recipe with `torch_compile=True` runs where `--torch-compile` asks for it: its first step takes minutes. The one
with Liger Kernel wants `pip install liger-kernel`.

Two checkouts on one machine, by turns, so that a drift of the machine shows:

    for turn in 1 2; do for code in A B; do (
        cd $code && PYTHONPATH=. python THIS/benchmarks/compare.py MODEL DATA --out OUT/$code-$turn.json --only ours
    ); done; done

The code that is measured is that of the current folder, its params.yaml too; the clock is that of THIS checkout.
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

import clock
import recipes
import table
import torch
from tqdm.auto import tqdm

import stages
from stages.model.classifier import Classifier
from stages.runtime import errors, params

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "triton", "liger-kernel")
Line = tuple[recipes.Recipe, int]  # a recipe at a batch size


def plan(only: list[str] | None, batch_sizes: list[int] | None, torch_compile: bool) -> list[Line]:
    """What is trained, in its order.

    Args:
        only: names of recipes; None: all that need no request, and the first once more at the end, since a machine
            that has drifted would show there.
        batch_sizes: None: each recipe's own.
        torch_compile: add the recipes that need a request.
    """
    if only is None:
        chosen = [recipe for recipe in recipes.RECIPES if torch_compile or not recipe.on_request]
    else:
        chosen = [recipe for recipe in recipes.RECIPES if recipe.name in only]
    sizes = batch_sizes or sorted({size for recipe in chosen for size in recipe.batch_sizes})
    lines = [(recipe, size) for size in sizes for recipe in chosen if batch_sizes or size in recipe.batch_sizes]
    return lines if only else lines + lines[:1]


def time_recipe(inputs: recipes.Inputs, recipe: recipes.Recipe, batch_size: int) -> dict:
    """One line of the table of trainings."""
    make_trainer = functools.partial(recipe.make_trainer, inputs, batch_size)
    timing = clock.Timing.of(len(inputs.rows["ours"]), batch_size, recipe.warm_up)
    try:
        measured = clock.time_training(make_trainer, timing)
    except recipes.NotApplicable as error:
        measured = {"error": str(error)}
    print(recipe.name, batch_size, measured.get("error") or [round(t, 1) for t in measured["block_ms_per_step"]])
    return {"variant": recipe.name, "batch_size": batch_size, **measured}


def evaluate_notebook(inputs: recipes.Inputs) -> list[dict]:
    """Rows a second, base and tuned: one row at a time, padded to 128."""
    pad, results = functools.partial(inputs.tokenizer.pad, padding="max_length", max_length=128), []
    ids = [pad({"input_ids": [row["input_ids"]]}, return_tensors="pt") for row in inputs.rows["notebook test"][:80]]
    parts = [ids[start : start + 16] for start in range(0, len(ids), 16)]
    for name, make in (("notebook, base", recipes.notebook_base), ("notebook, tuned", recipes.notebook_model)):
        clock.clean()
        classifier = make(inputs).eval()
        speeds = [clock.rows_per_second(16, recipes.one_by_one, classifier, part) for part in parts]
        results.append({"variant": name, "batch_size": 1, **clock.spread(speeds[1:]), **clock.memory()})
        del classifier
    return results


def evaluate_ours(inputs: recipes.Inputs, repeats: int = 3) -> list[dict]:
    """Rows a second, base and tuned: all test rows, as the stages `eval_base` and `eval_lora` take them."""
    rows, p, results = inputs.rows["test"], inputs.params, []
    for name in ("ours, base", "ours, tuned"):
        clock.clean()
        model = recipes.our_base(inputs)
        if name == "ours, tuned":
            model = recipes.our_model(inputs, model).eval()
        ours = Classifier(model, inputs.tokenizer, p.batches, p.tokenize.max_length)
        torch.cuda.reset_peak_memory_stats()  # loading is not to count
        speeds = [clock.rows_per_second(len(rows), ours.predict, rows, p.eval.batch_size, name)
                  for _ in range(repeats + 1)]  # fmt: skip
        first = {"first_rows_per_second": speeds[0], "rows": len(rows)}  # kernels are compiled and loaded in it
        size = p.eval.batch_size
        results.append({"variant": name, "batch_size": size, **first, **clock.spread(speeds[1:]), **clock.memory()})
        del ours, model
    return results


EVALUATIONS = {"evaluation, notebook": evaluate_notebook, "evaluation, ours": evaluate_ours}


def cpu_name() -> str:
    """The processor's name, where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """{name: version} of Python and of those `LIBRARIES` that are installed."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def commit() -> str:
    """The commit of the current folder; it ends in -dirty where files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.check_output(command, text=True).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise errors.UserError("benchmarks/compare.py: Git can't tell the commit: give it by --commit") from error


def check_code() -> None:
    """Refuse to measure another checkout's code than the current folder's, whose commit the result will name."""
    if Path(stages.__file__).parent.parent != Path.cwd():
        raise errors.UserError(
            f"benchmarks/compare.py: stages/ is that of {Path(stages.__file__).parent.parent}, not of the current "
            "folder: set PYTHONPATH=."
        )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    names = [*(recipe.name for recipe in recipes.RECIPES), *EVALUATIONS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(map(repr, names))}")
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="ROWS", help="of all recipes, not each its own")
    parser.add_argument("--torch-compile", action="store_true", help="time torch_compile=True too")
    parser.add_argument("--commit", help="commit of the code, where Git can't tell")
    arguments = parser.parse_args()
    if min(arguments.batch_sizes or [1]) < 1:
        parser.error("--batch-sizes: allowed: 1 and more")
    return arguments


def main() -> None:
    arguments = read_arguments()
    if not torch.cuda.is_available():
        raise errors.UserError("benchmarks/compare.py: PyTorch sees no CUDA GPU on this machine; it measures on one")
    check_code()
    inputs = recipes.load_inputs(arguments.model, arguments.data, params.load())
    results = {
        "gpu": torch.cuda.get_device_name(clock.DEVICE),
        "cpu": f"{os.cpu_count()} cores, {cpu_name()}",  # eager recipes wait for it
        "versions": versions(),
        "command": shlex.join(["python", *sys.argv]),
        "commit": arguments.commit or commit(),
        "model": arguments.model.resolve().name,
        "training": [],
        "evaluation": [],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)

    def write():  # as it comes, so that a run that is cut short leaves what it measured
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
        turns = clock.Timing(recipes.CAPTURES * epoch, epoch, 12)
        results["recorder"] = clock.time_recorder(functools.partial(recipes.train_ours, inputs, 16), turns)
        write()
        ours = next(r for r in results["training"] if r["variant"] == "ours")
        clock.clean()
        tokens = ours["tokens_per_second"] * ours["ms_per_step"] / 1e3
        results["limits"] = clock.limits(recipes.frozen_weights(arguments.model), tokens)
        write()
    table.show(results)


if __name__ == "__main__":
    errors.run(main)
