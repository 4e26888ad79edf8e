"""Accuracy with intervals: on all test rows, and in each slice of them."""

import pandas as pd
from matplotlib.figure import Figure

from stages.report.figures.axes import LABEL_WIDTH, add_model_legend, fit_label, set_full_share_axis, single_axes
from stages.report.fonts import can_draw
from stages.report.formatting import percent
from stages.report.render import shorten

LOWEST_CLASSES = 10  # the picture of the slices has at most this many classes


def draw_accuracy(table: list[tuple], colours: dict[str, str]) -> Figure:
    """Draw points with intervals, one per line.

    Args:
        table: (name, accuracy, (low, high), name of a colour) of each line, from the top.
    """
    figure, axes = single_axes(0.62 + 0.34 * len(table))
    for y, (_, value, (low, high), colour) in enumerate(table):
        axes.plot([low, high], [y, y], color=colours[colour], linewidth=5, alpha=0.3, solid_capstyle="round")
        axes.plot(value, y, "o", color=colours[colour], clip_on=False)
        axes.annotate(percent(value), (1.04, y), xycoords=("axes fraction", "data"), va="center")
    axes.set_yticks(range(len(table)), [shorten(name, LABEL_WIDTH + 6) for name, *_ in table])
    axes.set_ylim(len(table) - 0.5, -0.5)
    set_full_share_axis(axes)
    axes.set_xlabel("accuracy on the test rows")
    return figure


def select_slices(base: pd.DataFrame, tuned: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Select the slices to draw: those with rows, and of many classes only those with the lowest tuned accuracy.

    These classes are in the order of that accuracy, the lowest first.
    """
    drawn = tuned.index[(base["rows"] > 0) | (tuned["rows"] > 0)]
    classes = tuned.loc[drawn].query("cut == 'class'")
    if len(classes) > LOWEST_CLASSES:
        lowest = classes.sort_values("accuracy", kind="stable").index[:LOWEST_CLASSES]
        drawn = pd.Index([*lowest, *drawn.difference(classes.index)])
    return base.loc[drawn], tuned.loc[drawn]


def draw_slices(base: pd.DataFrame, tuned: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Draw accuracy with interval in each slice, for base and tuned.

    Args:
        base, tuned: from `slices.measure_slices`, with the same slices. The classes come first, so the index of a
            class's slice is the number of the class.
    """
    cuts = list(base["cut"].unique())
    figure, axes = single_axes(0.75 + 0.23 * (len(base) + len(cuts)))
    y = 0
    ticks: list[tuple[int, str]] = []
    headings: list[int] = []
    for cut in cuts:
        headings.append(len(ticks))
        inside = base[base["cut"] == cut]
        by_number = cut == "class" and not can_draw(inside["slice"])
        ticks.append((y, fit_label(f"{cut}, by its number" if by_number else cut, LABEL_WIDTH + 6)))
        for (number, first), (_, second) in zip(inside.iterrows(), tuned[tuned["cut"] == cut].iterrows(), strict=True):
            y += 1
            rows = {f"{first['rows']:,}": None, f"{second['rows']:,}": None}  # one number if they are equal
            name = str(number) if by_number else fit_label(first["slice"].removeprefix(f"{cut}: "), LABEL_WIDTH)
            ticks.append((y, f"{name} ({' / '.join(rows)})"))
            for row, colour, offset in ((first, "base", -0.16), (second, "tuned", 0.16)):
                if row["rows"]:
                    axes.plot([row["low"], row["high"]], [y + offset] * 2, color=colours[colour], linewidth=3.5,
                              alpha=0.3, solid_capstyle="round")  # fmt: skip
                    axes.plot(row["accuracy"], y + offset, "o", color=colours[colour], markersize=4, clip_on=False)
        y += 1
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    for number, label in enumerate(axes.get_yticklabels()):
        label.set_fontweight("bold" if number in headings else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.4, -0.6)
    set_full_share_axis(axes)
    axes.set_xlabel("accuracy")
    add_model_legend(axes, colours)
    return figure
