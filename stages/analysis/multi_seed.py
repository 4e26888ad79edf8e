"""Settings compared over seeds and rows: is one better than another, or only luckier?

A setting is trained with several seeds, and every training answers the same test rows. So a score varies for two
reasons: other seeds would give other trainings, and other rows would ask other questions. Readers and cases in
radiology are the same design, and its model is used here (Obuchowski and Rockette 1995, Communications in Statistics:
Simulation and Computation 24; Hillis 2007, Statistics in Medicine 26): the variance of a setting's mean score is that
of its trainings over their number, and the covariance that trainings have by answering the same rows.

Pure functions of arrays; shares and their differences are 0 to 1. `compare` is the one to call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit  # many times faster than scipy.stats.t
from scipy.stats import chi2, norm

from stages.analysis import design_effects
from stages.analysis.design_effects import design_effect, effective_groups
from stages.analysis.f1 import f1_interval, f1_values
from stages.analysis.intervals import gain_interval, wilson
from stages.analysis.significance_tests import mcnemar
from stages.data.confusion import confusion_counts

METHOD = 2  # raise it when the same rows would get other intervals
POWER = 0.8
QUANTILES = 256  # of the variance that a few seeds estimate, for the power
SMALLEST_P = 1e-15  # that is computed


@dataclass(frozen=True)
class Setting:
    """The trainings of one setting, which differ in seed alone.

    Attributes:
        name: for readers.
        seeds: one for each training, no two the same.
        predicted: numbers of classes, int [seeds, rows].
    """

    name: str
    seeds: tuple[int, ...]
    predicted: np.ndarray


@dataclass(frozen=True)
class Score:
    """A score of a setting, the mean of its trainings, with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """The scores of a setting.

    Attributes:
        accuracy, f1_weighted, f1_macro: their intervals are for other seeds and other rows; where there is one seed,
            for other rows alone.
        by_seed: accuracy of each training.
        seeds_deviation: standard deviation of the trainings' accuracies on these rows; NaN of one seed.
        rows_error: standard error that the accuracy of these trainings has from the choice of rows.
    """

    name: str
    seeds: tuple[int, ...]
    accuracy: Score
    f1_weighted: Score
    f1_macro: Score
    by_seed: tuple[float, ...]
    seeds_deviation: float
    rows_error: float


Kind = Literal["same seeds", "other seeds", "rows alone"]
Verdict = Literal["better", "worse", "too close to tell"]


@dataclass(frozen=True)
class Difference:
    """How much higher a setting's accuracy is than the first one's.

    Attributes:
        kind: what was compared. "same seeds": trainings of equal seed with each other. "other seeds": two samples of
            trainings. "rows alone": these trainings, whatever other seeds would give, since one of the two settings
            has one seed; of the other the training of that seed, or the mean of all where it has no such.
        gap, low, high: the difference and its interval, which is not adjusted for several comparisons.
        p: two-sided, of no difference.
        p_holm: the same, adjusted for all comparisons with the first setting.
        verdict: by `p_holm`.
        rows_error: standard error that the difference of these trainings has from the choice of rows.
        smallest: the smallest true difference that such an experiment would tell from none with a power of 80%, at
            this confidence and without adjustment.
    """

    name: str
    kind: Kind
    gap: float
    low: float
    high: float
    p: float
    p_holm: float
    verdict: Verdict
    rows_error: float
    smallest: float


@dataclass(frozen=True)
class Part:
    """A part of an estimate's variance, which is an estimate itself and has degrees of freedom."""

    variance: float
    freedom: float


def compare(
    settings: Sequence[Setting], gold: np.ndarray, groups: np.ndarray, classes: int, confidence: float
) -> tuple[list[Scores], list[Difference]]:
    """The scores of each setting, and the difference of each but the first from the first.

    Args:
        settings: one or more, all of the same rows in the same order.
        gold: the right classes, int [rows].
        groups: rows of the same group are not independent, [rows]; `np.arange(rows)` where all are.
        classes: how many there are.
        confidence: of the intervals and of the verdict, such as 0.95.
    """
    first, *others = settings
    groups = np.unique(groups, return_inverse=True)[1]  # numbers, since names are slow to sort
    found = [difference(first, other, gold, groups, confidence) for other in others]
    adjusted = holm([difference.p for difference in found])
    return [scores(setting, gold, groups, classes, confidence) for setting in settings], [
        replace(difference, p_holm=p, verdict=verdict(difference.gap, p, confidence))
        for difference, p in zip(found, adjusted, strict=True)
    ]


