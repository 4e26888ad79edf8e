"""Intervals of shares, differences and gains whose rows may share a group (such as a premise).

Pure functions of arrays, no file, no clock. Shares are 0 to 1. What can't be known (an interval of no rows) is NaN.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from stages.analysis.design_effects import adjusted_design_effect


def wilson(right: float, rows: float, confidence: float) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927): (low, high). The counts may be effective ones, no whole numbers.

    With z the normal quantile and s the share: (s + z^2/2n ± z sqrt(s(1-s)/n + z^2/4n^2)) / (1 + z^2/n).
    """
    if not rows:
        return np.nan, np.nan
    share, z2 = right / rows, norm.ppf((1 + confidence) / 2) ** 2 / rows
    middle, half = share + z2 / 2, np.sqrt(z2 * (share * (1 - share) + z2 / 4))
    low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    return float(low if right else 0), float(high if right < rows else 1)  # rounding must not leave the edges


def newcombe(
    right: float, rows: float, other_right: float, other_rows: float, confidence: float
) -> tuple[float, float, float]:
    """How much higher one share is than another's, of different rows: (difference, low, high).

    The interval joins the two Wilson intervals (Newcombe 1998, Statistics in Medicine 17, method 10). The counts may
    be effective ones.
    """
    if not rows or not other_rows:
        return np.nan, np.nan, np.nan
    share, other = right / rows, other_right / other_rows
    (low, high), (other_low, other_high) = (
        wilson(right, rows, confidence),
        wilson(other_right, other_rows, confidence),
    )
    gap = share - other
    return gap, gap - np.hypot(share - low, other_high - other), gap + np.hypot(high - share, other - other_low)


def tango(fixed: float, broken: float, rows: float, confidence: float) -> tuple[float, float]:
    """Score interval of a paired difference, (fixed - broken) / rows: (low, high). Counts may be effective ones.

    The differences d at which |fixed - broken - rows d| <= z sqrt(rows (2q + d (1-d))), with q the most likely share of
    broken rows if d were true (Tango 1998, Statistics in Medicine 17, 891-908).
    """
    z = norm.ppf((1 + confidence) / 2)
    return -_tango_high(broken / rows, fixed / rows, rows, z), _tango_high(fixed / rows, broken / rows, rows, z)


def _tango_high(up: float, down: float, rows: float, z: float) -> float:
    def inside(gap):
        b = (2 - up + down) * gap - up - down
        q = (np.sqrt(max(0, b**2 + 8 * down * gap * (1 - gap))) - b) / 4
        return up - down - gap + z * np.sqrt(max(0, 2 * q + gap * (1 - gap)) / rows)

    start = up - down + 1e-10  # at the estimate itself the error can be 0, as where no row changed: a false root
    return float(brentq(inside, start, 1)) if start < 1 else 1.0


def gain_interval(changed: np.ndarray, groups: np.ndarray, p: float, confidence: float) -> tuple[float, float]:
    """Tango's interval of the gain, on counts over their `adjusted_design_effect`: (low, high).

    It reaches to 0 where `mcnemar` can't tell the gain from chance at this level; elsewhere it leaves 0 out, since that
    p is at least the score test's.

    Args:
        changed: from `comparison.changes`, [rows].
        groups: what rows share, [rows].
        p: their `mcnemar`.
    """
    by = adjusted_design_effect(changed, groups, confidence)
    low, high = tango((changed == 1).sum() / by, (changed == -1).sum() / by, len(changed) / by, confidence)
    return (low, high) if p < 1 - confidence else (min(low, 0.0), max(high, 0.0))
