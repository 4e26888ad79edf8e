"""Where a row is in the user's files: the file, and the number that a spreadsheet shows next to the row.

This number counts from 1. The row with the names of the columns counts, and so do empty rows, which no table has. In a
json file with one row a line, it is the line.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.data.compression import open_file
from stages.runtime.errors import UserError

FILE, FILE_ROW = "file", "file_row"  # columns of data frames
IN_TABLES = {"__file__": FILE, "__file_row__": FILE_ROW}  # {column of an arrow table: column of data frames}
SHEET = re.compile(r"\.(csv|tsv|xlsx)(\.\w+)?$", re.IGNORECASE)  # a file that a spreadsheet opens, maybe compressed
MOST_NAMED = 5  # rows in a sentence; further ones are counted


class RowError(UserError):
    """An error about rows of a split. `locate` names the rows of the user's files.

    Attributes:
        rows: positions in the split.
        before, after: what the message says before and after the rows.
    """

    def __init__(self, split: str, rows: Sequence[int], before: str, after: str) -> None:
        super().__init__(f"{before} {_list_rows(rows)}, counted from 0{after}")
        self.split, self.rows, self.before, self.after = split, rows, before, after

    def locate(self, table: pa.Table) -> UserError:
        """The error with the rows' places in the user's files, if the split's table has the places."""
        if not has_places(table):
            return self
        place = describe_places(read_places(table.take(self.rows)))
        return UserError(f"{self.before} {place}{self.after}")

    def move(self, rows: np.ndarray) -> "RowError":
        """The error about the rows `rows[i]` in place of the rows i."""
        return RowError(self.split, rows[self.rows].tolist(), self.before, self.after)


@contextmanager
def locate_rows(tables: Mapping[str, pa.Table]) -> Iterator[None]:
    """Let errors about rows of these splits name the rows of the user's files."""
    try:
        yield
    except RowError as error:
        raise error.locate(tables[error.split]) from error


def _list_rows(rows: Sequence[int]) -> str:
    numbers = [f"{row:,}" for row in rows[:MOST_NAMED]]
    if len(rows) > MOST_NAMED:
        return f"rows {', '.join(numbers)} and {len(rows) - MOST_NAMED:,} more"
    return f"rows {', '.join(numbers[:-1])} and {numbers[-1]}" if len(rows) > 1 else f"row {numbers[0]}"


def has_places(table: pa.Table) -> bool:
    return IN_TABLES.keys() <= {*table.column_names}


def list_columns(table: pa.Table) -> list[str]:
    """The names of the user's columns."""
    return [name for name in table.column_names if name not in IN_TABLES]


def drop_places(table: pa.Table) -> pa.Table:
    return table.select(list_columns(table))


def add_places(table: pa.Table, name: str, numbers: Sequence[int] | np.ndarray) -> pa.Table:
    """Append a column with the file's name, and one with the number of each row."""
    names = pa.array([name], pa.large_string()).take(pa.array(np.zeros(len(table), dtype=np.int64)))
    columns = (names, pa.array(numbers, pa.int64()))
    table = drop_places(table)  # it may be a file of outs/splits
    for column, values in zip(IN_TABLES, columns, strict=True):
        table = table.append_column(column, values)
    return table


def read_places(table: pa.Table) -> pd.DataFrame:
    """`FILE` and `FILE_ROW` of each row; no column if the table has no places."""
    columns = IN_TABLES if has_places(table) else {}
    return table.select(list(columns)).to_pandas().rename(columns=columns).set_axis(range(len(table)))


def place_columns(table: pd.DataFrame) -> list[str]:
    """The columns with the places, if a data frame has them."""
    return [name for name in (FILE, FILE_ROW) if name in table]


def describe_places(places: pd.DataFrame) -> str:
    """The first rows in the order of files and rows, such as `rows 3 and 7 of a.csv, numbered as in a spreadsheet`.

    Args:
        places: the columns of `read_places`.
    """
    return f"{list_places(places)}, {describe_counting(places[FILE])}"


def list_places(places: pd.DataFrame) -> str:
    """`describe_places` without how rows are counted."""
    parts, left = [], MOST_NAMED
    for file, rows in places.groupby(FILE)[FILE_ROW]:
        if left > 0:
            parts.append(f"{_list_rows(sorted(rows))} of {file}")
        left -= len(rows)
    more = len(places[FILE].unique()) - len(parts)
    others = f" and of {more:,} more file{'s' if more > 1 else ''}" if more else ""
    return f"{'; '.join(parts)}{others}"


def describe_counting(files: Iterable[str]) -> str:
    """How rows of these files are counted."""
    return "numbered as in a spreadsheet" if any(map(SHEET.search, files)) else "counted from 1"


def number_csv_rows(path: Path, name: str, options: Mapping[str, Any], rows: int) -> np.ndarray:
    """The number of each row of a csv or tsv file, int [rows].

    Args:
        name: the file's name in errors.
        options: for `pandas.read_csv`, with which the rows were read. pandas leaves empty rows out.
        rows: that pandas has read. They are the last ones of the file: above them are the names of the columns, and
            what `skiprows` and `header` of README.md leave out.
    """
    as_read = np.arange(rows) + (1 if options.get("header") is None else 2)
    is_plain = options.get("header") in ("infer", None) and not options.get("skiprows") and not options.get("names")
    if len(options["sep"]) != 1 or (is_plain and not _has_empty_line(path, name, options)):
        return as_read
    with (
        open_file(path, name) as file,
        io.TextIOWrapper(file, encoding=options.get("encoding") or "utf-8", errors="replace", newline="") as lines,
    ):
        cells = csv.reader(lines, delimiter=options["sep"], quotechar=options["quotechar"])
        try:
            filled = [number for number, row in enumerate(cells, 1) if len(row) > 1 or "".join(row).strip()]
        except csv.Error:  # a cell of over 128 kB
            filled = []
    return np.array(filled[len(filled) - rows :]) if len(filled) >= rows else as_read


def number_json_rows(path: Path, name: str, rows: int) -> np.ndarray:
    """The number of each row of a json file, int [rows]: its line, or its place in a list of rows."""
    with open_file(path, name) as file:
        filled = [number for number, line in enumerate(file, 1) if line.strip(b"\0 \t\r\n")]
    return np.array(filled) if len(filled) == rows else np.arange(rows) + 1


def _has_empty_line(path: Path, name: str, options: Mapping[str, Any]) -> bool:
    """Whether a line is empty: between rows, or in a cell."""
    with (
        open_file(path, name) as file,
        io.TextIOWrapper(file, encoding=options.get("encoding") or "utf-8", errors="replace") as lines,
    ):
        return any(line.isspace() for line in lines)
