"""Weighted and macro F1: what each row adds to them, and their interval. Pure functions; shares are 0 to 1."""

from typing import Literal

import numpy as np
from scipy.stats import norm

from stages.data.confusion import class_counts, confusion_counts, f1_per_class, f1_weighted

Average = Literal[0, 1]
WEIGHTED, MACRO = 0, 1  # places in what `f1_values` returns
FEW_ROWS = 10  # of a class: below that its F1, and what it adds to macro F1, is hardly known


def f1_macro(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that are in the rows or predicted, as scikit-learn has it: [..., 3, classes] -> [...]."""
    return np.nanmean(f1_per_class(counts), axis=-1)


def f1_values(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Weighted and macro F1 as means over rows, so that they vary as an accuracy does: float [2, seeds, rows].

    A row's value is the score and what the row adds to it to first order (the influence function; Efron 1982, The
    Jackknife, the Bootstrap and Other Resampling Plans, chapter 6). F1 of class c is 2 tp / (g + p): its derivative in
    the share of rows of one kind is (2 [right] - F1 ([gold is c] + [predicted is c])) rows / (g + p).

    Args:
        gold: int [rows].
        predicted: int [seeds, rows].
    """
    rows = len(gold)
    found = np.empty((2, *predicted.shape))
    for place, answers in enumerate(predicted):
        counts = class_counts(confusion_counts(gold, answers, classes))
        f1 = np.nan_to_num(f1_per_class(counts))
        for average, score in ((WEIGHTED, f1_weighted(counts)), (MACRO, f1_macro(counts))):
            per_row = weights(counts, average) * rows / np.maximum(counts[1] + counts[2], 1)
            adds = 2 * (answers == gold) * per_row[gold] - (f1 * per_row)[gold] - (f1 * per_row)[answers]
            found[average, place] = score + adds + (f1[gold] - score if average == WEIGHTED else 0)
    return found


def weights(counts: np.ndarray, average: Average) -> np.ndarray:
    """How much each class counts in the mean, [classes]; 0 for a class that is neither in the rows nor predicted."""
    there = counts[1] + counts[2] > 0
    return counts[1] / counts[1].sum() if average == WEIGHTED else there / there.sum()


def f1_bias(counts: np.ndarray, average: Average) -> float:
    """How much higher F1 is than the truth on the mean, to second order; counts: of independent rows, [3, classes].

    F1 of a class is 2J / (1 + J), a bent line, of the unbiased J = tp / (tp + fp + fn): its bias is
    -F1 (1 - F1) / (g + p). In weighted F1 it varies together with its weight too.
    """
    right, gold, answered = counts
    f1, sides = np.nan_to_num(f1_per_class(counts)), np.maximum(gold + answered, np.finfo(float).tiny)
    bias = -weights(counts, average) * f1 * (1 - f1)
    if average == WEIGHTED:
        bias = bias + f1 * (answered - right) / gold.sum()
    return float((bias / sides).sum())


def f1_interval(
    score: float, confusion: np.ndarray, average: Average, by: float, effect: float, confidence: float
) -> tuple[float, float]:
    """Interval of weighted or macro F1: (low, high). It always holds the score itself.

    The influence function's, with three corrections without which it holds the truth too seldom where classes are many
    or have few rows (`python benchmarks/intervals.py` has the tables):

    - Where z^2/2 right and z^2/2 wrong rows are added before anything is computed, a share near 0 or 1 has a good
      interval (Agresti and Coull 1998, The American Statistician 52). A class gets as much of them as it would have of
      the variance if all classes were equally good, so that a class of four rows, all right, is not sure. Of a wrong
      row that is its gold class; it is answered with the other classes by their frequency.
    - F1 is biased (`f1_bias`), which is taken off.
    - The variance of J that m rows estimate is (m - 1) / m of the true one.

    Args:
        score: F1, of several trainings their mean.
        confusion: rows of each gold and predicted class, of several trainings their mean, [classes, classes].
        by: `adjusted_design_effect`, by which counts are divided so that independent rows had the score's variance.
        effect: the design effect of rows that share a group, by which F1 is more biased.
        confidence: such as 0.95.
    """
    z, counts = norm.ppf((1 + confidence) / 2), class_counts(confusion) / by
    right, gold, answered = counts
    there = gold + answered > 0
    frequency = (gold + answered) / (gold + answered).sum()
    touched = np.where(there, gold + answered - right, 1)  # rows that the class is in, as gold or as answer
    share = weights(counts, average) ** 2 / touched
    added = z**2 / 2 * share / share.sum()
    left = 1 - frequency  # of all other classes
    wrong_of = np.divide(added, left, out=np.zeros_like(added), where=left > 0)
    added_answers = frequency * (wrong_of.sum() - wrong_of)
    total = np.stack([right + added, gold + 2 * added, answered + added + added_answers])

    f1, weight = np.nan_to_num(f1_per_class(total)), weights(total, average)
    sides = np.where(there, total[1] + total[2], 1)
    seen = touched * by / effect + 2 * added + added_answers
    inflated = np.sqrt(np.maximum(1, seen / np.maximum(seen - 1, 0.5)))
    # What one row adds: where it is right; to a wrong row's gold class; to a wrong row's answer.
    adds_answer = -weight * f1 / sides * inflated
    adds_right, adds_gold = weight * 2 / sides * inflated + 2 * adds_answer, adds_answer
    if average == WEIGHTED:
        weighs = (f1 - weight @ f1) / total[1].sum()
        adds_right, adds_gold = adds_right + weighs, adds_gold + weighs
    wrong = confusion / by - np.diag(right)
    variance = (
        total[0] @ adds_right**2
        + (gold - right + added) @ adds_gold**2
        + (answered - right + added_answers) @ adds_answer**2
        + 2 * adds_gold @ wrong @ adds_answer
        + 2 * (wrong_of * adds_gold) @ (frequency @ adds_answer - frequency * adds_answer)
    )
    middle = score + weight @ f1 - weights(counts, average) @ np.nan_to_num(f1_per_class(counts))
    middle -= f1_bias(total, average) * effect / by
    half = z * np.sqrt(variance)
    return float(max(0, min(score, middle - half))), float(min(1, max(score, middle + half)))
