"""The points that plots and pictures draw, as data frames."""

import numpy as np
import pandas as pd

from stages.analysis import slices
from stages.analysis.metrics import reliability
from stages.task.labels import GROUP, LABELS

POINTS = 1000  # of the curve by step, at most


def plot_tables(
    cases: pd.DataFrame, epochs: pd.DataFrame, steps: pd.DataFrame, confidence: float
) -> dict[str, pd.DataFrame]:
    """The points that dvc.yaml's plots and the report draw, by name.

    Args:
        cases: from `comparison.case_table`.
        epochs, steps: the training's history.
        confidence: of the intervals, such as 0.95.
    """
    names = dict(enumerate(LABELS))
    tables = {"epochs": epochs, "steps": thinned(steps, POINTS)}
    for name in ("base", "tuned"):
        right, sure = cases[name] == cases["gold"], cases[f"{name}_confidence"]
        tables[f"confusion_{name}"] = pd.DataFrame(
            {"actual": cases["gold"].map(names), "predicted": cases[name].map(names)}
        )
        bins = pd.DataFrame(reliability(right, sure))
        tables[f"reliability_{name}"] = bins[bins["rows"] > 0]
        cut = slices.cuts(cases["gold"], cases, sure)
        tables[f"slices_{name}"] = slices.slice_table(cut, right, cases[GROUP], confidence)
    return tables


def thinned(steps: pd.DataFrame, points: int) -> pd.DataFrame:
    """A long curve as at most `points` means of equally many steps, each at its last step.

    Args:
        steps: data frame `step`, `loss`.
    """
    block = np.arange(len(steps)) // -(-len(steps) // points)
    return steps.groupby(block).agg({"step": "last", "loss": "mean"})


def kept_epoch(epochs: pd.DataFrame, epoch: int) -> dict[str, float]:
    """Losses and validation scores of the epoch whose adapter was kept."""
    return {name: float(value) for name, value in epochs.set_index("epoch").loc[epoch].items()}
