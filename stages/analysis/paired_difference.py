"""The difference of two models' scores on the same test rows, with its interval and p-value."""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr
from scipy.stats import norm

from stages.analysis.design_effects import adjusted_design_effect, degrees_of_freedom, design_effect
from stages.analysis.f1 import MACRO, f1_values
from stages.analysis.intervals import Interval, gain_interval
from stages.analysis.leading_metric import LeadingMetric
from stages.analysis.significance_tests import mcnemar


@dataclass(frozen=True)
class Difference:
    """A paired difference. The interval excludes 0 if and only if `p` is below 1 - confidence."""

    value: float
    interval: Interval
    p: float
    design_effect: float


def find_changes(gold: np.ndarray, predicted: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 where only `predicted` is right, -1 where only `other` is, else 0, [rows]. The mean is the gain in accuracy."""
    return (np.asarray(predicted) == gold).astype(int) - (np.asarray(other) == gold).astype(int)


def measure_difference(
    metric: LeadingMetric,
    gold: np.ndarray,
    predicted: np.ndarray,
    other: np.ndarray,
    groups: np.ndarray,
    classes: int,
    confidence: float,
) -> Difference:
    """How much higher the metric of `predicted` is than that of `other`, class numbers of the same rows, int [rows]."""
    if metric == "accuracy":
        changes = find_changes(gold, predicted, other)
        p = mcnemar(changes, groups)
        interval = gain_interval(changes, groups, p, confidence)
        return Difference(float(changes.mean()), interval, p, design_effect(changes, groups))
    values = f1_values(gold, np.stack([predicted, other]), classes)[MACRO]
    changes = values[0] - values[1]
    effect = adjusted_design_effect(changes, groups, confidence)
    value, error = float(changes.mean()), float(np.sqrt(changes.var() / len(changes) * effect))
    half = norm.ppf((1 + confidence) / 2) * error
    degrees = degrees_of_freedom(changes, groups)
    p = 2 * float(stdtr(degrees, -abs(value) / error)) if error else 1.0
    return Difference(value, Interval(value - half, value + half), p, design_effect(changes, groups))
