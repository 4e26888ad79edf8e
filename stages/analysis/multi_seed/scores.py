"""The scores of one recipe: accuracy and F1 over its trainings, with intervals."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri  # many times faster than scipy.stats.norm

from stages.analysis.design_effects import adjusted_design_effect, design_effect
from stages.analysis.f1 import MACRO, WEIGHTED, Average, f1_interval, f1_values
from stages.analysis.intervals import wilson
from stages.analysis.leading_metric import LeadingMetric
from stages.analysis.multi_seed.row_values import GoldRows, one_row_variance, row_values
from stages.analysis.multi_seed.significance import margin_of_error
from stages.analysis.multi_seed.variance import mean_components, row_standard_error
from stages.data.confusion import confusion_counts


@dataclass(frozen=True)
class Recipe:
    """The trainings of one recipe, which differ only in their seed.

    Attributes:
        name: shown to readers.
        seeds: one for each training, all different.
        predictions: class numbers, int [seeds, rows].
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
        accuracy, f1_weighted, f1_macro: their intervals cover other seeds and other rows. With one seed, they cover
            other rows only.
        seed_scores: each training's score in the leading metric.
        seed_deviation: standard deviation of `seed_scores`; NaN with one seed.
        row_standard_error: standard error of the mean of these trainings in the leading metric, due to the choice of
            rows.
    """

    name: str
    seeds: tuple[int, ...]
    accuracy: MeanScore
    f1_weighted: MeanScore
    f1_macro: MeanScore
    seed_scores: tuple[float, ...]
    seed_deviation: float
    row_standard_error: float


def score_recipe(recipe: Recipe, rows: GoldRows, confidence: float) -> RecipeScores:
    """Compute all scores of a recipe; arguments: as in `compare_recipes`."""
    weighted, macro = mean_f1(rows.gold, recipe.predictions, rows.groups, rows.classes, confidence)
    leading = row_values(rows, recipe.predictions)
    seed_scores = leading.mean(axis=1)
    return RecipeScores(
        recipe.name,
        recipe.seeds,
        mean_accuracy((recipe.predictions == rows.gold).astype(float), rows.groups, confidence),
        weighted,
        macro,
        tuple(seed_scores.tolist()),
        seed_deviation=float(seed_scores.std(ddof=1)) if len(seed_scores) > 1 else math.nan,
        row_standard_error=row_standard_error(leading.mean(axis=0), rows.groups),
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
) -> list[MeanScore]:
    """Weighted and macro F1 over trainings. The intervals use their mean confusion matrix and their variance.

    Args:
        gold: int [rows].
        predictions: int [seeds, rows].
    """
    confusion = np.mean([confusion_counts(gold, answers, classes) for answers in predictions], axis=0)
    scores = []
    # One row changes weighted F1 by about as much as accuracy.
    averages: tuple[tuple[Average, LeadingMetric], ...] = ((WEIGHTED, "accuracy"), (MACRO, "f1_macro"))
    for (average, metric), values in zip(averages, f1_values(gold, predictions, classes), strict=True):
        adjusted = effect_over_seeds(values, groups, one_row_variance(gold, metric), confidence)
        effect = design_effect(values.mean(axis=0), groups)
        value = float(values.mean())
        scores.append(MeanScore(value, *f1_interval(value, confusion, average, adjusted, effect, confidence)))
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
