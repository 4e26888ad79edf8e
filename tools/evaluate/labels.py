"""Match the labels of a data set with an adapter's classes. A label that could be read wrongly is rejected."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from shlex import quote

import numpy as np
import pandas as pd

from stages.data.label_column import LabelColumn, check_repeated, join_labels, match_by_name
from stages.data.label_lists import UNLABELLED_MARKS
from stages.data.row_places import RowError
from stages.data.task import NO_LABEL, Task
from stages.runtime.errors import UserError

MOST_NAMED = 6  # labels or classes in an error; further ones are counted


def parse_class_map(pairs: Sequence[str], task: Task) -> dict[str, str]:
    """{label of a file: class} from the values of `--class`, such as yes=entailment.

    Raises:
        UserError: a pair has no `=`, names no class, or its label is named twice.
    """
    mapped: dict[str, str] = {}
    for pair in pairs:
        label, separator, name = (part.strip() for part in pair.rpartition("="))  # a label may have an = in it
        if not separator or not label:
            raise UserError(f"--class {pair}: must be LABEL=CLASS, such as yes={task.classes[0]}")
        if name not in task.classes:
            raise UserError(
                f"--class {pair}: the adapter has no {task.labels.noun} {name}; it has {_list(task.classes)}"
            )
        if label in mapped:
            raise UserError(f"--class {pair}: {label} means {mapped[label]} already; name it once")
        mapped[label] = name
    return mapped


def encode_set_labels(labels: LabelColumn, task: Task, class_map: Mapping[str, str], place: str) -> np.ndarray:
    """Code of each row's label (see `stages.data.labels`), [rows], `NO_LABEL` for a row without a gold label.

    A label means the class that `class_map` says, or else the class of its name. Integers without names mean no class
    by themselves: another data set may number the same classes differently. They must be in `class_map`, unless the
    classes are numbers themselves.

    Args:
        task: of the run.
        class_map: from `parse_class_map`.
        place: file and split, for errors.

    Raises:
        UserError: a label is neither mapped nor the name of a class, or no row has a label.
    """
    codes = match_by_name(labels, task.classes)
    for value in codes:
        name = class_map.get(value) or (class_map.get(value.removesuffix(".0")) if labels.unnamed_integers else None)
        if name is not None:
            codes[value] = task.classes.index(name)
        elif codes[value] is None and value in UNLABELLED_MARKS:
            codes[value] = NO_LABEL
    unknown = [value for value, code in codes.items() if code is None]
    if unknown:
        raise _unknown_labels(labels, unknown, task, place)
    numbers = labels.values.map(codes).fillna(NO_LABEL).to_numpy(dtype="int64")
    check_repeated(labels, labels.values, place)
    encoded = join_labels(labels, numbers, task.classes, place)
    if (encoded <= (NO_LABEL if labels.missing is None else 0)).all():  # several labels: 0 is a row without any
        raise UserError(f"{place}: column '{labels.column}' has no label in any row; name another one by --label")
    return encoded


def check_class_columns(
    columns: Sequence[str], labels: LabelColumn, task: Task, class_map: Mapping[str, str], place: str
) -> None:
    """Reject columns of 0 and 1 that are not those of all classes: a class without a column would always be wrong."""
    classes, noun, nouns = task.classes, task.labels.noun, task.labels.nouns
    matches = match_by_name(replace(labels, values=pd.Series(columns)), classes)
    found = {class_map.get(name) or (None if code is None else classes[code]) for name, code in matches.items()}
    if unknown := [name for name, code in matches.items() if code is None and name not in class_map]:
        raise UserError(
            f"{place}: column {unknown[0]} is not a {noun} of the adapter; the {nouns} are {_list(classes)}. Say which "
            f"{noun} it means: --class {quote(unknown[0])}=CLASS"
        )
    if rest := [name for name in classes if name not in found]:
        raise UserError(f"{place}: no label column for {_list(rest)}; name one for each {noun}: --label COLUMN")


def _unknown_labels(labels: LabelColumn, unknown: list[str], task: Task, place: str) -> RowError:
    rows, noun, nouns = labels.values.value_counts(), task.labels.noun, task.labels.nouns
    listed = sorted(unknown, key=lambda value: float(value) if labels.unnamed_integers else -rows[value])
    counted = [f"{value} ({rows[value]:,} row{'s' if rows[value] > 1 else ''})" for value in listed]
    flags = " ".join(f"--class {quote(value)}=CLASS" for value in listed[:MOST_NAMED])
    what = "integers without names" if labels.unnamed_integers else f"labels that are not {nouns} of the adapter"
    return RowError(
        labels.split,
        [labels.values.index[labels.values.isin(unknown).to_numpy().argmax()]],
        f"{place}: column '{labels.column}' has {what}: {_list(counted)}, the first in",
        f"; the {nouns} are {_list(task.classes)}. Say which {noun} each means: {flags}",
    )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
