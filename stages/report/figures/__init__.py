"""The pictures of the report: one module for each kind of picture, and their helpers in `axes`."""

from functools import partial

import pandas as pd

from stages.analysis.metrics import Score
from stages.analysis.results import Results
from stages.data.confusion import confusion_counts
from stages.data.task import Task
from stages.report.figures.accuracy import draw_accuracy, draw_slices, select_slices
from stages.report.figures.confusion import draw_confusion
from stages.report.figures.learning_curves import draw_loss, draw_validation
from stages.report.figures.reliability import draw_reliability
from stages.report.figures.usage import draw_usage
from stages.report.render import render
from stages.report.wording import references


def render_results(
    results: Results, tables: dict[str, pd.DataFrame], cases: pd.DataFrame, task: Task
) -> dict[str, tuple[bytes, str]]:
    """Render all pictures of the results: {name: (PNG bytes, SVG text)}.

    Args:
        tables: from `build_plot_tables`.
        cases: from `build_case_table`.
    """
    kept_epoch = results.training.best_epoch
    metric = results.comparison.metric
    scores: list[tuple[str, Score, str]] = [
        (name, reference.lead(metric), "muted") for name, reference in references(results.comparison)
    ]
    scores += [("tuned", results.tuned.scores[metric], "tuned")]
    points = [(name, accuracy.value, accuracy.interval, colour) for name, accuracy, colour in scores]
    base, tuned = (
        confusion_counts(cases["gold"], cases[name], len(task.classes)) for name in (results.comparison.best, "tuned")
    )
    drawings = {
        "accuracy": partial(draw_accuracy, points),
        "loss": partial(draw_loss, tables["epochs"], tables["steps"], kept_epoch),
        "validation": partial(draw_validation, tables["epochs"], kept_epoch),
        "confusion": partial(draw_confusion, base, tuned, task.classes),
        "slices": partial(draw_slices, *select_slices(tables["slices_reference"], tables["slices_tuned"])),
        "reliability": partial(draw_reliability, tables["reliability_tuned"]),
    }
    names = (*task.classes, *task.columns)
    return {name: render(draw, names) for name, draw in drawings.items()}


def render_usage(table: pd.DataFrame, on_gpu: bool) -> tuple[bytes, str]:
    """Render the picture of memory and load: (PNG bytes, SVG text); table: from `usage.join_samples`."""
    return render(partial(draw_usage, table, on_gpu))
