"""The reliability diagram of the tuned model: accuracy by the probability of the answer."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.report.figures.axes import set_share_axis, single_axes


def draw_reliability(
    tuned: pd.DataFrame, without: pd.DataFrame | None, certainty: str, colours: dict[str, str]
) -> Figure:
    """Draw accuracy with its interval against the probability of the answer.

    Args:
        certainty: what this probability is.
        tuned, without: from `calibration_curve`, with and without calibration; None if the model has no temperature.
    """
    figure, axes = single_axes(2.9)
    series = [(tuned, "tuned", "o", "with calibration")]
    if without is not None:
        series.insert(0, (without, "muted", "s", "without"))
    for bins, colour, mark, label in series:
        ends = np.abs(bins[["low", "high"]].to_numpy().T - bins["accuracy"].to_numpy())
        axes.errorbar(bins["probability"], bins["accuracy"], yerr=ends, fmt=mark, markersize=4, color=colours[colour],
                      elinewidth=1.2, clip_on=False, label=label)  # fmt: skip
    drawn = pd.concat([bins for bins, *_ in series])
    set_share_axis(axes.xaxis, axes.set_xlim, drawn["probability"], least=0.1)
    set_share_axis(axes.yaxis, axes.set_ylim, drawn[["low", "high", "probability"]], least=0.1)
    axes.plot([0, 1], [0, 1], color=colours["muted"], linewidth=0.8, linestyle=":")
    axes.set(xlabel=certainty, ylabel="accuracy")
    if without is not None:
        axes.legend(*(part[::-1] for part in axes.get_legend_handles_labels()), loc="lower center",
                    bbox_to_anchor=(0.5, 1), ncols=2)  # fmt: skip
    return figure
