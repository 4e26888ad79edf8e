"""What each row contributes to the leading metric."""

from dataclasses import dataclass

import numpy as np

from stages.analysis import measures
from stages.analysis.leading_metric import LeadingMetric


@dataclass(frozen=True)
class GoldRows:
    """The test rows that all recipes answered, in one order.

    Attributes:
        gold: the right labels, a label array (see `stages.data.labels`).
        groups: rows of the same group are not independent, [rows]; `np.arange(rows)` if all rows are.
        classes: number of classes.
        metric: of differences and of each training's score, from `choose_leading_metric`.
    """

    gold: np.ndarray
    groups: np.ndarray
    classes: int
    metric: LeadingMetric


def row_values(rows: GoldRows, predictions: np.ndarray) -> np.ndarray:
    """From `measures.row_values`, float [seeds, rows]; predictions: a label array of each training."""
    return measures.row_values(rows.metric, rows.gold, predictions, rows.classes)
