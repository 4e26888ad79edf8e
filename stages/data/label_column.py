"""The label column: check it, find its classes, and turn each label into the number of its class.

The column may hold text, integers, whole floats, booleans or a ClassLabel. Labels are matched with classes by name. The
codes of a ClassLabel are not used: another data set may number the same classes differently.

Rows may have several labels in three forms, which `label_lists` reads: a column of lists, a text with a separator, or a
column of 0 and 1 for each class. All labels of all rows are then one column here, in which a row has several values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa

from stages.data.label_lists import UNLABELLED_MARKS, describe_type, flatten
from stages.data.labels import SEPARATOR, MultiLabel
from stages.data.row_places import RowError
from stages.data.task import NO_LABEL
from stages.runtime import params
from stages.runtime.errors import UserError

INTEGER = re.compile(r"0|-?[1-9][0-9]*")  # as a program writes it; 01 is a code, not an integer
WHOLE = re.compile(rf"({INTEGER.pattern})(\.0)?")  # pandas writes 1.0 to csv for an integer next to missing values
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
NO_REGRESSION = "classes are supported, not numbers to be predicted"


@dataclass(frozen=True)
class LabelColumn:
    """The label column of one split.

    Attributes:
        split, column: names of the split and of the column.
        values: label of each row as text, None for a row without a label, [rows]. If rows may have several labels:
            [labels], and the index has the number of each label's row.
        class_names: the classes that the data set declares (ClassLabel), else None.
        number_type: the column's type if it holds numbers, else None.
        unnamed_integers: whether the labels are integers whose classes the data set does not name.
        missing: None if each row has one label; else whether a row has no gold label, bool [rows]. A row without labels
            has one: it belongs to no class.
    """

    split: str
    column: str
    values: pd.Series
    class_names: tuple[str, ...] | None = None
    number_type: str | None = None
    unnamed_integers: bool = False
    missing: np.ndarray | None = None


def read_label_columns(
    tables: Mapping[str, pa.Table], label: str | Sequence[str], separator: str | None = None
) -> list[LabelColumn]:
    """Read the label column of each split as text.

    Text labels count as integers only if all text labels of all splits are integers, as in a csv file. Next to `1a` or
    `0.5`, `1` is a name.

    Args:
        label: `data.label`.
        separator: `data.separator`.

    Raises:
        UserError: the column does not hold classes. The error names split and column.
    """
    flat = flatten(tables, label, separator)
    if flat is None:
        columns = [_read_split(table, split, str(label)) for split, table in tables.items()]
    else:
        columns = []
        for split, lists in flat.items():
            try:
                column = _read_split(lists.labels, split, *lists.labels.column_names)
            except RowError as error:
                raise error.move(lists.rows) from error
            columns.append(replace(column, values=column.values.set_axis(lists.rows), missing=lists.missing))
    integers = {}
    for numeric in (False, True):
        values = {value for c in columns if _is_numeric(c) == numeric for value in c.values.dropna().unique()}
        integers[numeric] = all(map(WHOLE.fullmatch, values - UNLABELLED_MARKS))
    return [replace(c, unnamed_integers=c.class_names is None and integers[_is_numeric(c)]) for c in columns]


def _is_numeric(labels: LabelColumn) -> bool:
    return labels.number_type is not None


def _read_split(table: pa.Table, split: str, column: str) -> LabelColumn:
    features = datasets.Features.from_arrow_schema(table.schema)
    values, kind = table[column].combine_chunks(), table[column].type
    names = getattr(features[column], "names", None)
    if names is not None:
        names = tuple(name.strip() for name in names)
        return LabelColumn(split, column, _name_codes(values.to_pandas(), names, split, column), names)
    if pa.types.is_boolean(kind):
        return LabelColumn(split, column, _as_text(values.to_pandas().map({True: "True", False: "False"})))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        stripped = values.to_pandas().str.strip()
        return LabelColumn(split, column, _as_text(stripped.replace("", None)))
    if pa.types.is_null(kind):
        return LabelColumn(split, column, _as_text(values.to_pandas()))
    if pa.types.is_floating(kind):
        numbers = values.to_pandas()  # missing values are NaN
        if np.isinf(numbers).any():
            raise _not_classes(split, column, f"holds {kind}", NO_REGRESSION)
        texts = numbers.map({number: format_number(number) for number in numbers.dropna().unique()})
        return LabelColumn(split, column, _as_text(texts), number_type=str(kind))
    if pa.types.is_integer(kind):
        texts = values.cast(pa.string()).to_pandas()
        return LabelColumn(split, column, _as_text(texts), number_type=str(kind))
    raise _not_classes(split, column, f"holds {describe_type(kind)}", "text, integers, booleans or ClassLabel")


def format_number(number: float) -> str:
    """A float as its shortest text: 1.0 is 1, 0.50 is 0.5."""
    return np.format_float_positional(number + 0.0, trim="-")  # -0.0 + 0.0 is 0.0


def _as_text(values: pd.Series) -> pd.Series:
    return values.astype(object).where(values.notna(), None)


def _name_codes(codes: pd.Series, names: tuple[str, ...], split: str, column: str) -> pd.Series:
    """The class names of a ClassLabel's codes."""
    wrong = codes.notna() & ~codes.isin([NO_LABEL, *range(len(names))])
    if wrong.any():
        row = wrong.idxmax()
        allowed = f"allowed: {NO_LABEL} to {len(names) - 1} ({', '.join(names)})"
        raise RowError(split, [row], f"data: split '{split}': column '{column}' has {codes[row]:g} in", f"; {allowed}")
    return _as_text(codes.map(dict(enumerate(names))))


