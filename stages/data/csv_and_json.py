"""Tables as text, csv, tsv and json: csv cells read as they stand, and what is wrong with a file that can't be read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import operator
import reprlib
import zlib
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa

from stages.runtime.errors import UserError, first_line

# How to open a packed file. Without a package of its own Python reads no .zst: its reader says that.
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": lambda path, mode: io.BytesIO()}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Each cell as its text (01 is not 1), none where it is empty; by default a class called NA or None would be no label.
AS_TEXT = {"dtype": str, "keep_default_na": False, "na_values": [""], "chunksize": None}


def read_csv(path: Path, name: str, options: dict) -> pa.Table:
    """A csv or tsv file, all columns text.

    Args:
        name: of the file, for errors.
        options: of `pandas.read_csv`.
    """
    sep, encoding = options["sep"], options["encoding"] or "utf-8"
    allowed = f'allowed: cells separated by {SEPARATORS.get(sep, repr(sep))}, with " around a cell that holds one'
    try:
        frame = pd.read_csv(path, **options | AS_TEXT)
    except Exception as error:  # pandas raises a dozen kinds here
        check_encoding(path, name, encoding)
        reason = first_line(error).removeprefix("Error tokenizing data. C error: ")
        reason = reason.replace("EOF inside string starting at row", 'a " is never closed; it opens in row')
        found = _other_dialect(path, name, encoding, sep) or _uneven_row(path, name, encoding, sep) or reason
        raise UserError(f"{name}: {found}; {allowed}") from error
    if options["index_col"] is None and not isinstance(frame.index, pd.RangeIndex):  # pandas moves all cells by one
        found = _other_dialect(path, name, encoding, sep) or "its rows have more cells than its header"
        raise UserError(f"{name}: {found}; {allowed}")
    if found := _other_dialect(path, name, encoding, sep, single=len(frame.columns) == 1):
        raise UserError(f"{name}: {found}; {allowed}")
    if frame.iloc[:, -1].isna().any() and (found := _uneven_row(path, name, encoding, sep, operator.lt)):
        print(f"{name}: {found}; the cells that a row lacks are read as empty")
    if broken := frame.apply(lambda cells: cells.str.contains("\n", regex=False)).any(axis=1).sum():
        print(f'{name}: {broken:,} rows hold line breaks in a cell; if there should be more rows, look for a stray "')
    return pa.Table.from_pandas(frame)


def check_json(path: Path, name: str) -> None:
    """Refuse a file that is one object which holds the rows somewhere inside: by columns, or under a key."""
    with _open(path, name) as file:
        first = file.readline()
        begin = (first + file.readline()).replace(b"\xef\xbb\xbf", b"").split()
        if begin in ([], [b"[]"]) and not file.read(1):
            raise UserError(f"{name}: the file has no rows")
        file.seek(len(first))
        if first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b""):
            return
        try:
            found = json.loads(first)
            if any(line.strip() for line in file):
                return  # one object a line
        except (ValueError, RecursionError):  # over several lines, or no JSON, which its reader says
            try:
                found = json.loads(first + file.read())
            except (ValueError, RecursionError):
                return
    values = list(found.values()) if isinstance(found, dict) else [None]
    holds_rows = any(isinstance(value, list) and value and isinstance(value[0], dict) for value in values)
    if holds_rows or all(isinstance(value, dict | list) for value in values):
        raise UserError(
            f"{name}: the file is one object, not a list of rows; write one row a line, "
            'as DataFrame.to_json(path, orient="records", lines=True) does'
        )


def check_encoding(path: Path, name: str, encoding: str) -> None:
    """Refuse a file that is not text of an encoding: name the byte, and show what it could be."""
    with _open(path, name) as file:
        content = file.read()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        line, start = content.count(b"\n", 0, error.start) + 1, content.rfind(b"\n", 0, error.start) + 1
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            looks, likely = "it looks like UTF-16", "UTF-16"
        else:
            around = content[max(start, error.start - 20) : error.start + 20].splitlines()[0]
            looks, likely = f"as Windows-1252 it reads {around.decode('cp1252', 'replace')!r}", "WINDOWS-1252"
        raise UserError(
            f"{name}: not {encoding.upper()}: byte 0x{content[error.start]:02x} at position {error.start}, "
            f"in line {line} ({looks}); convert it: iconv -f {likely} -t UTF-8"
        ) from error
    except LookupError as error:
        raise UserError(f"{name}: no encoding is called {encoding}") from error


@contextmanager
def _open(path, name):
    try:
        with PACKED.get(Path(path).suffix, open)(path, "rb") as file:
            yield file
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{name}: not readable ({first_line(error)}); fetch or copy it whole") from error


@contextmanager
def _lines(path, name, encoding):
    with _open(path, name) as file, io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="") as lines:
        yield lines


def _other_dialect(path, name, encoding, sep, single=True):
    """What a file's first two lines look like if not like cells separated by `sep` and quoted by \", else None.

    Args:
        single: whether all of a row came out as one cell.
    """
    if sep not in SEPARATORS:  # a regular expression, from README.md
        return None
    with _lines(path, name, encoding) as file:
        header, row = (file.readline().lstrip("\ufeff").rstrip("\r\n") for _ in range(2))
    other = max(SEPARATORS, key=header.count)
    if single and other != sep and header.count(other) > header.count(sep):
        return f"its cells seem to be separated by {SEPARATORS[other]} ({header:.60})"
    for line in (header, row):
        if line[:1] == line[-1:] == "'" and f"'{sep}'" in line:
            return f"its cells seem to be quoted by ' ({line:.60})"
    return None


def _uneven_row(path, name, encoding, sep, differs=operator.gt):
    """The first row that has more cells than the header (`operator.lt`: fewer), else None."""
    if sep not in SEPARATORS:
        return None
    with _lines(path, name, encoding) as file:
        rows = csv.reader(file, delimiter=sep)
        try:
            header = next(rows)
            row = next(row for row in rows if row and differs(len(row), len(header)))
        except (csv.Error, StopIteration):
            return None
        cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
        return f"line {rows.line_num} has {cells}, the header {len(header)} ({reprlib.repr(row)})"
