"""Read csv and tsv files as text, and explain what is wrong with a csv, tsv or json file."""

import codecs
import csv
import io
import itertools
import json
import operator
import re
import reprlib
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow as pa

from stages.data.compression import open_file
from stages.data.dialect import (
    NO_QUOTES,
    NUMBER,
    SEPARATORS,
    detect_dialect,
    detect_encoding,
    find_wrong_utf8,
    scan_text,
)
from stages.runtime.errors import UserError, first_line

# Each cell is its text (01 is not 1), and only an empty cell is missing. By default pandas also reads NA and None as
# missing, so a class with such a name would be lost.
AS_TEXT = {"dtype": str, "keep_default_na": False, "na_values": [""], "chunksize": None}
NAME = re.compile(r"(?=.{1,40}$)[^\W\d][\w.:/()#%&+-]*( [\w.:/()#%&+-]+){0,2}")  # of a column: up to three words


def read_csv(path: Path, name: str, options: dict[str, Any], columns: list[str] | None = None) -> pa.Table:
    """Read a csv or tsv file; all columns are text.

    Args:
        name: the file's name in errors.
        options: for `pandas.read_csv`.
        columns: `data.read.names`, the names of the columns if the file has no header; None: it has one.

    Raises:
        UserError: the file is not readable, or looks as if it were written in another way. The error names the keys of
            `data.read` and values with which the file is readable.
    """
    encoding = options["encoding"] or "utf-8"
    if columns is not None:
        options = options | {"header": None, "names": None}

    def error(problem: str) -> UserError:
        return _csv_error(problem, path, name, options)

    if not is_same_encoding(encoding, "utf-8") and (problem := _describe_encoding(path, name, encoding)):
        raise error(problem)
    try:
        frame = pd.read_csv(path, **options | AS_TEXT)
    except Exception as cause:  # pandas raises a dozen kinds here
        raise _explain(cause, path, name, options) from cause
    first = [str(cell).strip() for cell in (frame.columns if columns is None else frame.head(1).to_numpy().flat)]
    if re.fullmatch("sep=.?", first[0], re.IGNORECASE):
        raise UserError(f"{name}: its first line, {first[0]}, is a note for Excel; delete it")
    is_moved = options["index_col"] is None and not isinstance(frame.index, pd.RangeIndex)  # all cells by one
    if dialect := _describe_dialect(path, name, options, one_column=is_moved or len(frame.columns) == 1):
        raise error(dialect)
    if columns is None and (title := _find_title(path, name, options)):
        raise title
    if is_moved:
        raise error("its rows have more cells than its header")
    if columns is not None:
        if len(columns) != len(frame.columns):
            raise UserError(
                f"params.yaml: data.read.names: has {len(columns)} names, but {name} has {len(frame.columns)} columns; "
                "list one name for each column"
            )
        if any(cell == column for cell, column in zip(first, columns, strict=True)):  # it would be a row
            raise UserError(
                f"params.yaml: data.read.names: the first row of {name} names the columns already "
                f"({textwrap.shorten(', '.join(first), 200)}); set data.read.names to null"
            )
        print(f"{name}: its first line is read as a row, as data.read.names says: {', '.join(first):.100}")
        frame.columns = pd.Index(columns)
    elif options["header"] == "infer" and options.get("names") is None and (cells := _find_data_in_header(frame)):
        raise UserError(
            f"{name}: its first row seems to be data, not the names of the columns ({cells}); "
            f"set data.read.names to the names of its {len(frame.columns)} columns"
        )
    if frame.iloc[:, -1].isna().any() and (row := _find_uneven_row(path, name, options, operator.lt)):
        print(f"{name}: {row}; the cells that a row lacks are read as empty")
    if rows := frame.apply(lambda cells: cells.str.contains("\n", regex=False)).any(axis=1).sum():
        print(f'{name}: {rows:,} rows hold line breaks in a cell; if there should be more rows, look for a stray "')
    return pa.Table.from_pandas(frame)


