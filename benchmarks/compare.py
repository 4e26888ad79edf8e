"""Compare time and memory of three recipes on one GPU: the notebook's, the HF Trainer with good settings, and ours.

    python benchmarks/compare.py MODEL DATA --out benchmarks/results/h100.json

MODEL is a folder with a causal language model. Random weights are enough, because time and memory do not depend on
their values (benchmarks/random_model.py makes models of several shapes). DATA is a folder with SNLI's splits.

After warm-up and captures, each recipe trains on 1,000 rows once. CUDA events time blocks of steps without a
synchronisation. "Ms a step" is the mean of all blocks, since batches differ in length. The results also have the
fastest and the slowest block, and the first step, which compiles, loads kernels and captures. A line that fails has its
error.

`--eager-blocks 2` shortens the recipes without CUDA graphs. `--texts 512 2048` trains on longer texts instead, made of
SNLI's: they have 2 to 100 % of so many tokens, and ten batches of 16 or 8 rows are a pass. `--add` adds the lines to an
earlier result.

`--torch-compile` adds the recipe with `torch_compile=True`, whose first step takes minutes. The recipe with Liger
Kernel needs `pip install liger-kernel`.

To compare two checkouts on one machine, alternate them, so that a drift of the machine becomes visible:

    for turn in 1 2; do for code in A B; do (
        cd $code && PYTHONPATH=. python THIS/benchmarks/compare.py MODEL DATA --out OUT --add --only ours
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
from collections.abc import Callable
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
SHORT = "snli"  # the texts as they are
LONG_RECIPES = ("trainer at its best", "ours")  # the notebook cuts texts off at 128 tokens
LONG_BATCHES = 10  # a pass over the rows with long texts


def plan(only: list[str] | None, batch_sizes: list[int] | None, torch_compile: bool) -> list[Line]:
    """The recipes to train on SNLI's own texts, in order.

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


def plan_long(texts: int, only: list[str] | None, batch_sizes: list[int] | None) -> list[Line]:
    """The recipes to train on texts of up to `texts` tokens; other arguments as for `plan`."""
    chosen = [recipe for recipe in recipes.RECIPES if recipe.name in (only or LONG_RECIPES)]
    return [(recipe, size) for size in batch_sizes or [recipes.long_batch_size(texts)] for recipe in chosen]


def time_recipe(inputs: recipes.Inputs, recipe: recipes.Recipe, batch_size: int, eager_blocks: int = 7) -> dict:
    """Train one recipe -> its line in the results, which has an "error" if it failed."""
    make_trainer = functools.partial(recipe.make_trainer, inputs, batch_size)
    blocks = 7 if recipe.warm_up == recipes.CAPTURE_PASSES else eager_blocks
    timing = gpu_timing.Timing.of(len(inputs.rows["ours"]), batch_size, recipe.warm_up, blocks)
    try:
        measured = gpu_timing.time_training(make_trainer, timing)
    except recipes.NotApplicable as error:
        measured = {"error": str(error)}
    except Exception as error:  # the other lines are worth having
        measured = {"error": errors.type_and_first_line(error)}
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


def evaluate_ours(inputs: recipes.Inputs, repeats: int = 2) -> list[dict]:
    """Rows a second of base and tuned: all test rows, in batches as in `eval_base` and `eval_lora`."""
    rows, p, results = inputs.rows["test"], inputs.params, []
    for name in ("ours, base", "ours, tuned"):
        gpu_timing.clean()
        model = recipes.our_base(inputs)
        if name == "ours, tuned":
            model = recipes.our_model(inputs, model).eval()
        ours = Classifier(model, inputs.tokenizer, p.batches, p.tokenize.max_length, inputs.task.labels)
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


