"""Seconds and peak memory of the stages that read all rows, outside of training, at the size of all of SNLI.

    python benchmarks/all_of_snli.py make SNLI FOLDER       # 550,152 training, 10,000 validation, 100,000 test rows
    python benchmarks/all_of_snli.py measure FOLDER         # download, tokenize, analyze; a line each
    python benchmarks/all_of_snli.py measure FOLDER --source CHECKOUT    # the same of another checkout's code

SNLI is a folder with train.parquet, validation.parquet and test.parquet in SNLI's columns; it may hold a part of the
rows. FOLDER becomes a workspace of its own: demo/params.yaml, the nano Phi as a model, all rows. Where SNLI has
fewer rows than are wanted they are repeated, each time with the end of each text taken from another row of the split,
so that words, lengths, and rows that share a premise stay as they are and texts are mostly new.

`analyze` wants predictions. They are drawn, not made by a model: the base is right in 35% of the rows, the tuned in 85.

Peak memory is the largest resident size of the stage's process (`ru_maxrss`), of which the imports are some 370 MB.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import finished_run  # noqa: E402

from stages.data.task import Task  # noqa: E402
from stages.evaluation import prediction_table  # noqa: E402
from stages.runtime.files import read_json, read_table, write_json  # noqa: E402

ROWS = {"train": 550_152, "validation": 10_000, "test": 100_000}
RIGHT = {"base": 0.35, "tuned": 0.85}
STAGES = ("download", "tokenize", "analyze")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    made = steps.add_parser("make", help="write the rows and the workspace")
    made.add_argument("snli", type=Path, help="folder of the three files")
    made.add_argument("folder", type=Path, help="the workspace, new")
    measured = steps.add_parser("measure", help="run the stages, one after the other")
    measured.add_argument("folder", type=Path, help="the workspace that `make` wrote")
    measured.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    measured.add_argument("--source", type=Path, default=ROOT, help="the checkout that is measured (this one)")
    arguments = parser.parse_args()
    if arguments.step == "make":
        make(arguments.snli, arguments.folder)
    else:
        measure(arguments.folder, arguments.stages, arguments.source.resolve())


def make(snli: Path, folder: Path) -> None:
    """Write rows, model and params.yaml."""
    (folder / "snli").mkdir(parents=True)
    for split, rows in ROWS.items():
        table = repeated(pd.read_parquet(snli / f"{split}.parquet"), rows)
        table.to_parquet(folder / "snli" / f"{split}.parquet", index=False)
        again = table.duplicated(["premise", "hypothesis"]).sum()
        print(f"{split}: {rows:,} rows, {again:,} of them word for word as one before")
    shutil.copytree(ROOT / "demo/assets/nano-phi", folder / "nano-phi")
    parameters = yaml.safe_load((ROOT / "demo/params.yaml").read_text())
    parameters["model"] |= {"name": "nano-phi"}
    parameters["data"] |= {"name": "snli", "revision": "none"}
    parameters["watch"] = {"model": "nano-phi", "data": "snli"}
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False))


def repeated(table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """So many rows of a split, as they are for as long as they last, then with other ends."""
    copies = range(-(-rows // len(table)))
    texts = ("premise", "hypothesis")
    copied = [table.assign(**{name: with_other_ends(table[name], copy) for name in texts}) for copy in copies]
    return pd.concat(copied, ignore_index=True)[:rows]


def with_other_ends(texts: pd.Series, copy: int) -> np.ndarray:
    """Each text with the second half of its words from another one; equal texts stay equal. Copy 0: as they are."""
    code, different = pd.factorize(texts)
    words = [text.split(" ") for text in different]
    ends = [line[len(line) // 2 :] for line in words]
    shift = 101 * copy % len(words)
    ends = ends[shift:] + ends[:shift]
    made = [" ".join([*line[: len(line) // 2], *end]) for line, end in zip(words, ends, strict=True)]
    return np.array(made, dtype=object)[code]


def measure(folder: Path, stages: list[str], source: Path) -> None:
    """Run stages, and print a table of their seconds and peak memory, and the size of what they wrote."""
    print("| stage | seconds | processor seconds | peak MB |\n| --- | ---: | ---: | ---: |")
    for stage in stages:
        if stage == "analyze":
            predict(folder)
        seconds, processor, peak = run(folder, stage, source)
        print(f"| {stage} | {seconds:.1f} | {processor:.1f} | {peak:,.0f} |", flush=True)
    for path in sorted(path for path in folder.glob("[dm]*/**/*") if path.is_file() and path.stat().st_size > 1e6):
        print(f"{path.relative_to(folder)}: {path.stat().st_size / 1e6:.1f} MB")


def run(folder: Path, stage: str, source: Path) -> tuple[float, float, float]:
    """(wall seconds, processor seconds, peak of the resident size in MB) of one stage's process."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(source)}
    process = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment)
    _, status, usage = os.wait4(process.pid, 0)  # of this process alone, unlike getrusage
    if status:
        sys.exit(f"stages.{stage} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def predict(folder: Path) -> None:
    """Write what `eval_base`, `train_qlora` and `eval_lora` leave for `analyze`."""
    task, rng = Task.read(folder / "outs/task.json"), np.random.default_rng(0)
    test = read_table(folder / "outs/tokenized/test.parquet")
    kept = {path: read_json(path) for path in (folder / "outs/base_model.json", folder / "outs/data_source.json")}
    for name, right in RIGHT.items():
        drawn = finished_run.predictions(test, task, rng, right)
        (folder / "outs/results" / name).mkdir(parents=True, exist_ok=True)
        rows = test[["row", *task.text_columns, "group", "label"]]
        table = prediction_table(rows, drawn[task.probability_columns].to_numpy(), task)
        table.to_parquet(folder / f"outs/results/{name}/predictions.parquet", index=False)
    for name in ("outs/results/train", *(f"outs/measurements/{name}" for name in ("base", "train", "tuned"))):
        (folder / name).mkdir(parents=True, exist_ok=True)
    finished_run.write_run(folder, "nano-phi", "snli", gpu=None)
    for path, value in kept.items():  # which that wrote too, made up
        write_json(path, value)


if __name__ == "__main__":
    main()
