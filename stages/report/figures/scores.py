"""Scores with intervals: of the tuned model and the references on all test rows, and in each slice of them."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from stages.analysis.slices import CLASS_CUT, LABEL_CUT
from stages.report.figures.axes import LABEL_WIDTH, fit_label, set_full_share_axis, single_axes
from stages.report.fonts import can_draw
from stages.report.formatting import percent
from stages.report.verdict import ScoreLine

LOWEST_CLASSES = 10  # the picture of the slices has at most this many classes
KIND_COLOURS = {"tuned": "tuned", "best": "base", "other": "muted"}


def draw_scores(lines: Sequence[ScoreLine], metric: str, colours: dict[str, str]) -> Figure:
    """Draw points with intervals, one per line, and a vertical line at the tuned model's score.

    Args:
        lines: the tuned model first.
        metric: its title.
    """
    figure, axes = single_axes(0.62 + 0.34 * len(lines))
    axes.axvline(lines[0].score.value, color=colours["tuned"], linewidth=0.8, linestyle="--")
    for y, line in enumerate(lines):
        colour = colours[KIND_COLOURS[line.kind]]
        if line.score.interval:
            axes.plot(line.score.interval, [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="round")
        axes.plot(line.score.value, y, "o", color=colour, clip_on=False)
        axes.annotate(percent(line.score.value), (1.04, y), xycoords=("axes fraction", "data"), va="center")
    axes.set_yticks(range(len(lines)), [fit_label(line.name, LABEL_WIDTH + 6) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    set_full_share_axis(axes)
    axes.set_xlabel(f"{metric} on the test rows")
    return figure


def select_slices(reference: pd.DataFrame, tuned: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Select the slices to draw: those with rows, and of many classes only those with the lowest tuned accuracy.

    These classes (or labels, see `slices`) are in the order of that accuracy, the lowest first.
    """
    drawn = tuned.index[tuned["rows"] > 0]
    classes = tuned.loc[drawn[tuned.loc[drawn, "cut"].isin([CLASS_CUT, LABEL_CUT])]]
    if len(classes) > LOWEST_CLASSES:
        lowest = classes.sort_values("accuracy", kind="stable").index[:LOWEST_CLASSES]
        drawn = pd.Index([*lowest, *drawn.difference(classes.index)])
    return reference.loc[drawn], tuned.loc[drawn]


def draw_slices(
    reference: pd.DataFrame, tuned: pd.DataFrame, name: str, accuracy: str, colours: dict[str, str]
) -> Figure:
    """Draw accuracy with interval in each slice, for the best reference and the tuned model.

    Args:
        reference, tuned: from `slices.measure_slices`, with the same slices. The classes come first, so the index of a
            class's slice is the number of the class.
        name: the reference's name.
        accuracy: what it is called.
    """
    cuts = list(tuned["cut"].unique())
    figure, axes = single_axes(0.75 + 0.23 * (len(tuned) + len(cuts)))
    y = 0
    ticks: list[tuple[int, str]] = []
    headings: list[int] = []
    for cut in cuts:
        headings.append(len(ticks))
        inside = reference[reference["cut"] == cut]
        by_number = cut in (CLASS_CUT, LABEL_CUT) and not can_draw(inside["slice"])
        ticks.append((y, fit_label(f"{cut}, by its number" if by_number else cut, LABEL_WIDTH + 6)))
        for (number, first), (_, second) in zip(inside.iterrows(), tuned[tuned["cut"] == cut].iterrows(), strict=True):
            y += 1
            label = str(number) if by_number else fit_label(first["slice"].removeprefix(f"{cut}: "), LABEL_WIDTH)
            ticks.append((y, f"{label} ({first['rows']:,})"))
            for row, colour, offset in ((first, "base", -0.16), (second, "tuned", 0.16)):
                axes.plot([row["low"], row["high"]], [y + offset] * 2, color=colours[colour], linewidth=3.5,
                          alpha=0.3, solid_capstyle="round")  # fmt: skip
                axes.plot(row["accuracy"], y + offset, "o", color=colours[colour], markersize=4, clip_on=False)
        y += 1
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    for number, tick_label in enumerate(axes.get_yticklabels()):
        tick_label.set_fontweight("bold" if number in headings else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.4, -0.6)
    set_full_share_axis(axes)
    axes.set_xlabel(accuracy)
    for label, colour in ((name, "base"), ("tuned", "tuned")):
        axes.plot([], [], "o", color=colours[colour], label=label)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure
