"""The metrics of one model's predictions, with their intervals.

To add a metric, write a function of `Predictions` and add a `Metric` to `METRICS` at the end of this file.
details.json, the tables of the reports and the model card then have it.
`python -m pytest tests/unit/test_report.py -k a_metric_is_one_entry` adds one as an example.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, Self

import numpy as np
import pandas as pd

from stages.analysis import measures, two_classes
from stages.analysis.average_precision import average_precision_interval, average_precisions, mean_average_precision
from stages.analysis.calibration import (
    expected_calibration_error,
    losses,
    squared_distances,
)
from stages.analysis.design_effects import design_effect
from stages.analysis.intervals import Interval, mean_interval, measure_share
from stages.analysis.label_f1 import MACRO, MICRO, WEIGHTED, Average
from stages.data.confusion import count_classes, f1_macro, f1_micro, f1_per_class, f1_weighted
from stages.data.labels import Labels, equal_rows, make_labels
from stages.data.task import Task

TOP = (3, 5)  # accuracies of the 3 and 5 most probable classes, if there are more than 5


@dataclass(frozen=True)
class Predictions:
    """One model's predictions of the test rows, and what several metrics need of them.

    Attributes:
        gold, predicted: label arrays (see `stages.data.labels`).
        probabilities: float [rows, classes].
        groups: rows of the same group are not independent, [rows].
        classes: names, in the order of their numbers.
        confidence: of every interval, such as 0.95.
    """

    gold: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]
    confidence: float

    @classmethod
    def from_table(cls, table: pd.DataFrame, task: Task, confidence: float) -> Self:
        """Predictions from a model's predictions.parquet, with labels as codes."""
        return cls(
            gold=task.labels.from_codes(table["label"]),
            predicted=task.labels.from_codes(table["prediction"]),
            probabilities=table[task.probability_columns].to_numpy(),
            groups=table["group"].to_numpy(),
            classes=task.classes,
            confidence=confidence,
        )

    @classmethod
    def from_cases(cls, cases: pd.DataFrame, name: str, task: Task, confidence: float) -> Self:
        """Predictions from a column of the case table. They have no probabilities."""
        return cls(
            gold=task.labels.from_codes(cases["gold"]),
            predicted=task.labels.from_codes(cases[name]),
            probabilities=np.empty((len(cases), 0)),
            groups=cases["group"].to_numpy(),
            classes=task.classes,
            confidence=confidence,
        )

    @property
    def labels(self) -> Labels:
        """The classes, and how many of them a row may have."""
        return make_labels(self.classes, measures.has_several_labels(self.gold))

    @property
    def accuracy(self) -> "Estimate":
        return Estimate(float(self.right.mean()), self.accuracy_interval())

    @property
    def f1_weighted(self) -> "Estimate":
        return Estimate(float(f1_weighted(self.counts)), self.f1_interval(WEIGHTED))

    @property
    def f1_macro(self) -> "Estimate":
        return Estimate(float(f1_macro(self.counts)), self.f1_interval(MACRO))

    @property
    def f1_micro(self) -> "Estimate":
        return Estimate(float(f1_micro(self.counts)), self.f1_interval(MICRO))

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each prediction is right, bool [rows]; of several labels, whether all are."""
        return equal_rows(self.predicted, self.gold)

    @cached_property
    def answer_probability(self) -> np.ndarray:
        """Probability that each prediction is right, [rows]."""
        return self.labels.answer_probability(self.probabilities, self.predicted)

    @cached_property
    def counts(self) -> np.ndarray:
        """From `count_classes`, int [3, classes]."""
        return count_classes(self.gold, self.predicted, len(self.classes))

    def in_top(self, k: int) -> np.ndarray:
        """Whether the gold class is among the `k` most probable ones, bool [rows]; of equal ones, the first count."""
        gold = self.probabilities[np.arange(len(self.gold)), self.gold][:, None]
        earlier = np.arange(len(self.classes)) < self.gold[:, None]
        before = (self.probabilities > gold) | ((self.probabilities == gold) & earlier)
        return before.sum(axis=1) < k

    def accuracy_interval(self) -> Interval:
        return measure_share(self.right, self.groups, self.confidence).interval

    def f1_interval(self, average: Average) -> Interval:
        return measures.f1_interval(self.gold, self.predicted, average, self.groups, len(self.classes), self.confidence)


@dataclass(frozen=True)
class Metric:
    """A metric of all rows.

    Attributes:
        key: its name in details.json; its interval is `{key}_interval` there.
        title: its name for readers.
        value: the function that computes it.
        interval: the function that computes its interval, if it has one; None if these rows allow none.
        form: how the report writes it, as a percentage or as a number.
        hub: its type and arguments on the Hugging Face hub, if the model card's metadata should have it.
        applies: whether the task has this metric; if not, its results are without it.
    """

    key: str
    title: str
    value: Callable[[Predictions], float]
    interval: Callable[[Predictions], Interval | None] | None = None
    form: Literal["percent", "number"] = "percent"
    hub: tuple[str, dict[str, str] | None] | None = None
    applies: Callable[[Predictions], bool] = lambda predictions: True


@dataclass(frozen=True)
class ClassMetric:
    """A metric of each class. report.html and report.md show it as a percentage in the table of all classes.

    Attributes:
        key: its name in details.json.
        title: its name for readers.
        values: the function that computes it, float [classes].
        applies: as of a `Metric`.
    """

    key: str
    title: str
    values: Callable[[Predictions], np.ndarray]
    applies: Callable[[Predictions], bool] = lambda predictions: True


@dataclass(frozen=True)
class Score:
    """A metric's value and its interval, if it has one."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Estimate(Score):
    """A score that always has an interval."""

    interval: Interval


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model on the test rows.

    Attributes:
        groups: number of groups of rows that are not independent.
        design_effect: of the accuracy.
        scores: {key of a `Metric` that applies: score}.
        class_scores: {key of a `ClassMetric`: {class: value}}.
    """

    rows: int
    groups: int
    design_effect: float
    scores: dict[str, Score]
    class_scores: dict[str, dict[str, float]]

    @property
    def accuracy(self) -> Score:
        return self.scores["accuracy"]

    @property
    def f1_weighted(self) -> Score:
        return self.scores["f1_weighted"]

    @property
    def f1_macro(self) -> Score:
        return self.scores["f1_macro"]


def score_model(predictions: Predictions) -> ModelScores:
    """Compute every metric that applies, with its interval."""
    scores, class_scores = {}, {}
    for metric in METRICS:
        if not metric.applies(predictions):
            continue
        if isinstance(metric, ClassMetric):
            values = map(float, metric.values(predictions))
            class_scores[metric.key] = dict(zip(predictions.classes, values, strict=True))
        else:
            interval = metric.interval(predictions) if metric.interval else None
            scores[metric.key] = Score(float(metric.value(predictions)), interval)
    return ModelScores(
        rows=len(predictions.gold),
        groups=len(np.unique(predictions.groups)),
        design_effect=design_effect(predictions.right, predictions.groups),
        scores=scores,
        class_scores=class_scores,
    )


def divide_counts(part: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Shares of `rows`, int [classes]; NaN for a class without rows."""
    return np.divide(part, rows, out=np.full(len(rows), np.nan), where=rows > 0)


