"""The p-value of a comparison of two models on the same rows. Rows may share a group, such as a premise.

Pure functions of arrays.
"""

import functools

import numpy as np
from scipy.special import stdtr  # many times faster than scipy.stats.t
from scipy.stats import binom

from stages.analysis.design_effects import degrees_of_freedom, design_effect


def mcnemar(changes: np.ndarray, groups: np.ndarray) -> float:
    """Two-sided p of the changed rows if both directions are equally likely (McNemar 1947); 1 if no row changed.

    It is the largest of three p-values. Neither rows that share a group nor the choice of the test can make it too
    small, and it never contradicts `gain_interval`:

    - exact, with the sign of each row at random;
    - exact, with the sign of each group's sum at random;
    - the score test with the design effect and Student's t, whose inversion is `gain_interval`.

    With one row per group the first two are equal, and the third is smaller unless p is below 1e-4.

    Args:
        changes: from `paired_difference.find_changes`, [rows].
        groups: rows of the same group are not independent, [rows].
    """
    changes = np.asarray(changes)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group, weights=changes).round().astype(int)
    score = abs(changes.sum()) / np.sqrt(max(1, np.abs(changes).sum()) * design_effect(changes, groups))
    score_test = 2 * stdtr(degrees_of_freedom(changes, groups), -score)
    return float(max(sign_flips(changes), sign_flips(sums), score_test))


def sign_flips(values: np.ndarray) -> float:
    """Exact p of a sum of whole numbers if each sign is random (Fisher 1935): P(|sum of ± v| >= |sum of v|)."""
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    probabilities = np.ones(1)  # of the sums from -total to total
    for size, count in zip(sizes, counts, strict=True):
        of_size = np.zeros(2 * size * count + 1)
        of_size[:: 2 * size] = positive_signs(count)
        probabilities = np.convolve(probabilities, of_size)
    total, observed = len(probabilities) // 2, abs(values.sum())
    return min(1.0, 2 * probabilities[total + observed :].sum()) if observed else 1.0


@functools.lru_cache(1000)
def positive_signs(count: int) -> np.ndarray:
    """Probability of each number of positive signs among `count` random ones, [count + 1]."""
    return binom.pmf(np.arange(count + 1), count, 0.5)
