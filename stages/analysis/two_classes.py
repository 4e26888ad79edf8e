"""Scores of two classes by the probability of the second: ROC AUC, average precision, and the best threshold.

The second class is the last of `data.classes`; list the one that you look for last. Pure functions of arrays.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri  # many times faster than scipy.stats.norm
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from stages.analysis.design_effects import adjusted_design_effect
from stages.analysis.intervals import Interval


def roc_auc(gold: np.ndarray, scores: np.ndarray) -> float:
    """Chance that a row of the second class has a higher score than one of the first; NaN without both classes.

    Args:
        gold: class numbers 0 and 1, int [rows].
        scores: probabilities of the second class, [rows].
    """
    return float(roc_auc_score(gold, scores)) if len(np.unique(gold)) == 2 else np.nan


def average_precision(gold: np.ndarray, scores: np.ndarray) -> float:
    """Mean precision of the second class at the rank of each of its rows; NaN without such a row."""
    return float(average_precision_score(gold, scores)) if gold.any() else np.nan


def roc_auc_interval(gold: np.ndarray, scores: np.ndarray, groups: np.ndarray, confidence: float) -> Interval | None:
    """Score interval of the ROC AUC; None without two classes.

    It contains the values A with |AUC - A| <= z sqrt(c v(A)). There v(A) is the variance of Hanley and McNeil (1982,
    Radiology 143) as Newcombe (2006, Statistics in Medicine 25, method 5) uses it, so that an AUC of 1 has an interval.
    The factor c makes v right for these scores and groups. It is the variance by structural components (DeLong et al.
    1988, Biometrics 44; of groups: Obuchowski 1997, Biometrics 53) divided by v(AUC), and at least the design effect.

    Args:
        gold, scores: as in `roc_auc`.
        groups: rows of the same group are not independent, [rows].
        confidence: such as 0.95.
    """
    second = gold == 1
    seconds, firsts = int(second.sum()), int((~second).sum())
    if not seconds or not firsts:
        return None
    # Share of the other class's rows that are on the right side of each row, ties as halves.
    ranks = rankdata(scores)
    components = np.empty(len(gold))
    components[second] = (ranks[second] - rankdata(scores[second])) / firsts
    components[~second] = 1 - (ranks[~second] - rankdata(scores[~second])) / seconds
    auc = float(components[second].mean())
    contributions = (components - auc) / np.where(second, seconds, firsts)

    def variance(area: float) -> float:
        pairs = (seconds + firsts) / 2 - 1
        return area * (1 - area) * (1 + pairs * ((1 - area) / (2 - area) + area / (1 + area))) / (seconds * firsts)

    observed = variance(auc)
    ratio = max(1.0, float((contributions**2).sum()) / observed) if observed else 1.0
    factor = ratio * adjusted_design_effect(contributions, groups, confidence)
    z = ndtri((1 + confidence) / 2)

    def end(limit: float) -> float:
        start = auc + 1e-9 * np.sign(limit - auc)  # at an AUC of 0 or 1 the variance is 0: a false root
        if auc == limit:
            return limit
        return float(brentq(lambda area: abs(area - auc) - z * np.sqrt(factor * variance(area)), start, limit))

    return Interval(end(0.0), end(1.0))