def scores(setting: Setting, gold: np.ndarray, groups: np.ndarray, classes: int, confidence: float) -> Scores:
    """The scores of a setting; arguments: as of `compare`."""
    right = (setting.predicted == gold).astype(float)
    weighted, macro = f1_scores(gold, setting.predicted, groups, classes, confidence)
    means = right.mean(axis=1)
    return Scores(
        setting.name,
        setting.seeds,
        score(right, groups, confidence),
        weighted,
        macro,
        tuple(means.tolist()),
        seeds_deviation=float(means.std(ddof=1)) if len(means) > 1 else math.nan,
        rows_error=rows_error(right.mean(axis=0), groups),
    )


def score(right: np.ndarray, groups: np.ndarray, confidence: float) -> Score:
    """Accuracy over trainings, with the Wilson interval of as many independent rows as have its variance.

    Args:
        right: right or not, float [seeds, rows].
        groups: what rows share, [rows].
    """
    value, rows = float(right.mean()), right.shape[1] / divisor(right, groups, confidence)
    return Score(value, *wilson(value * rows, rows, confidence))


def f1_scores(
    gold: np.ndarray, predicted: np.ndarray, groups: np.ndarray, classes: int, confidence: float
) -> list[Score]:
    """Weighted and macro F1 over trainings: `f1_interval` of their mean confusion matrix, by their variance.

    Args:
        gold: int [rows].
        predicted: int [seeds, rows].
    """
    confusion = np.mean([confusion_counts(gold, answers, classes) for answers in predicted], axis=0)
    scores = []
    for average, values in enumerate(f1_values(gold, predicted, classes)):
        by, effect = divisor(values, groups, confidence), design_effect(values.mean(axis=0), groups)
        value = float(values.mean())
        scores.append(Score(value, *f1_interval(value, confusion, average, by, effect, confidence)))
    return scores


def divisor(values: np.ndarray, groups: np.ndarray, confidence: float) -> float:
    """`design_effects.adjusted_design_effect` of a mean over trainings and rows: less than 1 where trainings are wrong
    in different rows.

    Args:
        values: float [seeds, rows].
    """
    if len(values) == 1 or not values.var() or len(np.unique(groups)) == 1:
        return design_effects.adjusted_design_effect(values[0], groups, confidence)
    width = margin(parts_of_one(values, groups), 1 - confidence)
    return (width / norm.ppf((1 + confidence) / 2)) ** 2 / (values.var() / max(1, values.shape[1] - 1))


def parts_of_one(values: np.ndarray, groups: np.ndarray) -> list[Part]:
    """Variance of the mean of several trainings and all rows: the seeds' part, then the rows'.

    Args:
        values: float [seeds, rows].
    """
    return [seeds_part(values), rows_part(shared(row_covariances(values, groups)), groups)]


def rows_part(variance: float, groups: np.ndarray) -> Part:
    """The rows' part of a variance, which the groups estimate."""
    return Part(variance, max(1.0, effective_groups(groups) - 1))


def seeds_part(values: np.ndarray) -> Part:
    """Variance of the mean over seeds, from the trainings' own means; values: [seeds, rows].

    It holds what a training's chances in each row add too. Means come in steps of one row: where they are equal they
    may differ by a part of a step, whose variance is a twelfth of its square (Sheppard 1898).
    """
    count, rows = values.shape
    return Part(float(max(values.mean(axis=1).var(ddof=1), 1 / (12 * rows**2)) / count), count - 1)