def has_several_labels(p: Predictions) -> bool:
    return p.labels.multi_label


def has_two_classes(p: Predictions) -> bool:
    return len(p.classes) == 2 and not has_several_labels(p)


METRICS: tuple[Metric | ClassMetric, ...] = (
    Metric("accuracy", "accuracy", lambda p: p.right.mean(), Predictions.accuracy_interval, hub=("accuracy", None)),
    Metric(
        "f1_weighted",
        "weighted F1",
        lambda p: float(f1_weighted(p.counts)),
        lambda p: p.f1_interval(WEIGHTED),
        hub=("f1", {"average": "weighted"}),
    ),
    Metric(
        "f1_macro",
        "macro F1",
        lambda p: float(f1_macro(p.counts)),
        lambda p: p.f1_interval(MACRO),
        hub=("f1", {"average": "macro"}),
    ),
    Metric(
        "f1_micro",
        "micro F1",
        lambda p: float(f1_micro(p.counts)),
        lambda p: p.f1_interval(MICRO),
        hub=("f1", {"average": "micro"}),
        applies=has_several_labels,
    ),
    Metric(
        "mean_average_precision",
        "mean average precision",
        lambda p: mean_average_precision(p.gold, p.probabilities),
        lambda p: average_precision_interval(p.gold, p.probabilities, p.groups, p.confidence),
        applies=has_several_labels,
    ),
    ClassMetric("precision", "precision", lambda p: divide_counts(p.counts[0], p.counts[2])),
    ClassMetric("recall", "recall", lambda p: divide_counts(p.counts[0], p.counts[1])),
    ClassMetric("f1", "F1", lambda p: f1_per_class(p.counts)),
    ClassMetric(
        "average_precision",
        "average precision",
        lambda p: average_precisions(p.gold, p.probabilities),
        applies=has_several_labels,
    ),
    *(
        Metric(
            f"top_{k}_accuracy",
            f"top-{k} accuracy",
            partial(lambda k, p: float(p.in_top(k).mean()), k),
            partial(lambda k, p: measure_share(p.in_top(k), p.groups, p.confidence).interval, k),
            applies=lambda p: len(p.classes) > max(TOP) and not has_several_labels(p),
        )
        for k in TOP
    ),
    Metric(
        "roc_auc",
        "ROC AUC",
        lambda p: two_classes.roc_auc(p.gold, p.probabilities[:, 1]),
        lambda p: two_classes.roc_auc_interval(p.gold, p.probabilities[:, 1], p.groups, p.confidence),
        form="number",
        applies=has_two_classes,
    ),
    Metric(
        "average_precision",
        "average precision of the second class",
        lambda p: two_classes.average_precision(p.gold, p.probabilities[:, 1]),
        form="number",
        applies=has_two_classes,
    ),
    Metric(
        "loss",
        "loss (cross-entropy)",
        lambda p: losses(p.gold, p.probabilities).mean(),
        lambda p: mean_interval(losses(p.gold, p.probabilities), p.groups, p.confidence),
        form="number",
    ),
    Metric(
        "calibration_error",
        "expected calibration error",
        lambda p: expected_calibration_error(p.gold, p.predicted, p.probabilities, p.labels),
    ),
    Metric(
        "brier",
        "Brier score (0 best, 2 worst)",
        lambda p: squared_distances(p.gold, p.probabilities).mean(),
        lambda p: mean_interval(squared_distances(p.gold, p.probabilities), p.groups, p.confidence),
        form="number",
    ),
)
