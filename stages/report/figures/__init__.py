"""The pictures of the report: one module for each kind of picture, and their helpers in `axes`."""

from functools import partial
from typing import Any

import pandas as pd

from stages.data.confusion import confusion_counts
from stages.data.task import Task
from stages.report.figures.accuracy import draw_accuracy, draw_slices, select_slices
from stages.report.figures.confusion import draw_confusion
from stages.report.figures.learning_curves import draw_loss, draw_validation
from stages.report.figures.reliability import draw_reliability
from stages.report.figures.usage import draw_usage
from stages.report.render import render
from stages.report.wording import guesses


def render_results(
    details: dict[str, Any], tables: dict[str, pd.DataFrame], cases: pd.DataFrame, task: Task
) -> dict[str, tuple[bytes, str]]:
    """Render all pictures of the results: {name: (PNG bytes, SVG text)}.

    Args:
        details, tables, cases: as in `document.context`.
    """
    kept_epoch = details["train"]["best_epoch"]
    shown = [(name, found, "muted") for name, found in guesses(details["comparison"])]
    shown += [(name, details[name], name) for name in ("base", "tuned")]
    points = [(name, m["accuracy"], tuple(m["accuracy_interval"].values()), colour) for name, m, colour in shown]
    base, tuned = (confusion_counts(cases["gold"], cases[name], len(task.classes)) for name in ("base", "tuned"))
    drawings = {
        "accuracy": partial(draw_accuracy, points),
        "loss": partial(draw_loss, tables["epochs"], tables["steps"], kept_epoch),
        "validation": partial(draw_validation, tables["epochs"], kept_epoch),
        "confusion": partial(draw_confusion, base, tuned, task.classes),
        "slices": partial(draw_slices, *select_slices(tables["slices_base"], tables["slices_tuned"])),
        "reliability": partial(draw_reliability, tables["reliability_base"], tables["reliability_tuned"]),
    }
    names = (*task.classes, *task.columns)
    return {name: render(draw, names) for name, draw in drawings.items()}


def render_usage(table: pd.DataFrame, on_gpu: bool) -> tuple[bytes, str]:
    """Render the picture of memory and load: (PNG bytes, SVG text); arguments: as in `draw_usage`."""
    return render(partial(draw_usage, table, on_gpu))
