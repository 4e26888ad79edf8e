"""The scores of one recipe: accuracy and F1 over its trainings, with intervals."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri  # many times faster than scipy.stats.norm

from stages.analysis import measures
from stages.analysis.design_effects import adjusted_design_effect, design_effect
from stages.analysis.intervals import wilson
from stages.analysis.multi_seed.row_values import GoldRows, row_values
from stages.analysis.multi_seed.significance import margin_of_error
from stages.analysis.multi_seed.variance import mean_components, row_standard_error


@dataclass(frozen=True)
class Recipe:
    """The trainings of one recipe, which differ only in their seed.

    Attributes:
        name: shown to readers.
        seeds: one for each training, all different.
        predictions: a label array of each training (see `stages.data.labels`).
    """

    name: str
    seeds: tuple[int, ...]
    predictions: np.ndarray


@dataclass(frozen=True)
class MeanScore:
    """The mean score of a recipe's trainings, with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RecipeScores:
    """The scores of a recipe.

    Attributes:
        accuracy, f1_macro: their intervals cover other seeds and other rows. With one seed, they cover other rows only.
        seed_scores: each training's score in the leading metric.
        seed_deviation: standard deviation of `seed_scores`; NaN with one seed.
        row_standard_error: standard error of the mean of these trainings in the leading metric, due to the choice of
            rows.
        f1_weighted: only of rows with one class; f1_micro: only of rows with several labels.
    """

    name: str
    seeds: tuple[int, ...]
    accuracy: MeanScore
    f1_macro: MeanScore
    seed_scores: tuple[float, ...]
    seed_deviation: float
    row_standard_error: float
    f1_weighted: MeanScore | None = None
    f1_micro: MeanScore | None = None


def score_recipe(recipe: Recipe, rows: GoldRows, confidence: float) -> RecipeScores:
    """Compute all scores of a recipe; arguments: as in `compare_recipes`."""
    right = measures.row_values("accuracy", rows.gold, recipe.predictions, rows.classes)
    leading = row_values(rows, recipe.predictions)
    seed_scores = leading.mean(axis=1)
    return RecipeScores(
        recipe.name,
        recipe.seeds,
        mean_accuracy(right, rows.groups, confidence),
        seed_scores=tuple(seed_scores.tolist()),
        seed_deviation=float(seed_scores.std(ddof=1)) if len(seed_scores) > 1 else math.nan,
        row_standard_error=row_standard_error(
            leading.mean(axis=0), rows.groups, measures.one_row_variance(rows.gold, rows.metric, rows.classes)
        ),
        **mean_f1(rows.gold, recipe.predictions, rows.groups, rows.classes, confidence),
    )


def mean_accuracy(correct: np.ndarray, groups: np.ndarray, confidence: float) -> MeanScore:
    """Accuracy over trainings, with a Wilson interval. Its number of rows is the number that, if independent, would
    give the same variance.

    Args:
        correct: 1 where a training is right, float [seeds, rows].
        groups: rows of the same group are not independent, [rows].
    """
    rows = correct.shape[1]
    effective_rows = rows / effect_over_seeds(correct, groups, 1 / rows**2, confidence)
    value = float(correct.mean())
    return MeanScore(value, *wilson(value * effective_rows, effective_rows, confidence))


def mean_f1(
    gold: np.ndarray, predictions: np.ndarray, groups: np.ndarray, classes: int, confidence: float
) -> dict[str, MeanScore]:
    """F1 over trainings, by the keys of `RecipeScores`. The intervals use their mean counts and their variance.

    Args:
        gold: label array.
        predictions: a label array of each training.
    """
    scores = {}
    for key, average, metric in measures.list_averages(gold):
        values = measures.f1_values(gold, predictions, average, classes)
        adjusted = effect_over_seeds(values, groups, measures.one_row_variance(gold, metric, classes), confidence)
        effect = design_effect(values.mean(axis=0), groups)
        value = float(values.mean())
        interval = measures.mean_f1_interval(value, gold, predictions, average, classes, adjusted, effect, confidence)
        scores[key] = MeanScore(value, *interval)
    return scores


def effect_over_seeds(values: np.ndarray, groups: np.ndarray, one_row: float, confidence: float) -> float:
    """`adjusted_design_effect` of a mean over trainings and rows; may be below 1 if trainings err in different rows.

    Args:
        values: float [seeds, rows].
        one_row: from `one_row_variance`.
    """
    if len(values) == 1 or not values.var() or len(np.unique(groups)) == 1:
        return adjusted_design_effect(values[0], groups, confidence)
    margin = margin_of_error(mean_components(values, groups, one_row), 1 - confidence)
    return (margin / ndtri((1 + confidence) / 2)) ** 2 / (values.var() / max(1, values.shape[1] - 1))
