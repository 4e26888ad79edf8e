"""Whether the labels look exchanged: the predictions fit them much better under another mapping of the classes."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from stages.analysis.intervals import wilson

MIN_GAIN = 0.3  # of the accuracy of the exchanged classes' rows
CONFIDENCE = 0.99  # that the model answers most of these rows with the other class


@dataclass(frozen=True)
class Permutation:
    """An exchange of labels.

    Attributes:
        labels: {gold class: the class that its rows seem to have}, of the exchanged classes only.
        rows: rows of these classes.
        accuracy: of these rows, as they are labelled.
        exchanged_accuracy: of these rows, if the labels are exchanged.
    """

    labels: dict[int, int]
    rows: int
    accuracy: float
    exchanged_accuracy: float


def find_permutation(confusion: np.ndarray) -> Permutation | None:
    """The exchange of labels with the highest accuracy; None unless it is far higher than as they are labelled.

    Of the exchanged classes' rows, the model must answer more than half with the other class, beyond chance. A poor
    model on rows that are labelled correctly hardly ever does so.

    Args:
        confusion: from `confusion_counts`, int [classes, classes].
    """
    gold, seeming = linear_sum_assignment(confusion, maximize=True)
    moved = (gold != seeming) & confusion.any(axis=1)  # a class without rows is assigned too, and means nothing
    rows = int(confusion[gold[moved]].sum())
    if not rows:
        return None
    right = int(confusion[gold[moved], gold[moved]].sum())
    exchanged = int(confusion[gold[moved], seeming[moved]].sum())
    if exchanged - right < MIN_GAIN * rows or wilson(exchanged, rows, CONFIDENCE).low <= 0.5:
        return None
    labels = dict(zip(gold[moved].tolist(), seeming[moved].tolist(), strict=True))
    return Permutation(labels, rows, right / rows, exchanged / rows)
