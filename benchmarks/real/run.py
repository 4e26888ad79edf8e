"""Train and test every setting of settings.py on a pretrained model and SNLI, several seeds each.

    python benchmarks/real/run.py MODEL DATA OUT                 all, on every GPU that is there
    python benchmarks/real/run.py MODEL DATA OUT ours eager      these alone
    python benchmarks/real/tables.py OUT                          the tables

MODEL and DATA are folders as `model.name` and `data.name` take them. Each run is the pipeline's own stages with root's
params.yaml and the changes of its setting; all labelled test rows are predicted. What has run is not run again, so that
the same command goes on after a kill.

The first seed of each setting has its GPU to itself, and its seconds and memory are those of the tables. The other
seeds run several at a time on each GPU: their seconds would mean nothing, and are not kept.
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
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:  # imported inside the functions: a process chooses its GPU before PyTorch is loaded
    import pandas as pd

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE)]
from settings import SETTINGS  # noqa: E402 - the line above finds it, in each process

SEEDS = (42, 1, 2, 3, 4)
WARM_UP = {"data.train_rows": 64, "data.test_rows": 64, "train.epochs": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*", help=", ".join(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--side-by-side", type=int, default=4, help="runs at a time on a GPU (%(default)s)")
    parser.add_argument("--untimed", action="store_true", help="no run has its GPU to itself")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of params.yaml, for all runs")
    arguments = parser.parse_args()
    if unknown := set(arguments.settings) - set(SETTINGS):
        parser.error(f"{', '.join(sorted(unknown))}: allowed: {', '.join(SETTINGS)}")
    model, data, out = (str(path.resolve()) for path in (arguments.model, arguments.data, arguments.out))
    everywhere = {
        "model.name": model, "model.revision": "none", "watch.model": model,
        "data.name": data, "data.revision": "none", "watch.data": data, "data.test_rows": None,
    }  # fmt: skip
    everywhere |= {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in arguments.set)}
    runs = [
        (name, seed)
        for name in arguments.settings or SETTINGS
        for seed in arguments.seeds[: SETTINGS[name].seeds]
    ]  # fmt: skip
    timed = [] if arguments.untimed else [(name, seed) for name, seed in runs if seed == arguments.seeds[0]]
    failed = run_all(timed, Path(out), everywhere, at_once=1, timed=True)
    failed += run_all(runs, Path(out), everywhere, at_once=arguments.side_by_side, timed=False)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def run_all(runs: Sequence[tuple[str, int]], out: Path, everywhere: dict, at_once: int, timed: bool) -> list[str]:
    """Run what has not run yet, `at_once` runs at a time on each GPU; returns the lines of those that failed."""
    left = [pair for pair in runs if not record(out, *pair).exists()]
    if not left:
        return []
    # What waits for the host goes first, so that it runs beside what waits for the GPU.
    left.sort(key=lambda pair: waits_for_host(pair[0]), reverse=True)
    spawn, devices = multiprocessing.get_context("spawn"), gpus()
    workers = min(len(left), at_once * len(devices))
    places = spawn.Queue()
    for place in (devices * at_once)[:workers]:
        places.put(place)
    failed = []
    with ProcessPoolExecutor(workers, spawn, start, (places, workers, out, everywhere)) as pool:
        futures = {pool.submit(train_and_test, out, everywhere, name, seed, timed): (name, seed) for name, seed in left}
        for future in as_completed(futures):
            try:
                print(future.result(), flush=True)
            except Exception as error:  # the other runs go on
                name, seed = futures[future]
                failed.append(f"{name} {seed}: {traceback.format_exception_only(error)[-1].strip()}")
    return failed


def waits_for_host(name: str) -> bool:
    changes = SETTINGS[name].changes
    return changes.get("train.cuda_graphs") is False or changes.get("eval.batch_size") == 1


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; one empty name where there is none."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")) or [""]


def start(places: multiprocessing.Queue, workers: int, out: Path, everywhere: dict) -> None:
    """Give this process its GPU and its share of the cores; let it compile its kernels before a run is timed."""
    os.environ["CUDA_VISIBLE_DEVICES"] = places.get()
    # More threads than cores would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    with contextlib.redirect_stdout(None):
        run_stages(out / "warm-up" / str(os.getpid()), everywhere | WARM_UP, base=True)


def train_and_test(out: Path, everywhere: dict, name: str, seed: int, timed: bool) -> str:
    """One training and its test, kept in OUT/runs; returns a line that says how it went."""
    folder = out / "work" / f"{name} {seed}"
    base = name == "ours"
    with contextlib.redirect_stdout(None):
        run_stages(folder, everywhere | SETTINGS[name].changes | {"seed": seed}, base)
    kept = {"setting": name, "seed": seed, "changes": SETTINGS[name].changes, **scores(folder)}
    path = record(out, name, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    for model in ("base", "tuned") if base else ("tuned",):
        answers(folder, model).to_parquet(path.with_name(f"{name} {seed} {model}.parquet"))
    if timed:
        (out / "times").mkdir(exist_ok=True)
        (out / "times" / f"{name}.json").write_text(json.dumps(times(folder), indent=1) + "\n")
    path.write_text(json.dumps(kept, indent=1) + "\n")  # last: it says that this run is whole
    return f"{name} {seed}: {kept['accuracy']:.1%}"


def record(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{name} {seed}.json"


def run_stages(folder: Path, changes: dict, base: bool) -> None:
    """The stages from `download` to `eval_lora` in a folder of their own; the base is tested where asked for."""
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
        gc.collect()  # a captured step's graphs hold memory, and refer to themselves
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        stage.main()


def answers(folder: Path, model: str) -> "pd.DataFrame":
    """A model's answer to each test row, without the texts: row, label, group, prediction."""
    import pandas as pd

    table = pd.read_parquet(folder / f"outs/results/{model}/predictions.parquet")
    return table[["row", "label", "group", "prediction"]].astype("int32")


def scores(folder: Path) -> dict:
    """What a run found."""
    import numpy as np
    import pandas as pd

    table = pd.read_parquet(folder / "outs/results/tuned/predictions.parquet")
    shares = table[[column for column in table if column.startswith("p_")]].to_numpy()
    gold = np.take_along_axis(shares, table["label"].to_numpy()[:, None], axis=1)
    return {
        "accuracy": float((table["prediction"] == table["label"]).mean()),
        "loss": float(-np.log(gold.clip(1e-6)).mean()),  # probabilities are rounded to 1e-6
        "rows": {"train": read(folder, "outs/data_summary.json")["train"]["kept"], "test": len(table)},
        "best_epoch": read(folder, "outs/results/train/summary.json")["best_epoch"],
        "epochs": pd.read_csv(folder / "outs/results/train/epochs.csv").round(4).to_dict("records"),
        "versions": read(folder, "outs/measurements/train/run.json")["versions"],
    }


def times(folder: Path) -> dict:
    """What a run that had its GPU to itself measured: seconds and peak GB of training and of testing."""
    found = {}
    for stage in ("train", "tuned"):
        run = read(folder, f"outs/measurements/{stage}/run.json")
        found[stage] = {"seconds": run["seconds"], "peak_gb": run["gpu"].get("peak_allocated")}
    return found


def read(folder: Path, path: str) -> dict:
    return json.loads((folder / path).read_text())


if __name__ == "__main__":
    main()
