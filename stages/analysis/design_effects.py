"""The design effect: how much less rows tell that share a group (such as a premise) than independent rows.

Pure functions of arrays, no file, no clock.
"""

import numpy as np
from scipy.special import stdtrit  # many times faster than scipy.stats.t
from scipy.stats import norm

FEW_GROUPS = 10  # of rows that are alike: from fewer, how much groups differ is hardly known


def design_effect(values: np.ndarray, groups: np.ndarray) -> float:
    """How many times greater the variance of a mean is than if its rows were independent: at least 1.

    Rows of one group (one premise) resemble each other. The variance between the groups' sums, over that of
    independent rows (Kish 1965, Survey Sampling; Rao and Scott 1992, Biometrics 48):
    [G/(G-1) * sum over groups of (sum of (v - mean))^2] / [n/(n-1) * sum of (v - mean)^2].
    Where that can't be known (no variance, or one group), the largest that it can be: as if a group's rows were all
    alike, the sum of its squared sizes over n. Else all right would look surer than all but one.

    Args:
        values: such as right or not; +1, 0, -1 for a gain; [rows].
        groups: what the rows share, of any type that sorts, [rows].
    """
    values = np.asarray(values, dtype=float)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    rows, count = len(values), len(names)
    if count == rows:
        return 1.0
    apart = values - values.mean()
    independent = rows / (rows - 1) * (apart**2).sum()
    if count == 1 or not independent:
        return float((np.bincount(group) ** 2).sum() / rows)
    between = count / (count - 1) * (np.bincount(group, weights=apart) ** 2).sum()
    return float(max(1, between / independent))


def effective_groups(groups: np.ndarray) -> float:
    """How many groups of equal size would tell as much: (sum m)^2 / sum m^2 (Kish 1965)."""
    sizes = np.unique(np.asarray(groups), return_counts=True)[1].astype(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def degrees_of_freedom(values: np.ndarray, groups: np.ndarray) -> float:
    """Degrees of freedom of `design_effect`; infinite where it is no estimate: no variance, one group, or one a row."""
    count = len(np.unique(np.asarray(groups)))
    return max(1.0, effective_groups(groups) - 1) if 1 < count < len(groups) and np.ptp(values) else np.inf


def adjusted_design_effect(values: np.ndarray, groups: np.ndarray, confidence: float) -> float:
    """What counts are divided by, so that the interval of as many independent rows is right: `design_effect` times
    (t/z)^2, since a few groups tell little of their variance (Korn and Graubard 1998, Survey Methodology 24).

    All intervals take it from here. Without t, an interval of 95% holds the accuracy in 78 to 84 of 100 samples of
    three groups, and in 85 to 87 of five.

    Args:
        values: such as right or not; +1, 0, -1 for a gain; [rows].
        groups: what the rows share, [rows].
        confidence: of the interval, such as 0.95.
    """
    effect, degrees, tail = design_effect(values, groups), degrees_of_freedom(values, groups), (1 - confidence) / 2
    return effect if np.isinf(degrees) else effect * float(stdtrit(degrees, tail) / norm.ppf(tail)) ** 2


def effective_counts(happened: np.ndarray, groups: np.ndarray, confidence: float) -> tuple[float, float]:
    """(How many rows it happened in, rows), both over their `adjusted_design_effect`; happened: bool [rows]."""
    by = adjusted_design_effect(np.asarray(happened, dtype=float), groups, confidence)
    return np.sum(happened) / by, len(happened) / by