def _not_classes(split: str, column: str, problem: str, allowed: str) -> UserError:
    return UserError(f"params.yaml: data.label: {column}: {problem} in split '{split}'; {allowed}")


class ClassNames(params.Section):
    """Class names that come from the data set: the rules of `data.classes` apply to them too."""

    classes: params.Classes


def resolve_classes(columns: Sequence[LabelColumn], listed: Sequence[str] | None) -> tuple[str, ...]:
    """The classes, in the order of their numbers.

    Args:
        columns: the label columns of all splits.
        listed: `data.classes`. If it is None, the classes are those that the data set declares, in its order, or else
            the labels that occur, sorted.
    """
    classes = tuple(listed) if listed is not None else _find_classes(columns)
    if columns[0].missing is not None and (name := next((name for name in classes if SEPARATOR in name), None)):
        key = f"data.label: {columns[0].column}" if listed is None else "data.classes"
        raise UserError(
            f"params.yaml: {key}: the class {name!r} has a {SEPARATOR}, which joins several labels of a row in texts; "
            "rename it, or set data.separator if it is two labels"
        )
    return classes


def _find_classes(columns: Sequence[LabelColumn]) -> tuple[str, ...]:
    first = columns[0]
    if len({(c.class_names, c.unnamed_integers) for c in columns}) > 1:
        raise UserError(
            f"data: column '{first.column}' declares other classes in one split than in another; set data.classes"
        )
    names = first.class_names
    if names is None:
        names = _infer_classes(first, pd.concat([c.values for c in columns]).dropna())
    section = params.validate({"classes": list(names)}, ClassNames, f"data: column '{first.column}'")
    return tuple(section.classes)


def _infer_classes(first: LabelColumn, labels: pd.Series) -> tuple[str, ...]:
    """The labels that occur, sorted. Reject labels that may not be classes.

    Args:
        first: the label column of the first split.
        labels: the labels of all splits.
    """
    column, integers = first.column, first.unnamed_integers
    names = set(labels)
    if integers and any(map(INTEGER.fullmatch, names)):  # one split has 1.0 next to missing values, another has 1
        names = {name.removesuffix(".0") for name in names}
    too_many = len(names) > min(params.MAX_CLASSES, max(20, len(labels) / 2))
    fraction = next((name for name in sorted(names) if "." in name), None)
    if fraction and not integers and all(map(NUMBER.fullmatch, names - UNLABELLED_MARKS)):
        if too_many:
            raise _not_classes(first.split, column, f"holds numbers such as {fraction}", NO_REGRESSION)
        raise UserError(
            f"params.yaml: data.classes: null, but column '{column}' has numbers such as {fraction}, "
            "which may be classes or numbers to be predicted; if they are classes, list them, each in quotes"
        )
    if marks := {name for name in names if name.startswith("-")} if integers else names & UNLABELLED_MARKS:
        mark = min(marks)
        raise UserError(
            f"params.yaml: data.classes: null, but column '{column}' has {mark}, which may be a class or no label; "
            f"list the classes, with {mark} or without it"
        )
    if len(names) < 2 or too_many:
        raise UserError(
            f"params.yaml: data.label: {column}: {len(names)} different values in {len(labels):,} labelled rows; "
            f"allowed: 2 to {params.MAX_CLASSES} classes that rows share"
        )
    classes = sorted(names, key=lambda name: int(name.removesuffix(".0"))) if integers else sorted(names)
    folded = [name.casefold() for name in classes]
    if repeated := next((name for name in folded if folded.count(name) > 1), None):
        variants = ", ".join(name for name in classes if name.casefold() == repeated)
        raise UserError(
            f"params.yaml: data.classes: null, but column '{column}' has {variants}, which differ only in case; "
            "list the classes"
        )
    return tuple(classes)


def encode_labels(labels: LabelColumn, classes: Sequence[str]) -> np.ndarray:
    """Code of each row's label (see `labels`), [rows], `NO_LABEL` for a row without a gold label.

    Labels are matched with the classes by name. Case does not count, unless two classes differ only in case. If the
    labels are integers that the data set does not name, they are the classes' numbers. But if the name of a class is a
    number ("1" to "5"), they are matched by name too.

    Raises:
        UserError: a label is not a class, or the data set declares other classes. The error names both.
    """
    codes = _match_labels(labels, classes) if labels.class_names is None else _match_names(labels, classes)
    numbers = labels.values.map(codes).fillna(NO_LABEL).to_numpy(dtype="int64")
    place = f"data: split '{labels.split}'"
    check_repeated(labels, numbers, place)
    return join_labels(labels, numbers, classes, place)


