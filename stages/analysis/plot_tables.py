"""The tables behind the plots of dvc.yaml and the pictures of the report: metrics/plots."""

import numpy as np
import pandas as pd

from stages.analysis import nli, slices
from stages.analysis.calibration import calibration_curve
from stages.data.task import Task

MAX_STEPS = 1000  # points of the curve by step


def build_plot_tables(
    cases: pd.DataFrame, epochs: pd.DataFrame, steps: pd.DataFrame, reference: str, task: Task, confidence: float
) -> dict[str, pd.DataFrame]:
    """All tables by name.

    Args:
        cases: from `build_case_table`.
        epochs, steps: the training's history.
        reference: the best one, whose answers are shown next to the tuned model's.
        confidence: of the intervals, such as 0.95.
    """
    names, nli_cuts = dict(enumerate(task.classes)), nli.cuts(cases) if nli.NliTask.from_task(task) else {}
    probability, groups = cases["tuned_probability"], cases["group"]
    cuts = slices.cuts(cases, probability, task, nli_cuts)
    tables = {"epochs": epochs, "steps": thin_curve(steps, MAX_STEPS)}
    for model, column in (("reference", reference), ("tuned", "tuned")):
        right = cases[column] == cases["gold"]
        tables[f"confusion_{model}"] = pd.DataFrame(
            {"actual": cases["gold"].map(names), "predicted": cases[column].map(names)}
        )
        tables[f"slices_{model}"] = slices.measure_slices(cuts, right, groups, confidence)
    tables["reliability_tuned"] = calibration_curve(cases["tuned"] == cases["gold"], probability, groups, confidence)
    return tables


def thin_curve(steps: pd.DataFrame, points: int) -> pd.DataFrame:
    """Reduce a long curve to at most `points` means of equally many steps, each at its last step.

    Args:
        steps: data frame `step`, `loss`.
    """
    block = np.arange(len(steps)) // -(-len(steps) // points)
    return steps.groupby(block).agg({"step": "last", "loss": "mean"})
