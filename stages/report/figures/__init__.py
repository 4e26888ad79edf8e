"""The pictures of the report: one module for each kind of picture, and their helpers in `axes`."""

from functools import partial

import pandas as pd

from stages.analysis.case_table import count_confusions
from stages.analysis.leading_metric import TITLES
from stages.analysis.results import Results
from stages.report.figures.confusion import draw_confusion
from stages.report.figures.coverage import draw_coverage
from stages.report.figures.learning_curves import draw_loss, draw_validation
from stages.report.figures.reliability import draw_reliability
from stages.report.figures.scores import draw_scores, draw_slices, select_slices
from stages.report.figures.usage import draw_usage
from stages.report.fonts import find_families
from stages.report.label_words import words_of
from stages.report.render import render
from stages.report.run_description import RunDescription
from stages.report.verdict import list_scores, name_reference
from stages.runtime.forks import call_in_forks


def render_all(
    results: Results, tables: dict[str, pd.DataFrame], cases: pd.DataFrame, run: RunDescription,
    samples: pd.DataFrame, usage_on_gpu: bool,
) -> dict[str, tuple[bytes, str]]:  # fmt: skip
    """Render all pictures: {name: (PNG bytes, SVG text)}.

    Args:
        tables: from `build_plot_tables`.
        cases: from `build_case_table`.
        samples: of memory and load, from `usage.join_samples`.
        usage_on_gpu: whether they are of a GPU.
    """
    kept_epoch, comparison, classes = results.training.best_epoch, results.comparison, run.task.classes
    labels, words = run.task.labels, words_of(run.task.labels)
    slices = select_slices(tables["slices_reference"], tables["slices_tuned"])
    confusion = count_confusions(cases, run.task)
    reached = [goal.on_test for goal in results.coverage.values() if goal.on_test and goal.on_test.coverage < 1]
    drawings = {
        "references": partial(draw_scores, list_scores(results, run), TITLES[comparison.metric]),
        "loss": partial(draw_loss, tables["epochs"], tables["steps"], kept_epoch, words.loss),
        "validation": partial(draw_validation, tables["epochs"], kept_epoch),
        "confusion": partial(draw_confusion, confusion, labels.count(cases["gold"]), classes, labels.noun),
        "slices": partial(draw_slices, *slices, name_reference(comparison.best, labels), words.accuracy),
        "reliability": partial(
            draw_reliability,
            tables["reliability_tuned"],
            tables.get("reliability_uncalibrated"),
            words.certainty,
        ),
        "coverage": partial(draw_coverage, tables["coverage"], reached),
        "usage": partial(draw_usage, samples, usage_on_gpu),
    }
    names = (*classes, *run.task.columns)
    find_families("".join(names))  # it remembers the result, so the forks need not look through all fonts again
    rendered = call_in_forks([partial(render, draw, names) for draw in drawings.values()])
    return dict(zip(drawings, rendered, strict=True))
