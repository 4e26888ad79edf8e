"""The tuned model's confusion matrix: counts in the cells, or a heat map of many classes."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.report.figures.axes import LABEL_WIDTH, MAX_NAMED_CLASSES, can_name_classes, fit_label
from stages.report.formatting import whole_percent
from stages.report.render import WIDTH, width
from stages.report.tables import FEW_CLASSES


def draw_confusion(
    counts: np.ndarray, rows: np.ndarray, classes: tuple[str, ...], noun: str, colours: dict[str, str]
) -> Figure:
    """Draw a confusion matrix: counts and shares of the gold class, or a heat map if there are many classes.

    Args:
        counts: from `confusion_counts`.
        rows: with each gold class, int [classes].
        noun: what a class is called.
    """
    count = len(classes)
    labels = classes if can_name_classes(classes) else map(str, range(count))
    names = [fit_label(label, LABEL_WIDTH) for label in labels] if count <= MAX_NAMED_CLASSES else None
    longest = 0.075 * max(map(width, names)) if names else 0.1  # inches
    side = min(2.9, 0.42 * count)
    figure = Figure(figsize=(WIDTH, longest + 0.7 + side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(rows[:, None], 1)
    if count <= FEW_CLASSES:
        draw_cells(axes, counts, shares, colours["tuned"])
    else:
        draw_heat_map(axes, shares, colours["tuned"])
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    if names:
        size = min(8, 60 * side / count)
        axes.set_xticks(range(count), names, fontsize=size, rotation=0 if longest < 2.6 / count else 90)
        axes.set_yticks(range(count), names, fontsize=size)
    axes.tick_params(length=0 if names else 3)
    axes.spines[:].set_visible(count > FEW_CLASSES)
    by_number = "" if can_name_classes(classes) else ", by its number"
    figure.supxlabel(f"predicted {noun}{by_number}", fontsize=9, color=colours["muted"])
    figure.supylabel(f"gold {noun}{by_number}", fontsize=9, color=colours["muted"])
    return figure


def draw_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray, colour: str) -> None:
    """Draw a matrix with count and share of the gold class in each cell. The shade is the share."""
    size = min(9, 44 / len(counts) + 2.2)
    for gold, predicted in np.ndindex(counts.shape):
        count, share = int(counts[gold, predicted]), float(shares[gold, predicted])
        corner = (predicted - 0.48, gold - 0.48)
        axes.add_patch(
            matplotlib.patches.Rectangle(corner, 0.96, 0.96, color=colour, alpha=0.06 + 0.5 * share, linewidth=0)
        )
        text = f"{count:,}\n{whole_percent(share)}" if count else "0"
        axes.text(predicted, gold, text, ha="center", va="center", fontsize=size, linespacing=1.1)


def draw_heat_map(axes: Axes, shares: np.ndarray, colour: str) -> None:
    """Draw a matrix without text. One path for each of six shades keeps the file small if there are many classes."""
    shades = np.ceil(np.sqrt(shares) * 6).astype(int)  # the square root makes even one row of many visible
    for shade in range(1, 7):
        squares = [
            matplotlib.path.Path.unit_rectangle().transformed(
                matplotlib.transforms.Affine2D().translate(predicted - 0.5, gold - 0.5)
            )
            for gold, predicted in np.argwhere(shades == shade)
        ]
        if squares:
            path = matplotlib.path.Path.make_compound_path(*squares)
            axes.add_patch(matplotlib.patches.PathPatch(path, color=colour, alpha=0.1 + 0.15 * shade, linewidth=0))
