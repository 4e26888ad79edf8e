"""Scores, intervals and differences of label arrays: of one class a row, or of several labels a row.

This module knows which functions measure which of the two. The form of `gold` decides: see `stages.data.labels`.
"""

import numpy as np

from stages.analysis import f1, label_f1, leading_metric, paired_difference
from stages.analysis.design_effects import adjusted_design_effect, design_effect
from stages.analysis.intervals import Interval
from stages.analysis.label_f1 import MACRO, MICRO, Average
from stages.analysis.leading_metric import LeadingMetric
from stages.analysis.paired_difference import Difference
from stages.data.confusion import confusion_counts

AVERAGES: dict[LeadingMetric, Average] = {"f1_macro": MACRO, "f1_micro": MICRO}


def has_several_labels(gold: np.ndarray) -> bool:
    """Whether a row may have several labels."""
    return gold.ndim == 2


def choose_leading_metric(gold: np.ndarray, classes: int) -> LeadingMetric:
    """Micro F1 if a row may have several labels, else as `leading_metric.choose_leading_metric`.

    Labels are uneven as a rule, and macro F1 of rare labels is mostly noise.
    """
    return "f1_micro" if has_several_labels(gold) else leading_metric.choose_leading_metric(gold, classes)


def f1_interval(
    gold: np.ndarray, predicted: np.ndarray, average: Average, groups: np.ndarray, classes: int, confidence: float
) -> Interval:
    """Interval of weighted, macro or micro F1."""
    if has_several_labels(gold):
        return label_f1.label_f1_interval(gold, predicted, average, groups, confidence)
    assert average != MICRO  # this is the accuracy
    values = f1.f1_values(gold, predicted[None], classes)[average][0]
    divisor, effect = adjusted_design_effect(values, groups, confidence), design_effect(values, groups)
    confusion = confusion_counts(gold, predicted, classes)
    return f1.f1_interval(values.mean(), confusion, average, divisor, effect, confidence)


def measure_difference(
    metric: LeadingMetric,
    gold: np.ndarray,
    predicted: np.ndarray,
    other: np.ndarray,
    groups: np.ndarray,
    classes: int,
    confidence: float,
) -> Difference:
    """How much higher the score of `predicted` is than that of `other`, as `paired_difference.measure_difference`.

    With several labels a row, accuracy is the share of rows whose labels are all right. It has the same interval and p.
    """
    if not has_several_labels(gold) or metric == "accuracy":
        return paired_difference.measure_difference(metric, gold, predicted, other, groups, classes, confidence)
    average = AVERAGES[metric]
    value, interval, p = label_f1.label_f1_difference(gold, predicted, other, average, groups, confidence)
    influences = label_f1.influence_difference(gold, predicted, other, average)
    return Difference(value, interval, p, design_effect(influences, groups))
