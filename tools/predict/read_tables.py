"""Read tables in chunks, so that memory does not grow with the rows.

Exceptions, which are held in memory whole: a json file with an array, an xlsx file, and for the detection of its
encoding a csv file that is not UTF-8.
"""

import contextlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.compression import open_file
from stages.data.csv_and_json import check_encoding, check_json, read_csv_in_chunks
from stages.data.dialect import NO_QUOTES, SEPARATORS, Dialect, detect_dialect
from stages.data.label_column import describe_type
from stages.data.xlsx import read_xlsx
from stages.runtime.errors import UserError, first_line
from tools.predict.find_files import InputFile

CHUNK = 4096  # rows
LARGE_INTEGER = 2**53  # from here on float64 does not have all integers

Texts = list[tuple[str, ...]]  # rows, a text for each column


class Reader(Protocol):
    """Reads a table. `read_texts` checks it, so it is called first and to its end.

    Attributes:
        place: what errors call the file.
        extension: as in `TABLE_EXTENSIONS`.
    """

    place: str
    extension: str

    def read_texts(self, columns: Sequence[str], new_columns: Sequence[str]) -> Iterator[Texts]:
        """Yield the rows' texts in some columns. A missing text is empty.

        Args:
            new_columns: names that no column may have, because the predictions get them.

        Raises:
            UserError: the file is not readable, lacks a column, or has one that is not text. The error names the row.
        """
        ...

    def read_tables(self) -> Iterator[pa.Table]:
        """Yield all columns."""
        ...


def open_reader(file: InputFile, sep: str | None, encoding: str | None, quotechar: str | None) -> Reader:
    """The reader of a file.

    Args:
        sep, encoding, quotechar: how it is written, from the command line; None: as it looks.
    """
    kind = file.extension.partition(".")[0]
    place = str(file.path)
    options = {"--sep": sep, "--encoding": encoding, "--quotechar": quotechar}
    allowed = {"csv": [*options], "tsv": [*options], "json": ["--encoding"]}.get(
        "json" if kind in ("jsonl", "ndjson") else kind, []
    )
    if unused := [option for option, value in options.items() if value is not None and option not in allowed]:
        raise UserError(f"{unused[0]}: has no effect on {kind} files ({place}); remove it")
    if kind in ("csv", "tsv"):
        return CsvReader(file.path, place, file.extension, sep, encoding, quotechar)
    if kind in ("json", "jsonl", "ndjson"):
        return JsonReader(file.path, place, file.extension, encoding or "utf-8")
    return {"parquet": ParquetReader, "arrow": ArrowReader, "xlsx": XlsxReader}[kind](file.path, place, file.extension)


def describe_missing(place: str, missing: Sequence[str], columns: Sequence[str]) -> UserError:
    """An error about columns of the template that a table, or a row of JSON, does not have."""
    listed = ", ".join(columns[:20]) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")
    return UserError(
        f"{place}: no column {' and no column '.join(missing)}; it has {listed}; name the right one with "
        + " ".join(f"--column {quote(column)}=COLUMN" for column in missing)
    )


class TableReader:
    """A table with columns of Arrow. Subclasses define `_read_schema` and `read_chunks`."""

    def __init__(self, path: Path, place: str, extension: str) -> None:
        self.path, self.place, self.extension = path, place, extension

    @cached_property
    def schema(self) -> pa.Schema:
        """The names and types of the columns. It is read once: csv checks the whole file, xlsx reads it."""
        return self._read_schema()

    def _read_schema(self) -> pa.Schema:
        raise NotImplementedError

    def read_names(self) -> list[str]:
        return self.schema.names

    def read_chunks(self, numbers: list[int] | None) -> Iterator[pa.Table]:
        """Yield some columns, or all, in their order."""
        raise NotImplementedError

    def read_texts(self, columns: Sequence[str], new_columns: Sequence[str]) -> Iterator[Texts]:
        names = self.read_names()
        if missing := [column for column in columns if column not in names]:
            raise describe_missing(self.place, missing, names)
        if doubled := [column for column in columns if names.count(column) > 1]:
            raise UserError(f"{self.place}: several columns are called {doubled[0]}; rename all but one")
        if taken := [column for column in new_columns if column in names]:
            raise _describe_taken(self.place, taken[0])
        numbers = sorted(names.index(column) for column in set(columns))
        places = [numbers.index(names.index(column)) for column in columns]
        row = 0
        for chunk in self.read_chunks(numbers):
            values = [
                self._read_text(chunk.column(place), column, row) for place, column in zip(places, columns, strict=True)
            ]
            yield list(zip(*values, strict=True))
            row += len(chunk)

    def _read_text(self, values: pa.ChunkedArray, column: str, first_row: int) -> list[str]:
        kind = values.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise UserError(f"{self.place}: column '{column}' holds {describe_type(kind)}; allowed: text")
        try:
            return [text or "" for text in values.to_pylist()]
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.place}: column '{column}' has text that is not UTF-8 in rows {first_row:,} to "
                f"{first_row + len(values) - 1:,}, counted from 0; write the file again"
            ) from error

    def read_tables(self) -> Iterator[pa.Table]:
        return self.read_chunks(None)


