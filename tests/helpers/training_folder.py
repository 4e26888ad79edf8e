"""Prepare a folder where `train_qlora` runs on a few rows, and read the adapter from it."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from helpers.parameters import manifest_of, set_key
from helpers.project import COMMITTED, NANO
from helpers.tables import CLASSES
from stages import train_qlora
from stages.data.task import Task
from stages.training import checkpoints

SCRIPT = train_qlora.__file__
_hash_code = checkpoints.hash_code
_code_of_training = functools.cache(lambda: _hash_code(SCRIPT))  # no test edits it: they edit copies in other processes
checkpoints.hash_code = lambda script: _code_of_training() if script == SCRIPT else _hash_code(script)

ROWS = {"train": 32, "validation": 12, "test": 40}
QUICK = {"train.epochs": 3, "train.batch_size": 8, "train.learning_rate": 0.01}


def prepare(folder: Path, train_rows: int = ROWS["train"], model: Path = NANO, **changes: object) -> Path:
    """Prepare a folder for `train_qlora` and `eval_base`: parameters, manifest, a few tokenized rows."""
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in {**QUICK, "model.folder": str(model), **changes}.items():
        set_key(raw, key, value)
    (folder / "outs/tokenized").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    (folder / "outs/base_model.json").write_text(json.dumps(manifest_of(model)))
    Task(CLASSES, str(changes.get("tokenize.template", "{text}")), None).write(folder / "outs/task.json")
    rng = np.random.default_rng(0)
    for split, count in (ROWS | {"train": train_rows}).items():
        ids = [rng.integers(10, 200, size=rng.integers(5, 40)).tolist() for _ in range(count)]
        rows = pd.DataFrame({"row": range(count), "label": np.arange(count) % 3, "input_ids": ids})
        rows = rows.assign(text_text="a text", group=rows["row"], file="rows.csv", file_row=rows["row"] + 2)
        rows.to_parquet(folder / f"outs/tokenized/{split}.parquet", index=False)
    return folder


def use_several_labels(folder: Path) -> None:
    """Give the rows of a prepared folder any of the classes: the one that they had, the last one, both, or none."""
    task = Task.read(folder / "outs/task.json")
    replace(task, multi_label=True).write(folder / "outs/task.json")
    for split in ROWS:
        path = folder / f"outs/tokenized/{split}.parquet"
        rows = pd.read_parquet(path)
        sets = [sorted({label} | ({2} if row % 5 == 0 else set())) for row, label in enumerate(rows["label"])]
        rows["label"] = [labels if row % 7 else [] for row, labels in enumerate(sets)]
        rows.to_parquet(path, index=False)


def adapter_bytes(folder: Path) -> dict[str, bytes]:
    """{file of the adapter: its bytes}."""
    return {path.name: path.read_bytes() for path in (folder / "outs/adapter").iterdir()}
