"""Mean average precision: how well the probabilities of each label rank the rows. Pure functions of arrays."""

import numpy as np
from scipy.stats import hmean

from stages.analysis.design_effects import adjusted_design_effect, design_effect
from stages.analysis.intervals import Interval, wilson

FEW_ROWS = 6  # harmonic mean of the labels' rows; with fewer rows, much of the bias may remain


def average_precisions(gold: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each label, as in scikit-learn, [labels]; NaN for a label that no row has.

    Args:
        gold: bool [rows, labels].
        scores: such as probabilities, [rows, labels]. Equal scores have equal ranks.
    """
    return np.array([_average_precision(*column)[0] for column in zip(gold.T, scores.T, strict=True)])


def mean_average_precision(gold: np.ndarray, scores: np.ndarray) -> float:
    """Mean of `average_precisions` over the labels that rows have; NaN if there is none."""
    values = average_precisions(gold, scores)
    return float(np.nanmean(values)) if gold.any() else np.nan


def average_precision_values(gold: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The jackknife's pseudo-values of the average precision of each label that rows have, float [labels, rows].

    A row's value is n S - (n - 1) S', with the score S of all n rows and S' of the others. The values vary as the score
    does, and their mean is the score without most of its bias (Efron 1982, The Jackknife, the Bootstrap and Other
    Resampling Plans, chapters 2 and 3). A label's only row has no S': it counts as S.
    """
    rows, columns = len(gold), [_average_precision(*each) for each in zip(gold.T, scores.T, strict=True)]
    return np.stack([rows * value - (rows - 1) * others for value, others in columns if not np.isnan(value)])


def average_precision_interval(
    gold: np.ndarray, scores: np.ndarray, groups: np.ndarray, confidence: float
) -> Interval | None:
    """Interval of the mean average precision. It contains the score. None with too few rows, see `FEW_ROWS`.

    It is Wilson's of a share of n rows around the score without its bias. n is the number that has the variance of
    `average_precision_values`, but at most K^2 / sum of 1 / m, of K labels with m rows each: the rows that a mean over
    such labels is worth. Without this limit, 95% intervals of nearly perfect models cover the truth in 57 to 90 of 100
    samples. `python benchmarks/intervals.py --tables labels` prints how often this interval covers it.
    """
    rows = gold.sum(axis=0)
    rows = rows[rows > 0]
    if not len(rows) or hmean(rows) < FEW_ROWS:
        return None
    each, values = average_precisions(gold, scores), average_precision_values(gold, scores)
    effects = np.array([design_effect(label, groups) for label in values])
    score, mean = float(np.nanmean(each)), values.mean(axis=0)
    middle = score - float((effects * (each[~np.isnan(each)] - values.mean(axis=1))).mean())
    size, variance = len(rows) * hmean(rows), mean.var(ddof=1) / len(gold)
    if variance > np.finfo(float).eps:  # else all labels rank the rows perfectly
        size = min(size, score * (1 - score) / variance)
    size /= adjusted_design_effect(mean, groups, confidence)
    low, high = wilson(min(1, max(0, middle)) * size, size, confidence)
    return Interval(min(low, score), max(high, score))


def _average_precision(gold: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision of one label, and that without each row, float [rows]; NaN for a label that no row has."""
    positives = int(gold.sum())
    if not positives:
        return np.nan, np.full(len(gold), np.nan)
    ranks = np.unique(-scores, return_inverse=True)[1]  # 0: the highest score
    of_label, of_all = (np.bincount(ranks, weights=weights) for weights in (gold.astype(float), np.ones(len(gold))))
    found, above = of_label.cumsum(), of_all.cumsum()  # at and above each rank
    precisions, less = of_label * found / above, np.maximum(above - 1, 1)
    value = precisions.sum() / positives
    before = precisions.cumsum() - precisions
    # Without a row, the precisions at its rank and below change.
    below = _sum_below(of_label * found / less)
    without = (before + of_label * found / less + below) / positives
    if positives == 1:
        return value, np.where(gold, value, without[ranks])
    below = _sum_below(of_label * (found - 1) / less)
    without_label = (before + (of_label - 1) * (found - 1) / less + below) / (positives - 1)
    return value, np.where(gold, without_label[ranks], without[ranks])


def _sum_below(values: np.ndarray) -> np.ndarray:
    """Sum of the values after each one."""
    return np.asarray(values.sum() - values.cumsum())
