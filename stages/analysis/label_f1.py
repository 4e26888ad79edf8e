"""F1 of rows with several labels: micro, macro and weighted, with intervals and paired differences.

Rows are the units: the labels of a row may depend on each other. F1 of a label is 2J / (1 + J). J is the share of right
ones among the rows that have the label or get it as an answer. Pure functions of bool arrays [rows, labels]; scores are
0 to 1. `f1` and `paired_f1` have the same for one class a row. `python benchmarks/intervals.py --tables labels` prints
how often the intervals cover the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.stats import norm

from stages.analysis.design_effects import adjusted_design_effect, design_effect
from stages.analysis.intervals import Interval
from stages.analysis.paired_f1 import NEVER_PREDICTED, invert_interval
from stages.data.confusion import count_classes, f1_macro, f1_micro, f1_per_class, f1_weighted

Average = Literal[0, 1, 2]
WEIGHTED: Final = 0
MACRO: Final = 1
MICRO: Final = 2
SCORES = {WEIGHTED: f1_weighted, MACRO: f1_macro, MICRO: f1_micro}


def average_f1(counts: np.ndarray, average: Average) -> float:
    """F1 from `count_classes`, [3, labels]; 0 if no row has or gets a label."""
    return float(np.nan_to_num(SCORES[average](counts))) if counts[1:].any() else 0.0


def f1_gradient(counts: np.ndarray, average: Average) -> np.ndarray:
    """Derivative of F1 in the counts of right, gold and predicted labels, [3, labels]."""
    sums = counts.sum(axis=1, keepdims=True) if average == MICRO else counts
    denominator = np.maximum(sums[1] + sums[2], np.finfo(float).tiny)
    f1, weight = 2 * sums[0] / denominator, _weights(counts, average)
    gradient = np.stack([2 * weight / denominator, *[-weight * f1 / denominator] * 2])
    if average == WEIGHTED and counts[1].any():
        gradient[1] += (f1 - weight @ f1) / counts[1].sum()
    return gradient


def _weights(counts: np.ndarray, average: Average) -> np.ndarray:
    """Weight of each label in the mean, [labels]; of micro F1, all labels together are one."""
    present = counts[1] + counts[2] > 0
    if average == MICRO:
        return np.ones(counts.shape[1])
    weights = counts[1] if average == WEIGHTED else present
    return weights / max(weights.sum(), np.finfo(float).tiny)


def row_influences(gold: np.ndarray, predicted: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """What each row adds to the score, to first order: float [rows]."""
    return (gold & predicted) @ gradient[0] + gold @ gradient[1] + predicted @ gradient[2]


def label_f1_values(gold: np.ndarray, predicted: np.ndarray, average: Average) -> np.ndarray:
    """F1 as a mean over rows that vary as the score does, as `f1.f1_values`: float [seeds, rows].

    Args:
        predicted: bool [seeds, rows, labels].
    """
    values = np.empty(predicted.shape[:2])
    for seed, answers in enumerate(predicted):
        counts = count_classes(gold, answers, gold.shape[1])
        influences = row_influences(gold, answers, f1_gradient(counts, average))
        values[seed] = average_f1(counts, average) + len(gold) * influences
    return values


@dataclass(frozen=True)
class _Model:
    """F1 of a model with added labels.

    Attributes:
        shift: of the score, by the added labels and by the subtracted bias.
        gradient: at the counts with the added labels, for few rows of a label increased, [3, labels].
    """

    shift: float
    gradient: np.ndarray


def _add_labels(counts: np.ndarray, added: np.ndarray, average: Average, divisor: float, effect: float) -> _Model:
    """Add counts of labels [3, labels] to those of a model, both divided by the design effect.

    The bias of F1 to second order is -F1 (1 - F1) / (g + p). The variance of J that m rows estimate is (m - 1) / m of
    the true one.
    """
    total = counts + added
    sums, weight = total, _weights(total, average)
    if average == MICRO:
        sums, weight = total.sum(axis=1, keepdims=True), np.ones(1)
    f1, denominator = np.nan_to_num(f1_per_class(sums)), np.maximum(sums[1] + sums[2], np.finfo(float).tiny)
    bias = -(weight * f1 * (1 - f1) / denominator).sum() * effect / divisor
    size = (sums[1] + sums[2] - sums[0]) * divisor / effect
    inflation = np.sqrt(np.maximum(1, size / np.maximum(size - 1, 0.5)))
    shift = average_f1(total, average) - average_f1(counts, average) - bias
    return _Model(shift, f1_gradient(total, average) * inflation)


def _shares(counts: np.ndarray, average: Average) -> np.ndarray:
    """The share of the added labels that each label gets: of the variance, if all were equally good, [labels]."""
    rows = counts[1] + counts[2] - counts[0]
    if average == MICRO:
        return rows / rows.sum()
    share = np.divide(_weights(counts, average) ** 2, rows, out=np.zeros(len(rows)), where=rows > 0)
    return share / share.sum()


def mean_f1_interval(
    score: float,
    gold: np.ndarray,
    predicted: np.ndarray,
    average: Average,
    divisor: float,
    effect: float,
    confidence: float,
) -> Interval:
    """Interval of F1, or of the mean F1 of several trainings. It contains the score. NaN if no row has or gets a label.

    As `f1.f1_interval`, it is the interval of the influence function with z^2/2 right and z^2/2 wrong labels added. Of
    the wrong ones, one half is missed and one half is not gold.

    Args:
        predicted: bool [seeds, rows, labels].
        divisor, effect: as of `measures.mean_f1_interval`.
    """
    counts = np.mean([count_classes(gold, answers, gold.shape[1]) for answers in predicted], axis=0)
    if not counts[1:].any():
        return Interval(np.nan, np.nan)
    z = norm.ppf((1 + confidence) / 2)
    added = z**2 / 2 * _shares(counts, average)
    model = _add_labels(counts / divisor, np.stack([added, 1.5 * added, 1.5 * added]), average, divisor, effect)
    right, missed, wrong = model.gradient.sum(axis=0), model.gradient[1], model.gradient[2]
    squares = [(row_influences(gold, answers, model.gradient) ** 2).sum() for answers in predicted]
    variance = np.mean(squares) / divisor + added @ (right**2 + missed**2 / 2 + wrong**2 / 2)
    middle, half = score + model.shift, z * np.sqrt(variance)
    return Interval(float(max(0, min(score, middle - half))), float(min(1, max(score, middle + half))))


def label_f1_difference(
    gold: np.ndarray, predicted: np.ndarray, other: np.ndarray, average: Average, groups: np.ndarray, confidence: float
) -> tuple[float, Interval, float]:
    """How much higher F1 of `predicted` is than that of `other`: the difference, its interval and its p.

    p is two-sided, by inversion of the interval: as in `paired_f1.f1_macro_difference`.
    """
    difference, interval = difference_intervals(gold, predicted, other, average, groups)
    estimate = interval(confidence)
    return difference, estimate, invert_interval(interval, estimate, confidence)


def difference_intervals(
    gold: np.ndarray, predicted: np.ndarray, other: np.ndarray, average: Average, groups: np.ndarray
) -> tuple[float, Callable[[float], Interval]]:
    """The difference, and its interval as a function of the confidence: as `paired_f1.difference_intervals`."""
    groups = np.unique(np.asarray(groups), return_inverse=True)[1]
    influences = influence_difference(gold, predicted, other, average)
    effect = design_effect(influences, groups)

    def interval(confidence: float) -> Interval:
        divisor = adjusted_design_effect(influences, groups, confidence)
        return _difference_interval(gold, predicted, other, average, divisor, effect, confidence)

    counts, other_counts = (count_classes(gold, answers, gold.shape[1]) for answers in (predicted, other))
    return average_f1(counts, average) - average_f1(other_counts, average), interval


def influence_difference(gold: np.ndarray, predicted: np.ndarray, other: np.ndarray, average: Average) -> np.ndarray:
    """The difference of F1 as a mean over rows, from `label_f1_values`: float [rows]."""
    values = label_f1_values(gold, np.stack([predicted, other]), average)
    return values[0] - values[1]


def micro_f1_changes(gold: np.ndarray, predicted: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What each row adds to the difference in micro F1, `other` minus `predicted`: float [rows].

    The mean is the exact difference, and a row with two equal answers has 0: as `paired_f1.macro_f1_changes`.
    """
    right, other_right = ((gold & answers).sum(axis=1) for answers in (predicted, other))
    answered, other_answered = (answers.sum(axis=1) for answers in (predicted, other))
    denominator, other_denominator = (max(1, gold.sum() + each.sum()) for each in (answered, other_answered))
    scale = len(gold) / (denominator * other_denominator)
    of_right, of_answered = scale * (denominator + other_denominator), scale * (right.sum() + other_right.sum())
    return of_right * (other_right - right) - of_answered * (other_answered - answered)


