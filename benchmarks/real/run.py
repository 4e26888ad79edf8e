"""Train and test each variant of variants.py on a pretrained model and SNLI, with several seeds.

    python benchmarks/real/run.py MODEL DATA OUT                 all variants, on every GPU
    python benchmarks/real/run.py MODEL DATA OUT ours eager      only these
    python benchmarks/real/accuracy_tables.py                  prints the tables

MODEL and DATA are folders. Each run uses the pipeline's stages with the root's params.yaml and the changes of its
variant, and predicts all labelled test rows. Finished runs are not repeated, so the same command continues after a
kill.

The first seed of each variant has its GPU to itself, and gives the seconds and the memory of the tables. The other
seeds run several at a time on each GPU, so their seconds are not recorded.
"""

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:  # imported inside the functions, because a process chooses its GPU before it imports PyTorch
    import pandas as pd

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE)]
from variants import VARIANTS  # noqa: E402 - needs the line above, in each process

SEEDS = (42, 1, 2, 3, 4)
WARM_UP = {"data.train_rows": 64, "data.test_rows": 64, "train.epochs": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--side-by-side", type=int, default=4, help="runs at a time on a GPU; default: %(default)s")
    parser.add_argument("--untimed", action="store_true", help="share the GPU in all runs, and record no seconds")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a change of params.yaml for all runs"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.settings) - set(VARIANTS):
        parser.error(f"{', '.join(sorted(unknown))}: allowed: {', '.join(VARIANTS)}")
    model, data, out = (str(path.resolve()) for path in (arguments.model, arguments.data, arguments.out))
    everywhere = {
        "model.folder": model, "model.digest": None, "data.folder": data, "data.digest": None, "data.test_rows": None
    }  # fmt: skip
    everywhere |= {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in arguments.set)}
    runs = [
        (name, seed)
        for name in arguments.settings or VARIANTS
        for seed in arguments.seeds[: VARIANTS[name].seeds]
    ]  # fmt: skip
    timed = [] if arguments.untimed else [(name, seed) for name, seed in runs if seed == arguments.seeds[0]]
    failed = run_all(timed, Path(out), everywhere, at_once=1, timed=True)
    failed += run_all(runs, Path(out), everywhere, at_once=arguments.side_by_side, timed=False)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def run_all(runs: Sequence[tuple[str, int]], out: Path, everywhere: dict, at_once: int, timed: bool) -> list[str]:
    """Run the unfinished runs, `at_once` at a time on each GPU -> the error lines of failed runs."""
    unfinished = [pair for pair in runs if not record(out, *pair).exists()]
    if not unfinished:
        return []
    # Runs that wait for the host start first, so that they overlap with runs that wait for the GPU.
    unfinished.sort(key=lambda pair: waits_for_host(pair[0]), reverse=True)
    spawn, devices = multiprocessing.get_context("spawn"), gpus()
    workers = min(len(unfinished), at_once * len(devices))
    places = spawn.Queue()
    for place in (devices * at_once)[:workers]:
        places.put(place)
    failed = []
    with ProcessPoolExecutor(workers, spawn, start, (places, workers, out, everywhere)) as pool:
        futures = {
            pool.submit(train_and_test, out, everywhere, name, seed, timed): (name, seed) for name, seed in unfinished
        }
        for future in as_completed(futures):
            try:
                print(future.result(), flush=True)
            except Exception as error:  # the other runs continue
                name, seed = futures[future]
                failed.append(f"{name} {seed}: {traceback.format_exception_only(error)[-1].strip()}")
    return failed


def waits_for_host(name: str) -> bool:
    changes = VARIANTS[name].changes
    return changes.get("train.cuda_graphs") is False or changes.get("eval.batch_size") == 1


