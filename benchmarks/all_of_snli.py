"""Measure seconds and peak memory of `download`, `tokenize` and `analyze` with as many rows as SNLI.

    python benchmarks/all_of_snli.py make SNLI FOLDER       # 550,152 training, 10,000 validation, 100,000 test rows
    python benchmarks/all_of_snli.py measure FOLDER         # one line for each stage
    python benchmarks/all_of_snli.py measure FOLDER --source CHECKOUT    # another checkout

SNLI is a folder with train.parquet, validation.parquet and test.parquet in SNLI's columns. It may hold only some of the
rows. FOLDER becomes a workspace with the values of demo/params.yaml, the nano phi and all rows.

If SNLI has fewer rows than needed, the rows are repeated. In each repetition, the end of each text comes from another
row of the split. Most texts are then new, but words, lengths and rows with the same premise stay.

`analyze` needs predictions. They are random: the base is right in 35% of the rows, the tuned model in 85%.

Peak memory is the largest resident size of the stage's process (`ru_maxrss`). The imports take some 370 MB of it.
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

from stages.data.predictions import prediction_table  # noqa: E402
from stages.data.task import Task  # noqa: E402
from stages.runtime.files import read_json, read_table, write_json  # noqa: E402

ROWS = {"train": 550_152, "validation": 10_000, "test": 100_000}
REFERENCES, TUNED = {"untrained_head": 0.35, "zero_shot": 0.4, "probe": 0.55}, 0.85  # accuracies
STAGES = ("download", "tokenize", "analyze")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    make_parser = steps.add_parser("make", help="write the rows and the workspace")
    make_parser.add_argument("snli", type=Path, help="folder with the three files")
    make_parser.add_argument("folder", type=Path, help="the new workspace")
    measure_parser = steps.add_parser("measure", help="run the stages, one after the other")
    measure_parser.add_argument("folder", type=Path, help="the workspace that `make` wrote")
    measure_parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    measure_parser.add_argument("--source", type=Path, default=ROOT, help="the checkout to measure (default: this one)")
    arguments = parser.parse_args()
    if arguments.step == "make":
        make(arguments.snli, arguments.folder)
    else:
        measure(arguments.folder, arguments.stages, arguments.source.resolve())


def make(snli: Path, folder: Path) -> None:
    """Write rows, model and params.yaml."""
    (folder / "snli").mkdir(parents=True)
    for split, rows in ROWS.items():
        table = repeat_rows(pd.read_parquet(snli / f"{split}.parquet"), rows)
        table.to_parquet(folder / "snli" / f"{split}.parquet", index=False)
        duplicates = table.duplicated(["premise", "hypothesis"]).sum()
        print(f"{split}: {rows:,} rows, {duplicates:,} of them duplicates")
    shutil.copytree(ROOT / "demo/assets/nano-phi", folder / "nano-phi")
    parameters = yaml.safe_load((ROOT / "demo/params.yaml").read_text())
    parameters["model"] |= {"folder": "nano-phi"}
    parameters["data"] |= {"folder": "snli", "digest": None}
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False))


def repeat_rows(table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Repeat a split up to `rows` rows. In the repetitions, the ends of the texts are exchanged."""
    copies = range(-(-rows // len(table)))
    texts = ("premise", "hypothesis")
    copied = [table.assign(**{name: exchange_ends(table[name], copy) for name in texts}) for copy in copies]
    return pd.concat(copied, ignore_index=True)[:rows]


def exchange_ends(texts: pd.Series, copy: int) -> np.ndarray:
    """Take the second half of each text's words from another text. Equal texts stay equal, and copy 0 is unchanged."""
    codes, distinct_texts = pd.factorize(texts)
    words = [text.split(" ") for text in distinct_texts]
    ends = [line[len(line) // 2 :] for line in words]
    shift = 101 * copy % len(words)
    ends = ends[shift:] + ends[:shift]
    exchanged = [" ".join([*line[: len(line) // 2], *end]) for line, end in zip(words, ends, strict=True)]
    return np.array(exchanged, dtype=object)[codes]


def measure(folder: Path, stages: list[str], source: Path) -> None:
    """Run stages. Print a table of seconds and peak memory, and the sizes of large outs."""
    print("| stage | seconds | CPU seconds | peak MB |\n| --- | ---: | ---: | ---: |")
    for stage in stages:
        if stage == "analyze":
            write_predictions(folder)
        seconds, processor, peak = run(folder, stage, source)
        print(f"| {stage} | {seconds:.1f} | {processor:.1f} | {peak:,.0f} |", flush=True)
    for path in sorted(path for path in folder.glob("[dm]*/**/*") if path.is_file() and path.stat().st_size > 1e6):
        print(f"{path.relative_to(folder)}: {path.stat().st_size / 1e6:.1f} MB")


def run(folder: Path, stage: str, source: Path) -> tuple[float, float, float]:
    """Run one stage -> (wall seconds, CPU seconds, peak resident size in MB)."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(source)}
    process = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment)
    _, status, usage = os.wait4(process.pid, 0)  # only this process, unlike getrusage
    if status:
        sys.exit(f"stages.{stage} failed")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def write_predictions(folder: Path) -> None:
    """Write random outs of `eval_base`, `train_qlora` and `eval_lora`, for `analyze`."""
    task, rng = Task.read(folder / "outs/task.json"), np.random.default_rng(0)
    test = read_table(folder / "outs/tokenized/test.parquet")
    originals = {path: read_json(path) for path in (folder / "outs/base_model.json", folder / "outs/data_source.json")}
    gold, classes = test["label"].to_numpy(), len(task.classes)
    probabilities = finished_run.predictions(test, task, rng, TUNED)[task.probability_columns].to_numpy()
    tables = {
        "tuned": prediction_table(test[["row", *task.text_columns, "group", "label"]], probabilities, task),
        "base": test[["row", "label", "group"]].assign(
            **{name: finished_run.answer(gold, classes, rng, right) for name, right in REFERENCES.items()}
        ),
    }
    for name, table in tables.items():
        (folder / "outs/results" / name).mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / f"outs/results/{name}/predictions.parquet", index=False)
    for name in ("outs/results/train", *(f"outs/measurements/{name}" for name in ("base", "train", "tuned"))):
        (folder / name).mkdir(parents=True, exist_ok=True)
    finished_run.write_run(folder, "nano-phi", "snli", gpu=None)
    for path, value in originals.items():  # write_run replaced these with invented ones
        write_json(path, value)


if __name__ == "__main__":
    main()
