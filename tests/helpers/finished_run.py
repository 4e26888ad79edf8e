"""Synthetic inputs of `analyze`, as the earlier stages write them: any task, any number of rows, in a second."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import yaml

from helpers.project import COMMITTED
from helpers.tables import template_of
from stages.data import dataset
from stages.data.data_summary import DataSummary, Overlap, PaddingShares, summarize_split
from stages.data.task import Task
from stages.runtime import usage_samples

NLI = ("entailment", "neutral", "contradiction")
PAIR = ("premise", "hypothesis")
SUBJECTS = ["man", "woman", "child", "dog", "girl", "boy"]
VERBS = ["sleeping", "running", "reading", "eating", "singing", "waiting"]
PLACES = ["street", "park", "kitchen", "station", "beach"]
MEMORY_PLAN = "weights dequantized at each use, batches in up to 2 parts of 300 tokens"
OTHER_WORDS = 2000  # distinct words of a task that is not NLI: as many as a small data set has


def make_pairs(rng, labels):
    """Premises and hypotheses that resemble SNLI's."""

    def sentence(words):
        return f"A {rng.choice(SUBJECTS)} is {'not ' if rng.random() < 0.2 else ''}{rng.choice(VERBS)}" + (
            f" in the {rng.choice(PLACES)}." if words else "."
        )

    premises = [f"{sentence(True)[:-1]} at number {row}." for row in range(len(labels))]  # all different
    return [premises, [sentence(rng.random() < 0.5) for _ in labels]]


def make_texts(rng, labels, words):
    """Texts of `words` words. Some words reveal the class; the others have frequencies as in natural language."""
    frequent = 1 / np.arange(1, OTHER_WORDS + 1)
    numbers = rng.choice(OTHER_WORDS, (len(labels), words), p=frequent / frequent.sum())
    hint = rng.random(numbers.shape) < 0.1
    return [
        " ".join(f"hint{label}" if reveals else f"word{word}" for word, reveals in zip(line, hints, strict=True))
        for label, line, hints in zip(labels, numbers, hint, strict=True)
    ]


def rows_of(rng, task, rows, shares, words):
    """Rows of a split: texts, `label`, `group`, and as many tokens as words."""
    labels = rng.choice(len(task.classes), rows, p=shares)
    nli = task.classes == NLI and len(task.columns) == 2
    texts = make_pairs(rng, labels) if nli else [make_texts(rng, labels, words) for _ in task.columns]
    table = pd.DataFrame(dict(zip(task.text_columns, texts, strict=True))).assign(label=labels)
    column = task.columns.index(task.group) if task.group in task.columns else None
    table["group"] = (
        table[task.text_columns].agg("\x1f".join, axis=1) if column is None else table[task.text_columns[column]]
    )
    lengths = table[task.text_columns].agg(" ".join, axis=1).str.split().str.len()
    return table.assign(input_ids=[list(range(length)) for length in lengths], truncated=False, full_length=lengths)


def predictions(table, task, rng, right):
    """Predictions of a model that is right in a share of the rows. The probabilities sum to 1 and agree with them."""
    gold, classes = table["label"].to_numpy(), len(task.classes)
    answers = answer(gold, classes, rng, right)
    shares = rng.dirichlet([1] * classes, len(gold))
    best = shares.argmax(axis=1)
    rows = np.arange(len(gold))
    shares[rows, best], shares[rows, answers] = shares[rows, answers], shares[rows, best]
    columns = pd.DataFrame(shares.round(6), columns=task.probability_columns)
    return pd.concat(
        [table.drop(columns=["input_ids", "truncated", "full_length"]), columns.assign(prediction=answers)], axis=1
    )


def answer(gold, classes, rng, right):
    """Class numbers of a model that is right in a share of the rows, or has these shares of answers [gold, answer]."""
    if np.ndim(right) == 2:
        return np.array([rng.choice(classes, p=right[label]) for label in gold])
    wrong = (gold + rng.integers(1, classes, len(gold))) % classes
    return np.where(rng.random(len(gold)) < right, gold, wrong)


