"""Rows by split and by class, scores by class, and what is confused with what: the tables of the report, as text."""

import math
from typing import Any

import numpy as np
import pandas as pd

from stages.analysis import metrics
from stages.analysis.plot_tables import most_frequent_confusions
from stages.data.confusion import confusion_counts
from stages.data.task import SPLITS, Task
from stages.report.formatting import FORMS, percent

FEW_CLASSES = 10  # classes; more are folded away, summed up, or drawn without words
OF_BASE = 5  # confusions that are shown


def by_split(summary: dict[str, Any], task: Task) -> list[tuple[str, list[str]]]:
    """What each split holds: (name, [value of training, of validation, of test]) a line.

    Args:
        summary: of outs/data_summary.json.
    """
    splits = [summary[split] for split in SPLITS]
    lines = [("rows in the split", [split["rows"] for split in splits])]
    if any(split["chosen"] != split["rows"] for split in splits):
        lines.append(("taken of these", [split["chosen"] for split in splits]))
    lines += [
        ("without a gold label", [split["unlabelled"] for split in splits]),
        ("kept", [split["kept"] for split in splits]),
        ("cut at max_length", [split["truncated"] for split in splits]),
        *((f"with an empty {column}", [split["empty"][column] for split in splits]) for column in task.columns),
        ("also among the training rows", [_also_in(split, "train") for split in splits]),
        ("also among the validation rows", [_also_in(split, "validation") for split in splits]),
        ("tokens, mean", [f"{split['tokens_mean']:.1f}" for split in splits]),
        ("tokens, most", [split["tokens_max"] for split in splits]),
        *_classes(splits),
    ]
    return [(name, [value if isinstance(value, str) else f"{value:,}" for value in values]) for name, values in lines]


def _also_in(split: dict[str, Any], other: str) -> int | str:
    """How many rows stand in another split; a dash where that was not counted, since the other comes later."""
    return split[f"in_{other}"]["rows"] if f"in_{other}" in split else "–"


def _classes(splits: list[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Rows of each class, or of the smallest, the median and the largest of many."""
    counts = [split["classes"] for split in splits]
    if len(counts[0]) <= FEW_CLASSES:
        return [(f"class {name}", [count[name] for count in counts]) for name in counts[0]]
    rows = [np.array(list(count.values())) for count in counts]
    return [
        (f"rows of the smallest of {len(counts[0])} classes", [int(each.min()) for each in rows]),
        ("rows of the median class", [f"{np.median(each):,.10g}" for each in rows]),
        ("rows of the largest class", [int(each.max()) for each in rows]),
        ("classes without rows", [int((each == 0).sum()) for each in rows]),
    ]


def by_class(details: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The scores that each class has, and its rows: (headings, a list of cells for each class).

    Args:
        details: metrics/details.json.
    """
    of_classes = [metric for metric in metrics.METRICS if isinstance(details["base"][metric.key], dict)]
    scores = [(metric, model) for metric in of_classes for model in ("base", "tuned")]
    headings = [f"{metric.title}, {model}" for metric, model in scores] + ["test rows", "training rows"]
    rows = [details["data"][split]["classes"] for split in ("test", "train")]
    lines = []
    for number, name in enumerate(rows[0]):
        cells = [FORMS[metric.form][0](details[model][metric.key].get(name, math.nan)) for metric, model in scores]
        lines.append([str(number), name, *cells, *(f"{split[name]:,}" for split in rows)])
    return ["no.", "class", *headings], lines


def confusions(cases: pd.DataFrame, task: Task, model: str) -> list[tuple[str, str, str, str]]:
    """What a model confuses most often: (gold class, predicted class, rows, share of the gold class's rows) a line.

    Args:
        cases: from `comparison.build_case_table`.
        model: "base" or "tuned".
    """
    found = most_frequent_confusions(confusion_counts(cases["gold"], cases[model], len(task.classes)))
    return [
        (task.classes[line.gold], task.classes[line.predicted], f"{line.rows:,}", percent(line.share))
        for line in found.itertuples()
    ]
