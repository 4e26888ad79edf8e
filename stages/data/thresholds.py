"""The threshold between two classes, or of each label: it replaces 0.5 if F1 matters more than accuracy."""

from collections.abc import Callable

import numpy as np

from stages.data.confusion import f1_per_class
from stages.data.labels import Thresholds


def choose_thresholds(gold: np.ndarray, probabilities: np.ndarray) -> Thresholds | None:
    """The best thresholds on these rows. None if there are more than two classes, of which a row has one.

    Args:
        gold: label array (see `labels`).
        probabilities: [rows, classes].
    """
    if gold.ndim == 2:
        return best_thresholds(gold, probabilities)
    return best_threshold(gold, probabilities[:, 1]) if probabilities.shape[1] == 2 else None


def best_thresholds(gold: np.ndarray, scores: np.ndarray) -> list[float]:
    """The threshold of each label with the highest F1 of this label on these rows, else as `best_threshold`: [labels].

    Args:
        gold: bool [rows, labels].
        scores: probabilities of the labels, [rows, labels].
    """
    columns = zip(gold.T.astype(int), scores.T, strict=True)
    return [_find_best(*column, lambda f1: f1[:, 1]) for column in columns]


def best_threshold(gold: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the highest macro F1 on these rows; a row has the second class if its score is above it.

    At 0.5 this is the most probable class. Other candidates are midway between neighbouring scores. Of equally good
    ones, the nearest to 0.5 is chosen. So the result is never worse than 0.5 on these rows. On other rows it can be:
    with few rows of a class, it follows chance. If only one class is gold, it is 0.5.

    Args:
        gold: class numbers 0 and 1, int [rows].
        scores: probabilities of the second class, [rows].
    """
    return _find_best(gold, scores, lambda f1: f1.mean(axis=1))


def _find_best(gold: np.ndarray, scores: np.ndarray, average: Callable[[np.ndarray], np.ndarray]) -> float:
    """The threshold with the highest average of the F1 of both classes, [thresholds, 2]."""
    order = np.argsort(scores)
    gold, scores = np.asarray(gold)[order], np.asarray(scores, dtype=float)[order]
    rows, seconds = len(gold), int(gold.sum())
    if seconds in (0, rows):
        return 0.5
    distinct = np.unique(scores)
    thresholds = np.append((distinct[1:] + distinct[:-1]) / 2, 0.5)
    below = np.searchsorted(scores, thresholds, side="right")  # rows that get the first class
    seconds_below = np.append(0, np.cumsum(gold))[below]
    counts = np.array([  # as from `class_counts`: [right, gold, predicted] of each class
        [below - seconds_below, seconds - seconds_below],
        [np.full_like(below, rows - seconds), np.full_like(below, seconds)],
        [below, rows - below],
    ])  # fmt: skip
    f1 = average(f1_per_class(counts.transpose(2, 0, 1)))
    best = thresholds[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])
