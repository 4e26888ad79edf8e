"""From a label column of any kind to the classes' numbers: by name, never by what the codes happen to be."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stages.runtime.errors import UserError
from stages.task.task import NO_LABEL

MOST = 1000  # classes; more are no classes but another column
WITHOUT = ("-", str(NO_LABEL))  # SNLI and MNLI as text, and `datasets`, mark a row without a gold label so
NOT_ONE = "a single class a row is supported, not several labels"
NOT_A_CLASS = "classes are supported, not numbers to be predicted"


@dataclass(frozen=True)
class Labels:
    """A split's label column, read.

    Attributes:
        split, column: where it stands.
        values: each row's label as text, None where there is none, [rows].
        names: the classes that the data set itself declares (ClassLabel), else None.
        integers: the labels are integers whose names the data does not tell.
    """

    split: str
    column: str
    values: pd.Series
    names: tuple[str, ...] | None = None
    integers: bool = False


def read_labels(table: pa.Table, features: datasets.Features, split: str, column: str) -> Labels:
    """A label column as text.

    Raises:
        UserError: naming split and column, where it holds anything but one class a row.
    """
    values, feature, kind = table[column].combine_chunks(), features[column], table[column].type
    names = getattr(feature, "names", None)
    if names is not None:
        names = tuple(name.strip() for name in names)
        codes = values.to_pandas()
        return Labels(split, column, _of_codes(codes, names, split, column), names)
    if pa.types.is_boolean(kind):
        return Labels(split, column, _text(values.to_pandas().map({True: "True", False: "False"})))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        stripped = values.to_pandas().str.strip()
        return Labels(split, column, _text(stripped.replace("", None)))
    if pa.types.is_floating(kind):
        whole = pc.all(pc.equal(pc.round(values), values)).as_py()
        if whole is False or not np.isfinite(values.drop_null().to_numpy()).all():
            raise _refused(split, column, f"holds {kind}", NOT_A_CLASS)
        values = values.cast(pa.int64())
    elif pa.types.is_null(kind):
        return Labels(split, column, _text(values.to_pandas()))
    elif not pa.types.is_integer(kind):
        several = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        raise _refused(split, column, f"holds {kind}", NOT_ONE if several else "text, integers, booleans or ClassLabel")
    return Labels(split, column, _text(values.cast(pa.string()).to_pandas()), integers=True)


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


def choose_classes(labels: Sequence[Labels], wanted: Sequence[str] | None) -> tuple[str, ...]:
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
    if labels[0].names:
        return labels[0].names
    values = pd.concat([one.values for one in labels]).dropna()
    found = set(values)
    if marks := found & (set(WITHOUT) if not labels[0].integers else {v for v in found if v.startswith("-")}):
        mark = sorted(marks)[0]
        raise UserError(
            f"params.yaml: data.classes: null, but column '{column}' has {mark}, which may be a class or no label; "
            f"list the classes, with {mark} or without it"
        )
    if len(found) < 2 or len(found) > MOST or len(found) > max(20, len(values) / 2):
        raise UserError(
            f"params.yaml: data.label: {column}: {len(found)} different values in {len(values):,} labelled rows; "
            f"allowed: 2 to {MOST} classes that rows share"
        )
    classes = tuple(sorted(found, key=int) if labels[0].integers else sorted(found))
    if len({name.casefold() for name in classes}) < len(classes):
        alike = next(name for name in classes if sum(name.casefold() == other.casefold() for other in classes) > 1)
        others = ", ".join(name for name in classes if name.casefold() == alike.casefold())
        raise UserError(
            f"params.yaml: data.classes: null, but column '{column}' has {others}, which differ in case alone; "
            "list the classes"
        )
    return classes


def to_codes(labels: Labels, classes: Sequence[str]) -> np.ndarray:
    """Number of each row's class, int64 [rows], `NO_LABEL` where it has none.

    Labels are matched with the classes by name, whatever their case where that is clear. Integers that the data does
    not name are matched as text where all classes are integers too ("1" to "5"); else they are places among the
    classes.

    Raises:
        UserError: naming the first label that is no class, or both lists where the data declares other classes.
    """
    where = f"data: split '{labels.split}': column '{labels.column}'"
    folded = {name.casefold(): code for code, name in enumerate(classes)}
    exact = {name: code for code, name in enumerate(classes)}
    if labels.names is not None:
        of_name = {name: _place(name, exact, folded) for name in labels.names}
        if None in of_name.values() or len(set(of_name.values())) < len(classes):
            own, wanted = _short(", ".join(labels.names)), _short(", ".join(classes))
            raise UserError(f"{where} has the classes {own}; data.classes: {wanted}")
    else:
        found = labels.values.dropna().unique()
        if labels.integers and not all(name.lstrip("-").isdigit() for name in classes):
            of_name = {value: int(value) if 0 <= int(value) < len(classes) else None for value in found}
            allowed = ", ".join(f"{code} ({name})" for code, name in enumerate(classes))
        else:
            of_name = {value: _place(value, exact, folded) for value in found}
            allowed = ", ".join(classes)
        for mark in WITHOUT:
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