def gpus() -> list[str]:
    """The visible GPUs, as in CUDA_VISIBLE_DEVICES. Without a GPU: one empty name."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")) or [""]


def start(places: multiprocessing.Queue, workers: int, out: Path, everywhere: dict) -> None:
    """Assign a GPU and a share of the cores to this process, and compile its kernels before a run is timed."""
    os.environ["CUDA_VISIBLE_DEVICES"] = places.get()
    # More threads than cores wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    with contextlib.redirect_stdout(None):
        run_stages(out / "warm-up" / str(os.getpid()), everywhere | WARM_UP, base=True)


def train_and_test(out: Path, everywhere: dict, name: str, seed: int, timed: bool) -> str:
    """Train and test once, and write the result to OUT/runs -> a line with the accuracy."""
    folder = out / "work" / f"{name} {seed}"
    with contextlib.redirect_stdout(None):
        run_stages(folder, everywhere | VARIANTS[name].changes | {"seed": seed}, base=name == "ours")
    result = {"setting": name, "seed": seed, "changes": VARIANTS[name].changes, **scores(folder)}
    path = record(out, name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    answers(folder, name == "ours").to_parquet(path.with_suffix(".parquet"))
    if timed:
        (out / "times").mkdir(exist_ok=True)
        (out / "times" / f"{name}.json").write_text(json.dumps(times(folder), indent=1) + "\n")
    path.write_text(json.dumps(result, indent=1) + "\n")  # last, because this file marks the run as finished
    return f"{name} {seed}: {result['accuracy']:.1%}"


def record(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{name} {seed}.json"


def run_stages(folder: Path, changes: dict, base: bool) -> None:
    """Run the stages from `download` to `eval_lora` in `folder`. `base`: run `eval_base` too."""
    import torch

    from stages import download, eval_base, eval_lora, tokenize, train_qlora

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in changes.items():
        *groups, last = key.split(".")
        group = params
        for name in groups:
            group = group[name]
        if last not in group:
            raise KeyError(f"params.yaml has no {key}")
        group[last] = value
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for stage in (download, tokenize, *([eval_base] if base else []), train_qlora, eval_lora):
        gc.collect()  # the graphs of a captured step hold memory in reference cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        stage.main()


def answers(folder: Path, base: bool) -> "pd.DataFrame":
    """The answers to the test rows, without texts: row, label, group, prediction; and the references', if `base`."""
    import pandas as pd

    table = pd.read_parquet(folder / "outs/results/tuned/predictions.parquet")
    table = table[["row", "label", "group", "prediction"]]
    if base:
        references = pd.read_parquet(folder / "outs/results/base/predictions.parquet")
        table = table.merge(references.drop(columns=["label", "group"]), on="row")
    return table.assign(group=pd.factorize(table["group"])[0]).astype("int32")


def scores(folder: Path) -> dict:
    """The results of a run. Loss and calibration error are those of the test rows, also without the temperature."""
    import pandas as pd

    from stages.analysis.calibration import calibration_error, losses, measure_calibration, reliability
    from stages.data.labels import SingleLabel

    table = pd.read_parquet(folder / "outs/results/tuned/predictions.parquet")
    names = [column for column in table if column.startswith("p_")]
    probabilities = table[names].to_numpy()
    gold, predicted = table["label"].to_numpy(), table["prediction"].to_numpy()
    summary = read(folder, "outs/results/train/summary.json")
    temperature = summary["temperature"]
    calibration = measure_calibration(gold, predicted, probabilities, SingleLabel(tuple(names)), temperature)
    return {
        "accuracy": float((predicted == gold).mean()),
        "loss": float(losses(gold, probabilities).mean()),
        "calibration_error": calibration_error(reliability(predicted == gold, probabilities.max(axis=1))),
        "temperature": temperature,
        "without_temperature": asdict(calibration.without) if calibration else None,
        "rows": {"train": read(folder, "outs/data_summary.json")["train"]["kept"], "test": len(table)},
        "best_epoch": summary["best_epoch"],
        "epochs": pd.read_csv(folder / "outs/results/train/epochs.csv").round(4).to_dict("records"),
        "versions": read(folder, "outs/measurements/train/run.json")["versions"],
    }


def times(folder: Path) -> dict:
    """Seconds and peak GB of training and of testing, for a run that had its GPU to itself."""
    measured = {}
    for stage in ("train", "tuned"):
        run = read(folder, f"outs/measurements/{stage}/run.json")
        measured[stage] = {"seconds": run["seconds"], "peak_gb": run["gpu"].get("peak_allocated")}
    return measured


def read(folder: Path, path: str) -> dict:
    return json.loads((folder / path).read_text())


if __name__ == "__main__":
    main()
