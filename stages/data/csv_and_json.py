"""Read csv and tsv files as text, and explain what is wrong with a csv, tsv or json file."""

import csv
import io
import json
import operator
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow as pa

from stages.data.compression import open_file
from stages.data.dialect import SEPARATORS
from stages.runtime.errors import UserError, first_line

# Each cell is its text (01 is not 1), and only an empty cell is missing. By default pandas also reads NA and None as
# missing, so a class with such a name would be lost.
AS_TEXT = {"dtype": str, "keep_default_na": False, "na_values": [""], "chunksize": None}


def read_csv(path: Path, name: str, options: dict[str, Any]) -> pa.Table:
    """Read a csv or tsv file; all columns are text.

    Args:
        name: the file's name in errors.
        options: for `pandas.read_csv`.
    """
    separator, encoding = options["sep"], options["encoding"] or "utf-8"
    allowed = f'cells separated by {SEPARATORS.get(separator, repr(separator))}, with " around a cell that holds one'

    def error(problem: str) -> UserError:
        return UserError(f"{name}: {problem}; allowed: {allowed}")

    try:
        frame = pd.read_csv(path, **options | AS_TEXT)
    except Exception as cause:  # pandas raises a dozen kinds here
        check_encoding(path, name, encoding)
        reason = first_line(cause).removeprefix("Error tokenizing data. C error: ")
        reason = reason.replace("EOF inside string starting at row", 'a " is never closed; it opens in row')
        dialect = _describe_dialect(path, name, encoding, separator)
        raise error(dialect or _find_uneven_row(path, name, encoding, separator) or reason) from cause
    if options["index_col"] is None and not isinstance(frame.index, pd.RangeIndex):  # pandas moved all cells by one
        dialect = _describe_dialect(path, name, encoding, separator)
        raise error(dialect or "its rows have more cells than its header")
    if dialect := _describe_dialect(path, name, encoding, separator, one_column=len(frame.columns) == 1):
        raise error(dialect)
    if frame.iloc[:, -1].isna().any() and (row := _find_uneven_row(path, name, encoding, separator, operator.lt)):
        print(f"{name}: {row}; the cells that a row lacks are read as empty")
    if rows := frame.apply(lambda cells: cells.str.contains("\n", regex=False)).any(axis=1).sum():
        print(f'{name}: {rows:,} rows hold line breaks in a cell; if there should be more rows, look for a stray "')
    return pa.Table.from_pandas(frame)


def check_json(path: Path, name: str) -> None:
    """Reject an empty file, and a file that is one object with the rows inside: by columns, or under a key."""
    with open_file(path, name) as file:
        first = file.readline()
        beginning = (first + file.readline()).replace(b"\xef\xbb\xbf", b"").split()
        if beginning in ([], [b"[]"]) and not file.read(1):
            raise UserError(f"{name}: the file has no rows")
        file.seek(len(first))
        if first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b""):
            return
        try:
            content = json.loads(first)
            if any(line.strip() for line in file):
                return  # one object a line
        except (ValueError, RecursionError):  # an object of several lines, or no JSON, which the reader reports
            try:
                content = json.loads(first + file.read())
            except (ValueError, RecursionError):
                return
    values = list(content.values()) if isinstance(content, dict) else [None]
    has_rows = any(isinstance(value, list) and value and isinstance(value[0], dict) for value in values)
    if has_rows or all(isinstance(value, dict | list) for value in values):
        raise UserError(
            f"{name}: the file is one object, not a list of rows; write one row a line, "
            'as DataFrame.to_json(path, orient="records", lines=True) does'
        )


def check_encoding(path: Path, name: str, encoding: str) -> None:
    """Reject a file that is not text in an encoding. The error names the byte and a likely encoding."""
    with open_file(path, name) as file:
        content = file.read()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        line, start = content.count(b"\n", 0, error.start) + 1, content.rfind(b"\n", 0, error.start) + 1
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            looks, likely = "it looks like UTF-16", "UTF-16"
        else:
            context = content[max(start, error.start - 20) : error.start + 20].splitlines()[0]
            looks, likely = f"as Windows-1252 it reads {context.decode('cp1252', 'replace')!r}", "WINDOWS-1252"
        raise UserError(
            f"{name}: not {encoding.upper()}: byte 0x{content[error.start]:02x} at position {error.start}, "
            f"in line {line} ({looks}); convert it: iconv -f {likely} -t UTF-8"
        ) from error
    except LookupError as error:
        raise UserError(f"{name}: no encoding is called {encoding}") from error


@contextmanager
def _open_lines(path: Path, name: str, encoding: str) -> Iterator[TextIO]:
    with (
        open_file(path, name) as file,
        io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="") as lines,
    ):
        yield lines


def _describe_dialect(path: Path, name: str, encoding: str, separator: str, one_column: bool = True) -> str | None:
    """What a file's first two lines look like; None if they may be cells separated by `separator` and quoted by ".

    Args:
        one_column: whether pandas read the file as a single column.
    """
    if separator not in SEPARATORS:  # a regular expression, from README.md
        return None
    with _open_lines(path, name, encoding) as file:
        header, row = (file.readline().lstrip("\ufeff").rstrip("\r\n") for _ in range(2))
    other = max(SEPARATORS, key=header.count)
    if one_column and other != separator and header.count(other) > header.count(separator):
        return f"its cells seem to be separated by {SEPARATORS[other]} ({header:.60})"
    for line in (header, row):
        if line[:1] == line[-1:] == "'" and f"'{separator}'" in line:
            return f"its cells seem to be quoted by ' ({line:.60})"
    return None


def _find_uneven_row(
    path: Path, name: str, encoding: str, separator: str, differs: Callable[[int, int], bool] = operator.gt
) -> str | None:
    """Describe the first row with more cells than the header (`operator.lt`: fewer); None if there is no such row."""
    if separator not in SEPARATORS:
        return None
    with _open_lines(path, name, encoding) as file:
        rows = csv.reader(file, delimiter=separator)
        try:
            header = next(rows)
            row = next(row for row in rows if row and differs(len(row), len(header)))
        except (csv.Error, StopIteration):
            return None
        cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
        return f"line {rows.line_num} has {cells}, the header {len(header)} ({reprlib.repr(row)})"