def check_repeated(labels: LabelColumn, values: pd.Series | np.ndarray, place: str) -> None:
    """Reject a row that names a label twice.

    Args:
        values: what must differ in a row, [labels].
        place: file and split, for the error.
    """
    if labels.missing is None:
        return
    twice = pd.DataFrame({"row": labels.values.index, "value": np.asarray(values)}).duplicated().to_numpy()
    if twice.any():
        value, row = labels.values.iloc[twice.argmax()], labels.values.index[twice.argmax()]
        before = f"{place}: column '{labels.column}' has {value!r} twice in"
        raise RowError(labels.split, [row], before, "; name each label once")


def join_labels(labels: LabelColumn, numbers: np.ndarray, classes: Sequence[str], place: str) -> np.ndarray:
    """Code of each row's label, [rows].

    Args:
        numbers: class of each label of `labels`, or `NO_LABEL`: int64 [labels]. Several labels of a row may have the
            same.
        place: file and split, for errors.

    Raises:
        UserError: a row has labels and a mark of a row without a gold label.
    """
    if labels.missing is None:
        return numbers
    rows, unlabelled = labels.values.index.to_numpy(), numbers == NO_LABEL
    mixed = unlabelled & (np.bincount(rows, minlength=len(labels.missing))[rows] > 1)
    if mixed.any():
        mark, row = labels.values.iloc[mixed.argmax()] or "an empty value", rows[mixed.argmax()]
        raise RowError(
            labels.split,
            [row],
            f"{place}: column '{labels.column}' has {mark} next to labels in",
            "; it marks a row without a gold label",
        )
    has_class = np.zeros((len(labels.missing), len(classes)), dtype=np.bool_)
    has_class[rows[~unlabelled], numbers[~unlabelled]] = True
    codes = MultiLabel(tuple(classes)).to_codes(has_class)
    codes[labels.missing] = codes[rows[unlabelled]] = NO_LABEL
    return codes


def _match_names(labels: LabelColumn, classes: Sequence[str]) -> dict[str, int | None]:
    """{class that the data set declares: its number}; it must declare each class and no other."""
    declared, find = labels.class_names or (), _code_finder(classes)
    codes = {name: find(name) for name in declared}
    if None in codes.values() or len(set(codes.values())) < len(classes):
        both = f"{_shorten(', '.join(declared))}; data.classes: {_shorten(', '.join(classes))}"
        raise UserError(f"data: split '{labels.split}': column '{labels.column}' has the classes {both}")
    return codes


def _match_labels(labels: LabelColumn, classes: Sequence[str]) -> dict[str, int | None]:
    """{label that occurs: number of its class, or `NO_LABEL`}."""
    values = labels.values.dropna().unique()
    numbers = [name for name in classes if NUMBER.fullmatch(name)]
    if labels.number_type and not labels.unnamed_integers and not numbers:
        raise _not_classes(labels.split, labels.column, f"holds {labels.number_type}", NO_REGRESSION)
    if labels.unnamed_integers and not numbers:
        codes = {str(code): code for code in range(len(classes))}
        matches = {value: codes.get(value.removesuffix(".0")) for value in values}
        allowed = ", ".join(f"{code} ({name})" for code, name in enumerate(classes))
    else:
        matches = match_by_name(labels, classes)
        allowed = ", ".join(classes)
    matches |= {mark: NO_LABEL for mark in UNLABELLED_MARKS if mark in matches and matches[mark] is None}
    wrong = labels.values.map(lambda value: value is not None and matches[value] is None)
    if wrong.any():
        first = wrong.to_numpy().argmax()
        row = labels.values.index[first]
        before = f"data: split '{labels.split}': column '{labels.column}' has {labels.values.iloc[first]!r} in"
        raise RowError(labels.split, [row], before, f"; data.classes: {_shorten(allowed)}")
    return matches


def match_by_name(labels: LabelColumn, classes: Sequence[str]) -> dict[str, int | None]:
    """{label that occurs: number of the class with this name, None if there is none}."""
    find = _code_finder(classes)
    matches = {value: find(value) for value in labels.values.dropna().unique()}
    if labels.number_type or labels.unnamed_integers:  # 1 and 1.0 are the same number
        exact = {name: code for code, name in enumerate(classes)}
        numbers = [name for name in classes if NUMBER.fullmatch(name)]
        same = {format_number(float(name)): exact[name] for name in numbers if "." in name} | exact
        for value in matches:
            if matches[value] is None:
                matches[value] = same.get(value.removesuffix(".0"))
    return matches


def _code_finder(classes: Sequence[str]) -> Callable[[str], int | None]:
    """A function from a name to the number of its class. Case counts only if two classes differ only in case."""
    exact = {name: code for code, name in enumerate(classes)}
    folded = {name.casefold(): code for code, name in enumerate(classes)}

    def find(name: str) -> int | None:
        if name in exact or len(folded) < len(exact):
            return exact.get(name)
        return folded.get(name.casefold())

    return find


def _shorten(text: str) -> str:
    return text if len(text) < 500 else f"{text[:500]}…"
