"""The forest plot: scores of recipes, and their differences from the first one."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.analysis.leading_metric import TITLES, LeadingMetric
from stages.analysis.multi_seed.comparison import Difference
from stages.analysis.multi_seed.scores import MeanScore, RecipeScores
from stages.report.figures.axes import set_share_axis
from stages.report.fonts import replace_undrawable
from stages.report.render import WIDTH


def draw_forest(
    scores: Sequence[RecipeScores],
    differences: Sequence[Difference],
    metric: LeadingMetric,
    names: Sequence[str],
    colours: dict[str, str],
) -> Figure:
    """Draw each recipe's score, with a small mark for each training, and below it the differences from the first.

    Args:
        metric: of the scores and differences.
        names: of the recipes, as tick labels.
        colours: {name: colour}.
    """
    heights = [0.7 + 0.27 * len(names)] + ([0.7 + 0.27 * len(differences)] if differences else [])
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    top, *below = np.atleast_1d(figure.subplots(len(heights), 1, height_ratios=heights))
    _draw_scores(top, scores, metric, names, colours)
    for axes in below:
        _draw_differences(axes, differences, metric, names[1:], colours)
    return figure


def _draw_scores(
    axes: Axes, scores: Sequence[RecipeScores], metric: LeadingMetric, names: Sequence[str], colours: dict[str, str]
) -> None:
    leading: list[MeanScore] = [getattr(recipe, metric) for recipe in scores]
    intervals = [(score.value, score.low, score.high) for score in leading]
    draw_intervals(axes, intervals, [colours["base"], *[colours["tuned"]] * (len(scores) - 1)], names)
    for y, recipe in enumerate(scores):
        if len(recipe.seeds) > 1:
            ys = [y + 0.28] * len(recipe.seeds)
            axes.plot(recipe.seed_scores, ys, "|", color=colours["muted"], markersize=4)
    shares = np.array([*np.ravel(intervals), *(score for recipe in scores for score in recipe.seed_scores)])
    set_share_axis(axes.xaxis, axes.set_xlim, shares, least=0.02, ticks=5)
    several_seeds = any(len(recipe.seeds) > 1 for recipe in scores)
    axes.set_xlabel(TITLES[metric] + (" (small marks: each training)" if several_seeds else ""))


def _draw_differences(
    axes: Axes, differences: Sequence[Difference], metric: LeadingMetric, names: Sequence[str], colours: dict[str, str]
) -> None:
    intervals = [(difference.value, difference.low, difference.high) for difference in differences]
    is_significant = [difference.verdict != "not significant" for difference in differences]
    draw_intervals(axes, intervals, [colours["tuned" if yes else "muted"] for yes in is_significant], names)
    axes.axvline(0, color=colours["base"], linewidth=1, linestyle="--")
    low, high = min(0, np.min(intervals)), max(0, np.max(intervals))
    margin = max(0.06 * (high - low), 0.002)
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(lambda share, _: format_points_tick(share))
    axes.xaxis.grid(True, linewidth=0.6)
    axes.set_xlabel(f"points of {TITLES[metric]} above A (grey: not significant)")


def draw_intervals(
    axes: Axes, intervals: Sequence[tuple[float, float, float]], colours: Sequence[str], names: Sequence[str]
) -> None:
    """Draw points with intervals, one per line; intervals: (value, low, high)."""
    for y, ((value, low, high), colour) in enumerate(zip(intervals, colours, strict=True)):
        axes.plot([low, high], [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="round")
        axes.plot(value, y, "o", color=colour)
    axes.set_yticks(range(len(names)), [replace_undrawable(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def format_points_tick(share: float) -> str:
    """A difference in points, for an axis; rounded, since Matplotlib computes the ticks."""
    points = round(share * 100, 6)
    return f"{points:+g}".replace("-", "−") if points else "0"
