"""What each row contributes to the leading metric, and to a difference in it."""

from dataclasses import dataclass

import numpy as np

from stages.analysis.f1 import MACRO, f1_values
from stages.analysis.leading_metric import LeadingMetric
from stages.data.confusion import class_counts, confusion_counts


@dataclass(frozen=True)
class GoldRows:
    """The test rows that all recipes answered, in one order.

    Attributes:
        gold: the right classes, int [rows].
        groups: rows of the same group are not independent, [rows]; `np.arange(rows)` if all rows are.
        classes: number of classes.
        metric: of differences and of each training's score, from `choose_leading_metric`.
    """

    gold: np.ndarray
    groups: np.ndarray
    classes: int
    metric: LeadingMetric


def row_values(rows: GoldRows, predictions: np.ndarray) -> np.ndarray:
    """A value for each row. Their mean is a training's score, and they vary as it does: float [seeds, rows].

    Args:
        predictions: int [seeds, rows].
    """
    if rows.metric == "accuracy":
        return (predictions == rows.gold).astype(float)
    return f1_values(rows.gold, predictions, rows.classes)[MACRO]


def one_row_variance(gold: np.ndarray, metric: LeadingMetric) -> float:
    """Mean square of the change in a score if the answer to one row changes.

    It is the smallest variance that a sample of rows can show. One row changes accuracy by 1 / rows, and F1 of a class
    with g rows by about 1 / g. With equally frequent classes, both results are 1 / rows^2.
    """
    class_rows = np.bincount(gold)
    class_rows = class_rows[class_rows > 0]
    changes = np.full(len(class_rows), 1 / len(gold)) if metric == "accuracy" else 1 / class_rows / len(class_rows)
    return float(class_rows @ changes**2 / len(gold))


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