class CsvReader(TableReader):
    """A csv or tsv file. All cells are text, and only an empty one is missing.

    Attributes:
        options: `sep`, `quotechar`, `encoding`.
        has_mark: whether the file begins with the mark of UTF-8, which Excel needs.
    """

    def __init__(
        self, path: Path, place: str, extension: str, sep: str | None, encoding: str | None, quotechar: str | None
    ) -> None:
        super().__init__(path, place, extension)
        usual = Dialect("\t" if extension.startswith("tsv") else ",", "utf-8", '"', True)
        self.detected = usual if sep and encoding and quotechar else detect_dialect(path, place)
        self.options: dict[str, Any] = {
            "sep": sep or self.detected.sep,
            "quotechar": quotechar or self.detected.quotechar,
            "encoding": encoding or self.detected.encoding,
        }
        unusual = [key for key, value in self.options.items() if value != getattr(usual, key)]
        if unusual and not (sep and encoding and quotechar):
            separator, quote = self.options["sep"], self.options["quotechar"]
            print(
                f"{place}: {self.options['encoding']}; cells are separated by {SEPARATORS.get(separator, separator)} "
                f"and {'not quoted' if quote == NO_QUOTES else f'quoted by {quote}'}"
            )
        with open_file(path, place) as file:
            self.has_mark = file.read(3) == b"\xef\xbb\xbf"

    def _read_schema(self) -> pa.Schema:
        with self._name_flags():
            header = next(read_csv_in_chunks(self.path, self.place, self.options, 1))
        return header.rename_columns([column[0].as_py() or "" for column in header.columns]).schema

    def read_chunks(self, numbers: list[int] | None) -> Iterator[pa.Table]:
        names = self.read_names()
        with self._name_flags():
            for number, chunk in enumerate(read_csv_in_chunks(self.path, self.place, self.options, CHUNK)):
                chunk = chunk.rename_columns(names)[0 if number else 1 :]
                yield chunk if numbers is None else chunk.select(numbers)

    @contextlib.contextmanager
    def _name_flags(self) -> Iterator[None]:
        """Let errors name this command's flags, not the keys of params.yaml."""
        try:
            yield
        except UserError as error:
            raise UserError(str(error).replace("data.read.", "--")) from error

    def read_texts(self, columns: Sequence[str], new_columns: Sequence[str]) -> Iterator[Texts]:
        try:
            yield from super().read_texts(columns, new_columns)
        except UserError as error:
            if "no column" in str(error) and not self.detected.has_header:
                raise UserError(f"{error}; if its first line is a row, add a line with names above it") from error
            raise


class ParquetReader(TableReader):
    """A parquet file."""

    def _read_schema(self) -> pa.Schema:
        with self._open() as file:
            return file.schema_arrow

    def read_chunks(self, numbers: list[int] | None) -> Iterator[pa.Table]:
        with self._open() as file:
            schema = file.schema_arrow
            names = None if numbers is None else [schema.names[number] for number in numbers]
            for batch in file.iter_batches(CHUNK, columns=names):
                table = pa.Table.from_batches([batch])
                yield table if names is None else table.select(names)

    @contextlib.contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(self.path, buffer_size=1 << 20) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.place}: not readable as parquet ({first_line(error):.200})") from error


class ArrowReader(TableReader):
    """An Arrow file, or an Arrow stream as `datasets` writes it."""

    @property
    def is_stream(self) -> bool:
        with open(self.path, "rb") as file:
            return file.read(6) != b"ARROW1"

    def _read_schema(self) -> pa.Schema:
        with self._open() as file:
            return file.schema

    def read_chunks(self, numbers: list[int] | None) -> Iterator[pa.Table]:
        with self._open() as file:
            batches = file if self.is_stream else map(file.get_batch, range(file.num_record_batches))
            for batch in batches:
                for start in range(0, len(batch), CHUNK):
                    table = pa.Table.from_batches([batch.slice(start, CHUNK)])
                    yield table if numbers is None else table.select(numbers)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with (
                pa.OSFile(str(self.path)) as source,
                pa.ipc.open_stream(source) if self.is_stream else pa.ipc.open_file(source) as file,
            ):
                yield file
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.place}: not readable as Arrow ({first_line(error):.200})") from error


class XlsxReader(TableReader):
    """The only sheet of a workbook, as text."""

    def _read_schema(self) -> pa.Schema:
        return read_xlsx(self.path, self.place)[0].schema

    def read_chunks(self, numbers: list[int] | None) -> Iterator[pa.Table]:
        table, _ = read_xlsx(self.path, self.place)
        table = table if numbers is None else table.select(numbers)
        for start in range(0, len(table), CHUNK):
            yield table.slice(start, CHUNK)


