"""Rows: texts and classes taken from a data set's columns, checked, chosen, counted."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.data.label_column import describe_type, encode_labels, format_number, read_label_columns, resolve_classes
from stages.data.task import NO_LABEL, Task
from stages.runtime.errors import UserError
from stages.runtime.params import Data

BETWEEN = "\x1f"  # a character that no text is expected to have, between two texts


def prepare_rows(
    splits: dict[str, pa.Table], data: Data, columns: tuple[str, ...]
) -> tuple[Task, dict[str, pd.DataFrame]]:
    """The task of a data set, and the rows of its splits.

    Args:
        splits: {split: arrow table}; its schema carries what `datasets` knows of the columns.
        data: the group `data` of params.yaml.
        columns: those that the template reads.

    Returns:
        (task, {split: data frame with the task's texts, `label` (number of the class, -1 for none), `group` (text)})

    Raises:
        UserError: naming the key and the column: missing, of another type, empty.
    """
    for split, table in splits.items():
        check_columns(table, split, data, columns)
    labels = read_label_columns(splits, data.label)
    task = Task(resolve_classes(labels, data.classes), columns, data.group)
    if data.unlabelled not in ("drop", *task.classes):
        raise UserError(
            f"params.yaml: data.unlabelled: {data.unlabelled}; allowed: drop, or a class "
            f"({', '.join(task.classes[:20])})"
        )
    rows = {}
    for split_labels, (split, table) in zip(labels, splits.items(), strict=True):
        texts = table.select(list(columns)).to_pandas().fillna("").set_axis(task.text_columns, axis="columns")
        rows[split] = texts.assign(
            label=encode_labels(split_labels, task.classes), group=read_groups(table, task, texts, split)
        )
        empty = (texts.apply(lambda column: column.str.strip()) == "").all(axis=1) & (rows[split]["label"] != NO_LABEL)
        if empty.any():
            named = f"column '{columns[0]}' is" if len(columns) == 1 else f"columns {', '.join(columns)} are all"
            raise UserError(f"data: split '{split}': {named} empty in row {empty.idxmax()}")
    return task, rows


def check_columns(table: pa.Table, split: str, data: Data, columns: tuple[str, ...]) -> None:
    """Refuse a split that lacks a column that params.yaml names, or holds no text where text is read."""
    has = f"split '{split}' has no such column; all its files have {', '.join(table.column_names)}"
    for column in columns:
        if column not in table.column_names:
            raise UserError(f"params.yaml: tokenize.template: {{{column}}}: {has}")
        kind = table.schema.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(
                f"params.yaml: tokenize.template: {{{column}}}: holds {describe_type(kind)} in split '{split}'; "
                "allowed: text"
            )
    for key, column in (("label", data.label), ("group", data.group)):
        if column is not None and column not in table.column_names:
            raise UserError(f"params.yaml: data.{key}: {column}: {has}")
    if data.label in columns:
        raise UserError(f"params.yaml: tokenize.template: {{{data.label}}}: is data.label, the class to be predicted")


def read_groups(table: pa.Table, task: Task, texts: pd.DataFrame, split: str) -> pd.Series:
    """What rows may share, as text: the task's group column, or all their texts; a row without a value is alone."""
    if task.group is None:
        first, *others = task.text_columns
        return texts[first].str.cat([texts[other] for other in others], sep=BETWEEN) if others else texts[first]
    kind = table.schema.field(task.group).type
    values = table[task.group]
    if pa.types.is_integer(kind):
        values = values.cast(pa.string())  # 2**60 is no float
    values = values.to_pandas()
    if pa.types.is_floating(kind):  # 1.0 is the 1 of another split, where no value is missing
        values = values.map(format_number, na_action="ignore").astype("str")
    if not isinstance(values.dtype, pd.StringDtype):
        values = values.astype(object).map(str, na_action="ignore")
    missing = np.flatnonzero(values.isna())
    return values if not len(missing) else values.fillna(pd.Series({row: f"{BETWEEN}{split} {row}" for row in missing}))


def sample_evenly(rows: pd.DataFrame, samples: int | None) -> pd.DataFrame:
    """Rows at equal distances over a whole split, in order, without chance.

    Where a whole number of rows apart reaches the split's end, that is every (rows // samples)-th row, as the
    published notebook chose: 550 and 100 apart on SNLI. Else the distance is a fraction, so that the end is not left
    out.

    Args:
        rows: data frame of a whole split.
        samples: how many, or None for all.
    """
    if samples is None:
        return rows
    if samples > len(rows):
        raise UserError(f"the split has {len(rows)} rows; allowed: 1 to {len(rows)}, or null for all")
    step = len(rows) // samples
    if len(rows) - step * samples < step:
        return rows.iloc[: step * samples : step]
    return rows.iloc[np.arange(samples) * len(rows) // samples]


def resolve_unlabelled(rows: pd.DataFrame, unlabelled: str, task: Task) -> pd.DataFrame:
    """Drop the rows without a gold label (SNLI's authors: "should not be used"), or give them a class.

    Args:
        unlabelled: "drop", or the name of a class, as the published notebook called them neutral.
    """
    if unlabelled == "drop":
        return rows[rows["label"] != NO_LABEL]
    return rows.assign(label=rows["label"].replace(NO_LABEL, task.classes.index(unlabelled)))


def count_tokens(table: pd.DataFrame) -> np.ndarray:
    """Number of tokens of each row, int [rows]."""
    return pc.list_value_length(pa.array(table["input_ids"])).to_numpy()


def summarize_split(rows: pd.DataFrame, chosen: pd.DataFrame, kept: pd.DataFrame, task: Task) -> dict:
    """Counts of one split: rows in it, chosen, without gold label, kept, with an empty text, truncated, tokens; rows of
    each class."""
    tokens = count_tokens(kept)
    empty = {
        column: int((kept[text].str.strip() == "").sum())
        for column, text in zip(task.columns, task.text_columns, strict=True)
    }
    return {
        "rows": len(rows),
        "chosen": len(chosen),
        "unlabelled": int((chosen["label"] == NO_LABEL).sum()),
        "dropped": len(chosen) - len(kept),
        "kept": len(kept),
        "empty": empty,
        "truncated": int(kept["truncated"].sum()),
        "tokens": int(tokens.sum()),
        "tokens_mean": round(float(tokens.mean()), 2),
        "tokens_max": int(tokens.max()),
        "classes": {name: int((kept["label"] == i).sum()) for i, name in enumerate(task.classes)},
    }


def count_overlap(rows: pd.DataFrame, others: pd.DataFrame, task: Task) -> dict[str, int]:
    """How many rows are in another split too, word for word; and how many others share their group with a row of it."""

    def whole(table):
        return pd.MultiIndex.from_frame(table[task.text_columns])

    some, of_these = rows.assign(place=np.arange(len(rows))), others
    for (
        text
    ) in task.text_columns:  # what has no equal in one column is left out first: a MultiIndex of all rows takes 0.4 GB
        some, of_these = some[is_in(some[text], of_these[text])], of_these[is_in(of_these[text], some[text])]
    same = np.zeros(len(rows), dtype=bool)
    same[some["place"][whole(some).isin(whole(of_these))]] = True
    found = {"rows": int(same.sum())}
    return (
        found if task.group is None else found | {"groups": int((is_in(rows["group"], others["group"]) & ~same).sum())}
    )


def is_in(values: pd.Series, others: pd.Series) -> np.ndarray:
    """Whether each text stands among others, bool [rows]; by arrow, since pandas makes a Python string of each."""
    values, others = pa.array(values, pa.large_string()), pa.array(others, pa.large_string())
    return pc.is_in(values, others).to_numpy(zero_copy_only=False)


def number_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Data frame with a plain 0..n-1 index, the row's place in its split kept as `row`, groups as numbers."""
    return frame.assign(group=pd.factorize(frame["group"])[0]).rename_axis("row").reset_index()


def write_rows(frame: pd.DataFrame, path: Path) -> None:
    """Write `number_rows` as parquet, without pandas' metadata: pandas can't read the type that it notes for a list."""
    table = pa.Table.from_pandas(number_rows(frame), preserve_index=False)
    pq.write_table(table.replace_schema_metadata(), path)
