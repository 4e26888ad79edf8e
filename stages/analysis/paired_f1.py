"""The difference of two models' macro F1 on the same rows, with interval and p.

Pure functions of arrays. Scores are 0 to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri  # many times faster than scipy.stats.norm

from stages.analysis.design_effects import adjusted_design_effect, design_effect
from stages.analysis.f1 import MACRO, f1_bias, f1_values, weights
from stages.analysis.intervals import Interval, tango
from stages.analysis.multi_seed.significance import SMALLEST_P
from stages.data.confusion import class_counts, confusion_counts, f1_macro, f1_per_class

LARGEST_P = 0.9999  # the search for a p-value starts here
NEVER_PREDICTED = 0.05  # share of the added right rows of a class that are right if the model never predicts the class


def f1_macro_difference(
    gold: np.ndarray, predicted: np.ndarray, other: np.ndarray, groups: np.ndarray, classes: int, confidence: float
) -> tuple[float, Interval, float]:
    """How much higher the macro F1 of `predicted` is than that of `other`: the difference, its interval and its p.

    p is two-sided, at least 1e-15. It is 1 - c for the largest c at which the interval of confidence c excludes 0. So
    the interval excludes 0 if and only if p < 1 - confidence.

    Args:
        gold, predicted, other: class numbers, int [rows].
        groups: rows of the same group are not independent, [rows].
        classes: number of classes.
        confidence: of the interval, such as 0.95.
    """
    difference, interval = difference_intervals(gold, predicted, other, groups, classes)
    estimate = interval(confidence)
    return difference, estimate, invert_interval(interval, estimate, confidence)


def difference_intervals(
    gold: np.ndarray, predicted: np.ndarray, other: np.ndarray, groups: np.ndarray, classes: int
) -> tuple[float, Callable[[float], Interval]]:
    """The difference, and its interval as a function of the confidence; arguments: as in `f1_macro_difference`."""
    gold, answers = np.asarray(gold), np.stack([predicted, other])
    groups = np.unique(np.asarray(groups), return_inverse=True)[1]  # integers: names are slow to sort
    confusions = np.stack([confusion_counts(gold, each, classes) for each in answers])
    score, other_score = f1_macro(class_counts(confusions))
    influences = influence_difference(gold, predicted, other, classes)
    difference, effect = float(score - other_score), design_effect(influences, groups)

    def interval(confidence: float) -> Interval:
        divisor = adjusted_design_effect(influences, groups, confidence)
        return difference_interval(difference, gold, answers, confusions, divisor, effect, confidence)

    return difference, interval


def influence_difference(gold: np.ndarray, predicted: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    """The difference of macro F1 as a mean over rows, from `f1_values`: float [rows]; arguments: int [rows]."""
    values = f1_values(np.asarray(gold), np.stack([predicted, other]), classes)[MACRO]
    return values[0] - values[1]


def macro_f1_changes(
    gold: np.ndarray, predictions: np.ndarray, other_predictions: np.ndarray, classes: int
) -> np.ndarray:
    """What each row contributes to the difference of two trainings' macro F1, float [rows]; the mean is the difference.

    It corresponds to 1, 0 and -1 for accuracy: a row with two equal answers contributes 0. With F1 = N / D of a class,
    N = 2 tp and D = g + p, the exact difference is N'/D' - N/D = ((N' - N)(D + D') - (N + N')(D' - D)) / (2 D D').
    N' - N and D' - D are sums over rows. The influence function of each score is no substitute: in a class whose F1 is
    0 in one training and 1 in the other, it is 0 for all rows.

    Args:
        gold, predictions, other_predictions: class numbers, int [rows].
    """
    counts, other_counts = (
        class_counts(confusion_counts(gold, answers, classes)) for answers in (predictions, other_predictions)
    )
    denominator, other_denominator = (np.maximum(part[1] + part[2], 1) for part in (counts, other_counts))
    present = (counts + other_counts)[1:].sum(axis=0) > 0
    scale = present / present.sum() * len(gold) / (denominator * other_denominator)
    of_numerator, of_denominator = scale * (denominator + other_denominator), scale * (counts + other_counts)[0]
    change = (other_predictions == gold).astype(int) - (predictions == gold)
    changes = of_numerator[gold] * change - of_denominator[other_predictions] + of_denominator[predictions]
    # A class that has no test row and that only one training predicts is in only one of the two means over classes.
    values = f1_values(gold, np.stack([predictions, other_predictions]), classes)[MACRO].mean(axis=1)
    return changes + (values[1] - values[0] - changes.mean())


def difference_interval(
    difference: float,
    gold: np.ndarray,
    answers: np.ndarray,
    confusions: np.ndarray,
    divisor: float,
    effect: float,
    confidence: float,
) -> Interval:
    """Interval of a paired difference of macro F1. It always contains the difference.

    It is the interval of the difference of the two influence functions, with the corrections of `f1_interval`: the bias
    of each F1 is subtracted, and the variance is increased where a class has few rows. Added rows keep it from
    collapsing: z^2/4 that only one model gets right, and z^2/4 that only the other one gets right. For a 95% interval
    this is one row each (Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37, for the
    difference of paired shares). Each class gets a share of them in proportion to 1 / its rows, as in `f1_interval`.
    A wrong answer to an added row is drawn from the model's other answers. A model that never predicts the class is
    right about only `NEVER_PREDICTED` of its added rows. Otherwise a constant answer would look uncertain.

    Without the added rows and corrections, the interval covers the truth in only 76 to 91 of 100 samples of 28 uneven
    classes if one of the models is a constant answer. Joining the models' two `f1_interval`s by the correlation of
    their influences (Zou and Donner 2008, Statistics in Medicine 27; Newcombe's method 10 for pairs) covers 86 to 89
    if three classes have 90, 8 and 2% of 200 rows. It is also nearly twice as wide for a constant answer.
    `python benchmarks/intervals.py` prints the table of this interval.

    Args:
        difference: of the two scores.
        gold: int [rows].
        answers: of both models, int [2, rows].
        confusions: of both models, int [2, classes, classes].
        divisor: `adjusted_design_effect` of the `influence_difference`; counts are divided by it.
        effect: `design_effect` of the same values, which increases the bias.
        confidence: such as 0.95.
    """
    z, counts = ndtri((1 + confidence) / 2), class_counts(confusions / divisor)
    rows = counts[0, 1] + (counts[:, 2] - counts[:, 0]).mean(axis=0)  # with this gold or predicted class
    present = rows > 0
    if present.sum() == 1:  # every answer is right, and macro F1 is the accuracy
        return tango(0, 0, rows.sum(), confidence)
    share = np.divide(1, rows, out=np.zeros(len(rows)), where=present)
    added = z**2 / 4 * share / share.sum()
    model, other = (_add_rows(each, added, divisor, effect) for each in counts)
    middle = difference + model.shift - other.shift
    row_influences = model.influences[gold, answers[0]] - other.influences[gold, answers[1]]
    variance = row_influences @ row_influences / divisor
    for first, second in ((model.right, other.wrong), (model.wrong, other.right)):
        mean, square = model.moments(first)
        other_mean, other_square = other.moments(second)
        variance += added @ (square - 2 * mean * other_mean + other_square)
    half = z * np.sqrt(variance)
    return Interval(float(max(-1, min(difference, middle - half))), float(min(1, max(difference, middle + half))))


@dataclass(frozen=True)
class _Model:
    """A model's macro F1 with the added rows.

    Attributes:
        shift: of the score, by the added rows and by the subtracted bias.
        influences: of one row on the score, by gold class (down) and answer (across), [classes, classes].
        right, wrong: distributions of the answers to the added rows of each gold class, [classes, classes].
    """

    shift: float
    influences: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    def moments(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean influence and mean squared influence of an added row of each gold class, [classes]."""
        return (answers * self.influences).sum(axis=1), (answers * self.influences**2).sum(axis=1)


def _add_rows(counts: np.ndarray, added: np.ndarray, divisor: float, effect: float) -> _Model:
    """Add rows to a model's `class_counts`; added: rows of each class and direction, [classes]."""
    identity, frequency = np.eye(len(added)), counts[2] / counts[2].sum()
    others = np.where(identity > 0, 0, frequency)
    sums = others.sum(axis=1, keepdims=True)
    wrong = np.divide(others, sums, out=identity.copy(), where=sums > 0)  # a constant answer is never wrong here
    never_predicted = NEVER_PREDICTED * identity + (1 - NEVER_PREDICTED) * frequency
    right = np.where((frequency > 0)[:, None], identity, never_predicted)

    total = counts + class_counts(added[:, None] * (right + wrong))
    f1, weight, denominator = np.nan_to_num(f1_per_class(total)), weights(counts, MACRO), total[1] + total[2]
    sample_size = (denominator - total[0]) * divisor / effect
    inflation = np.sqrt(np.maximum(1, sample_size / np.maximum(sample_size - 1, 0.5)))
    per_row = weight * inflation / np.where(denominator > 0, denominator, 1)
    influences = 2 * np.diag(per_row) - (f1 * per_row)[:, None] - f1 * per_row
    shift = weight @ (f1 - np.nan_to_num(f1_per_class(counts))) - f1_bias(total, MACRO) * effect / divisor
    return _Model(float(shift), influences, right, wrong)


def invert_interval(interval: Callable[[float], Interval], estimate: Interval, confidence: float) -> float:
    """Search the level at which the interval just reaches 0; estimate: the interval at `confidence`."""

    def distance(log_p: float) -> float:
        """From 0 to the interval; negative if the interval contains 0."""
        low, high = interval(1 - math.exp(log_p))
        return max(low, -high)

    alpha, smallest, largest = 1 - confidence, math.log(SMALLEST_P), math.log(LARGEST_P)
    if max(estimate.low, -estimate.high) > 0:
        if distance(smallest) > 0:
            return SMALLEST_P
        return min(math.exp(brentq(distance, smallest, math.log(alpha))), math.nextafter(alpha, 0))
    if distance(largest) <= 0:
        return 1.0
    return max(math.exp(brentq(distance, math.log(alpha), largest)), alpha)
