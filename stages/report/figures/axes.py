"""Helpers of all pictures: axes in percent, and labels that fit."""

from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from stages.report.fonts import can_draw, replace_undrawable
from stages.report.render import WIDTH, shorten

MAX_NAMED_CLASSES = 30  # with more classes, an axis shows their numbers
LABEL_WIDTH = 24  # characters of a name at an axis


def can_name_classes(classes: tuple[str, ...]) -> bool:
    """Whether a picture shows the names of the classes. If not, it shows their numbers, which are in a table too."""
    return len(classes) <= MAX_NAMED_CLASSES and can_draw(classes)


def fit_label(name: str, length: int) -> str:
    """Shorten a name to the width of `length` letters, and replace characters that no font has."""
    return shorten(replace_undrawable(name), length)


def single_axes(height: float) -> tuple[Figure, Axes]:
    """Create a figure with one pair of axes; height: in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def set_full_share_axis(axes: Axes) -> None:
    """Set the horizontal axis to 0 to 100%."""
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
    axes.xaxis.grid(True, linewidth=0.6)


def set_share_axis(
    axis: Axis,
    set_limits: Callable[[float, float], object],
    values: np.ndarray | pd.DataFrame | pd.Series,
    least: float,
    ticks: int = 6,
) -> None:
    """Set an axis in percent that is no wider than its values need.

    Args:
        values: shares that must be visible, of any shape; NaN is ignored.
        least: smallest width of the axis, as a share. It keeps tiny differences from looking large.
        ticks: largest number of intervals between ticks.
    """
    set_limits(*share_limits(values, least))
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda share, _: f"{share * 100:g}%")
    axis.grid(True, linewidth=0.6)


def share_limits(values: np.ndarray | pd.DataFrame | pd.Series, least: float) -> tuple[float, float]:
    """Ends of an axis for shares, 0 to 1; arguments: as in `set_share_axis`."""
    shares = np.asarray(values, dtype=float)
    shares = shares[np.isfinite(shares)]
    if not len(shares):
        return 0.0, 1.0
    low, high = shares.min(), shares.max()
    margin = max(0.1 * (high - low), (least - (high - low)) / 2)
    return max(0.0, low - margin), min(1.0, high + margin)
