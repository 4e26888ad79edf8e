"""Accuracy against coverage: how accurate the model is on the share of rows that it is surest of."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from stages.analysis.coverage import Coverage
from stages.report.figures.axes import set_full_share_axis, set_share_axis, single_axes


def draw_coverage(curve: pd.DataFrame, coverages: Sequence[Coverage], colours: dict[str, str]) -> Figure:
    """Draw the accuracy with its interval by coverage, and a dot with its interval at each accuracy that was asked for.

    Args:
        curve: from `coverage_curve`.
        coverages: from `coverage_at`.
    """
    figure, axes = single_axes(2.9)
    axes.fill_between(curve["coverage"], curve["low"], curve["high"], color=colours["tuned"], alpha=0.15, linewidth=0)
    axes.plot(curve["coverage"], curve["accuracy"], color=colours["tuned"], linewidth=1.5)
    for each in coverages:
        axes.plot(each.interval, [each.goal] * 2, color=colours["ink"], linewidth=1.2)
        axes.plot(each.coverage, each.goal, "o", color=colours["ink"], markersize=4, clip_on=False)
    set_full_share_axis(axes)
    goals = pd.Series([each.goal for each in coverages], dtype=float)
    set_share_axis(axes.yaxis, axes.set_ylim, pd.concat([curve["low"], curve["high"], goals]), least=0.1)
    axes.set(xlabel="coverage: rows that it answers, the surest first", ylabel="accuracy of these rows")
    return figure