class JsonReader:
    """A file with a JSON object a line, or a json file with an array of objects.

    Attributes:
        is_array: whether it is an array.
        kinds: {key: the types of its values}, after `read_texts`.
    """

    def __init__(self, path: Path, place: str, extension: str, encoding: str) -> None:
        self.path, self.place, self.extension = path, place, extension
        self.encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
        self.kinds: dict[str, set[type]] = {}
        self.is_array = False
        self._name_flag(check_encoding, encoding)
        if extension.startswith("json") and not extension.startswith("jsonl"):
            with self._open() as lines:
                first = next((line for line in lines if line.strip()), "")
            self.is_array = first.lstrip().startswith("[")
            if not self.is_array:
                self._name_flag(check_json, encoding)

    def _name_flag(self, check: Any, encoding: str) -> None:
        try:
            check(self.path, self.place, encoding)
        except UserError as error:
            raise UserError(str(error).replace("data.read.", "--")) from error

    @contextlib.contextmanager
    def _open(self) -> Iterator[io.TextIOWrapper]:
        with (
            open_file(self.path, self.place) as file,
            io.TextIOWrapper(file, encoding=self.encoding, newline="\n") as lines,
        ):
            yield lines

    def read_lines(self) -> Iterator[list[tuple[int, str]]]:
        """Yield chunks of (number of the line or of the array's row, the JSON object as text). A line may be empty."""
        with self._open() as file:
            if self.is_array:
                try:
                    rows = json.load(file)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{self.place}: not JSON ({first_line(error)})") from error
                texts: Iterator[str] = map(dump, rows)
            else:
                texts = drop_empty_lines_at_the_end(line.strip(" \t\r\n") for line in file)
            lines = enumerate(texts, 1)
            while chunk := list(itertools.islice(lines, CHUNK)):
                yield chunk

    def read_texts(self, columns: Sequence[str], new_columns: Sequence[str]) -> Iterator[Texts]:
        for chunk in self.read_lines():
            texts = []
            for number, line in chunk:
                if not line:
                    texts.append(("",) * len(columns))
                    continue
                row_or_line = f"row {number - 1:,}, counted from 0" if self.is_array else f"line {number:,}"
                place = f"{self.place}, {row_or_line}"
                row = parse_object(line, place)
                if missing := [column for column in columns if column not in row]:
                    raise describe_missing(place, missing, list(row))
                if taken := [column for column in new_columns if column in row]:
                    raise _describe_taken(place, taken[0])
                texts.append(tuple(_get_text(row, column, place) for column in columns))
                for key, value in row.items():
                    self.kinds.setdefault(key, set()).add(_kind(value))
            yield texts

    def read_tables(self) -> Iterator[pa.Table]:
        """Yield a column for each key: text, numbers or booleans. Others, and mixed ones, are JSON text."""
        schema = pa.schema([(key, _choose_type(kinds)) for key, kinds in self.kinds.items()])
        for chunk in self.read_lines():
            rows = [json.loads(line or "{}") for _, line in chunk]
            columns = [
                pa.array([_as_column_value(row.get(key), kind) for row in rows], kind)
                for key, kind in zip(schema.names, schema.types, strict=True)
            ]
            yield pa.Table.from_arrays(columns, schema=schema)


def drop_empty_lines_at_the_end(lines: Iterable[str]) -> Iterator[str]:
    empty = 0
    for line in lines:
        if line:
            yield from itertools.repeat("", empty)
            yield line
        empty = 0 if line else empty + 1


def parse_object(line: str, place: str) -> dict[str, Any]:
    """Parse a line of JSON, which must be an object."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})") from error
    except RecursionError as error:
        raise UserError(f"{place}: nested too deep") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: must be an object with a key for each column")
    if "\\u" in line:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{place}: not valid text (an escape that is half a character)") from error
    return row


def dump(row: Any) -> str:
    """A row as a line of JSON. Half a character stays an escape, which `parse_object` rejects."""
    line = json.dumps(row, ensure_ascii=False)
    return line if line.encode(errors="replace").decode() == line else json.dumps(row)


def _get_text(row: dict[str, Any], column: str, place: str) -> str:
    text = "" if row[column] is None else row[column]
    if not isinstance(text, str):
        raise UserError(f"{place}: {column}: must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: {column}: not valid text (character {error.start + 1}: {error.reason})") from error
    return text


def _describe_taken(place: str, column: str) -> UserError:
    return UserError(f"{place}: has a column {column}, the name of a new column; give it another name")


def _kind(value: object) -> type:
    """The type of a JSON value; `object` for an integer that float64 does not have."""
    return object if isinstance(value, int) and abs(value) >= LARGE_INTEGER else type(value)


def _choose_type(kinds: set[type]) -> pa.DataType:
    """The Arrow type of a column of JSON values."""
    kinds = kinds - {type(None)}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {int, float} else pa.string()


def _as_column_value(value: Any, kind: pa.DataType) -> Any:
    is_text = kind == pa.string() and value is not None and not isinstance(value, str)
    return json.dumps(value, ensure_ascii=False) if is_text else value
