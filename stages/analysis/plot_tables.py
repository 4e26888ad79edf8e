"""The points that plots and pictures draw, as data frames."""

import numpy as np
import pandas as pd

from stages.analysis import nli, slices
from stages.analysis.metrics import calibration_curve
from stages.data.task import Task

POINTS = 1000  # of the curve by step, at most
CONFUSIONS = 10


def plot_tables(
    cases: pd.DataFrame, epochs: pd.DataFrame, steps: pd.DataFrame, task: Task, confidence: float
) -> dict[str, pd.DataFrame]:
    """The points that dvc.yaml's plots and the report draw, by name.

    Args:
        cases: from `comparison.build_case_table`.
        epochs, steps: the training's history.
        confidence: of the intervals, such as 0.95.
    """
    names, own = dict(enumerate(task.classes)), nli.cuts(cases) if nli.NliTask.from_task(task) else {}
    tables = {"epochs": epochs, "steps": thinned(steps, POINTS)}
    for name in ("base", "tuned"):
        right, sure = cases[name] == cases["gold"], cases[f"{name}_probability"]
        tables[f"confusion_{name}"] = pd.DataFrame(
            {"actual": cases["gold"].map(names), "predicted": cases[name].map(names)}
        )
        tables[f"reliability_{name}"] = calibration_curve(right, sure, cases["group"], confidence)
        cut = slices.cuts(cases, sure, task, own)
        tables[f"slices_{name}"] = slices.slice_table(cut, right, cases["group"], confidence)
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


def most_frequent_confusions(confusion: np.ndarray) -> pd.DataFrame:
    """The pairs of classes that are mistaken for each other in most rows, first the most frequent.

    Args:
        confusion: from `confusion_counts`, [classes, classes].

    Returns:
        data frame of at most `CONFUSIONS` lines: `gold`, `predicted` (numbers of classes), `rows`, `share` of the gold
        class's rows.
    """
    gold, predicted = np.nonzero(confusion)
    pairs = pd.DataFrame({"gold": gold, "predicted": predicted, "rows": confusion[gold, predicted]})
    pairs["share"] = pairs["rows"] / confusion.sum(axis=1)[gold]
    wrong = pairs[pairs["gold"] != pairs["predicted"]]
    return wrong.sort_values(["rows", "share"], ascending=False, kind="stable")[:CONFUSIONS]
