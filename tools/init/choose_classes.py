"""Choose the classes of label columns, and describe labels that may be mistakes. `tools.init` uses it."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.data.label_column import (
    INTEGER,
    NUMBER,
    UNLABELLED_MARKS,
    LabelColumn,
    encode_labels,
    resolve_classes,
)
from stages.runtime.errors import UserError
from stages.runtime.params import MAX_CLASSES
from tools.init.columns import list_some

MISSING = ("nan", "none", "null", "na", "n/a", "?", "unknown")  # how other programs write a missing value
ALIKE = 0.85  # difflib's ratio of two names of which one may be a typo; of biling and billing: 0.92
OFTEN, RARER = 5, 20  # a typo's class has at least 5 rows, and 20 times those of the typo
EVEN = 0.4  # share of the rarer of two classes from which they count as equally frequent


def choose_classes(columns: Sequence[LabelColumn], separator: str | None = None) -> tuple[list[str] | None, list[str]]:
    """`data.classes`, and sentences about them; None if the classes of the data are clear.

    Of two classes, the rarer is the last: the report's ROC AUC and best threshold are about it.

    Args:
        columns: the label columns of all splits, one label column or several of 0 and 1.
        separator: `data.separator`.

    Raises:
        UserError: there are too few or too many classes.
    """
    listed: list[str] | None = None
    notes: list[str] = []
    try:
        classes = list(resolve_classes(columns, None))
    except UserError as error:
        classes, notes = list_classes(columns, error)
        listed = classes
    if columns[0].class_names is None:
        notes += describe_spellings(pd.concat([column.values for column in columns]), classes)
    named = columns[0].missing is not None and columns[0].class_names is not None  # as of columns of 0 and 1
    if not named and (missing := [name for name in classes if name.casefold() in MISSING]):
        advice = advise_on_missing(columns[0], separator)
        notes.append(f"{', '.join(missing)} is read as a class; if it means that a row is not labelled, {advice}")
    if len(classes) == 2 and columns[0].missing is None:
        codes = np.concatenate([encode_labels(column, classes) for column in columns])
        counts = np.bincount(codes[codes >= 0], minlength=2)
        if counts[1] > counts[0] and counts[0] < EVEN * counts.sum():
            listed = classes = classes[::-1]
        notes.append(f"ROC AUC and the best threshold are about the last class, {classes[1]}")
    return listed, notes


def advise_on_missing(column: LabelColumn, separator: str | None) -> str:
    """What to write for a row that is not labelled. In a text with a separator, nothing is another case."""
    if column.missing is None:
        return "empty these cells of the data"
    if separator is not None:
        return "write - in these cells; empty them if it means that the row has none of the labels"
    return "write null in place of the list; write an empty list if it means that the row has none of the labels"


def list_classes(columns: Sequence[LabelColumn], error: UserError) -> tuple[list[str], list[str]]:
    """Choose classes where `resolve_classes` cannot tell them -> the classes, and what was decided, as sentences."""
    counts = pd.concat([column.values for column in columns]).dropna().value_counts()
    values, notes = set(counts.index), []
    declared = len({(column.class_names, column.unnamed_integers) for column in columns}) > 1 or columns[0].class_names
    others = values - UNLABELLED_MARKS
    numeric = all(map(NUMBER.fullmatch, others))
    marks = values & UNLABELLED_MARKS
    numbers = {float(value) for value in others} if numeric else set()
    if numeric and (min(numbers, default=0) < 0 or numbers <= {0, 1}):  # of -2 to 2, or of -1, 0 and 1
        marks -= {"-1", "-1.0"}
    if kept := values & UNLABELLED_MARKS - marks:
        notes.append(
            f"{min(kept)} is read as a class; if it means that a row is not labelled, remove it from data.classes"
        )
    if marks:
        notes.append(f"rows with {min(marks)} are not labelled, and left out")
    unique: dict[Any, str] = {}  # the most frequent spelling of each name
    for value in (value for value in counts.index if value not in marks):
        unique.setdefault(float(value) if numeric else value.casefold(), value)
    if numeric and all(map(INTEGER.fullmatch, (value.removesuffix(".0") for value in unique.values()))):
        unique = {key: value.removesuffix(".0") for key, value in unique.items()}
    if declared or not 2 <= len(unique) <= min(MAX_CLASSES, max(20, counts.sum() / 2)):
        raise error
    return [unique[key] for key in sorted(unique)], notes


def describe_spellings(values: pd.Series, classes: Sequence[str]) -> Iterator[str]:
    """Which labels are read as a class that is written in another way, and which classes may be typos of others.

    Args:
        values: label of each row.
    """
    counts: dict[str, int] = {}  # rows of each class
    others: dict[str, list[str]] = {}  # {class: its other spellings}
    find = {_simplify(name): name for name in classes}
    for value, count in values.dropna().value_counts().items():
        if name := value if value in classes else find.get(_simplify(value)):
            counts[name] = counts.get(name, 0) + count
            if value != name:
                others.setdefault(name, []).append(f"{value} ({_count_rows(count)})")
    if others:
        read = [f"{list_some(texts)} {_are(texts)} read as {name}" for name, texts in others.items()]
        yield list_some(read)
    typos, of = [], []
    for name in filter(counts.__contains__, classes):
        frequent = [other for other in counts if counts[other] >= max(OFTEN, RARER * counts[name])]
        if re.search(r"\d", name) or not (near := [other for other in frequent if is_near(name, other)]):
            continue
        typos.append(f"{name} ({_count_rows(counts[name])})")
        of.append(f"{near[0]} ({_count_rows(counts[near[0]])})")
    if len(typos) == 1:
        yield f"{typos[0]} is a class of its own; if it is a typo of {of[0]}, correct it in the data"
    elif typos:
        yield (
            f"{list_some(typos)} are classes of their own; if they are typos of {list_some(of)}, correct them in the "
            "data"
        )


def is_near(name: str, other: str) -> bool:
    """Whether a name may be a typo of another: most letters are the same, or two neighbours are exchanged."""
    name, other = name.casefold(), other.casefold()
    if abs(len(name) - len(other)) > 2:
        return False
    differing = [place for place, (a, b) in enumerate(zip(name, other, strict=False)) if a != b]
    if len(name) == len(other) and len(differing) == 2 and differing[1] == differing[0] + 1 and len(name) > 3:
        return name[differing[0]] == other[differing[1]] and name[differing[1]] == other[differing[0]]
    matcher = difflib.SequenceMatcher(None, name, other)
    return matcher.quick_ratio() >= ALIKE and matcher.ratio() >= ALIKE  # the first is fast, and never the lower one


def _simplify(value: str) -> float | str:
    """What labels that are read as one class have in common."""
    return float(value) if NUMBER.fullmatch(value) else value.casefold()


def _are(texts: Sequence[str]) -> str:
    return "is" if len(texts) == 1 else "are"


def _count_rows(rows: int) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'}"
