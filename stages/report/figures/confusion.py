"""The confusion matrices of base and tuned: counts in the cells, or a heat map of many classes."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.report.figures.axes import LABEL_WIDTH, MAX_NAMED_CLASSES, can_name_classes, fit_label
from stages.report.formatting import whole_percent
from stages.report.render import WIDTH, width
from stages.report.tables import FEW_CLASSES

MAX_SIDE_BY_SIDE = 4  # classes; the matrices of more stand one above the other


def draw_confusion(base: np.ndarray, tuned: np.ndarray, classes: tuple[str, ...], colours: dict[str, str]) -> Figure:
    """The two confusion matrices: counts and shares of the gold class in the cells, or a heat map of many classes.

    Args:
        base, tuned: from `confusion_counts`.
    """
    count, beside = len(classes), len(classes) <= MAX_SIDE_BY_SIDE
    shown = classes if can_name_classes(classes) else map(str, range(count))
    names = [fit_label(name, LABEL_WIDTH) for name in shown] if count <= MAX_NAMED_CLASSES else None
    longest = 0.075 * max(map(width, names)) if names else 0.1  # inches
    side = min(3.4, 0.45 * count) if beside else min(2.9, 0.42 * count)
    height = longest + (0.65 + side if beside else 0.9 + 2 * side)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    matrices = (("Base", "base", base), ("Tuned", "tuned", tuned))
    pairs = figure.subplots(*((1, 2) if beside else (2, 1)), sharex=not beside, sharey=beside)
    for axes, (title, colour, counts) in zip(pairs, matrices, strict=True):
        (draw_cells if count <= FEW_CLASSES else draw_heat_map)(axes, counts, colours[colour])
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), title=title)
        if names:
            size = min(8, 60 * side / count)
            fits = longest < (1.4 if beside else 2.6) / count
            axes.set_xticks(range(count), names, fontsize=size, rotation=0 if fits else 90)
            axes.set_yticks(range(count), names, fontsize=size)
        axes.tick_params(length=0 if names else 3)
        axes.spines[:].set_visible(count > FEW_CLASSES)
    what = "" if can_name_classes(classes) else ", by its number"
    figure.supxlabel(f"predicted class{what}", fontsize=9, color=colours["muted"])
    figure.supylabel(f"gold class{what}", fontsize=9, color=colours["muted"])
    return figure


def draw_cells(axes: Axes, counts: np.ndarray, colour: str) -> None:
    """A matrix with the rows of each cell and their share of the gold class, which is its shade too."""
    shares = divide_by_gold(counts)
    size = min(9, 44 / len(counts) + 2.2)
    for gold, predicted in np.ndindex(counts.shape):
        count, share = counts[gold, predicted], shares[gold, predicted]
        corner = (predicted - 0.48, gold - 0.48)
        axes.add_patch(
            matplotlib.patches.Rectangle(corner, 0.96, 0.96, color=colour, alpha=0.06 + 0.5 * share, linewidth=0)
        )
        words = f"{count:,}\n{whole_percent(share)}" if count else "0"
        axes.text(predicted, gold, words, ha="center", va="center", fontsize=size, linespacing=1.1)


def draw_heat_map(axes: Axes, counts: np.ndarray, colour: str) -> None:
    """A matrix without words: one path for each of a few shades, which is small where classes are many."""
    shares = divide_by_gold(counts)
    shades = np.ceil(np.sqrt(shares) * 6).astype(int)  # the root, so that a single row of many is seen
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


def divide_by_gold(counts: np.ndarray) -> np.ndarray:
    """Each cell's share of its gold class's rows, 0 where it has none; counts: from `confusion_counts`."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
