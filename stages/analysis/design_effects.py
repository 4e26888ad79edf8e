"""The design effect: how much the variance of a mean grows because rows share a group, such as a premise.

Pure functions of arrays.
"""

import numpy as np
from scipy.special import ndtri, stdtrit  # many times faster than scipy.stats

FEW_GROUPS = 10  # with fewer groups, the variance between groups is a rough estimate


def design_effect(values: np.ndarray, groups: np.ndarray) -> float:
    """How many times larger the variance of a mean is than with independent rows; at least 1.

    Rows of one group resemble each other. The estimate is the variance between the groups' sums, over that of
    independent rows (Kish 1965, Survey Sampling; Rao and Scott 1992, Biometrics 48):
    [G/(G-1) * sum over groups of (sum of (v - mean))^2] / [n/(n-1) * sum of (v - mean)^2].
    Without variance, or with one group, there is no estimate. The result is then the largest possible value, as if all
    rows of a group were alike: the sum of the squared group sizes over n. Otherwise "all rows right" would look more
    certain than "all rows but one".

    Args:
        values: 1 and 0 for right and wrong, or 1, 0 and -1 for a gain; [rows].
        groups: rows of the same group are not independent; any type that sorts, [rows].
    """
    values = np.asarray(values, dtype=float)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    rows, count = len(values), len(names)
    if count == rows:
        return 1.0
    deviations = values - values.mean()
    independent = rows / (rows - 1) * (deviations**2).sum()
    if count == 1 or not independent:
        return float((np.bincount(group) ** 2).sum() / rows)
    between = count / (count - 1) * (np.bincount(group, weights=deviations) ** 2).sum()
    return float(max(1, between / independent))


def effective_groups(groups: np.ndarray) -> float:
    """How many groups of equal size hold as much information: (sum m)^2 / sum m^2 (Kish 1965)."""
    sizes = np.unique(np.asarray(groups), return_counts=True)[1].astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def degrees_of_freedom(values: np.ndarray, groups: np.ndarray) -> float:
    """Degrees of freedom of `design_effect`; infinite if it is 1 by definition or has no estimate."""
    count = len(np.unique(np.asarray(groups)))
    return max(1.0, effective_groups(groups) - 1) if 1 < count < len(groups) and np.ptp(values) else np.inf


def adjusted_design_effect(values: np.ndarray, groups: np.ndarray, confidence: float) -> float:
    """`design_effect` times (t/z)^2: few groups give a poor estimate (Korn and Graubard 1998, Survey Methodology 24).

    All intervals divide their counts of rows by it, and then treat the rows as independent. Without t, a 95% interval
    covers the accuracy in 78 to 84 of 100 samples of three groups, and in 85 to 87 of 100 samples of five groups.

    Args:
        values: 1 and 0 for right and wrong, or 1, 0 and -1 for a gain; [rows].
        groups: rows of the same group are not independent, [rows].
        confidence: of the interval, such as 0.95.
    """
    effect, degrees, tail = design_effect(values, groups), degrees_of_freedom(values, groups), (1 - confidence) / 2
    return effect if np.isinf(degrees) else effect * float(stdtrit(degrees, tail) / ndtri(tail)) ** 2


def effective_counts(hits: np.ndarray, groups: np.ndarray, confidence: float) -> tuple[float, float]:
    """(Hits, rows), both divided by `adjusted_design_effect`; hits: bool [rows]."""
    divisor = adjusted_design_effect(np.asarray(hits, dtype=float), groups, confidence)
    return np.sum(hits) / divisor, len(hits) / divisor
