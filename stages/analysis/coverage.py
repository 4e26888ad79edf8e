"""Accuracy against coverage: what if the model answers only the rows that it is surest of?

How sure it is, is the probability of the predicted class (Geifman and El-Yaniv 2017, Selective Classification for Deep
Neural Networks). A row is answered if this probability is at least a threshold. Pure functions of arrays.

Two results answer "which share of the rows can it answer with an accuracy of 95%?":

- `coverage_at` reads the answer off the curve of the test rows. It is the best estimate.
- `measure_threshold` takes a threshold that `choose_threshold` found on the validation rows, which `predict` can use,
  and measures it on the test rows. Its accuracy is not exactly 95%, but no row was used twice.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.analysis.design_effects import effective_counts
from stages.analysis.intervals import Interval, Share, measure_share, wilson

POINTS = 100  # of a curve; `coverage_at` is accurate to one of them
GOALS = (0.9, 0.95, 0.99)  # accuracies
MIN_ANSWERED = 10  # rows; the accuracy of fewer says nothing


@dataclass(frozen=True)
class Coverage:
    """The share of rows that the model can answer with an accuracy of `goal`. The attributes are keys of details.json.

    Attributes:
        goal: accuracy, 0 to 1.
        coverage: share of the test rows, 0 to 1.
        interval: of the coverage.
        threshold: the least probability of an answered row.
    """

    goal: float
    coverage: float
    interval: Interval
    threshold: float


@dataclass(frozen=True)
class Selection:
    """What a threshold from the validation rows does on the test rows.

    Attributes:
        goal: accuracy for which it was chosen, 0 to 1.
        threshold: the least probability of an answered row.
        coverage: answered rows, of all test rows.
        accuracy: right rows, of the answered ones.
    """

    goal: float
    threshold: float
    coverage: Share
    accuracy: Share


@dataclass(frozen=True)
class CoverageOfGoal:
    """Both answers for one accuracy. None: it was not reached, on the test rows or on the validation rows."""

    on_test: Coverage | None
    from_validation: Selection | None


def coverage_curve(
    right: np.ndarray, probability: np.ndarray, groups: np.ndarray, confidence: float, points: int = POINTS
) -> pd.DataFrame:
    """Accuracy of the rows whose probability is at least a threshold, for thresholds at even steps of coverage.

    Args:
        right: whether each prediction is right, bool [rows].
        probability: of the predicted class, [rows]. Rows with equal probabilities are answered together.
        groups: rows of the same group are not independent, [rows].
        confidence: of the intervals, such as 0.95.
        points: most points of the curve.

    Returns:
        data frame from the highest threshold to all rows: `coverage`, `threshold`, `accuracy`, `low`, `high` (of the
        accuracy), `rows`. It has no point with fewer than `MIN_ANSWERED` rows, unless there are no more.
    """
    right, probability = np.asarray(right), np.asarray(probability, dtype=float)
    order = np.argsort(-probability, kind="stable")
    right, probability = right[order], probability[order]
    groups = np.unique(np.asarray(groups), return_inverse=True)[1][order]
    ranks = np.ceil(np.arange(1, points + 1) / points * len(right)).astype(int)
    thresholds = np.unique(probability[ranks[(ranks >= MIN_ANSWERED) | (ranks == len(right))] - 1])[::-1]
    table = []
    for threshold in thresholds:
        rows = int(np.searchsorted(-probability, -threshold, side="right"))
        factor = threshold_variance(right, rows)
        hits, effective = effective_counts(right[:rows], groups[:rows], confidence)
        interval = wilson(hits / factor, effective / factor, confidence)
        table.append((rows / len(right), threshold, right[:rows].mean(), *interval, rows))
    return pd.DataFrame(table, columns=["coverage", "threshold", "accuracy", "low", "high", "rows"])


def threshold_variance(right: np.ndarray, answered: int) -> float:
    """How many times larger the accuracy's variance is at a fixed coverage c than at a fixed threshold.

    On other rows, another threshold gives the same coverage. By the influence function of the accuracy a of the
    answered rows, this adds (1 - c) (a - m)^2 to the variance a (1 - a). m is the accuracy of rows near the threshold:
    a twentieth of the rows on either side.

    Args:
        right: bool [rows], the surest first.
        answered: number of answered rows.
    """
    accuracy, near = right[:answered].mean(), max(MIN_ANSWERED, len(right) // 20)
    marginal = right[max(0, answered - near) : answered + near].mean()
    variance = max(accuracy * (1 - accuracy), 1 / (answered + 4))
    return float(1 + (1 - answered / len(right)) * (accuracy - marginal) ** 2 / variance)


def coverage_at(curve: pd.DataFrame, goal: float) -> Coverage | None:
    """The largest coverage with an accuracy of at least `goal`; None if no point of the curve has it.

    Its interval goes from the last point at which the accuracy's interval is above the goal (0 if there is none) to the
    point after the last at which it is not below the goal. In simulations of calibrated and overconfident models with
    150 to 3,000 rows, 95% intervals covered the truth in 92 to 99 of 100 samples.

    Args:
        curve: from `coverage_curve`.
        goal: accuracy, 0 to 1.
    """
    reached, low, high = (np.flatnonzero(curve[column] >= goal) for column in ("accuracy", "low", "high"))
    if not len(reached):
        return None
    coverage, last = curve["coverage"], len(curve) - 1
    interval = Interval(
        float(coverage.iloc[low[-1]]) if len(low) else 0.0, float(coverage.iloc[min(last, high[-1] + 1)])
    )
    return Coverage(goal, float(coverage.iloc[reached[-1]]), interval, float(curve["threshold"].iloc[reached[-1]]))


def choose_threshold(right: np.ndarray, probability: np.ndarray, goal: float) -> float | None:
    """The threshold that answers the most rows with an accuracy of at least `goal`; None if no `MIN_ANSWERED` rows do.

    Args:
        right, probability: of the validation rows, as in `coverage_curve`.
        goal: accuracy, 0 to 1.
    """
    thresholds, rows = np.unique(-np.asarray(probability, dtype=float), return_counts=True)
    order = np.argsort(-np.asarray(probability, dtype=float), kind="stable")
    answered = np.cumsum(rows)
    accuracy = np.cumsum(np.asarray(right)[order])[answered - 1] / answered
    reached = np.flatnonzero((accuracy >= goal) & (answered >= MIN_ANSWERED))
    return float(-thresholds[reached[-1]]) if len(reached) else None


def measure_threshold(
    right: np.ndarray, probability: np.ndarray, groups: np.ndarray, goal: float, threshold: float, confidence: float
) -> Selection:
    """Coverage and accuracy of the test rows at a threshold that was chosen on others; arguments: see above."""
    answered = np.asarray(probability) >= threshold
    right, groups = np.asarray(right), np.asarray(groups)
    coverage = measure_share(answered, groups, confidence)
    return Selection(goal, threshold, coverage, measure_share(right[answered], groups[answered], confidence))
