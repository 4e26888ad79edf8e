"""The tables behind the plots of dvc.yaml and the pictures of the report: metrics/plots."""

import numpy as np
import pandas as pd

from stages.analysis import nli, slices
from stages.analysis.calibration import calibration_curve, undo_temperature
from stages.analysis.case_table import probability_columns
from stages.analysis.coverage import coverage_curve
from stages.data.confusion import pair_classes
from stages.data.task import Task

MAX_STEPS = 1000  # points of the curve by step


def build_plot_tables(
    cases: pd.DataFrame,
    epochs: pd.DataFrame,
    steps: pd.DataFrame,
    reference: str,
    temperature: float | None,
    task: Task,
    confidence: float,
) -> dict[str, pd.DataFrame]:
    """All tables by name.

    Args:
        cases: from `build_case_table`.
        epochs, steps: the training's history.
        reference: the best one, whose answers are shown next to the tuned model's.
        temperature: of the saved head; None if it has none.
        confidence: of the intervals, such as 0.95.
    """
    names, nli_cuts = dict(enumerate(task.classes)), nli.cuts(cases) if nli.NliTask.from_task(task) else {}
    probability, groups = cases["tuned_probability"], cases["group"]
    cuts = slices.cuts(cases, probability, task, nli_cuts)
    tables = {"epochs": epochs, "steps": thin_curve(steps, MAX_STEPS)}
    for model, column in (("reference", reference), ("tuned", "tuned")):
        right = cases[column] == cases["gold"]
        pairs = pair_classes(*(task.labels.from_codes(cases[name]) for name in ("gold", column)))
        actual, predicted = (pd.Series(numbers).map(names) for numbers in pairs)
        tables[f"confusion_{model}"] = pd.DataFrame({"actual": actual, "predicted": predicted})
        tables[f"slices_{model}"] = slices.measure_slices(cuts, right, groups, confidence)
    right = cases["tuned"] == cases["gold"]
    tables["reliability_tuned"] = calibration_curve(right, probability, groups, confidence)
    if temperature is not None:
        answers = task.labels.from_codes(cases["tuned"])
        before = undo_temperature(task.labels, cases[probability_columns(task)].to_numpy(), temperature)
        before = task.labels.answer_probability(before, answers)
        tables["reliability_uncalibrated"] = calibration_curve(right, before, groups, confidence)
    tables["coverage"] = coverage_curve(right, probability, groups, confidence)
    return tables


def thin_curve(steps: pd.DataFrame, points: int) -> pd.DataFrame:
    """Reduce a long curve to at most `points` means of equally many steps, each at its last step.

    Args:
        steps: data frame `step`, `loss`.
    """
    block = np.arange(len(steps)) // -(-len(steps) // points)
    return steps.groupby(block).agg({"step": "last", "loss": "mean"})
