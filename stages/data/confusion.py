"""Confusion matrix and F1. Training uses them for each epoch, and the analysis for the test rows."""

import numpy as np

MAX_PAIRS = 100_000  # of a plot's table, which is in Git


def pair_classes(gold: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each gold class of a row with each predicted one: the numbers of both, int [pairs].

    Args:
        gold, predicted: label arrays (see `labels`). Rows with several labels have many pairs. If there are more than
            `MAX_PAIRS`, this returns about `MAX_PAIRS`, with the same share of each pair.
    """
    if gold.ndim == 1:
        return gold, predicted
    counts = confusion_counts(gold, predicted, gold.shape[1])
    counts = np.rint(counts * min(1, MAX_PAIRS / max(counts.sum(), 1))).astype(int)
    first, second = np.nonzero(counts)
    return np.repeat(first, counts[first, second]), np.repeat(second, counts[first, second])


def confusion_counts(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count the rows with each gold class (first axis) and predicted class (second axis): int [classes, classes].

    A row with several labels counts in several cells: the matrix says how often labels occur together.

    Args:
        gold, predicted: label arrays (see `labels`).
    """
    if gold.ndim == 2:
        return (gold.T.astype(float) @ predicted.astype(float)).astype(int)  # BLAS has no product of integers
    return np.bincount(gold * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_counts(confusion: np.ndarray) -> np.ndarray:
    """Count for each class the rows that are right, that have this gold class, and that have this predicted class.

    Args:
        confusion: counts or shares, [..., classes, classes], with the axes of `confusion_counts`.

    Returns:
        [..., 3, classes]
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([right, confusion.sum(axis=-1), confusion.sum(axis=-2)], axis=-2)


def count_classes(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count the rows of each class: those where it is right, gold, and predicted.

    Args:
        gold, predicted: label arrays (see `labels`).

    Returns:
        int [3, classes]
    """
    if gold.ndim == 1:
        return class_counts(confusion_counts(gold, predicted, classes))
    return np.stack([(gold & predicted).sum(axis=0), gold.sum(axis=0), predicted.sum(axis=0)])


def f1_per_class(counts: np.ndarray) -> np.ndarray:
    """F1 = 2 tp / (2 tp + fp + fn) of each class; NaN for a class that no row has and that is never predicted.

    Args:
        counts: from `class_counts`, [..., 3, classes].

    Returns:
        float [..., classes].
    """
    right, gold, predicted = np.moveaxis(counts, -2, 0)
    return np.divide(2 * right, gold + predicted, out=np.full(right.shape, np.nan), where=gold + predicted > 0)


def f1_micro(counts: np.ndarray) -> np.ndarray:
    """F1 of all decisions about all classes: [..., 3, classes] -> [...]; NaN without any class of any row."""
    right, gold, predicted = np.moveaxis(counts.sum(axis=-1), -1, 0)
    return np.divide(2 * right, gold + predicted, out=np.full(right.shape, np.nan), where=gold + predicted > 0)


def f1_weighted(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes, weighted by their rows: [..., 3, classes] -> [...]."""
    rows = counts[..., 1, :]
    return np.nansum(f1_per_class(counts) * rows, axis=-1) / rows.sum(axis=-1)


def f1_macro(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that are gold or predicted, as in scikit-learn: [..., 3, classes] -> [...]."""
    return np.nanmean(f1_per_class(counts), axis=-1)
