"""Several labels per row: a column of lists, a text with a separator, or a column of 0 and 1 for each class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stages.data.row_places import RowError
from stages.data.task import NO_LABEL
from stages.runtime.errors import UserError

# Marks of a row without a label: "-" in SNLI's and MNLI's own files, -1 in `datasets` and in Jigsaw's test labels.
UNLABELLED_MARKS = {"-", str(NO_LABEL), f"{NO_LABEL}.0"}
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


@dataclass(frozen=True)
class LabelLists:
    """The labels of the rows of one split.

    Attributes:
        labels: a table with one column, in which the labels of all rows follow one another. Its schema has the features
            of `datasets`.
        rows: the row of each label, int [labels].
        missing: whether a row has no gold label, bool [rows]. This is not a row with an empty list.
    """

    labels: pa.Table
    rows: np.ndarray
    missing: np.ndarray


def flatten(
    tables: Mapping[str, pa.Table], label: str | Sequence[str], separator: str | None
) -> dict[str, LabelLists] | None:
    """{split: labels of its rows}; None if rows have one label each.

    Args:
        label: `data.label`, a column, or a list of the columns of 0 and 1.
        separator: `data.separator`.

    Raises:
        UserError: the form is not one of the three. The error names split and column.
    """
    if not isinstance(label, str):
        return {split: read_flags(table, split, label) for split, table in tables.items()}
    kinds = {split: table.schema.field(label).type for split, table in tables.items()}
    listed = {split for split, kind in kinds.items() if is_list(kind)}
    if separator is not None:
        if listed:
            raise UserError(
                f"params.yaml: data.separator: {separator}: column '{label}' holds lists in split '{min(listed)}'; "
                "allowed: null"
            )
        return {split: split_texts(table, split, label, separator) for split, table in tables.items()}
    if not listed:
        return None
    if others := kinds.keys() - listed:
        raise UserError(
            f"params.yaml: data.label: {label}: holds lists in split '{min(listed)}', but "
            f"{describe_type(kinds[min(others)])} in split '{min(others)}'; allowed: lists in all splits, or in none"
        )
    return {split: read_lists(table, split, label) for split, table in tables.items()}


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def describe_type(kind: pa.DataType) -> str:
    """A column's type in at most 60 characters. A struct's type lists all its fields."""
    return str(kind) if len(str(kind)) <= 60 else f"{kind!s:.60}…"


def read_lists(table: pa.Table, split: str, column: str) -> LabelLists:
    """Read a column of lists. A missing list means no gold label. An empty text in a list is no label."""
    lists, feature = table[column].combine_chunks(), datasets.Features.from_arrow_schema(table.schema)[column]
    feature = getattr(feature, "feature", feature)
    rows, values = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    if not isinstance(feature, datasets.ClassLabel) and _are_vectors(lists, values):
        raise UserError(
            f"data: split '{split}': column '{column}' holds vectors of 0 and 1, such as "
            f"{lists.drop_null()[0].as_py()!s:.60}; allowed in a list: the names or numbers of the row's labels; or "
            "write a column of 0 and 1 for each label, and name them in data.label"
        )
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        filled = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(values), ""), True).to_numpy(False)
        rows, values = rows[filled], values.filter(pa.array(filled))
    labels = pa.table([values], schema=datasets.Features({column: feature}).arrow_schema)
    return LabelLists(labels, rows, pc.is_null(lists).to_numpy(False))


def _are_vectors(lists: pa.Array, values: pa.Array) -> bool:
    """Whether lists say of each class whether the row has it. As names of classes they would be read wrongly."""
    if pa.types.is_boolean(values.type):
        return len(values) > 0
    lengths = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    return len(lengths) == 1 and lengths[0] > 1 and set(pc.unique(values).to_pylist()) <= {0, 1, "0", "1"}


def split_texts(table: pa.Table, split: str, column: str, separator: str) -> LabelLists:
    """Split the texts of a column. An empty or missing text means no class; a csv file has one form for both."""
    kind = table.schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(
            f"params.yaml: data.label: {column}: holds {describe_type(kind)} in split '{split}'; "
            f"allowed with data.separator: {separator}: text"
        )
    separator = separator.strip() or separator  # spaces next to a label don't count
    lists = pc.split_pattern(pc.fill_null(table[column].combine_chunks(), ""), separator)
    rows, labels = pc.list_parent_indices(lists).to_numpy(), pc.utf8_trim_whitespace(pc.list_flatten(lists))
    filled = pc.not_equal(labels, "").to_numpy(False)
    flat = pa.table({column: labels.filter(pa.array(filled))})
    return LabelLists(flat, rows[filled], np.zeros(len(table), dtype=bool))


def read_flags(table: pa.Table, split: str, columns: Sequence[str]) -> LabelLists:
    """Read columns of 0 and 1, whose names are the classes. A row with nothing or -1 in all has no gold label."""
    flags = np.empty((len(table), len(columns)), dtype=bool)
    empty = np.zeros_like(flags)
    declared = datasets.Features.from_arrow_schema(table.schema)
    for number, column in enumerate(columns):
        cells = table[column].to_pandas()
        if names := getattr(declared[column], "names", None):  # the codes of a ClassLabel do not count, its names do
            cells = cells.map(dict(enumerate(names)))
        texts = _to_texts(cells)
        values = texts.str.lower().map(FLAGS)
        empty[:, number] = texts.isin(["", *UNLABELLED_MARKS])
        if (wrong := values.isna() & ~empty[:, number]).any():
            row = int(wrong.to_numpy().argmax())
            raise RowError(
                split,
                [row],
                f"data: split '{split}': column '{column}' has {texts[row]:.60} in",
                "; allowed in each column that data.label lists: 0 or 1; in a row without a gold label: nothing or -1 "
                "in all of them",
            )
        flags[:, number] = values.fillna(False).to_numpy(bool)
    missing = np.asarray(empty.all(axis=1))
    if (partly := empty.any(axis=1) & ~missing).any():
        row = int(partly.argmax())
        column = columns[int(empty[row].argmax())]
        mark = _to_texts(table[column].slice(row, 1).to_pandas()).iloc[0]
        raise RowError(
            split,
            [row],
            f"data: split '{split}': column '{column}' {f'has {mark}' if mark else 'is empty'} in",
            ", but other columns of data.label have 0 or 1; allowed: 0 or 1 in all of them; in a row without a gold "
            "label: nothing or -1 in all of them",
        )
    rows, numbers = np.nonzero(flags)
    name = ", ".join(columns)
    features = datasets.Features({name: datasets.ClassLabel(names=list(columns))})
    return LabelLists(pa.table([numbers], schema=features.arrow_schema), rows, missing)


def _to_texts(values: pd.Series) -> pd.Series:
    """Cells as stripped text, "" for an empty one."""
    texts: Any = values.astype(object).where(values.notna(), "")
    return texts.map(str).str.strip()
