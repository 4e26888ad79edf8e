"""The tables of `tools.evaluate` in Markdown: data sets next to the run's own test set, and adapters on one set."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pandas as pd

from stages.analysis.comparison import Comparison, compare_models, score_tuned
from stages.analysis.intervals import newcombe
from stages.analysis.leading_metric import TITLES, LeadingMetric
from stages.analysis.measures import choose_leading_metric, measure_difference
from stages.analysis.metrics import Estimate, Predictions
from stages.data.task import Task
from stages.report.document import escape_cell, escape_markdown
from stages.report.formatting import (
    confidence_level,
    p_value,
    percent,
    percent_interval,
    points_interval,
    signed_points,
)
from stages.report.verdict import name_reference


@dataclass(frozen=True)
class TestRows:
    """Test rows in the table of data sets.

    Attributes:
        name: of their data.
        link: to their report; None: no link.
        cases: from `build_case_table`.
        task: their task.
        note: a sentence below the table; empty for none.
    """

    __test__ = False  # pytest: not a test

    name: str
    link: str | None
    cases: pd.DataFrame
    task: Task
    note: str = ""

    @property
    def leading_metric(self) -> LeadingMetric:
        return choose_leading_metric(self.task.labels.from_codes(self.cases["gold"]), len(self.task.classes))

    @property
    def title(self) -> str:
        return f"[{escape_markdown(self.name)}]({quote(self.link)})" if self.link else escape_markdown(self.name)


def render_sets(own: TestRows, others: Sequence[TestRows], confidence: float) -> str:
    """A line for the run's own test rows, and one for each data set with its difference from them.

    All lines have the same metric: macro F1 if the classes of any of them are uneven, else accuracy. If a row may have
    several labels, it is micro F1.
    """
    every = [own, *others]
    leading = {rows.leading_metric for rows in every}
    metric: LeadingMetric = leading.pop() if len(leading) == 1 else "f1_macro"
    scores = [score_tuned(rows.cases, metric, rows.task, confidence) for rows in every]
    level = confidence_level(confidence)
    headings = ("test rows of", "rows", f"{TITLES[metric]} ({level} interval)", "best reference",
                "tuned minus reference, points", "verdict", "difference from own test set, points")  # fmt: skip
    lines = [
        _set_line(
            rows, score, compare_models(rows.cases, rows.task, confidence, metric), None if rows is own else scores[0]
        )
        for rows, score in zip(every, scores, strict=True)
    ]
    notes = [
        f"The last column has {level} intervals for independent samples (Newcombe's method 10, Zou and Donner's for "
        "F1). A difference may come from harder rows, other texts, other labels or other shares of "
        f"{own.task.labels.nouns}.",
        *(
            f"{escape_markdown(rows.name)}: its own report leads with {TITLES[rows.leading_metric]}. The table has "
            f"{TITLES[metric]} for all, since the classes of another line are uneven."
            for rows in every
            if rows.leading_metric != metric
        ),
        *(escape_markdown(rows.note) for rows in every if rows.note),
    ]
    return "\n\n".join([_table(headings, lines, numbers=(1,)), *notes]) + "\n"


def _set_line(rows: TestRows, score: Estimate, comparison: Comparison, own: Estimate | None) -> list[str]:
    reference, best = comparison.best_reference, name_reference(comparison.best, rows.task.labels)
    return [
        rows.title,
        f"{comparison.rows:,}",
        _score(score),
        f"{escape_cell(best)}, {percent(reference.lead(comparison.metric).value)}",
        f"{signed_points(reference.difference.value)} ({points_interval(reference.difference.interval)})",
        comparison.verdict,
        "–" if own is None else _write_gap(score, own),
    ]


def _write_gap(score: Estimate, own: Estimate) -> str:
    value, interval = newcombe(score, own)
    return f"{signed_points(value)} ({points_interval(interval)})"


def render_adapters(
    names: Sequence[str], probabilities: Sequence[np.ndarray], cases: pd.DataFrame, task: Task, confidence: float
) -> str:
    """A line for each adapter on the same rows, with its paired difference from the first.

    Args:
        probabilities: of each adapter, float [rows, classes].
        cases: from `build_case_table`.
    """
    gold, groups = task.labels.from_codes(cases["gold"]), cases["group"].to_numpy()
    metric, level = choose_leading_metric(gold, len(task.classes)), confidence_level(confidence)
    first = task.labels.decide(probabilities[0])
    lines: list[list[str]] = []
    for name, values in zip(names, probabilities, strict=True):
        answers = task.labels.decide(values)
        scores = Predictions(gold, answers, values, groups, task.classes, confidence)
        line = [escape_markdown(name), _score(getattr(scores, metric))]
        if lines:
            difference = measure_difference(metric, gold, answers, first, groups, len(task.classes), confidence)
            gap = f"{signed_points(difference.value)} ({points_interval(difference.interval)})"
            lines.append([*line, gap, p_value(difference.p, confidence)])
        else:
            lines.append([*line, "–", "–"])
    headings = ("adapter", f"{TITLES[metric]} ({level} interval)", "difference from the first, points", "p")
    note = (
        "The differences are paired, and each is tested by itself. Only the training rows of the first adapter are "
        "known here. If another one was trained on rows of this data, its score is too high."
    )
    return f"{_table(headings, lines, numbers=(3,))}\n\n{note}\n"


def _score(score: Estimate) -> str:
    return f"{percent(score.value)} ({percent_interval(score.interval)})"


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """A Markdown table; numbers: columns that are aligned right."""
    rule = ["---:" if number in numbers else "---" for number in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))