def make(
    folder, rows=60, seed=0, untrained=0.35, probe=0.55, zero_shot=0.4, tuned=0.85,
    model="assets/nano-phi", data="assets/everyday-nli", gpu=None,
    text=None, copies=1, in_train=(0, 0), classes=NLI, columns=PAIR, group=None, shares=None, train_rows=200,
    train_shares=None, words=12, cut=0, gpus=1,
):  # fmt: skip
    """Write a finished run into a folder.

    Args:
        untrained, probe, zero_shot, tuned: share of the rows that each model gets right, or
            its shares of answers [gold, answer]; None: left out.
        copies: how often each row is repeated, with the same texts and predictions.
        in_train: numbers of test rows that duplicate a training row, and of others that share a group with one.
        gpu: name of a GPU, or None for a run on a CPU.
        gpus: number of GPUs; on a CPU, of processes.
        text: text of the first test row, the same in each column.
        classes, columns, group: the task. The default group of NLI is the premise.
        shares, train_shares: share of each class in test and training rows; None: equal shares.
        words: number of words of each text, if the task is not NLI.
        cut: number of test rows that were longer than max_length.
    """
    rng = np.random.default_rng(seed)
    group = "premise" if columns == PAIR and group is None else group
    task = Task(tuple(classes), template_of(columns), group)
    splits = {
        "train": rows_of(rng, task, train_rows, train_shares, words),
        "validation": rows_of(rng, task, 50, train_shares, words),
        "test": rows_of(rng, task, rows, shares, words),
    }
    if text is not None:
        splits["test"].loc[0, task.text_columns] = text
    splits["test"] = splits["test"].assign(file="test.csv", file_row=range(2, rows + 2))
    answers = {
        "tuned": predictions(splits["test"], task, rng, tuned),
        "train": predictions(splits["validation"], task, rng, tuned),
    }
    gold = splits["test"]["label"].to_numpy()
    references = {"untrained_head": untrained, "zero_shot": zero_shot, "probe": probe}
    answers["base"] = splits["test"][["label", "group"]].assign(
        **{name: answer(gold, len(classes), rng, right) for name, right in references.items() if right is not None}
    )
    splits["test"] = splits["test"].loc[splits["test"].index.repeat(copies)].reset_index(drop=True)
    splits["test"].loc[: cut - 1, ["truncated", "full_length"]] = True, 312
    for name in ("outs/tokenized", *(f"outs/{top}/{name}" for top in ("results", "measurements")
                                     for name in ("base", "train", "tuned"))):  # fmt: skip
        (folder / name).mkdir(parents=True)
    for split, table in splits.items():
        dataset.number_rows(table).to_parquet(folder / f"outs/tokenized/{split}.parquet")
    validation = dataset.number_rows(answers.pop("train")).drop(columns=task.text_columns)
    validation.to_parquet(folder / "outs/results/train/validation.parquet")
    for name, table in answers.items():
        table = table.loc[table.index.repeat(copies)].reset_index(drop=True)
        dataset.number_rows(table).to_parquet(folder / f"outs/results/{name}/predictions.parquet")
    no_overlap = Overlap(0, 0 if group else None)
    overlaps = {
        "train": {},
        "validation": {"train": no_overlap},
        "test": {"train": Overlap(in_train[0], in_train[1] if group else None), "validation": no_overlap},
    }
    counts = {
        split: replace(summarize_split(table, table, table, task, {}), overlaps=overlaps[split])
        for split, table in splits.items()
    }
    DataSummary(counts, PaddingShares(0.1, 0.2, 0.8), 128).write(folder / "outs/data_summary.json")
    task.write(folder / "outs/task.json")
    write_parameters(folder / "params.yaml", task)
    write_run(folder, model, data, gpu, gpus)
    return folder


def write_parameters(path, task):
    """Write the demo's parameters, adapted to this task."""
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    raw["data"] |= {"classes": list(task.classes), "group": task.group}
    raw["tokenize"]["template"] = "\n".join(f"{column.capitalize()}: {{{column}}}" for column in task.columns)
    path.write_text(yaml.safe_dump(raw, allow_unicode=True))


def write_run(folder, model, data, gpu, gpus):
    """Write the other files of base, training and tuned. The second of three epochs is the best."""
    write(folder / "outs/data_source.json", {"name": data, "revision": None, "digest": "d" * 64})
    write(folder / "outs/base_model.json", {"name": model, "revision": None, "digest": "m" * 64, "files": {}})
    memory = {"name": gpu or "cpu", "loaded": 2.0, "before_training": 2.1, "after_training": 4.0, "peak": 4.2}
    memory |= {"count": gpus, "peak_sum": 4.0 * gpus} if gpus > 1 else {}
    for name in ("base", "train", "tuned"):
        summary = {"parameters": {"stored": 5, "total": 8, "trainable": 1}}
        train = {"best_epoch": 2, "temperature": {"value": 2.0, "low": 1.6, "high": 2.5, "rows": 50}}
        base = {"references": {"probe": {"rows": 200, "C": 0.1}, "zero_shot": {"tokens": {}}}}
        more = {"train": train, "base": base, "tuned": {"adapter": "a" * 64}}[name]
        write(folder / f"outs/results/{name}/summary.json", summary | more)
        run = {"seconds": 12.5, "gpu": memory, "versions": {"python": "3.11"}}
        run |= {"resumed": False, "memory_plan": MEMORY_PLAN if gpu else None} if name == "train" else {}
        write(folder / f"outs/measurements/{name}/run.json", run)
        sample = {"phase": "start", "memory_gb": 2.0, "memory_total_gb": 15.0, "utilization_percent": 50.0,
               "power_w": None, "allocated_gb": 1.5 if gpu else None, "reserved_gb": None}  # fmt: skip
        usage = usage_samples.merge_samples(
            range(gpus), gpus * [[sample | {"seconds": second} for second in np.arange(30.0)]]
        )
        usage.to_csv(folder / f"outs/measurements/{name}/usage.csv", index=False)
    steps = pd.DataFrame({"step": range(1, 40), "loss": np.linspace(1.1, 0.4, 39)})
    steps.to_csv(folder / "outs/results/train/steps.csv", index=False)
    epochs = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [1.0, 0.7, 0.5], "validation_loss": [0.9, 0.6, 0.8],
                           "validation_accuracy": [0.5, 0.8, 0.7]})  # fmt: skip
    epochs["validation_f1_weighted"] = [0.4, 0.8, 0.7]
    epochs.to_csv(folder / "outs/results/train/epochs.csv", index=False)


def write(path, value):
    path.write_text(json.dumps(value))
