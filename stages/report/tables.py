"""The tables of the report, as text: scores, scores by class, rows by split, confusions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.analysis import metrics
from stages.analysis.calibration import ProbabilityScores
from stages.analysis.case_table import count_confusions
from stages.analysis.coverage import CoverageOfGoal
from stages.analysis.metrics import ClassMetric, Metric, ModelScores
from stages.analysis.results import Results
from stages.data.data_summary import DataSummary, SplitSummary
from stages.data.labels import Labels
from stages.data.task import SPLITS, Task
from stages.report.formatting import (
    number,
    number_interval,
    p_value,
    percent,
    percent_interval,
    points_interval,
    signed_points,
)
from stages.report.label_words import words_of
from stages.report.verdict import ScoreLine

FEW_CLASSES = 10  # with more classes, tables are collapsed or summarised, and a confusion matrix has no numbers
MAX_CONFUSIONS = 10
FORMS = {"percent": (percent, percent_interval), "number": (number, number_interval)}  # `Metric.form`


def score_table(results: Results, labels: Labels) -> list[tuple[str, str, str | None]]:
    """(title, value, interval or None) of each metric of the tuned model."""
    table = []
    for metric in metrics.METRICS:
        if isinstance(metric, Metric) and metric.key in results.tuned.scores:
            write, write_interval = FORMS[metric.form]
            score = results.tuned.scores[metric.key]
            title = words_of(labels).titles.get(metric.key, metric.title)
            table.append((title, write(score.value), write_interval(score.interval) if score.interval else None))
    return table


def calibration_table(
    tuned: ModelScores, without: ProbabilityScores | None, labels: Labels
) -> list[tuple[str, str, str]]:
    """(title, value with the temperature, value without it) of each score of the probabilities."""
    table = []
    for metric in metrics.METRICS:
        if isinstance(metric, Metric) and metric.key in ProbabilityScores.__annotations__:
            write, _ = FORMS[metric.form]
            before = write(getattr(without, metric.key)) if without else "–"
            title = words_of(labels).titles.get(metric.key, metric.title)
            table.append((title, write(tuned.scores[metric.key].value), before))
    return table


def reference_table(lines: Sequence[ScoreLine], confidence: float) -> list[tuple[ScoreLine, str, str, str, str]]:
    """(line, score, its interval, difference with its interval, p) of the tuned model and of each reference."""
    table = []
    for line in lines:
        ends = percent_interval(line.score.interval) if line.score.interval else ""
        if line.difference is None:
            table.append((line, percent(line.score.value), ends, "", ""))
        else:
            gap = f"{signed_points(line.difference.value)} ({points_interval(line.difference.interval)})"
            table.append((line, percent(line.score.value), ends, gap, p_value(line.difference.p, confidence)))
    return table


def coverage_table(coverage: dict[str, CoverageOfGoal]) -> list[tuple[str, str, str, str]]:
    """(goal, threshold from the validation rows, test rows above it, their accuracy) of each goal that has one."""
    return [
        (
            goal,
            number(selection.threshold),
            f"{percent(selection.coverage.value)} ({percent_interval(selection.coverage.interval)})",
            f"{percent(selection.accuracy.value)} ({percent_interval(selection.accuracy.interval)})",
        )
        for goal, selection in ((goal, found.from_validation) for goal, found in coverage.items())
        if selection and selection.accuracy.rows
    ]


def class_table(results: Results, labels: Labels) -> tuple[list[str], list[list[str]]]:
    """The scores and rows of each class: (headings, a list of cells for each class)."""
    columns = [
        (metric.title, results.tuned.class_scores[metric.key])
        for metric in metrics.METRICS
        if isinstance(metric, ClassMetric) and metric.key in results.tuned.class_scores
    ]
    rows = [results.data.splits[split].classes for split in ("test", "train")]
    lines = []
    for class_number, name in enumerate(rows[0]):
        cells = [percent(scores.get(name, math.nan)) for _, scores in columns]
        lines.append([str(class_number), name, *cells, *(f"{classes[name]:,}" for classes in rows)])
    return ["no.", labels.noun, *(title for title, _ in columns), "test rows", "training rows"], lines


def split_table(data: DataSummary, task: Task) -> list[tuple[str, list[str]]]:
    """(name, [count of training, of validation, of test]) of each count."""
    splits = [data.splits[split] for split in SPLITS]
    lines: list[tuple[str, list[Any]]] = [("rows in the split", [split.rows for split in splits])]
    if any(split.chosen != split.rows for split in splits):
        lines.append(("chosen", [split.chosen for split in splits]))
    lines += [
        ("without a gold label", [split.unlabelled for split in splits]),
        ("kept", [split.kept for split in splits]),
        ("truncated", [split.truncated for split in splits]),
        *((f"with an empty {column}", [split.empty[column] for split in splits]) for column in task.columns),
        ("same texts as another row, other label", [split.contradicting for split in splits]),
        ("duplicates of training rows", [_count_duplicates(split, "train") for split in splits]),
        ("duplicates of validation rows", [_count_duplicates(split, "validation") for split in splits]),
        ("tokens, mean", [f"{split.tokens_mean:.1f}" for split in splits]),
        ("tokens, maximum", [split.tokens_max for split in splits]),
        *_class_lines(splits, task.labels),
    ]
    return [(name, [value if isinstance(value, str) else f"{value:,}" for value in values]) for name, values in lines]


def _count_duplicates(split: SplitSummary, earlier: str) -> int | str:
    """Rows that are also in an earlier split; a dash if that split is not earlier."""
    return split.overlaps[earlier].rows if earlier in split.overlaps else "–"


def _class_lines(splits: list[SplitSummary], labels: Labels) -> list[tuple[str, list[Any]]]:
    """Rows of each class. With many classes: of the smallest, the median and the largest."""
    names = splits[0].classes
    if len(names) <= FEW_CLASSES:
        return [(f"{labels.noun} {name}", [split.classes[name] for split in splits]) for name in names]
    rows = [np.array(list(split.classes.values())) for split in splits]
    return [
        (f"rows of the smallest of {len(names)} {labels.nouns}", [int(counts.min()) for counts in rows]),
        (f"rows of the median {labels.noun}", [f"{np.median(counts):,.10g}" for counts in rows]),
        (f"rows of the largest {labels.noun}", [int(counts.max()) for counts in rows]),
        (f"{labels.nouns} without rows", [int((counts == 0).sum()) for counts in rows]),
    ]


def confusion_table(cases: pd.DataFrame, task: Task) -> list[tuple[str, str, str, str]]:
    """(gold class, predicted class, rows, share of the gold class's rows) of the most frequent confusions.

    Args:
        cases: from `build_case_table`.
    """
    confusions = most_frequent_confusions(count_confusions(cases, task), task.labels.count(cases["gold"]))
    return [
        (task.classes[line.gold], task.classes[line.predicted], f"{line.rows:,}", percent(line.share))
        for line in confusions.itertuples()
    ]


def most_frequent_confusions(confusion: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """The `MAX_CONFUSIONS` pairs of different classes with the most rows.

    Args:
        confusion: from `confusion_counts`, [classes, classes].
        rows: with each gold class, int [classes].

    Returns:
        data frame: `gold`, `predicted` (class numbers), `rows`, `share` of the gold class's rows.
    """
    gold, predicted = np.nonzero(confusion)
    pairs = pd.DataFrame({"gold": gold, "predicted": predicted, "rows": confusion[gold, predicted]})
    pairs["share"] = pairs["rows"] / rows[gold]
    wrong = pairs[pairs["gold"] != pairs["predicted"]]
    return wrong.sort_values(["rows", "share"], ascending=False, kind="stable")[:MAX_CONFUSIONS]
