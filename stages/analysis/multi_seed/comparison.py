"""The difference of each recipe from the first one: interval, p-value and verdict. Start at `compare_recipes`."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stages.analysis.intervals import gain_interval
from stages.analysis.measures import f1_changes, one_row_variance
from stages.analysis.multi_seed.power import smallest_detectable_difference
from stages.analysis.multi_seed.row_values import GoldRows, row_values
from stages.analysis.multi_seed.scores import Recipe, RecipeScores, score_recipe
from stages.analysis.multi_seed.significance import holm, margin_of_error, p_value
from stages.analysis.multi_seed.variance import (
    Design,
    VarianceComponent,
    change_component,
    difference_components,
    row_standard_error,
)
from stages.analysis.significance_tests import mcnemar

METHOD_VERSION = 3  # raise it if the same rows get other intervals

Verdict = Literal["better", "worse", "not significant"]


@dataclass(frozen=True)
class Difference:
    """How much higher a recipe's score is than that of the first recipe, in the leading metric.

    Attributes:
        design: "paired seeds": trainings with equal seeds are compared with each other. "independent seeds": two
            samples of trainings are compared. "rows only": one recipe has only one seed, so only these trainings are
            compared. The other recipe then has its training of that seed, or the mean of all its trainings if it has
            no such training. The result says nothing about other seeds.
        value, low, high: the difference and its interval, not adjusted for several comparisons.
        p: two-sided p-value of no difference.
        p_holm: the same, adjusted for all comparisons with the first recipe.
        verdict: from `p_holm`.
        row_standard_error: standard error of the difference of these trainings, due to the choice of rows.
        smallest_detectable: the smallest true difference that such an experiment finds significant with a power of 80%,
            at this confidence and without adjustment.
    """

    name: str
    design: Design
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    verdict: Verdict
    row_standard_error: float
    smallest_detectable: float


def compare_recipes(
    recipes: Sequence[Recipe], rows: GoldRows, confidence: float
) -> tuple[list[RecipeScores], list[Difference]]:
    """Score each recipe, and compare each but the first with the first.

    Args:
        recipes: one or more.
        confidence: level of the intervals and of the verdict, such as 0.95.
    """
    first, *others = recipes
    rows = replace(rows, groups=np.unique(rows.groups, return_inverse=True)[1])  # integers: names are slow to sort
    differences = [compare_pair(first, other, rows, confidence) for other in others]
    adjusted = holm([difference.p for difference in differences])
    return [score_recipe(recipe, rows, confidence) for recipe in recipes], [
        replace(difference, p_holm=p, verdict=decide_verdict(difference.value, p, confidence))
        for difference, p in zip(differences, adjusted, strict=True)
    ]


def compare_pair(first: Recipe, other: Recipe, rows: GoldRows, confidence: float) -> Difference:
    """Compare a recipe with the first one, as if it were the only comparison."""
    design = choose_design(first.seeds, other.seeds)
    if design == "paired seeds":
        first, other = sort_by_seed(first), sort_by_seed(other)
    if design == "rows only":
        first, other = select_common_seed(first, other), select_common_seed(other, first)
    value, low, high, p, components = estimate_difference(
        first.predictions, other.predictions, rows, design, confidence
    )
    if design == "rows only" and rows.metric != "accuracy":  # as in the interval
        row_error = math.sqrt(components[-1].variance)
    else:
        means = [row_values(rows, recipe.predictions).mean(axis=0) for recipe in (first, other)]
        one_row = one_row_variance(rows.gold, rows.metric, rows.classes)
        row_error = row_standard_error(means[1] - means[0], rows.groups, one_row)
    return Difference(
        other.name, design, value, low, high, p, p, decide_verdict(value, p, confidence),
        row_standard_error=row_error,
        smallest_detectable=smallest_detectable_difference(components, confidence),
    )  # fmt: skip


def choose_design(seeds: Sequence[int], other_seeds: Sequence[int]) -> Design:
    """How to compare two recipes with these seeds.

    Trainings with the same seed have the same head and the same order of rows. Comparing them in pairs is right
    whatever they share for that reason, and also if the seeds of one recipe vary more (Scheffé 1943, Annals of
    Mathematical Statistics 14).
    """
    if 1 in (len(seeds), len(other_seeds)):
        return "rows only"
    return "paired seeds" if sorted(seeds) == sorted(other_seeds) else "independent seeds"


def sort_by_seed(recipe: Recipe) -> Recipe:
    """Return the recipe with its trainings in the order of their seeds."""
    order = np.argsort(recipe.seeds)
    return replace(recipe, seeds=tuple(sorted(recipe.seeds)), predictions=recipe.predictions[order])


def select_common_seed(recipe: Recipe, other: Recipe) -> Recipe:
    """Return the recipe with only the training that has the other recipe's one seed, or unchanged if there is none.

    Five trainings against one would measure how lucky that one seed is.
    """
    if len(other.seeds) > 1 or other.seeds[0] not in recipe.seeds:
        return recipe
    index = recipe.seeds.index(other.seeds[0])
    return replace(recipe, seeds=other.seeds, predictions=recipe.predictions[index : index + 1])


def estimate_difference(
    predictions: np.ndarray, other_predictions: np.ndarray, rows: GoldRows, design: Design, confidence: float
) -> tuple[float, float, float, float, list[VarianceComponent]]:
    """Return (difference, low, high, p, its components of variance).

    If both recipes have one training, p of a difference in accuracy is McNemar's and the interval is Tango's, as for
    the tuned model and a reference.

    Args:
        predictions, other_predictions: a label array of each training. With paired seeds, both must have the seeds in
            the same order.
    """
    values, other_values = (row_values(rows, answers) for answers in (predictions, other_predictions))
    value, one_row = float(other_values.mean() - values.mean()), one_row_variance(rows.gold, rows.metric, rows.classes)
    if design == "rows only" and rows.metric != "accuracy":
        pairs = itertools.product(predictions, other_predictions)
        changes = np.mean([f1_changes(rows.gold, *pair, rows.classes) for pair in pairs], axis=0)
        components = [change_component(changes, rows.groups, one_row)]
    else:
        components = difference_components(values, other_values, rows.groups, design, one_row)
    if len(values) == len(other_values) == 1 and rows.metric == "accuracy":
        changed = (other_values - values)[0].astype(int)
        p = mcnemar(changed, rows.groups)
        return value, *gain_interval(changed, rows.groups, p, confidence), p, components
    margin = margin_of_error(components, 1 - confidence)
    return value, max(-1.0, value - margin), min(1.0, value + margin), p_value(value, components), components


def decide_verdict(difference: float, p: float, confidence: float) -> Verdict:
    """The verdict on a difference; p: adjusted for all comparisons."""
    if p >= 1 - confidence:
        return "not significant"
    return "better" if difference > 0 else "worse"