def read_csv_in_chunks(path: Path, name: str, options: dict[str, Any], rows: int) -> Iterator[pa.Table]:
    """Read a csv or tsv file, which may be compressed, as text. The header is its first row, also in the first chunk.

    An empty line between rows is a row of empty cells. The memory does not grow with the file, unless its lines end in
    \\r or \\r\\r\\n.

    Args:
        name: the file's name in errors.
        options: `sep`, `quotechar` and `encoding`, for `pandas.read_csv`.
        rows: of a chunk.

    Raises:
        UserError: as `read_csv`, but only about what keeps pandas from reading the file.
    """
    options = options | {"header": None, "index_col": None}
    encoding = options["encoding"]
    if problem := _describe_encoding(path, name, encoding):
        raise _csv_error(problem, path, name, options)
    text, above_header, at_end, header = None, 0, 0, ""
    with _open_lines(path, name, encoding) as lines:
        for line in lines:
            if not header and not line.strip("\ufeff \t\r\n"):
                above_header += 1
                continue
            header = header or line
            if header.endswith("\r"):  # of such lines pandas skips too many, and reads \r\r\n as two
                text = re.sub("\r\r?\n|\r", "\n", header.lstrip("\ufeff") + lines.read()).rstrip("\n")
                above_header = 0
                break
            at_end = 0 if line.strip("\r\n") else at_end + 1
    read = options | AS_TEXT | {"chunksize": rows, "skip_blank_lines": False, "skiprows": above_header}
    try:
        with (
            io.StringIO(text) if text else open_file(path, name) as file,
            pd.read_csv(file, **read) as frames,
        ):
            for frame in _drop_rows_at_the_end(frames, at_end):
                texts = [pa.array(frame[column], pa.large_string(), from_pandas=True) for column in frame]
                yield pa.Table.from_arrays(texts, [str(column) for column in frame])
    except UserError:
        raise
    except Exception as cause:  # as in `read_csv`
        raise _explain(cause, path, name, options) from cause


def _drop_rows_at_the_end(frames: Iterable[pd.DataFrame], rows: int) -> Iterator[pd.DataFrame]:
    held: list[pd.DataFrame] = []
    for frame in frames:
        frame = pd.concat([*held, frame])
        if kept := max(len(frame) - rows, 0):
            yield frame[:kept]
        held = [frame[kept:]]


def _csv_error(problem: str, path: Path, name: str, options: dict[str, Any]) -> UserError:
    separator, quotechar = options["sep"], options["quotechar"]
    quoted = "" if quotechar == NO_QUOTES else f", with {quotechar} around a cell that holds one"
    allowed = f"allowed: cells separated by {SEPARATORS.get(separator, repr(separator))}{quoted}"
    return UserError(f"{name}: {problem}; {_suggest_keys(path, options) or allowed}")


def _explain(cause: Exception, path: Path, name: str, options: dict[str, Any]) -> UserError:
    """What is wrong with a file that pandas can't read."""
    if isinstance(cause, pd.errors.EmptyDataError):
        return UserError(f"{name}: the file is empty")
    encoding, quotechar = options["encoding"] or "utf-8", options["quotechar"]
    if problem := _describe_encoding(path, name, encoding):
        return _csv_error(problem, path, name, options)
    dialect = _describe_dialect(path, name, options)
    if not dialect and (title := _find_title(path, name, options)):
        return title
    reason = first_line(cause).removeprefix("Error tokenizing data. C error: ")
    reason = reason.replace("EOF inside string starting at row", f"a {quotechar} is never closed; it opens in row")
    return _csv_error(dialect or _find_uneven_row(path, name, options) or reason, path, name, options)


def _suggest_keys(path: Path, options: dict[str, Any]) -> str | None:
    """What to set in `data.read` to read a file in its own dialect; None if that is set, or does not help."""
    try:
        dialect = detect_dialect(path)
        keys = {key: getattr(dialect, key) for key in ("encoding", "sep", "quotechar")}
        keys = {key: value for key, value in keys.items() if value != options[key]}
        if is_same_encoding(dialect.encoding, options["encoding"] or "utf-8"):
            keys.pop("encoding", None)
        frame = pd.read_csv(path, **options | keys | AS_TEXT)
    except Exception:  # as above
        return None
    if not keys or not isinstance(frame.index, pd.RangeIndex):
        return None
    return "set " + " and ".join(
        f"data.read.{key} to {value if key == 'encoding' else json.dumps(value)}" for key, value in keys.items()
    )


