"""Reliability diagrams of base and tuned: accuracy by the probability of the predicted class."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.report.figures.axes import set_share_axis
from stages.report.render import WIDTH


def draw_reliability(tuned: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Draw accuracy with its interval against the probability of the predicted class. Each model has its own axes.

    Args:
        base, tuned: from `metrics.calibration_curve`.
    """
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    for axes, bins, name in zip([figure.subplots()], [tuned], ["tuned"], strict=True):
        axes.plot([0, 1], [0, 1], color=colours["muted"], linewidth=0.8, linestyle=":")
        ends = np.abs(bins[["low", "high"]].to_numpy().T - bins["accuracy"].to_numpy())
        axes.errorbar(bins["probability"], bins["accuracy"], yerr=ends, fmt="o", markersize=4, color=colours[name],
                      elinewidth=1.2, clip_on=False)  # fmt: skip
        set_share_axis(axes.xaxis, axes.set_xlim, bins["probability"], least=0.1, ticks=3)
        set_share_axis(axes.yaxis, axes.set_ylim, bins[["low", "high", "probability"]], least=0.1)
        axes.set(title=name.capitalize(), xlabel="probability")
    figure.axes[0].set_ylabel("accuracy")
    return figure
