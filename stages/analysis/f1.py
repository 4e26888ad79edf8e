"""Weighted and macro F1 with their intervals. Pure functions; shares are 0 to 1."""

from typing import Final, Literal

import numpy as np
from scipy.special import ndtri  # many times faster than scipy.stats.norm

from stages.analysis.intervals import Interval
from stages.data.confusion import class_counts, confusion_counts, f1_macro, f1_per_class, f1_weighted

Average = Literal[0, 1]
WEIGHTED: Final = 0  # index in the result of `f1_values`
MACRO: Final = 1
FEW_ROWS = 10  # with fewer rows of a class, its F1 is a rough estimate


def f1_values(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Weighted and macro F1 as means over rows that vary as the score does: float [2, seeds, rows].

    A row's value is the score plus the row's first-order contribution (the influence function; Efron 1982, The
    Jackknife, the Bootstrap and Other Resampling Plans, chapter 6). F1 of class c is 2 tp / (g + p). Its derivative in
    the share of rows of one kind is (2 [right] - F1 ([gold is c] + [predicted is c])) rows / (g + p).

    Args:
        gold: int [rows].
        predicted: int [seeds, rows].
    """
    rows = len(gold)
    row_values = np.empty((2, *predicted.shape))
    for seed, answers in enumerate(predicted):
        counts = class_counts(confusion_counts(gold, answers, classes))
        f1 = np.nan_to_num(f1_per_class(counts))
        scores: tuple[tuple[Average, np.ndarray], ...] = ((WEIGHTED, f1_weighted(counts)), (MACRO, f1_macro(counts)))
        for average, score in scores:
            per_row = weights(counts, average) * rows / np.maximum(counts[1] + counts[2], 1)
            contribution = 2 * (answers == gold) * per_row[gold] - (f1 * per_row)[gold] - (f1 * per_row)[answers]
            row_values[average, seed] = score + contribution + (f1[gold] - score if average == WEIGHTED else 0)
    return row_values


def weights(counts: np.ndarray, average: Average) -> np.ndarray:
    """Weight of each class in the mean, [classes]; 0 for a class that is neither gold nor predicted."""
    present = counts[1] + counts[2] > 0
    return counts[1] / counts[1].sum() if average == WEIGHTED else present / present.sum()


def f1_bias(counts: np.ndarray, average: Average) -> float:
    """Bias of F1 to second order; counts: of independent rows, [3, classes].

    F1 of a class is 2J / (1 + J), with the unbiased J = tp / (tp + fp + fn). This function is concave, so the bias is
    -F1 (1 - F1) / (g + p). In weighted F1 it also varies with the class's weight.
    """
    right, gold, predicted = counts
    f1, denominator = np.nan_to_num(f1_per_class(counts)), np.maximum(gold + predicted, np.finfo(float).tiny)
    bias = -weights(counts, average) * f1 * (1 - f1)
    if average == WEIGHTED:
        bias = bias + f1 * (predicted - right) / gold.sum()
    return float((bias / denominator).sum())


def f1_interval(
    score: float, confusion: np.ndarray, average: Average, divisor: float, effect: float, confidence: float
) -> Interval:
    """Interval of weighted or macro F1. It always contains the score.

    It is the interval of the influence function with three corrections. Without them, coverage is too low if there are
    many classes or classes with few rows (`python benchmarks/intervals.py` prints the tables):

    - z^2/2 right and z^2/2 wrong rows are added first. A share near 0 or 1 then has a good interval (Agresti and Coull
      1998, The American Statistician 52). Each class gets the share of them that it would have of the variance if all
      classes were equally good. A class of four rows that are all right thus stays uncertain. A class's added wrong
      rows have it as gold class. Their predicted classes are the others, by frequency.
    - The bias of F1 (`f1_bias`) is subtracted.
    - The variance of J that m rows estimate is (m - 1) / m of the true one.

    Args:
        score: F1; with several trainings, their mean.
        confusion: rows of each gold and predicted class; with several trainings, their mean, [classes, classes].
        divisor: `adjusted_design_effect` of the score's row values; counts are divided by it.
        effect: `design_effect` of the same values, which increases the bias.
        confidence: such as 0.95.
    """
    z, counts = ndtri((1 + confidence) / 2), class_counts(confusion) / divisor
    right, gold, predicted = counts
    present = gold + predicted > 0
    frequency = (gold + predicted) / (gold + predicted).sum()
    rows_with_class = np.where(present, gold + predicted - right, 1)  # rows with this gold or predicted class
    share = weights(counts, average) ** 2 / rows_with_class
    added = z**2 / 2 * share / share.sum()
    others = 1 - frequency
    wrong_of = np.divide(added, others, out=np.zeros_like(added), where=others > 0)
    added_predicted = frequency * (wrong_of.sum() - wrong_of)
    total = np.stack([right + added, gold + 2 * added, predicted + added + added_predicted])

    f1, weight = np.nan_to_num(f1_per_class(total)), weights(total, average)
    denominator = np.where(present, total[1] + total[2], 1)
    sample_size = rows_with_class * divisor / effect + 2 * added + added_predicted
    inflation = np.sqrt(np.maximum(1, sample_size / np.maximum(sample_size - 1, 0.5)))
    # Contribution of one row: if it is right; to the gold class of a wrong row; to its predicted class.
    predicted_term = -weight * f1 / denominator * inflation
    right_term, gold_term = weight * 2 / denominator * inflation + 2 * predicted_term, predicted_term
    if average == WEIGHTED:
        weight_term = (f1 - weight @ f1) / total[1].sum()
        right_term, gold_term = right_term + weight_term, gold_term + weight_term
    wrong = confusion / divisor - np.diag(right)
    variance = (
        total[0] @ right_term**2
        + (gold - right + added) @ gold_term**2
        + (predicted - right + added_predicted) @ predicted_term**2
        + 2 * gold_term @ wrong @ predicted_term
        + 2 * (wrong_of * gold_term) @ (frequency @ predicted_term - frequency * predicted_term)
    )
    middle = score + weight @ f1 - weights(counts, average) @ np.nan_to_num(f1_per_class(counts))
    middle -= f1_bias(total, average) * effect / divisor
    half = z * np.sqrt(variance)
    return Interval(float(max(0, min(score, middle - half))), float(min(1, max(score, middle + half))))