def _find_data_in_header(frame: pd.DataFrame) -> str | None:
    """A sign that the first row of a file, which pandas took for a header, is data; None if it may be a header.

    It is data if one of its cells occurs again in the same column, and one of them does not look like a name. One sign
    alone is not enough: a column `text` may hold the word text, and a header may hold a whole question. Nor are numbers
    alone: columns may be called 1, 2, 3 and hold ratings from 1 to 3.
    """
    no_names = [name for name in frame.columns if not NAME.fullmatch(name)]
    if not no_names:
        return None
    others = frame[(frame != frame.columns).any(axis=1)]  # joined files have the header again
    again = [name for name in frame.columns if (others[name] == name).any()]
    for name in no_names:
        for value in again:
            if not (NUMBER.fullmatch(name) and NUMBER.fullmatch(value)):
                return f"{name:.60} is no name, and {value:.60} occurs again in its column"
    return None


def check_json(path: Path, name: str, encoding: str) -> None:
    """Reject an empty file, and a file that is one object with the rows inside: by columns, or under a key."""
    with _open_lines(path, name, encoding) as file:
        first, second = file.readline().lstrip("\ufeff"), file.readline()
        if (first + second).split() in ([], ["[]"]) and not file.read(1):
            raise UserError(f"{name}: the file has no rows")
        if first.lstrip()[:1] not in ("{", ""):
            return
        try:
            content = json.loads(first)
            if any(line.strip() for line in itertools.chain([second], file)):
                return  # one object a line
        except (ValueError, RecursionError):  # an object of several lines, or no JSON, which the reader reports
            try:
                content = json.loads(first + second + file.read())
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
    """Reject a file that is not text in an encoding, or is UTF-8 instead. The error names the encoding to set."""
    if problem := _describe_encoding(path, name, encoding):
        with open_file(path, name) as file:
            likely = detect_encoding(file.read())
        cure = f"set data.read.encoding to {likely}" if likely else "write it as UTF-8"
        raise UserError(f"{name}: {problem}; {cure}")


def _describe_encoding(path: Path, name: str, encoding: str) -> str | None:
    """Why a file is not text in an encoding: the first wrong byte, and how its line reads in the likely encoding.

    UTF-8 is read in Windows-1252 without an error, with two letters for each that is not ASCII.
    """
    try:
        scan = scan_text(path, name, encoding)
    except LookupError as error:
        raise UserError(f"{name}: no encoding is called {encoding}") from error
    if not is_same_encoding(encoding, "utf-8") and scan.is_utf8 and not scan.is_ascii:
        return f"it is UTF-8, not {encoding.upper()}"
    if scan.is_text:
        return None
    with open_file(path, name) as file:
        content = file.read()
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        line, start = content.count(b"\n", 0, error.start) + 1, content.rfind(b"\n", 0, error.start) + 1
        likely = detect_encoding(content)
        looks = f"it is {wrong}" if (wrong := find_wrong_utf8(content)) else "no known encoding fits"
        if likely and likely.startswith(("utf-16", "utf-32")):
            looks = f"it looks like {likely.upper()}"
        elif likely:
            text = content[start : error.start + 40].decode(likely, "ignore").splitlines()[0]
            looks = f"as {likely} it reads {text[-60:]!r}"
        place = f"byte 0x{content[error.start]:02x} at position {error.start}, in line {line}"
        return f"not {encoding.upper()}: {place} ({looks})"
    return None


def is_same_encoding(name: str, other: str) -> bool:
    """Whether two names mean the same encoding; a mark at the beginning of UTF-8 does not count."""
    try:
        return len({codecs.lookup(encoding).name.removesuffix("-sig") for encoding in (name, other)}) == 1
    except LookupError:
        return False