def try_evaluation(name: str, evaluate: Callable[[recipes.Inputs], list[dict]], inputs: recipes.Inputs) -> list[dict]:
    """The lines of an evaluation, or one with its error."""
    try:
        return evaluate(inputs)
    except Exception as error:  # the other lines are worth having
        return [{"variant": name, "error": errors.type_and_first_line(error)}]


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
    parser.add_argument(
        "--texts", nargs="+", type=read_texts, default=[SHORT], metavar="TEXTS",
        help="snli, SNLI's own (the default), or the tokens of the longest of longer texts",
    )  # fmt: skip
    parser.add_argument("--torch-compile", action="store_true", help="time torch_compile=True too")
    parser.add_argument(
        "--eager-blocks", type=int, default=7, metavar="BLOCKS",
        help="time at most so many blocks of steps without CUDA graphs; default: all %(default)s",
    )  # fmt: skip
    parser.add_argument("--add", action="store_true", help="add to the results that --out has")
    parser.add_argument("--commit", help="the commit of the code, if Git has none")
    arguments = parser.parse_args()
    if min(arguments.batch_sizes or [1]) < 1:
        parser.error("--batch-sizes: allowed: 1 and more")
    if arguments.eager_blocks < 1:
        parser.error("--eager-blocks: allowed: 1 and more")
    return arguments


def read_texts(value: str) -> str | int:
    """`snli`, or the tokens of the longest text."""
    if value == SHORT or (value.isdecimal() and 64 <= int(value) <= 8192):
        return value if value == SHORT else int(value)
    raise argparse.ArgumentTypeError(f"{value}; allowed: {SHORT}, or 64 to 8192 tokens")


def open_results(out: Path, add: bool, commit: str, model: str) -> dict:
    """New results with what describes this machine and code, or those in `out` that lines are added to."""
    command = shlex.join(["python", *sys.argv])
    if add and out.exists():
        results = json.loads(out.read_text())
        return results | {"command": f"{results['command']}\n{command}"}
    out.parent.mkdir(parents=True, exist_ok=True)
    return {
        "gpu": torch.cuda.get_device_name(gpu_timing.DEVICE),
        "cpu": f"{os.cpu_count()} cores, {cpu_name()}",  # eager recipes depend on it
        "versions": versions(),
        "command": command,
        "commit": commit,
        "model": model,
    }


def main() -> None:
    arguments = read_arguments()
    if not torch.cuda.is_available():
        raise errors.UserError(
            "benchmarks/compare.py: PyTorch sees no CUDA GPU on this machine; run it on a machine with one"
        )
    check_code()
    code, model = arguments.commit or commit(), arguments.model.resolve().name
    results = open_results(arguments.out, arguments.add, code, model)
    short = recipes.load_inputs(arguments.model, arguments.data, params.load())

    def add(section: str, texts: str | int, lines: list[dict]) -> None:  # an interrupted run keeps its results
        described = [{"model": model, "texts": texts, "commit": code, **line} for line in lines]
        results.setdefault(section, []).extend(described)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")

    for texts in arguments.texts:
        inputs, lines = short, plan(arguments.only, arguments.batch_sizes, arguments.torch_compile)
        if texts != SHORT:
            inputs = recipes.with_long_texts(short, texts, LONG_BATCHES * recipes.long_batch_size(texts))
            lines = plan_long(texts, arguments.only, arguments.batch_sizes)
        for recipe, batch_size in tqdm(lines, desc=f"{texts} texts"):
            add("training", texts, [time_recipe(inputs, recipe, batch_size, arguments.eager_blocks)])
        for name, evaluate in EVALUATIONS.items():
            if name in (arguments.only or (EVALUATIONS if texts == SHORT else ())):
                add("evaluation", texts, try_evaluation(name, evaluate, inputs))
    if not arguments.only and SHORT in arguments.texts:
        epoch = math.ceil(len(short.rows["ours"]) / 16)
        timing = gpu_timing.Timing(recipes.CAPTURE_PASSES * epoch, epoch, 6)
        results["recorder"] = gpu_timing.time_recorder(functools.partial(recipes.train_ours, short, 16), timing)
        ours = next(r for r in results["training"] if r["variant"] == "ours" and "error" not in r)
        gpu_timing.clean()
        tokens = ours["tokens_per_second"] * ours["ms_per_step"] / 1e3
        results["limits"] = gpu_timing.limits(recipes.frozen_weights(arguments.model), tokens)
        add("training", SHORT, [])
    speed_tables.show(results)


if __name__ == "__main__":
    errors.run(main)
