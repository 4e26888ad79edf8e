"""Loss and validation scores by epoch."""

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.report.figures.axes import set_share_axis, single_axes


def draw_loss(epochs: pd.DataFrame, steps: pd.DataFrame, kept_epoch: int, kind: str, colours: dict[str, str]) -> Figure:
    """Draw the loss by epoch, with the loss of each step behind it; kind: of loss."""
    figure, axes = single_axes(2.9)
    per_epoch = steps["step"].max() / epochs["epoch"].max()
    axes.plot(steps["step"] / per_epoch, steps["loss"], color=colours["muted"], alpha=0.35, linewidth=0.8)
    lines = {"train_loss": ("training", "base", "s-"), "validation_loss": ("validation", "tuned", "o-")}
    draw_by_epoch(axes, epochs, lines, kept_epoch, colours)
    axes.set_xlim(0, 1.04 * epochs["epoch"].max())
    axes.set_ylim(bottom=0)
    axes.set_ylabel(kind)
    return figure


def draw_validation(epochs: pd.DataFrame, kept_epoch: int, colours: dict[str, str]) -> Figure:
    """Draw accuracy and weighted F1 of the validation rows by epoch; of several labels, micro F1."""
    figure, axes = single_axes(2.9)
    if "validation_f1_micro" in epochs:
        lines = {"validation_f1_micro": ("micro F1", "tuned", "o-"),
                 "validation_accuracy": ("subset accuracy", "base", "x--")}  # fmt: skip
    else:
        lines = {"validation_accuracy": ("accuracy", "tuned", "o-"),
                 "validation_f1_weighted": ("weighted F1", "base", "x--")}  # fmt: skip
    draw_by_epoch(axes, epochs, lines, kept_epoch, colours)
    set_share_axis(axes.yaxis, axes.set_ylim, epochs[list(lines)].to_numpy(), least=0.05)
    axes.set_xlim(epochs["epoch"].min() - 0.5, epochs["epoch"].max() + 0.5)
    axes.set_ylabel("on the validation rows")
    return figure


def draw_by_epoch(
    axes: Axes, epochs: pd.DataFrame, lines: dict[str, tuple], kept_epoch: int, colours: dict[str, str]
) -> None:
    """Draw lines by epoch. A ring on each line and a dashed line mark the epoch that `train.keep` chose.

    Args:
        lines: {column of `epochs`: (label, name of a colour, Matplotlib's format)}.
    """
    is_kept = epochs["epoch"] == kept_epoch
    axes.axvline(kept_epoch, color=colours["ink"], linewidth=1, linestyle="--")
    for column, (name, colour, mark) in lines.items():
        axes.plot(epochs["epoch"], epochs[column], mark, color=colours[colour], label=name, markersize=4.5)
        axes.plot(epochs["epoch"][is_kept], epochs[column][is_kept], "o", markersize=11, markerfacecolor="none",
                  markeredgecolor=colours["ink"], clip_on=False)  # fmt: skip
    axes.plot(
        [], [], "o--", color=colours["ink"], markersize=8, markerfacecolor="none", label=f"kept, epoch {kept_epoch}"
    )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.grid(True, axis="y", linewidth=0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, columnspacing=1.2)
