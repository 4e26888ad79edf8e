"""Alarms: what a reader must know before the scores, because they mean less than they seem to."""

import numpy as np
import pandas as pd

from stages.analysis.comparison import Comparison
from stages.analysis.f1 import FEW_ROWS
from stages.analysis.label_permutation import find_permutation
from stages.data.confusion import class_counts, confusion_counts, f1_per_class
from stages.data.task import Task
from stages.report.formatting import list_names, percent
from stages.report.label_words import NO_CLASS, words_of
from stages.report.verdict import name_reference

MOSTLY_SEEN = 0.5  # share of test rows that are duplicates of training rows


def find_alarms(cases: pd.DataFrame, comparison: Comparison, task: Task, is_own_test: bool = True) -> list[str]:
    """A sentence for each alarm about the tuned model's answers.

    Args:
        cases: from `build_case_table`.
        is_own_test: the test rows are the run's own. One answer to all rows of other data may be due to those rows.
    """
    answered, gold = set(cases["tuned"]), set(cases["gold"])
    only = task.labels.name(next(iter(answered))) or NO_CLASS
    if answered == gold and len(gold) == 1:
        alarms = [
            f"All test rows have the {words_of(task.labels).answer} {only}, and the tuned model always answers it: a "
            "model that learnt nothing would do so too."
        ]
    elif len(answered) == 1:
        meaning = "it learnt nothing" if is_own_test else "on them, it is no better than a constant"
        alarms = [f"The tuned model answers {only} to all {len(cases):,} test rows: {meaning}."]
    else:
        alarms = describe_classes_without_answers(cases, task)
    if comparison.metric == "f1_macro":
        alarms += describe_classes_without_rows(cases, task)
    alarms += [*describe_permutation(cases, task), *describe_seen_rows(cases)]
    if comparison.best_reference.difference.value <= 0:
        best = f"the best reference, {name_reference(comparison.best, task.labels)}"
        alarms.append(
            f"The tuned model scores no higher than {best}. These test rows are too few to tell which is better."
            if comparison.verdict == "too close to tell"
            else f"The tuned model is not better than {best}."
        )
    if comparison.verdict != comparison.verdict_with_duplicates:
        alarms.append(
            f"With the test rows that are duplicates of training rows, tuning would seem "
            f"{comparison.verdict_with_duplicates}. The verdict is that of the other rows."
        )
    return alarms


def describe_classes_without_answers(cases: pd.DataFrame, task: Task) -> list[str]:
    """The alarms that the tuned model never answers some classes, if so.

    No answer to fewer than `FEW_ROWS` rows of a class can be chance. Several labels: the rare ones are also counted
    together. If they are less than half of the rare rows, they may be no more than the worst of many.
    """
    labels, alarms = task.labels, []
    rows, answers = (labels.count(cases[column]) for column in ("gold", "tuned"))
    never, rare = answers == 0, rows < FEW_ROWS
    if names := [task.classes[number] for number in np.flatnonzero(never & ~rare)]:
        them = f"this {labels.noun}" if len(names) == 1 else f"these {labels.nouns}"
        alarms.append(f"The tuned model never answers {list_names(names)}, but test rows have {them}.")
    numbers = np.flatnonzero(never & rare & (rows > 0))
    if task.multi_label and len(numbers) > 1 and rows[numbers].sum() >= max(FEW_ROWS, rows[rare].sum() / 2):
        listed = list_names([f"{task.classes[number]} ({rows[number]})" for number in numbers])
        alarms.append(
            f"The tuned model never answers {len(numbers)} rare labels, which {rows[numbers].sum()} test rows have in "
            f"all: {listed}."
        )
    return alarms


def describe_classes_without_rows(cases: pd.DataFrame, task: Task) -> list[str]:
    """The alarm that macro F1 is lowered by classes that the tuned model answers but no test row has, if it is."""
    gold, answered = cases["gold"].to_numpy(), cases["tuned"].to_numpy()
    absent = sorted(set(answered) - set(gold))
    if not absent:
        return []
    f1 = f1_per_class(class_counts(confusion_counts(gold, answered, len(task.classes))))
    rows = int(np.isin(answered, absent).sum())
    which = "the class" if len(absent) == 1 else "one of the classes"
    return [
        f"No test row has {which} {list_names([task.classes[number] for number in absent])}, but the tuned model "
        f"answers so in {rows:,} of {len(cases):,} rows. Macro F1 counts an F1 of 0 for that. The mean F1 of the other "
        f"classes is {percent(f1[np.unique(gold)].mean())}."
    ]


def describe_permutation(cases: pd.DataFrame, task: Task) -> list[str]:
    """The alarm that labels seem exchanged, if they do."""
    if task.multi_label:  # an answer may have the labels of several
        return []
    confusion = confusion_counts(cases["gold"].to_numpy(), cases["tuned"].to_numpy(), len(task.classes))
    found = find_permutation(confusion)
    if found is None:
        return []
    exchanged = [f"{task.classes[gold]} as {task.classes[seeming]}" for gold, seeming in found.labels.items()]
    return [
        f"The labels seem to be exchanged: the tuned model reads {list_names(exchanged)}. The accuracy of these "
        f"{found.rows:,} rows is {percent(found.accuracy)}, and would be {percent(found.exchanged_accuracy)} with the "
        "labels exchanged. Check which label means which class."
    ]


def describe_seen_rows(cases: pd.DataFrame) -> list[str]:
    """The alarm that most test rows are training rows, if they are."""
    seen = int(cases["in_train"].sum())
    if seen <= MOSTLY_SEEN * len(cases):
        return []
    which = "All" if seen == len(cases) else f"{seen:,} of"
    return [
        f"{which} {len(cases):,} test rows are duplicates of training rows: the scores say how well the model "
        "remembers them, and little about new rows."
    ]
