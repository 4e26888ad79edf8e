"""The confusion matrix of classes, and F1 of it: in training for each epoch, in the analysis for the test rows."""

import numpy as np


def confusion_counts(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Rows of each gold class (down) and predicted class (across), int [classes, classes].

    Args:
        gold, predicted: numbers of classes, int [rows].
    """
    return np.bincount(gold * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_counts(confusion: np.ndarray) -> np.ndarray:
    """Rows of each class that are right, that have it, and that are answered with it.

    Args:
        confusion: counts or shares [..., classes, classes], as `confusion_counts` has them.

    Returns:
        [..., 3, classes]
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([right, confusion.sum(axis=-1), confusion.sum(axis=-2)], axis=-2)


def f1_per_class(counts: np.ndarray) -> np.ndarray:
    """F1 = 2 tp / (2 tp + fp + fn) of each class; NaN for a class that is neither in the rows nor predicted.

    Args:
        counts: from `class_counts`, [..., 3, classes].

    Returns:
        float [..., classes].
    """
    right, gold, predicted = np.moveaxis(counts, -2, 0)
    return np.divide(2 * right, gold + predicted, out=np.full(right.shape, np.nan), where=gold + predicted > 0)


def f1_weighted(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes, each weighted by its rows: [..., 3, classes] -> [...]."""
    rows = counts[..., 1, :]
    return np.nansum(f1_per_class(counts) * rows, axis=-1) / rows.sum(axis=-1)
