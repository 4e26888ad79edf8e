"""The metric that every result starts with: accuracy, or macro F1 if the classes of the test rows are uneven."""

from typing import Final, Literal

import numpy as np

LeadingMetric = Literal["accuracy", "f1_macro", "f1_micro"]
TITLES: Final[dict[LeadingMetric, str]] = {"accuracy": "accuracy", "f1_macro": "macro F1", "f1_micro": "micro F1"}
UNEVEN_RATIO = 3  # classes are uneven if the most frequent has more than this many times the rows of the rarest


def choose_leading_metric(gold: np.ndarray, classes: int) -> LeadingMetric:
    """Macro F1 if the classes of the test rows are uneven, else accuracy. Classes without test rows don't count.

    Args:
        gold: class numbers of the test rows, int [rows].
        classes: number of classes.
    """
    counts = np.bincount(gold, minlength=classes)
    return "f1_macro" if counts.max() > UNEVEN_RATIO * counts[counts > 0].min() else "accuracy"
