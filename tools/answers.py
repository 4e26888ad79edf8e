"""The answers to rows: a class, or a list of classes if a row may have several labels; None for no answer.

In csv files the classes of a row are joined. So there a row without a class has an empty cell, and a row without an
answer has `NO_ANSWER`, which marks a row without a gold label in files for training.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from stages.data.labels import SEPARATOR, Labels
from tools.answer_rules import Rule

NO_ANSWER = "-"  # in csv files, if a row may have several labels

Label = str | list[str]


def decide(labels: Labels, probabilities: np.ndarray, rule: Rule | None) -> tuple[np.ndarray, np.ndarray]:
    """The answers to rows, and how probable each is.

    Args:
        probabilities: [rows, classes].
        rule: of it only the thresholds; None: the most probable class, or the classes above 0.5.

    Returns:
        the answers as a label array; the probability that each is right, [rows], rounded to 1e-6.
    """
    rounded, thresholds = probabilities.round(6), rule.thresholds if rule else None
    answers = labels.decide(probabilities if thresholds is None else rounded, thresholds)
    return answers, labels.answer_probability(rounded, answers).round(6)


def name_answers(labels: Labels, answers: np.ndarray) -> Sequence[Label]:
    """The classes of a label array's rows: a name each, or a list of names."""
    classes = np.array(labels.classes, dtype=object)
    return [classes[row].tolist() if labels.multi_label else classes[row] for row in answers]


def format_cell(answer: Label | None, labels: Labels) -> str | None:
    """An answer as the cell of a csv file; None: an empty one."""
    if answer is None:
        return NO_ANSWER if labels.multi_label else None
    return answer if isinstance(answer, str) else SEPARATOR.join(answer)


def list_classes(answer: Label) -> list[str]:
    """The classes of an answer."""
    return [answer] if isinstance(answer, str) else answer


def list_cells(labels: Labels) -> list[str]:
    """Cells with every character that the predictions in a csv file may have."""
    joined = [SEPARATOR.join(labels.classes[:2])] if labels.multi_label else []
    return [*labels.classes, *joined]


def answer_type(labels: Labels, as_cells: bool) -> pa.DataType:
    """The type of a table's column of answers; as_cells: of a csv file."""
    return pa.list_(pa.string()) if labels.multi_label and not as_cells else pa.string()
