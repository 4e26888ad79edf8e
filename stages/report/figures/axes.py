"""What the pictures share: axes of shares, labels from the data, and the legend of base and tuned."""

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from stages.report.fonts import can_draw, replace_undrawable
from stages.report.render import WIDTH, shorten

MAX_NAMED_CLASSES = 30  # classes; the axes of more show numbers
LABEL_WIDTH = 24  # characters of a name beside a picture


def can_name_classes(classes: tuple[str, ...]) -> bool:
    """Whether a picture shows the classes by their names; else by their numbers, which the table of every class has."""
    return len(classes) <= MAX_NAMED_CLASSES and can_draw(classes)


def fit_label(name: str, length: int) -> str:
    """A name as a picture shows it: no wider than `length` letters, of characters that there is a font for."""
    return shorten(replace_undrawable(name), length)


def single_axes(height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def set_full_share_axis(axes: Axes) -> None:
    """A horizontal axis from 0 to 100%."""
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
    axes.xaxis.grid(True, linewidth=0.6)


def set_share_axis(
    axis: Axis, set_limits: Callable[[float, float], object], values: np.ndarray, least: float, ticks: int = 6
) -> None:
    """An axis of shares that is no wider than its values need.

    Args:
        values: what has to lie on it; any shape, NaN is left out.
        least: how wide it is at least, so that what is next to nothing does not look like much.
        ticks: how many intervals between its ticks at most.
    """
    set_limits(*share_limits(values, least))
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda share, _: f"{share * 100:g}%")
    axis.grid(True, linewidth=0.6)


def share_limits(values: np.ndarray, least: float) -> tuple[float, float]:
    """Ends of an axis for shares, 0 to 1; arguments: as of `set_share_axis`."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = values.min(), values.max()
    beside = max(0.1 * (high - low), (least - (high - low)) / 2)
    return max(0.0, low - beside), min(1.0, high + beside)


def add_model_legend(axes: Axes, colours: dict[str, str]) -> None:
    for name in ("base", "tuned"):
        axes.plot([], [], "o", color=colours[name], label=name)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
