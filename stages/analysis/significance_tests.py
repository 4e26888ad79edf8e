"""The p-value of a comparison of two models on the same rows, which may share a group (such as a premise).

Pure functions of arrays, no file, no clock.
"""

import numpy as np
from scipy.special import stdtr  # many times faster than scipy.stats.t
from scipy.stats import binom

from stages.analysis.design_effects import degrees_of_freedom, design_effect


def mcnemar(changed: np.ndarray, groups: np.ndarray) -> float:
    """Two-sided p of the changed rows, were either way as likely (McNemar 1947); 1 if none is changed.

    The largest of three, so that neither rows that share a premise nor the way of counting make it too small, and that
    it never contradicts the interval: exact, each row's sign at random; exact, the sign of each group's sum at random;
    and the score test with the design effect and Student's t, whose inversion is `gain_interval`. With one row a group
    the first two are equal, and the third is smaller but for p under 1e-4.

    Args:
        changed: from `comparison.changes`, [rows].
        groups: what rows share, [rows].
    """
    changed = np.asarray(changed)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group, weights=changed).round().astype(int)
    score = abs(changed.sum()) / np.sqrt(max(1, np.abs(changed).sum()) * design_effect(changed, groups))
    return float(max(sign_flips(changed), sign_flips(sums), 2 * stdtr(degrees_of_freedom(changed, groups), -score)))


def sign_flips(values: np.ndarray) -> float:
    """Exact p of a sum of whole numbers, were each one's sign random (Fisher 1935): P(|sum of ± v| >= |sum of v|)."""
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    chances = np.ones(1)  # of the sums from -total to total
    for size, count in zip(sizes, counts, strict=True):
        of_size = np.zeros(2 * size * count + 1)
        of_size[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_size)
    total, seen = len(chances) // 2, abs(values.sum())
    return min(1.0, 2 * chances[total + seen :].sum()) if seen else 1.0
