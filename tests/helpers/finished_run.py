"""The inputs of `analyze`, as the stages before it leave them, made from few words: any number of rows in a second."""

import json
import shutil

import numpy as np
import pandas as pd

from helpers.project import COMMITTED
from stages.task.labels import LABELS

WHO = ["man", "woman", "child", "dog", "girl", "boy"]
DOES = ["sleeping", "running", "reading", "eating", "singing", "waiting"]
WHERE = ["street", "park", "kitchen", "station", "beach"]


def texts(rng, rows):
    """Premises and hypotheses of the kind that SNLI has."""

    def sentence(words):
        return f"A {rng.choice(WHO)} is {'not ' if rng.random() < 0.2 else ''}{rng.choice(DOES)}" + (
            f" in the {rng.choice(WHERE)}." if words else "."
        )

    premises = [f"{sentence(True)[:-1]} at number {row}." for row in range(rows)]  # no two are the same
    return premises, [sentence(rng.random() < 0.5) for _ in range(rows)]


def predictions(table, rng, right):
    """A model that is right in a share of the rows; its probabilities sum to 1 and agree with its answers."""
    gold = table["label"].to_numpy()
    answers = np.where(rng.random(len(gold)) < right, gold, (gold + rng.integers(1, 3, len(gold))) % 3)
    shares = rng.dirichlet([1, 1, 1], len(gold))
    best = shares.argmax(axis=1)
    rows = np.arange(len(gold))
    shares[rows, best], shares[rows, answers] = shares[rows, answers], shares[rows, best]
    columns = pd.DataFrame(shares.round(6), columns=[f"p_{name}" for name in LABELS])
    return pd.concat([table, columns.assign(prediction=answers)], axis=1)


def make(
    folder, rows=60, seed=0, base=0.35, tuned=0.85, model="assets/nano-phi", data="assets/everyday-nli", gpu=None,
    premise=None, copies=1, in_train=(0, 0),
):  # fmt: skip
    """Write a finished run into a folder.

    Args:
        base, tuned: share of the rows that each model gets right.
        copies: how often each row stands there, with the same premise and predictions.
        in_train: how many test rows, and the premises of how many, stand in the training rows.
        gpu: name of a GPU, or None for a run on a CPU.
        premise: text of the first row's premise and hypothesis.
    """
    rng = np.random.default_rng(seed)
    shutil.copy(COMMITTED / "embedded/params.yaml", folder)
    premises, hypotheses = texts(rng, rows)
    if premise is not None:
        premises[0] = hypotheses[0] = premise
    test = pd.DataFrame({"row": range(rows), "premise": premises, "hypothesis": hypotheses})
    test["label"] = rng.integers(0, 3, rows)
    train_premises, train_hypotheses = texts(rng, 200)
    train = pd.DataFrame({"premise": train_premises, "hypothesis": train_hypotheses, "label": rng.integers(0, 3, 200)})
    made = [f"{top}/{name}" for top in ("results", "measurements") for name in ("base", "train", "tuned")]
    for name in ("data/tokenized", "models", *made):
        (folder / name).mkdir(parents=True)
    train.to_parquet(folder / "data/tokenized/train.parquet")
    for name, right in (("base", base), ("tuned", tuned)):
        table = predictions(test, rng, right)
        table = table.loc[table.index.repeat(copies)].reset_index(drop=True)
        table.assign(row=range(len(table))).to_parquet(folder / f"results/{name}/predictions.parquet")
    counts = {split: {"kept": n} for split, n in (("train", 200), ("validation", 50), ("test", rows * copies))}
    counts["test"]["in_train"] = dict(zip(("rows", "premises"), in_train, strict=True))
    write(folder / "data/summary.json", counts)
    write(folder / "data/source.json", {"name": data, "revision": "none", "digest": "d" * 64})
    write(folder / "models/base.json", {"name": model, "revision": "none", "digest": "m" * 64, "files": {}})
    memory = {"name": gpu or "cpu", "loaded": 2.0, "before_training": 2.1, "after_training": 4.0, "peak": 4.2}
    for name in ("base", "train", "tuned"):
        found = {"parameters": {"stored": 5, "total": 8, "trainable": 1}}
        write(folder / f"results/{name}/summary.json", found | ({"best_epoch": 2} if name == "train" else {}))
        run = {"seconds": 12.5, "gpu": memory, "versions": {"python": "3.11"}}
        write(folder / f"measurements/{name}/run.json", run | ({"resumed": False} if name == "train" else {}))
        usage = pd.DataFrame({"seconds": np.arange(30.0), "phase": "start", "memory_gb": 2.0, "memory_total_gb": 15.0,
                              "utilization_percent": 50.0, "power_w": None, "allocated_gb": 1.5 if gpu else None,
                              "reserved_gb": None})  # fmt: skip
        usage.to_csv(folder / f"measurements/{name}/usage.csv", index=False)
    steps = pd.DataFrame({"step": range(1, 40), "loss": np.linspace(1.1, 0.4, 39)})
    steps.to_csv(folder / "results/train/steps.csv", index=False)
    epochs = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [1.0, 0.7, 0.5], "validation_loss": [0.9, 0.6, 0.8],
                           "validation_accuracy": [0.5, 0.8, 0.7]})  # fmt: skip
    epochs["validation_f1_weighted"] = [0.4, 0.8, 0.7]
    epochs.to_csv(folder / "results/train/epochs.csv", index=False)
    return folder


def write(path, value):
    path.write_text(json.dumps(value))