def _difference_interval(
    gold: np.ndarray,
    predicted: np.ndarray,
    other: np.ndarray,
    average: Average,
    divisor: float,
    effect: float,
    confidence: float,
) -> Interval:
    """Interval of a paired difference of F1. It always contains the difference.

    As `paired_f1.difference_interval`: added are z^2/4 gold labels that only one model finds, and z^2/4 that only the
    other one finds. A model that never predicts a label finds `NEVER_PREDICTED` of its added ones; one that always
    predicts it finds all.
    """
    z, rows = norm.ppf((1 + confidence) / 2), len(gold)
    counts = np.stack([count_classes(gold, answers, gold.shape[1]) for answers in (predicted, other)])
    if not counts[:, 1:].any():
        return Interval(0.0, 0.0)
    union = np.array([counts[0, 1], *(counts[:, 2] - counts[:, 0])])
    mean = np.stack([np.zeros(len(union[0])), union[0], (union[1] + union[2]) / 2])  # `_shares` adds them up
    added = z**2 / 4 * _shares(mean, average)
    models, answered = [], []
    for each in counts:
        found = np.where(each[2] > 0, 1, NEVER_PREDICTED), np.where(each[2] == rows, 1, 0)
        right = added * (found[0] + found[1])
        models.append(_add_labels(each / divisor, np.stack([right, 2 * added, right]), average, divisor, effect))
        answered.append(found)
    model, other_model = models
    influences = row_influences(gold, predicted, model.gradient) - row_influences(gold, other, other_model.gradient)
    variance = (influences**2).sum() / divisor
    for side, other_side in ((0, 1), (1, 0)):
        first, square = _moments(model.gradient, answered[0][side])
        second, other_square = _moments(other_model.gradient, answered[1][other_side])
        variance += added @ (square - 2 * first * second + other_square)
    difference = average_f1(counts[0], average) - average_f1(counts[1], average)
    middle, half = difference + model.shift - other_model.shift, z * np.sqrt(variance)
    return Interval(float(max(-1, min(difference, middle - half))), float(min(1, max(difference, middle + half))))


def _moments(gradient: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square of the influence of an added gold label, of which this share is found, [labels]."""
    right, missed = gradient.sum(axis=0), gradient[1]
    return found * right + (1 - found) * missed, found * right**2 + (1 - found) * missed**2
