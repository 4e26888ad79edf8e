"""What one model's predictions are measured by. A new metric is a function and one entry in `METRICS`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from stages.analysis.design_effects import adjusted_design_effect, design_effect, effective_counts
from stages.analysis.f1 import MACRO, WEIGHTED, Average, f1_interval, f1_macro, f1_values
from stages.analysis.intervals import wilson
from stages.data.confusion import class_counts, confusion_counts, f1_per_class, f1_weighted
from stages.data.task import Task

BINS = 10  # of confidence
BIN_ROWS = 30  # of a bin in a picture: the interval of its accuracy is 36 points wide at most


@dataclass(frozen=True)
class Predictions:
    """One model's predictions of the test rows, and what several metrics need of them.

    Attributes:
        gold, predicted: numbers of classes, int [rows].
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

    def f1_interval(self, average: Average) -> tuple[float, float]:
        """Interval of weighted or macro F1."""
        values = f1_values(self.gold, self.predicted[None], len(self.classes))[average][0]
        by = adjusted_design_effect(values, self.groups, self.confidence)
        effect = design_effect(values, self.groups)
        return f1_interval(values.mean(), self.confusion, average, by, effect, self.confidence)


@dataclass(frozen=True)
class Metric:
    """One metric, declared once: details.json, the tables of the reports and the model card are made of these.

    Attributes:
        key: its name in details.json, and with `_interval` that of its interval.
        title: its name for readers.
        value: one number; or {class: number}, shown in report.html alone.
        interval: (low, high), if it has one.
        form: how the report writes it: a share as a percentage, or a number as it is.
        hub: its type on the Hugging Face hub and the arguments there, if the card's metadata are to have it.
    """

    key: str
    title: str
    value: Callable[[Predictions], float | dict[str, float]]
    interval: Callable[[Predictions], tuple[float, float]] | None = None
    form: Literal["percent", "number"] = "percent"
    hub: tuple[str, dict[str, str] | None] | None = None


def reliability(right: np.ndarray, confidence: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy beside confidence in `BINS` bins of equal width, open below (Guo et al. 2017).

    Args:
        right: whether each prediction is right, [rows].
        confidence: the probability of the predicted class, [rows].

    Returns:
        dict of arrays [BINS]: `rows`, `confidence` and `accuracy` (means, NaN where there are no rows).
    """
    bins = np.clip(np.ceil(np.asarray(confidence) * BINS).astype(int) - 1, 0, BINS - 1)
    rows = np.bincount(bins, minlength=BINS)

    def mean(values):
        sums = np.bincount(bins, weights=values, minlength=BINS)
        return np.divide(sums, rows, out=np.full(BINS, np.nan), where=rows > 0)

    return {"rows": rows, "confidence": mean(confidence), "accuracy": mean(right)}


def calibration_curve(right: np.ndarray, sure: np.ndarray, groups: np.ndarray, confidence: float) -> pd.DataFrame:
    """Accuracy beside confidence for a picture: bins of about equally many rows, each of `BIN_ROWS` or more.

    Of bins of equal width most would hold a few rows, where a model is sure of nearly all.

    Args:
        right: whether each prediction is right, [rows].
        sure: the probability of the predicted class, [rows]; equal ones share a bin.
        groups: rows of the same group are not independent, [rows].
        confidence: of the intervals, such as 0.95.

    Returns:
        data frame, a bin a line: `confidence`, `accuracy` (means), `low`, `high` (of the accuracy), `rows`.
    """
    right, sure, groups = np.asarray(right), np.asarray(sure), np.asarray(groups)
    count = min(BINS, max(1, len(sure) // BIN_ROWS))
    edges = np.unique(np.quantile(sure, np.arange(1, count) / count, method="inverted_cdf"))
    bins = np.searchsorted(edges, sure)
    table = []
    for number in np.unique(bins):
        inside = bins == number
        low, high = wilson(*effective_counts(right[inside], groups[inside], confidence), confidence)
        table.append((sure[inside].mean(), right[inside].mean(), low, high, int(inside.sum())))
    return pd.DataFrame(table, columns=["confidence", "accuracy", "low", "high", "rows"])


def calibration_error(bins: dict[str, np.ndarray]) -> float:
    """Expected calibration error: mean gap between accuracy and confidence, weighted by rows (Guo et al. 2017)."""
    gaps = np.abs(bins["accuracy"] - bins["confidence"])
    return float(np.nansum(gaps * bins["rows"]) / bins["rows"].sum())


def brier(gold: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the gold class, summed over classes: 0 to 2 (Brier 1950)."""
    return float(((probabilities - np.eye(probabilities.shape[1])[gold]) ** 2).sum(axis=1).mean())


METRICS = (
    Metric(
        "accuracy",
        "accuracy",
        lambda made: made.right.mean(),
        interval=lambda made: wilson(*effective_counts(made.right, made.groups, made.confidence), made.confidence),
        hub=("accuracy", None),
    ),
    Metric(
        "f1_weighted",
        "weighted F1",
        lambda made: f1_weighted(made.counts),
        interval=lambda made: made.f1_interval(WEIGHTED),
        hub=("f1", {"average": "weighted"}),
    ),
    Metric(
        "f1_macro",
        "macro F1",
        lambda made: f1_macro(made.counts),
        interval=lambda made: made.f1_interval(MACRO),
        hub=("f1", {"average": "macro"}),
    ),
    Metric("f1", "F1", lambda made: dict(zip(made.classes, f1_per_class(made.counts), strict=True))),
    Metric(
        "calibration_error",
        "expected calibration error",
        lambda made: calibration_error(reliability(made.right, made.probabilities.max(axis=1))),
    ),
    Metric("brier", "Brier score (0 best, 2 worst)", lambda made: brier(made.gold, made.probabilities), form="number"),
)


def scores(made: Predictions) -> dict[str, Any]:
    """Every metric with its interval, how many rows and groups there are, and accuracy's design effect."""
    found = {
        "rows": len(made.gold),
        "groups": len(np.unique(made.groups)),
        "design_effect": design_effect(made.right, made.groups),
    }
    for metric in METRICS:
        value = metric.value(made)
        by_class = isinstance(value, dict)
        found[metric.key] = {name: float(v) for name, v in value.items()} if by_class else float(value)
        if metric.interval:
            found[f"{metric.key}_interval"] = ends(metric.interval(made))
    return found


def of_table(table: pd.DataFrame, task: Task, confidence: float) -> Predictions:
    """The predictions of a model's predictions.parquet."""
    return Predictions(
        gold=table["label"].to_numpy(),
        predicted=table["prediction"].to_numpy(),
        probabilities=table[task.probability_columns].to_numpy(),
        groups=table["group"].to_numpy(),
        classes=task.classes,
        confidence=confidence,
    )


def ends(interval: tuple[float, float]) -> dict[str, float]:
    """An interval as details.json has it."""
    return {"low": interval[0], "high": interval[1]}
