"""From a label column of any kind to the classes' numbers: by name, never by what the codes happen to be."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa

from stages.data.task import NO_LABEL
from stages.runtime import params
from stages.runtime.errors import UserError

UNLABELLED_MARKS = (
    "-",
    str(NO_LABEL),
    f"{NO_LABEL}.0",
)  # SNLI and MNLI as text, and `datasets`, mark a row without a label so
INTEGER = re.compile(r"0|-?[1-9][0-9]*")  # as a program writes it: 01 is a code
WHOLE = re.compile(rf"({INTEGER.pattern})(\.0)?")  # 1.0 in a csv file that pandas wrote from integers with gaps
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
ONE_CLASS_A_ROW = "a single class a row is supported, not several labels"
NO_REGRESSION = "classes are supported, not numbers to be predicted"


@dataclass(frozen=True)
class LabelColumn:
    """A split's label column, read.

    Attributes:
        split, column: where it stands.
        values: each row's label as text, None where there is none, [rows].
        names: the classes that the data set itself declares (ClassLabel), else None.
        kind: the column's type where it holds numbers, else None.
        integers: the labels are integers whose names the data does not tell.
    """

    split: str
    column: str
    values: pd.Series
    names: tuple[str, ...] | None = None
    kind: str | None = None
    integers: bool = False


def read_label_columns(splits: Mapping[str, pa.Table], column: str) -> list[LabelColumn]:
    """The label column of each split as text.

    Integers may be text, as in a csv file, where all splits have nothing else: `1` is a name next to `1a` or `0.5`.

    Raises:
        UserError: naming split and column, where it holds anything but one class a row.
    """
    labels = [_read_split(table, split, column) for split, table in splits.items()]
    names = {of_numbers: set(UNLABELLED_MARKS) for of_numbers in (False, True)}
    for one in labels:
        names[one.kind is not None].update(one.values.dropna().unique())
    integers = {
        of_numbers: all(map(WHOLE.fullmatch, found - set(UNLABELLED_MARKS))) for of_numbers, found in names.items()
    }
    return [replace(one, integers=one.names is None and integers[one.kind is not None]) for one in labels]


def _read_split(table, split, column):
    features = datasets.Features.from_arrow_schema(table.schema)
    values, feature, kind = table[column].combine_chunks(), features[column], table[column].type
    names = getattr(feature, "names", None)
    if names is not None:
        names = tuple(name.strip() for name in names)
        codes = values.to_pandas()
        return LabelColumn(split, column, _of_codes(codes, names, split, column), names)
    if pa.types.is_boolean(kind):
        return LabelColumn(split, column, _text(values.to_pandas().map({True: "True", False: "False"})))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        stripped = values.to_pandas().str.strip()
        return LabelColumn(split, column, _text(stripped.replace("", None)))
    if pa.types.is_null(kind):
        return LabelColumn(split, column, _text(values.to_pandas()))
    if pa.types.is_floating(kind):
        values = values.to_pandas()  # its gaps may be NaN
        if np.isinf(values).any():
            raise _refused(split, column, f"holds {kind}", NO_REGRESSION)
        values = values.map({value: format_number(value) for value in values.dropna().unique()})
    elif pa.types.is_integer(kind):
        values = values.cast(pa.string()).to_pandas()
    else:
        several = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        what = f"holds {describe_type(kind)}"
        raise _refused(split, column, what, ONE_CLASS_A_ROW if several else "text, integers, booleans or ClassLabel")
    return LabelColumn(split, column, _text(values), kind=str(kind))


def describe_type(kind: pa.DataType) -> str:
    """A column's type, in a few words even where it names all its fields."""
    return str(kind) if len(str(kind)) <= 60 else f"{kind!s:.60}…"


def format_number(number: float) -> str:
    """A float as text: 1.0 is 1, 0.50 is 0.5."""
    return np.format_float_positional(number + 0.0, trim="-")  # -0.0 + 0.0 is 0.0


def _text(values):
    return values.astype(object).where(values.notna(), None)


def _of_codes(codes, names, split, column):
    wrong = codes.notna() & ~codes.isin([NO_LABEL, *range(len(names))])
    if wrong.any():
        row = wrong.idxmax()
        allowed = f"allowed: {NO_LABEL} to {len(names) - 1} ({', '.join(names)})"
        raise UserError(f"data: split '{split}': column '{column}' has {codes[row]:g} in row {row}; {allowed}")
    return _text(codes.map(dict(enumerate(names))))


def _refused(split, column, what, allowed):
    return UserError(f"params.yaml: data.label: {column}: {what} in split '{split}'; {allowed}")


class ClassNames(params.Section):
    """The classes that a data set itself has, by the rules of `data.classes`."""

    classes: params.Classes