def row_covariances(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Covariances of the trainings' means over other draws of rows, [2, trainings, trainings].

    First as if all rows were independent, then of rows that come in groups: the sums of groups are what is drawn
    (Kish 1965, Survey Sampling).

    Args:
        values: float [trainings, rows].
        groups: what rows share, [rows].
    """
    rows = values.shape[1]
    apart = (values - values.mean(axis=1, keepdims=True)) / rows
    names, group = np.unique(groups, return_inverse=True)
    alone = rows / max(1, rows - 1) * apart @ apart.T
    if len(names) in (1, rows):  # of one group: as if its rows were all alike, as `design_effect`
        return np.stack([alone, alone * (rows / len(names))])
    order = np.argsort(group, kind="stable")
    sums = np.add.reduceat(apart[:, order], np.searchsorted(group[order], np.arange(len(names))), axis=1)
    return np.stack([alone, len(names) / (len(names) - 1) * sums @ sums.T])


def rows_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of a mean over rows; values: [rows]."""
    return math.sqrt(shared(row_covariances(values[None], groups)))


def shared(covariances: np.ndarray) -> float:
    """The variance that trainings share by answering the same rows: the mean covariance of two of them.

    Groups never narrow an interval, nor does a covariance that is negative by chance.

    Args:
        covariances: from `row_covariances`, [2, trainings, trainings]; of one training, its variance.
    """
    count = covariances.shape[-1]
    if count == 1:
        return float(covariances.max())
    own = np.trace(covariances, axis1=1, axis2=2)
    return float(max(0, ((covariances.sum(axis=(1, 2)) - own) / (count * (count - 1))).max()))


def difference(first: Setting, other: Setting, gold: np.ndarray, groups: np.ndarray, confidence: float) -> Difference:
    """How much higher the accuracy of another setting is than the first one's, as the only comparison."""
    how = kind(first.seeds, other.seeds)
    if how == "same seeds":
        first, other = by_seed(first), by_seed(other)
    if how == "rows alone":
        first, other = of_its_seed(first, other), of_its_seed(other, first)
    right, other_right = ((setting.predicted == gold).astype(float) for setting in (first, other))
    gap, low, high, p, parts = interval(right, other_right, groups, how, confidence)
    return Difference(
        other.name, how, gap, low, high, p, p, verdict(gap, p, confidence),
        rows_error=rows_error(other_right.mean(axis=0) - right.mean(axis=0), groups),
        smallest=smallest_difference(parts, confidence),
    )  # fmt: skip


def interval(
    right: np.ndarray, other: np.ndarray, groups: np.ndarray, how: Kind, confidence: float
) -> tuple[float, float, float, float, list[Part]]:
    """(difference, low, high, p, `parts_of_difference`); arguments: as of that.

    Of one training each: McNemar's exact p and Tango's interval, as base and tuned model are compared.
    """
    gap, parts = float(other.mean() - right.mean()), parts_of_difference(right, other, groups, how)
    if len(right) == len(other) == 1:
        changed = (other - right)[0].astype(int)
        p = mcnemar(changed, groups)
        return gap, *gain_interval(changed, groups, p, confidence), p, parts
    width = margin(parts, 1 - confidence)
    return gap, max(-1.0, gap - width), min(1.0, gap + width), p_value(gap, parts), parts


def of_its_seed(setting: Setting, other: Setting) -> Setting:
    """A setting's training with the one seed that the other setting has, where there is one; else the setting.

    The mean of five trainings beside one training would say how lucky that seed is.
    """
    if len(other.seeds) > 1 or other.seeds[0] not in setting.seeds:
        return setting
    place = setting.seeds.index(other.seeds[0])
    return replace(setting, seeds=other.seeds, predicted=setting.predicted[place : place + 1])


def by_seed(setting: Setting) -> Setting:
    """The same setting, its trainings in the order of their seeds."""
    order = np.argsort(setting.seeds)
    return replace(setting, seeds=tuple(sorted(setting.seeds)), predicted=setting.predicted[order])


def kind(seeds: Sequence[int], others: Sequence[int]) -> Kind:
    """How two settings are compared.

    Trainings of the same seed have the same head and the same order of rows. Comparing them in pairs is right whatever
    that makes them share, and also where one setting's seeds vary more than the other's (Scheffé 1943, Annals of
    Mathematical Statistics 14).
    """
    if 1 in (len(seeds), len(others)):
        return "rows alone"
    return "same seeds" if sorted(seeds) == sorted(others) else "other seeds"


def parts_of_difference(right: np.ndarray, other: np.ndarray, groups: np.ndarray, how: Kind) -> list[Part]:
    """Variance of the difference of two settings' mean accuracies: the seeds' part or parts, if any, then the rows'.

    The parts of two samples of seeds are joined as Welch 1938 does (Biometrika 29), unless a setting with two seeds
    meets one with more: if the two seeds vary more, the joint degrees of freedom promise too much (90% are covered).

    Args:
        right, other: float [seeds, rows] of each setting; of the same seeds, in the same order.
    """
    one_group = len(np.unique(groups)) == 1
    if how == "same seeds":
        parts = parts_of_one(other - right, groups)
    elif how == "rows alone":
        one_row = 1 / right.shape[1] ** 2  # that none has changed does not mean that none could
        gap = other.mean(axis=0, keepdims=True) - right.mean(axis=0, keepdims=True)
        parts = [rows_part(max(shared(row_covariances(gap, groups)), one_row), groups)]
    else:
        both, count = row_covariances(np.concatenate([right, other]), groups), len(right)
        across = both[:, :count, count:].mean(axis=(1, 2)).min()
        rows = max(0.0, shared(both[:, :count, :count]) + shared(both[:, count:, count:]) - 2 * across)
        seeds = [seeds_part(right), seeds_part(other)]
        badly_known = min(len(right), len(other)) == 2 < max(len(right), len(other))
        parts = [*(seeds if badly_known else [joined(seeds)]), rows_part(rows, groups)]
    # One group says nothing of others: a difference between -1 and 1 has at most this variance.
    return [*parts[:-1], Part(1.0, math.inf)] if one_group else parts


def joined(parts: Sequence[Part]) -> Part:
    """The sum of parts with its degrees of freedom by Satterthwaite 1946 (Biometrics Bulletin 2)."""
    variance = sum(part.variance for part in parts)
    return Part(variance, variance**2 / sum(part.variance**2 / part.freedom for part in parts))


def margin(parts: Sequence[Part], level: float) -> float:
    """Half the width of an interval that misses in a share `level` of experiments: the standard error times the mean of
    the parts' t quantiles, weighted by variance.

    That is Cochran's quantile (Cochran and Cox 1950, Experimental Designs). Student's own, with the
    degrees of freedom of Satterthwaite and Hillis, is too small where two seeds have most of the variance: the interval
    then covers as little as 87%, and this one 94 to 98%.
    """
    variance = sum(part.variance for part in parts)
    weighted = sum(part.variance * quantile(level, part.freedom) for part in parts)
    return float(weighted / math.sqrt(variance))


def quantile(level: float, freedom: float) -> float:
    """What Student's t leaves out on both sides in a share `level`."""
    return -stdtrit(freedom, level / 2)


def p_value(gap: float, parts: Sequence[Part]) -> float:
    """The p of no difference: the level at which the interval just reaches 0."""
    if not gap:
        return 1.0
    if margin(parts, SMALLEST_P) <= abs(gap):
        return SMALLEST_P
    return math.exp(brentq(lambda log: margin(parts, math.exp(log)) - abs(gap), math.log(SMALLEST_P), 0))


def power(gap: float, parts: Sequence[Part], confidence: float) -> float:
    """The chance to tell a true difference from none, were the parts' variances the true ones.

    The estimate is normal, the seeds' estimated variances are chi-square, and the interval is as `margin` makes it; of
    seeds alone that is the power of the t test by the noncentral t distribution.
    """
    error = math.sqrt(sum(part.variance for part in parts))
    *seeds, rows = parts
    each = QUANTILES if len(seeds) == 1 else math.isqrt(QUANTILES) * 2
    drawn = [part.variance * chi2.ppf((np.arange(each) + 0.5) / each, part.freedom) / part.freedom for part in seeds]
    drawn = [*np.meshgrid(*drawn), rows.variance]
    quantiles = [quantile(1 - confidence, part.freedom) for part in parts]
    width = sum(v * q for v, q in zip(drawn, quantiles, strict=True)) / np.sqrt(sum(drawn))
    return float(np.mean(norm.cdf((gap - width) / error) + norm.cdf((-gap - width) / error)))


def smallest_difference(parts: Sequence[Part], confidence: float) -> float:
    """The true difference that is told from none with a chance of `POWER`."""
    high = 4 * margin(parts, 1 - confidence) + 4 * math.sqrt(sum(part.variance for part in parts))
    return float(brentq(lambda gap: power(gap, parts, confidence) - POWER, 0, high))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6), in the order given."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def verdict(gap: float, p: float, confidence: float) -> Verdict:
    """The difference in words; p: adjusted for all that were compared."""
    if p >= 1 - confidence:
        return "too close to tell"
    return "better" if gap > 0 else "worse"
