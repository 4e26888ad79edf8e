"""From a data set's tables to rows: check the columns, read texts, classes and groups, choose and label rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.holdout import UNIT, join_texts, list_sizes
from stages.data.label_column import describe_type, encode_labels, format_number, read_label_columns, resolve_classes
from stages.data.labels import Labels
from stages.data.row_places import RowError, list_columns, locate_rows, read_places
from stages.data.task import NO_LABEL, Task, parse_columns
from stages.runtime.errors import UserError
from stages.runtime.params import Data

SEPARATOR = "\x1f"  # begins the name of a group that no row's value has


def prepare_rows(tables: dict[str, pa.Table], data: Data, template: str) -> tuple[Task, dict[str, pd.DataFrame]]:
    """Derive the task from a data set, and read the rows of its splits.

    Args:
        tables: {split: arrow table}, with the features of `datasets` in its schema.
        data: the section `data` of params.yaml.
        template: what the model reads, with a chat template.

    Returns:
        (task, {split: data frame with the task's text columns, `label` (code, -1 for none: see `labels`), `group`
        (text) and, if the tables have them, the columns of `row_places`}). If rows are held out of the training
        rows, these also have `UNIT`.

    Raises:
        UserError: a column is missing, has another type, or is empty. The error names the key and the column.
    """
    columns = parse_columns(template)
    for split, table in tables.items():
        check_columns(table, split, data, columns)
    with locate_rows(tables):
        label_columns = read_label_columns(tables, data.label, data.separator)
        multi_label = label_columns[0].missing is not None
        task = Task(resolve_classes(label_columns, data.classes), template, data.group, multi_label)
        if data.unlabelled not in ("drop", *task.classes):
            raise UserError(
                f"params.yaml: data.unlabelled: {data.unlabelled}; allowed: drop, or a class "
                f"({', '.join(task.classes[:20])})"
            )
        rows = {}
        for labels, (split, table) in zip(label_columns, tables.items(), strict=True):
            texts = table.select(list(columns)).to_pandas().fillna("").set_axis(task.text_columns, axis="columns")
            groups = read_groups(table, task, texts, split)
            rows[split] = texts.assign(label=encode_labels(labels, task.classes), group=groups, **read_places(table))
            check_texts(rows[split], split, task)
    if list_sizes(data.holdout):
        rows["train"][UNIT] = read_units(tables["train"], task, data.holdout.columns)
    return task, rows


def check_columns(table: pa.Table, split: str, data: Data, columns: tuple[str, ...]) -> None:
    """Reject a split that lacks a column named in params.yaml, or whose template columns are not text."""
    no_column = f"split '{split}' has no such column; all its files have {', '.join(list_columns(table))}"
    for column in columns:
        if column not in table.column_names:
            raise UserError(f"params.yaml: tokenize.template: {{{column}}}: {no_column}")
        kind = table.schema.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(
                f"params.yaml: tokenize.template: {{{column}}}: holds {describe_type(kind)} in split '{split}'; "
                "allowed: text"
            )
    labels = [data.label] if isinstance(data.label, str) else data.label
    for column in labels:
        if column not in table.column_names:
            raise UserError(f"params.yaml: data.label: {column}: {no_column}")
        if column in columns:
            raise UserError(f"params.yaml: tokenize.template: {{{column}}}: is data.label, the class to be predicted")
    if data.group is not None and data.group not in table.column_names:
        raise UserError(f"params.yaml: data.group: {data.group}: {no_column}")
    for column in (data.holdout.columns or ()) if split == "train" else ():
        if column not in table.column_names:
            raise UserError(f"params.yaml: data.holdout.columns: {column}: {no_column}")
        kind = table.schema.field(column).type
        if pa.types.is_nested(kind):
            raise UserError(
                f"params.yaml: data.holdout.columns: {column}: holds {describe_type(kind)} in split '{split}'; "
                "allowed: text or numbers"
            )


def check_texts(rows: pd.DataFrame, split: str, task: Task) -> None:
    """Reject a split in which all texts of a labelled row are empty or blank."""
    blank = (rows[task.text_columns].apply(lambda texts: texts.str.strip()) == "").all(axis=1)
    blank &= rows["label"] != NO_LABEL
    if blank.any():
        one = len(task.columns) == 1
        are = f"column '{task.columns[0]}' is" if one else f"columns {', '.join(task.columns)} are all"
        empty = np.flatnonzero(blank).tolist()
        raise RowError(split, empty, f"data: split '{split}': {are} empty in", "; fill or delete them")


def read_groups(table: pa.Table, task: Task, texts: pd.DataFrame, split: str) -> pd.Series:
    """The group of each row, as text. Rows of the same group are not independent of each other.

    The group is the value in the task's group column; a row without a value gets a group of its own. If the task has no
    group column, rows are in the same group if all their texts are equal.
    """
    if task.group is None:
        return join_texts(texts)
    groups = read_group_column(table, task.group)
    missing = np.flatnonzero(groups.isna())
    if not len(missing):
        return groups
    return groups.fillna(pd.Series({row: f"{SEPARATOR}{split} {row}" for row in missing}))


def read_units(table: pa.Table, task: Task, columns: Sequence[str] | None) -> pd.Series:
    """The unit of each row, as text, from the row's content alone. `data.holdout` does not separate rows of a unit.

    The unit is the value in the task's group column. Without such a column, or without a value, it is the texts in
    `columns` (None: the template's columns), whatever order these are named in. Texts that differ only in spaces, line
    ends or Unicode's forms of a letter are equal here: they look the same.
    """
    names = sorted(columns or task.columns)
    texts = join_texts(pd.DataFrame({name: simplify(read_as_text(table, name).fillna("")) for name in names}))
    if task.group is None:
        return texts
    return read_group_column(table, task.group).fillna(SEPARATOR + texts)


def simplify(texts: pd.Series) -> pd.Series:
    """Texts with letters in Unicode's composed form, and with single spaces only between words."""
    return texts.str.normalize("NFC").str.split().str.join(" ")


def read_group_column(table: pa.Table, column: str) -> pd.Series:
    """The group column as text. Spaces around a value do not make another group, and a blank value is a missing one."""
    groups = read_as_text(table, column).str.strip()
    # In a csv file, 1 is 1.0 if pandas wrote it next to missing values.
    return groups.str.replace(r"^(-?[0-9]+)\.0$", r"\1", regex=True).replace("", None)


def read_as_text(table: pa.Table, column: str) -> pd.Series:
    """A column as text, with missing values. Equal numbers have equal texts in every split and kind of file."""
    kind = table.schema.field(column).type
    values = table[column]
    if pa.types.is_integer(kind):
        values = values.cast(pa.string())  # as pandas' float64, 2**60 + 1 would become 2**60
    texts = values.to_pandas()
    if pa.types.is_floating(kind):  # 1.0 here may be 1 in another split, where no value is missing
        texts = texts.map(format_number, na_action="ignore").astype("str")
    if not isinstance(texts.dtype, pd.StringDtype):
        texts = texts.astype(object).map(str, na_action="ignore").astype("str")
    return texts


def resolve_unlabelled(rows: pd.DataFrame, unlabelled: str, task: Task) -> pd.DataFrame:
    """Drop the rows without a gold label (SNLI's authors: "should not be used"), or assign a class to them.

    Args:
        unlabelled: "drop", or the name of a class. The published notebook assigns neutral.
    """
    if unlabelled == "drop":
        return rows[rows["label"] != NO_LABEL]
    code = task.labels.code(task.classes.index(unlabelled))
    return rows.assign(label=rows["label"].replace(NO_LABEL, code))


def number_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Replace the index by a column `row`, and the groups' names by numbers.

    `row` is the row's number in the split that it was read from: for a held-out row, the training split.
    """
    return frame.assign(group=pd.factorize(frame["group"])[0]).rename_axis("row").reset_index()


def write_rows(frame: pd.DataFrame, path: Path, labels: Labels) -> None:
    """Write rows with the column `label` as parquet.

    Without pandas' metadata: pandas can't read back the type that it notes for a list.
    """
    table = pa.Table.from_pandas(labels.to_lists(number_rows(frame), ["label"]), preserve_index=False)
    pq.write_table(table.replace_schema_metadata(), path)