def resolve_classes(labels: Sequence[LabelColumn], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The classes, in the order of their numbers.

    Args:
        labels: of every split.
        wanted: `data.classes`: the names to be used, in this order; None for the data set's own, in its order where it
            declares them, else sorted.
    """
    if wanted is not None:
        return tuple(wanted)
    column = labels[0].column
    declared = {one.names for one in labels}
    if len(declared) > 1 or len({one.integers for one in labels}) > 1:
        raise UserError(
            f"data: column '{column}' declares other classes in one split than in another; set data.classes"
        )
    if labels[0].names is not None:
        return _checked(labels[0].names, column)
    values = pd.concat([one.values for one in labels]).dropna()
    found = set(values)
    if labels[0].integers and any(map(INTEGER.fullmatch, found)):  # a file with gaps next to one without
        found = {name.removesuffix(".0") for name in found}
    too_many = len(found) > min(params.MAX_CLASSES, max(20, len(values) / 2))
    fraction = next((value for value in sorted(found) if "." in value), None)
    if fraction and not labels[0].integers and all(map(NUMBER.fullmatch, found - set(UNLABELLED_MARKS))):
        if too_many:
            raise _refused(labels[0].split, column, f"holds numbers such as {fraction}", NO_REGRESSION)
        raise UserError(
            f"params.yaml: data.classes: null, but column '{column}' has numbers such as {fraction}, "
            "which may be classes or numbers to be predicted; if they are classes, list them, each in quotes"
        )
    if marks := found & (set(UNLABELLED_MARKS) if not labels[0].integers else {v for v in found if v.startswith("-")}):
        mark = sorted(marks)[0]
        raise UserError(
            f"params.yaml: data.classes: null, but column '{column}' has {mark}, which may be a class or no label; "
            f"list the classes, with {mark} or without it"
        )
    if len(found) < 2 or too_many:
        raise UserError(
            f"params.yaml: data.label: {column}: {len(found)} different values in {len(values):,} labelled rows; "
            f"allowed: 2 to {params.MAX_CLASSES} classes that rows share"
        )
    classes = tuple(
        sorted(found, key=lambda name: int(name.removesuffix(".0"))) if labels[0].integers else sorted(found)
    )
    if len({name.casefold() for name in classes}) < len(classes):
        alike = next(name for name in classes if sum(name.casefold() == other.casefold() for other in classes) > 1)
        others = ", ".join(name for name in classes if name.casefold() == alike.casefold())
        raise UserError(
            f"params.yaml: data.classes: null, but column '{column}' has {others}, which differ in case alone; "
            "list the classes"
        )
    return _checked(classes, column)


def _checked(classes, column):
    return tuple(params.validate({"classes": list(classes)}, ClassNames, f"data: column '{column}'").classes)


def encode_labels(labels: LabelColumn, classes: Sequence[str]) -> np.ndarray:
    """Number of each row's class, int64 [rows], `NO_LABEL` where it has none.

    Labels are matched with the classes by name, whatever their case where that is clear. Integers that the data does
    not name are matched by name where classes are numbers too ("1" to "5"); else they are places among the classes.

    Raises:
        UserError: naming the first label that is no class, or both lists where the data declares other classes.
    """
    where = f"data: split '{labels.split}': column '{labels.column}'"
    folded = {name.casefold(): code for code, name in enumerate(classes)}
    exact = {name: code for code, name in enumerate(classes)}
    numbers = [name for name in classes if NUMBER.fullmatch(name)]
    if labels.names is not None:
        of_name = {name: _place(name, exact, folded) for name in labels.names}
        if None in of_name.values() or len(set(of_name.values())) < len(classes):
            own, wanted = _short(", ".join(labels.names)), _short(", ".join(classes))
            raise UserError(f"{where} has the classes {own}; data.classes: {wanted}")
    else:
        found = labels.values.dropna().unique()
        if labels.kind and not labels.integers and not numbers:
            raise _refused(labels.split, labels.column, f"holds {labels.kind}", NO_REGRESSION)
        if labels.integers and not numbers:
            places = {str(code): code for code in range(len(classes))}
            of_name = {value: places.get(value.removesuffix(".0")) for value in found}
            allowed = ", ".join(f"{code} ({name})" for code, name in enumerate(classes))
        else:
            of_name = {value: _place(value, exact, folded) for value in found}
            if labels.kind or labels.integers:  # 1 and 1.0 are one number
                same = {format_number(float(name)): exact[name] for name in numbers if "." in name} | exact
                of_name = {value: same.get(value.removesuffix(".0")) if of_name[value] is None else of_name[value]
                           for value in found}  # fmt: skip
            allowed = ", ".join(classes)
        for mark in UNLABELLED_MARKS:
            if of_name.get(mark, 0) is None:
                of_name[mark] = NO_LABEL
        wrong = labels.values.map(lambda value: value is not None and of_name[value] is None)
        if wrong.any():
            row = wrong.idxmax()
            raise UserError(f"{where} has {labels.values[row]!r} in row {row}; data.classes: {_short(allowed)}")
    return labels.values.map(of_name).fillna(NO_LABEL).to_numpy(dtype="int64")


def _place(name, exact, folded):
    """Number of a class by its name; by its name in another case only where no two classes differ in case alone."""
    if name in exact:
        return exact[name]
    return folded.get(name.casefold()) if len(folded) == len(exact) else None


def _short(text):
    return text if len(text) < 500 else f"{text[:500]}…"
