"""Scores, intervals and differences of label arrays: of one class a row, or of several labels per row.

This module knows which functions measure which of the two. The form of `gold` decides: see `stages.data.labels`.
"""

import numpy as np

from stages.analysis import f1, label_f1, leading_metric, paired_difference, paired_f1
from stages.analysis.design_effects import adjusted_design_effect, design_effect
from stages.analysis.intervals import Interval
from stages.analysis.label_f1 import MACRO, MICRO, WEIGHTED, Average
from stages.analysis.leading_metric import LeadingMetric
from stages.analysis.paired_difference import Difference
from stages.data.confusion import confusion_counts, count_classes
from stages.data.labels import equal_rows

AVERAGES: dict[LeadingMetric, Average] = {"f1_macro": MACRO, "f1_micro": MICRO}


def has_several_labels(gold: np.ndarray) -> bool:
    """Whether a row may have several labels."""
    return gold.ndim == 2


def choose_leading_metric(gold: np.ndarray, classes: int) -> LeadingMetric:
    """Micro F1 if a row may have several labels, else as `leading_metric.choose_leading_metric`.

    Labels are uneven as a rule, and macro F1 of rare labels is mostly noise.
    """
    return "f1_micro" if has_several_labels(gold) else leading_metric.choose_leading_metric(gold, classes)


def list_averages(gold: np.ndarray) -> list[tuple[str, Average, LeadingMetric]]:
    """The F1 scores that compare trainings: (key, average, metric whose `one_row_variance` is that of the score)."""
    if has_several_labels(gold):
        return [("f1_micro", MICRO, "f1_micro"), ("f1_macro", MACRO, "f1_macro")]
    return [("f1_weighted", WEIGHTED, "accuracy"), ("f1_macro", MACRO, "f1_macro")]


def f1_interval(
    gold: np.ndarray, predicted: np.ndarray, average: Average, groups: np.ndarray, classes: int, confidence: float
) -> Interval:
    """Interval of weighted, macro or micro F1. It contains the score. NaN if no row has or gets a label."""
    (values,) = f1_values(gold, predicted[None], average, classes)
    divisor, effect = adjusted_design_effect(values, groups, confidence), design_effect(values, groups)
    return mean_f1_interval(values.mean(), gold, predicted[None], average, classes, divisor, effect, confidence)


def mean_f1_interval(
    score: float,
    gold: np.ndarray,
    predictions: np.ndarray,
    average: Average,
    classes: int,
    divisor: float,
    effect: float,
    confidence: float,
) -> Interval:
    """Interval of the mean F1 of several trainings, from the means of their counts.

    Args:
        score: the mean.
        predictions: a label array of each training.
        divisor: `adjusted_design_effect` of the score's row values; counts are divided by it.
        effect: `design_effect` of the same values, which increases the bias.
    """
    if has_several_labels(gold):
        return label_f1.mean_f1_interval(score, gold, predictions, average, divisor, effect, confidence)
    assert average != MICRO  # this is the accuracy
    confusion = np.mean([confusion_counts(gold, answers, classes) for answers in predictions], axis=0)
    return f1.f1_interval(score, confusion, average, divisor, effect, confidence)


def f1_values(gold: np.ndarray, predictions: np.ndarray, average: Average, classes: int) -> np.ndarray:
    """F1 of each training as a mean over rows that vary as it does: float [seeds, rows]."""
    if has_several_labels(gold):
        return label_f1.label_f1_values(gold, predictions, average)
    assert average != MICRO  # this is the accuracy
    return f1.f1_values(gold, predictions, classes)[average]


def row_values(metric: LeadingMetric, gold: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """A value for each row. Their mean is a training's score, and they vary as it does: float [seeds, rows].

    Args:
        predictions: a label array of each training.
    """
    if metric == "accuracy":
        return np.stack([equal_rows(answers, gold) for answers in predictions]).astype(float)
    return f1_values(gold, predictions, AVERAGES[metric], classes)


def f1_changes(gold: np.ndarray, predicted: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    """What each row adds to the difference of the leading F1, `other` minus `predicted`: float [rows].

    It corresponds to 1, 0 and -1 for accuracy: the mean is the difference, and a row with two equal answers has 0.
    """
    if has_several_labels(gold):
        return label_f1.micro_f1_changes(gold, predicted, other)
    return paired_f1.macro_f1_changes(gold, predicted, other, classes)


def one_row_variance(gold: np.ndarray, metric: LeadingMetric, classes: int) -> float:
    """Mean square of the change in a score if the answer to one row changes, or to one gold label of several.

    It is the smallest variance that a sample of rows can show. One row changes accuracy by 1 / rows, and F1 of a class
    with g rows by about 1 / g. With equally frequent classes, both results are 1 / rows^2. A label changes micro F1 by
    about 1 / labels.
    """
    counts = count_classes(gold, gold, classes)[1]
    counts = counts[counts > 0] if counts.any() else np.ones(1)
    changes = {"accuracy": 1 / len(gold), "f1_micro": 1 / counts.sum(), "f1_macro": 1 / counts / len(counts)}[metric]
    return float(counts @ np.full(len(counts), changes) ** 2 / counts.sum())


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

    With several labels per row, accuracy is the share of rows whose labels are all right, with the same interval and p.
    """
    if not has_several_labels(gold) or metric == "accuracy":
        return paired_difference.measure_difference(metric, gold, predicted, other, groups, classes, confidence)
    average = AVERAGES[metric]
    value, interval, p = label_f1.label_f1_difference(gold, predicted, other, average, groups, confidence)
    influences = label_f1.influence_difference(gold, predicted, other, average)
    return Difference(value, interval, p, design_effect(influences, groups))
