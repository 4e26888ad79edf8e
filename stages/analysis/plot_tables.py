"""The tables behind the plots of dvc.yaml and the pictures of the report: metrics/plots."""

import numpy as np
import pandas as pd

from stages.analysis import nli, slices
from stages.analysis.metrics import calibration_curve
from stages.data.task import Task

MAX_STEPS = 1000  # points of the curve by step


def build_plot_tables(
    cases: pd.DataFrame, epochs: pd.DataFrame, steps: pd.DataFrame, task: Task, confidence: float
) -> dict[str, pd.DataFrame]:
    """All tables by name.

    Args:
        cases: from `build_case_table`.
        epochs, steps: the training's history.
        confidence: of the intervals, such as 0.95.
    """
    names, nli_cuts = dict(enumerate(task.classes)), nli.cuts(cases) if nli.NliTask.from_task(task) else {}
    tables = {"epochs": epochs, "steps": thin_curve(steps, MAX_STEPS)}
    for model in ("base", "tuned"):
        right, probability = cases[model] == cases["gold"], cases[f"{model}_probability"]
        tables[f"confusion_{model}"] = pd.DataFrame(
            {"actual": cases["gold"].map(names), "predicted": cases[model].map(names)}
        )
        tables[f"reliability_{model}"] = calibration_curve(right, probability, cases["group"], confidence)
        cuts = slices.cuts(cases, probability, task, nli_cuts)
        tables[f"slices_{model}"] = slices.measure_slices(cuts, right, cases["group"], confidence)
    return tables


def thin_curve(steps: pd.DataFrame, points: int) -> pd.DataFrame:
    """Reduce a long curve to at most `points` means of equally many steps, each at its last step.

    Args:
        steps: data frame `step`, `loss`.
    """
    block = np.arange(len(steps)) // -(-len(steps) // points)
    return steps.groupby(block).agg({"step": "last", "loss": "mean"})
