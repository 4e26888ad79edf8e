"""How much higher one model's score is than another's on the same rows, for either leading metric."""

from dataclasses import dataclass

import numpy as np

from stages.analysis.design_effects import design_effect
from stages.analysis.intervals import Interval, gain_interval
from stages.analysis.leading_metric import LeadingMetric
from stages.analysis.paired_f1 import f1_macro_difference, influence_difference
from stages.analysis.significance_tests import mcnemar
from stages.data.labels import equal_rows


@dataclass(frozen=True)
class Difference:
    """A paired difference of two scores. The interval excludes 0 if and only if p < 1 - confidence.

    Attributes:
        value: -1 to 1.
        p: two-sided p of no difference, 0 to 1.
        design_effect: of the rows' contributions to the difference.
    """

    value: float
    interval: Interval
    p: float
    design_effect: float


def find_changes(gold: np.ndarray, predicted: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 where only `predicted` is right, -1 where only `other` is, else 0, [rows]. The mean is the gain in accuracy."""
    return equal_rows(predicted, gold).astype(int) - equal_rows(other, gold).astype(int)


def measure_difference(
    metric: LeadingMetric,
    gold: np.ndarray,
    predicted: np.ndarray,
    other: np.ndarray,
    groups: np.ndarray,
    classes: int,
    confidence: float,
) -> Difference:
    """How much higher the score of `predicted` is than that of `other`.

    Accuracy has Tango's interval and McNemar's p, macro F1 those of `f1_macro_difference`.

    Args:
        gold, predicted, other: class numbers, int [rows]; at least one row. For accuracy, any label arrays.
        groups: rows of the same group are not independent, [rows].
        classes: number of classes.
        confidence: of the interval, such as 0.95.
    """
    gold, predicted, other, groups = map(np.asarray, (gold, predicted, other, groups))
    if metric == "f1_macro":
        value, interval, p = f1_macro_difference(gold, predicted, other, groups, classes, confidence)
        influences = influence_difference(gold, predicted, other, classes)
        return Difference(value, interval, p, design_effect(influences, groups))
    changes = find_changes(gold, predicted, other)
    p = mcnemar(changes, groups)
    interval = gain_interval(changes, groups, p, confidence)
    return Difference(float(changes.mean()), interval, p, design_effect(changes, groups))
