"""The metrics of one model's predictions, with their intervals.

To add a metric, write a function of `Predictions` and add a `Metric` to `METRICS` at the end of this file.
details.json, the tables of the reports and the model card then have it.
`python -m pytest tests/unit/test_report.py -k a_metric_is_one_entry` adds one as an example.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pandas as pd

from stages.analysis.design_effects import adjusted_design_effect, design_effect
from stages.analysis.f1 import MACRO, WEIGHTED, Average, f1_interval, f1_macro, f1_values
from stages.analysis.intervals import Interval, measure_share
from stages.data.confusion import class_counts, confusion_counts, f1_per_class, f1_weighted
from stages.data.task import Task

BINS = 10  # of the predicted class's probability
MIN_BIN_ROWS = 30  # in a bin of the calibration curve: the interval of its accuracy is 36 points wide at most


@dataclass(frozen=True)
class Predictions:
    """One model's predictions of the test rows, and what several metrics need of them.

    Attributes:
        gold, predicted: class numbers, int [rows].
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
        """Predictions from a model's predictions.parquet."""
        return cls(
            gold=table["label"].to_numpy(),
            predicted=table["prediction"].to_numpy(),
            probabilities=table[task.probability_columns].to_numpy(),
            groups=table["group"].to_numpy(),
            classes=task.classes,
            confidence=confidence,
        )

    @classmethod
    def from_cases(cls, cases: pd.DataFrame, name: str, task: Task, confidence: float) -> Self:
        """Predictions from a column of the case table. They have no probabilities."""
        return cls(
            gold=cases["gold"].to_numpy(),
            predicted=cases[name].to_numpy(),
            probabilities=np.empty((len(cases), 0)),
            groups=cases["group"].to_numpy(),
            classes=task.classes,
            confidence=confidence,
        )

    @property
    def accuracy(self) -> "Estimate":
        return Estimate(float(self.right.mean()), self.accuracy_interval())

    @property
    def f1_weighted(self) -> "Estimate":
        return Estimate(float(f1_weighted(self.counts)), self.f1_interval(WEIGHTED))

    @property
    def f1_macro(self) -> "Estimate":
        return Estimate(float(f1_macro(self.counts)), self.f1_interval(MACRO))

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each prediction is right, bool [rows]."""
        return self.predicted == self.gold

    @cached_property
    def confusion(self) -> np.ndarray:
        """Rows of each gold class (down) and predicted class (across), int [classes, classes]."""
        return confusion_counts(self.gold, self.predicted, len(self.classes))

    @cached_property
    def counts(self) -> np.ndarray:
        """`class_counts` of the confusion matrix, int [3, classes]."""
        return class_counts(self.confusion)

    def accuracy_interval(self) -> Interval:
        return measure_share(self.right, self.groups, self.confidence).interval

    def f1_interval(self, average: Average) -> Interval:
        values = f1_values(self.gold, self.predicted[None], len(self.classes))[average][0]
        divisor = adjusted_design_effect(values, self.groups, self.confidence)
        effect = design_effect(values, self.groups)
        return f1_interval(values.mean(), self.confusion, average, divisor, effect, self.confidence)


@dataclass(frozen=True)
class Metric:
    """A metric of all rows.

    Attributes:
        key: its name in details.json; its interval is `{key}_interval` there.
        title: its name for readers.
        value: the function that computes it.
        interval: the function that computes its interval, if it has one.
        form: how the report writes it, as a percentage or as a number.
        hub: its type and arguments on the Hugging Face hub, if the model card's metadata should have it.
    """

    key: str
    title: str
    value: Callable[[Predictions], float]
    interval: Callable[[Predictions], Interval] | None = None
    form: Literal["percent", "number"] = "percent"
    hub: tuple[str, dict[str, str] | None] | None = None


@dataclass(frozen=True)
class ClassMetric:
    """A metric of each class. report.html and report.md show it as a percentage in the table of all classes.

    Attributes:
        key: its name in details.json.
        title: its name for readers.
        values: the function that computes it, float [classes].
    """

    key: str
    title: str
    values: Callable[[Predictions], np.ndarray]


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
        scores: {key of a `Metric`: score}.
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
    """Compute every metric with its interval."""
    scores, class_scores = {}, {}
    for metric in METRICS:
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


def reliability(right: np.ndarray, probability: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and mean probability in `BINS` bins of equal width; a bin excludes its lower edge (Guo et al. 2017).

    Args:
        right: whether each prediction is right, [rows].
        probability: of the predicted class, [rows].

    Returns:
        {"rows", "probability", "accuracy"}, [BINS] each. The means are NaN for a bin without rows.
    """
    bins = np.clip(np.ceil(np.asarray(probability) * BINS).astype(int) - 1, 0, BINS - 1)
    rows = np.bincount(bins, minlength=BINS)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(bins, weights=values, minlength=BINS)
        return np.divide(sums, rows, out=np.full(BINS, np.nan), where=rows > 0)

    return {"rows": rows, "probability": mean(probability), "accuracy": mean(right)}


def calibration_error(bins: dict[str, np.ndarray]) -> float:
    """Expected calibration error: mean gap between accuracy and probability, weighted by rows (Guo et al. 2017)."""
    gaps = np.abs(bins["accuracy"] - bins["probability"])
    return float(np.nansum(gaps * bins["rows"]) / bins["rows"].sum())


def calibration_curve(
    right: np.ndarray, probability: np.ndarray, groups: np.ndarray, confidence: float
) -> pd.DataFrame:
    """The points of the calibration plot: bins of about equally many rows, at least `MIN_BIN_ROWS` each.

    If most probabilities are near 1, most bins of equal width would hold only a few rows.

    Args:
        right: whether each prediction is right, [rows].
        probability: of the predicted class, [rows]; equal values share a bin.
        groups: rows of the same group are not independent, [rows].
        confidence: of the intervals, such as 0.95.

    Returns:
        data frame with a line for each bin: `probability`, `accuracy` (means), `low`, `high` (of the accuracy), `rows`.
    """
    right, probability, groups = np.asarray(right), np.asarray(probability), np.asarray(groups)
    count = min(BINS, max(1, len(probability) // MIN_BIN_ROWS))
    edges = np.unique(np.quantile(probability, np.arange(1, count) / count, method="inverted_cdf"))
    bins = np.searchsorted(edges, probability)
    table = []
    for number in np.unique(bins):
        inside = bins == number
        accuracy = measure_share(right[inside], groups[inside], confidence)
        table.append((probability[inside].mean(), accuracy.value, *accuracy.interval, accuracy.rows))
    return pd.DataFrame(table, columns=["probability", "accuracy", "low", "high", "rows"])


def brier(gold: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the gold class, summed over classes: 0 to 2 (Brier 1950)."""
    return float(((probabilities - np.eye(probabilities.shape[1])[gold]) ** 2).sum(axis=1).mean())


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
    ClassMetric("f1", "F1", lambda p: f1_per_class(p.counts)),
    Metric(
        "calibration_error",
        "expected calibration error",
        lambda p: calibration_error(reliability(p.right, p.probabilities.max(axis=1))),
    ),
    Metric("brier", "Brier score (0 best, 2 worst)", lambda p: brier(p.gold, p.probabilities), form="number"),
)
