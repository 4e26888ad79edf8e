"""Alarms: what a reader must know before the scores, because they mean less than they seem to."""

from collections.abc import Sequence

import pandas as pd

from stages.analysis.comparison import Comparison
from stages.data.task import Task

MOST_NAMED = 5  # classes in a sentence; further ones are counted


def find_alarms(cases: pd.DataFrame, comparison: Comparison, reference_name: str, task: Task) -> list[str]:
    """A sentence for each alarm about the tuned model's answers.

    Args:
        cases: from `build_case_table`.
        reference_name: the best reference's name for readers.
    """
    answered = set(cases["tuned"])
    if len(answered) == 1:
        (answer,) = answered
        alarms = [f"The tuned model answers {task.classes[answer]} to all {len(cases):,} test rows: it learnt nothing."]
    else:
        never = [name for number, name in enumerate(task.classes) if number in set(cases["gold"]) - answered]
        alarms = [f"The tuned model never answers {_list(never)}, though test rows have {_it(never)}."] if never else []
    if comparison.best_reference.difference.value <= 0:
        alarms.append(f"The tuned model is not better than the best reference, {reference_name}.")
    return alarms


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _it(names: Sequence[str]) -> str:
    return "this class" if len(names) == 1 else "these classes"
