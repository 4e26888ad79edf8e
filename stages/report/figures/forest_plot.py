"""The forest plot: accuracies of recipes, and their differences from the first one."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.analysis.multi_seed.comparison import Difference
from stages.analysis.multi_seed.scores import RecipeScores
from stages.report.figures.axes import set_share_axis
from stages.report.fonts import replace_undrawable
from stages.report.render import WIDTH


def draw_forest(
    scores: Sequence[RecipeScores], differences: Sequence[Difference], names: Sequence[str], colours: dict[str, str]
) -> Figure:
    """Accuracy of each recipe, a small mark for each training; below it the differences from the first."""
    heights = [0.7 + 0.27 * len(names)] + ([0.7 + 0.27 * len(differences)] if differences else [])
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    top, *below = np.atleast_1d(figure.subplots(len(heights), 1, height_ratios=heights))
    ends = [(found.accuracy.value, found.accuracy.low, found.accuracy.high) for found in scores]
    colour = ["base", *["tuned"] * len(differences)]
    draw_intervals(top, ends, [colours[name] for name in colour], names)
    for y, recipe in enumerate(scores):
        if len(recipe.seeds) > 1:
            at = [y + 0.28] * len(recipe.seeds)
            top.plot(recipe.seed_accuracies, at, "|", color=colours["muted"], markersize=4)
    shares = np.array([*np.ravel(ends), *(accuracy for recipe in scores for accuracy in recipe.seed_accuracies)])
    set_share_axis(top.xaxis, top.set_xlim, shares, least=0.02, ticks=5)
    top.set_xlabel("accuracy" + (", and of each training" if any(len(f.seeds) > 1 for f in scores) else ""))
    for axes in below:
        gaps = [(found.value, found.low, found.high) for found in differences]
        told = [colours["muted" if found.verdict == "not significant" else "tuned"] for found in differences]
        draw_intervals(axes, gaps, told, names[1:])
        axes.axvline(0, color=colours["base"], linewidth=1, linestyle="--")
        low, high = min(0, np.min(gaps)), max(0, np.max(gaps))
        beside = max(0.06 * (high - low), 0.002)
        axes.set_xlim(low - beside, high + beside)
        axes.xaxis.set_major_formatter(lambda share, _: format_points_tick(share))
        axes.xaxis.grid(True, linewidth=0.6)
        axes.set_xlabel("points of accuracy against A; grey: not significant")
    return figure


def format_points_tick(share: float) -> str:
    """A difference on an axis, in points; rounded, since ticks are computed."""
    points = round(share * 100, 6)
    return f"{points:+g}".replace("-", "−") if points else "0"


def draw_intervals(axes: Axes, ends: list[tuple[float, float, float]], colours: list[str], ticks: list[str]) -> None:
    """Points with intervals, one a line; ends: (value, low, high)."""
    for y, ((value, low, high), colour) in enumerate(zip(ends, colours, strict=True)):
        axes.plot([low, high], [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="round")
        axes.plot(value, y, "o", color=colour)
    axes.set_yticks(range(len(ticks)), [replace_undrawable(tick) for tick in ticks])
    axes.set_ylim(len(ticks) - 0.4, -0.6)
