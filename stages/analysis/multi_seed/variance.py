"""Components of variance of a mean over trainings and rows: how much the seeds contribute, and how much the rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.analysis.design_effects import effective_groups

Design = Literal["paired seeds", "independent seeds", "rows only"]


@dataclass(frozen=True)
class VarianceComponent:
    """One component of the variance of an estimate. It is an estimate itself, with its own degrees of freedom."""

    variance: float
    degrees_of_freedom: float


# One group says nothing about others. A difference between -1 and 1 has at most this variance.
ONE_GROUP = VarianceComponent(1.0, math.inf)


def mean_components(values: np.ndarray, groups: np.ndarray, one_row: float) -> list[VarianceComponent]:
    """Variance of the mean over several trainings and all rows: the seeds' component, then the rows'.

    Args:
        values: float [seeds, rows].
        groups: rows of the same group are not independent, [rows].
        one_row: from `measures.one_row_variance`.
    """
    return [seed_component(values, one_row), row_component(shared_variance(row_covariances(values, groups)), groups)]


def difference_components(
    values: np.ndarray, other_values: np.ndarray, groups: np.ndarray, design: Design, one_row: float
) -> list[VarianceComponent]:
    """Variance of the difference of two recipes' mean scores: the seeds' components, if any, then the rows'.

    Welch 1938 (Biometrika 29) pools the components of two samples of seeds. They are not pooled if a recipe with two
    seeds is compared with one that has more. If the two seeds vary more, the pooled degrees of freedom are too many,
    and an interval of 95% covers only 90%.

    Args:
        values, other_values: from `row_values`, float [seeds, rows] of each recipe. With paired seeds, both must have
            the seeds in the same order.
        groups: rows of the same group are not independent, [rows].
        one_row: from `measures.one_row_variance`.
    """
    components: list[VarianceComponent]
    if design == "paired seeds":
        components = mean_components(other_values - values, groups, one_row)
    elif design == "rows only":
        change = other_values.mean(axis=0, keepdims=True) - values.mean(axis=0, keepdims=True)
        # No changed row among these does not mean that no row could change.
        components = [row_component(max(shared_variance(row_covariances(change, groups)), one_row), groups)]
    else:
        covariances, count = row_covariances(np.concatenate([values, other_values]), groups), len(values)
        across = covariances[:, :count, count:].mean(axis=(1, 2)).min()
        within = shared_variance(covariances[:, :count, :count]) + shared_variance(covariances[:, count:, count:])
        seeds = [seed_component(values, one_row), seed_component(other_values, one_row)]
        two_against_more = min(len(values), len(other_values)) == 2 < max(len(values), len(other_values))
        components = [
            *(seeds if two_against_more else [pool(seeds)]),
            row_component(max(0.0, within - 2 * across), groups),
        ]
    if len(np.unique(groups)) == 1:
        components[-1] = ONE_GROUP
    return components


def change_component(changes: np.ndarray, groups: np.ndarray, one_row: float) -> VarianceComponent:
    """Variance of the difference in F1 of these trainings, over other samples of rows.

    As in McNemar's test, only rows with a changed answer count, and their mean is not subtracted. One changed row is
    added: in a class of a few rows, no change does not mean that no row could change. `difference_components` would be
    too small: in simulations of 28 uneven classes and 1,000 rows, 16% of differences between equal recipes were
    significant.

    Args:
        changes: from `f1_changes`, [rows].
        groups: rows of the same group are not independent, [rows].
        one_row: from `measures.one_row_variance`.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums = np.bincount(group, weights=changes)
    if len(sums) == 1:
        return ONE_GROUP
    return row_component(max(changes @ changes, sums @ sums) / len(changes) ** 2 + one_row, groups)


def seed_component(values: np.ndarray, one_row: float) -> VarianceComponent:
    """Variance of the mean over seeds, from the mean of each training; values: [seeds, rows].

    It includes the randomness of a training's answers to single rows. A score changes in steps of one row, so trainings
    with equal scores may still differ by less than a step. The variance of that is step^2 / 12 (Sheppard 1898).
    """
    count = len(values)
    return VarianceComponent(float(max(values.mean(axis=1).var(ddof=1), one_row / 12) / count), count - 1)


def row_component(variance: float, groups: np.ndarray) -> VarianceComponent:
    """The rows' component, with the degrees of freedom of as many groups of equal size."""
    return VarianceComponent(variance, max(1.0, effective_groups(groups) - 1))


def pool(components: Sequence[VarianceComponent]) -> VarianceComponent:
    """The sum of components, with degrees of freedom by Satterthwaite 1946 (Biometrics Bulletin 2)."""
    variance = sum(part.variance for part in components)
    return VarianceComponent(
        variance, variance**2 / sum(part.variance**2 / part.degrees_of_freedom for part in components)
    )


def row_covariances(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Covariances of the trainings' means over other samples of rows, [2, trainings, trainings].

    The first matrix treats all rows as independent. The second one treats the groups as the sampled units, and uses
    their sums (Kish 1965, Survey Sampling).

    Args:
        values: float [trainings, rows].
        groups: rows of the same group are not independent, [rows].
    """
    rows = values.shape[1]
    deviations = (values - values.mean(axis=1, keepdims=True)) / rows
    names, group = np.unique(groups, return_inverse=True)
    independent = rows / max(1, rows - 1) * deviations @ deviations.T
    if len(names) in (1, rows):  # one group: as if all its rows were alike, as in `design_effect`
        return np.stack([independent, independent * (rows / len(names))])
    order = np.argsort(group, kind="stable")
    sums = np.add.reduceat(deviations[:, order], np.searchsorted(group[order], np.arange(len(names))), axis=1)
    return np.stack([independent, len(names) / (len(names) - 1) * sums @ sums.T])


def shared_variance(covariances: np.ndarray) -> float:
    """The variance that trainings share because they answer the same rows: the mean covariance of two trainings.

    Groups never narrow an interval, and neither does a covariance that is negative by chance.

    Args:
        covariances: from `row_covariances`, [2, trainings, trainings]; for one training, its variance.
    """
    count = covariances.shape[-1]
    if count == 1:
        return float(covariances.max())
    diagonal = np.trace(covariances, axis1=1, axis2=2)
    return float(max(0, ((covariances.sum(axis=(1, 2)) - diagonal) / (count * (count - 1))).max()))


def row_standard_error(values: np.ndarray, groups: np.ndarray, one_row: float) -> float:
    """Standard error of a mean over rows, at least that of one row.

    Args:
        values: [rows]. Equal ones do not mean that no row could differ.
        one_row: from `measures.one_row_variance`.
    """
    return math.sqrt(max(shared_variance(row_covariances(values[None], groups)), one_row))