@contextmanager
def _open_lines(path: Path, name: str, encoding: str) -> Iterator[TextIO]:
    with (
        open_file(path, name) as file,
        io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="") as lines,
    ):
        yield lines


def _describe_dialect(path: Path, name: str, options: dict[str, Any], one_column: bool = True) -> str | None:
    """What a file's first two lines look like; None if they may be cells as `options` say.

    Args:
        one_column: whether pandas read the file as a single column.
    """
    separator = options["sep"]
    if len(separator) > 1:  # a regular expression, from README.md
        return None
    with _open_lines(path, name, options["encoding"] or "utf-8") as file:
        header, row = (file.readline().lstrip("\ufeff").rstrip("\r\n") for _ in range(2))
    other = max(SEPARATORS, key=header.count)
    if one_column and other != separator and header.count(other) > header.count(separator):
        return f"its cells seem to be separated by {SEPARATORS[other]} ({header:.60})"
    for line in (header, row):
        if options["quotechar"] == '"' and line[:1] == line[-1:] == "'" and f"'{separator}'" in line:
            return f"its cells seem to be quoted by ' ({line:.60})"
    return None


def _find_title(path: Path, name: str, options: dict[str, Any]) -> UserError | None:
    """An error about a title above the names of the columns; None if the first row may name them.

    A title is a single cell above rows of several cells. A spreadsheet fills its row up with empty cells. The cells
    below it must look like names, unless they are more than two: the second column may have no name. Rows with another
    separator than the one in `options` must also have equally many cells, because texts hold separators too.
    """
    if options.get("header", "infer") != "infer" or options.get("skiprows") or options.get("names"):
        return None
    if len(options["sep"]) != 1:
        return None
    with _open_lines(path, name, options["encoding"] or "utf-8") as file:
        sample = [line.lstrip("\ufeff") for line in itertools.islice(file, 20)]
    for separator in dict.fromkeys([options["sep"], *SEPARATORS]):
        reader = csv.reader(sample, delimiter=separator, quotechar=options["quotechar"])
        try:
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
        except csv.Error:
            continue
        below = list(itertools.dropwhile(lambda row: len(list(filter(None, row[1]))) < 2, rows))
        if below and below == rows and separator == options["sep"]:
            return None
        if not below or below == rows or not rows[0][1][0]:
            continue
        (title, (text, *_)), (number, names), *others = rows[0], *below
        is_header = all(map(NAME.fullmatch, names)) and not any({*names} & {*cells} for _, cells in others)
        if separator != options["sep"]:
            is_header &= len(others) > 1 and all(len(cells) == len(names) for _, cells in others)
        if is_header or (separator == options["sep"] and len(names) > 2):
            other = f'put " around cells with {separator}'
            return UserError(
                f"{name}: line {title} has one cell ({text:.60}), line {number} has {len(names)} "
                f"({textwrap.shorten(', '.join(names), 100)}); if line {number} names the columns, delete the lines "
                f"above it, else {f'name each column in line {title}' if separator == options['sep'] else other}"
            )
    return None


def _find_uneven_row(
    path: Path, name: str, options: dict[str, Any], differs: Callable[[int, int], bool] = operator.gt
) -> str | None:
    """Describe the first row with more cells than the header (`operator.lt`: fewer); None if there is no such row."""
    separator, quotechar, encoding = options["sep"], options["quotechar"], options["encoding"] or "utf-8"
    if separator not in SEPARATORS:
        return None
    with _open_lines(path, name, encoding) as file:
        rows = csv.reader(file, delimiter=separator, quotechar=quotechar)
        try:
            header = next(rows)
            row = next(row for row in rows if row and differs(len(row), len(header)))
        except (csv.Error, StopIteration):
            return None
        cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
        first = "the header" if options["header"] == "infer" else "the first row"
        return f"line {rows.line_num} has {cells}, {first} {len(header)} ({reprlib.repr(row)})"
