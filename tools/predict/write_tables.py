"""Write a table in chunks, with the columns of the predictions at its end."""

import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.compression import open_to_write
from stages.data.dialect import NO_QUOTES
from stages.data.label_column import describe_type
from stages.runtime.errors import UserError
from stages.sources.manifest import TABLE_EXTENSIONS
from tools.predict.read_tables import ArrowReader, CsvReader, JsonReader, Reader, TableReader

WRITTEN = [extension for extension in TABLE_EXTENSIONS if extension != "xlsx"]
JSON_KINDS = ("json", "jsonl", "ndjson")
TEXT = pa.string()
GROUP_ROWS = 65_536  # of a parquet file's row groups: a reader of the file reads faster from few large ones

Answers = Callable[[int], dict[str, list]]  # takes a number of rows; returns the new columns for the next rows


def write_table(
    path: Path, extension: str, reader: Reader, next_answers: Answers, answer_type: pa.DataType = TEXT
) -> None:
    """Write all rows of a reader with new columns.

    Args:
        path: written in place, so it is a temporary one.
        extension: of the file to be written; it says the format and the compression.
        answer_type: of the column `prediction`.
    """
    kind, _, compression = extension.partition(".")
    tables = _add_answers(reader, next_answers, answer_type)
    if kind == "parquet":
        _write_parquet(path, tables)
    elif kind == "arrow":
        is_stream = not isinstance(reader, ArrowReader) or reader.is_stream
        _write_arrow(path, tables, is_stream)
    else:
        with open_to_write(path, f".{compression}") as file:
            if kind in ("csv", "tsv"):
                _write_csv(file, tables, *_choose_dialect(kind, reader))
            else:
                lines = _add_to_lines(reader, next_answers) if isinstance(reader, JsonReader) else map(_as_json, tables)
                _write_json(file, lines, _is_array(kind, reader))


def check_target(extension: str, place: str, reader: Reader, classes: Sequence[str]) -> None:
    """Reject a file that could not be written, before anything is predicted.

    Args:
        extension, place: of the file to be written; `place` is what errors call it.
        reader: of the table, after `read_texts`.
    """
    kind = extension.partition(".")[0]
    if extension not in WRITTEN:
        raise UserError(f"{place}: not a format that is written; allowed: a name that ends in .{', .'.join(WRITTEN)}")
    if kind in ("csv", "tsv"):
        sep, quotechar, encoding = _choose_dialect(kind, reader)
        for name in classes:
            if lacking := [char for char in name if char.encode(encoding, "ignore").decode(encoding) != char]:
                raise UserError(
                    f"{place}: would be written in {encoding}, as {reader.place} is, which has no {lacking[0]!r}, "
                    f"as in class {name}; name a file that ends in .jsonl, which is written in UTF-8"
                )
            if quotechar == NO_QUOTES and any(char in name for char in (sep, "\n", "\r")):
                raise UserError(
                    f"{place}: class {name} has {sep!r}, and the cells of {reader.place} are not quoted; name a file "
                    "that ends in .jsonl"
                )
    elif isinstance(reader, CsvReader) or (kind in JSON_KINDS and isinstance(reader, TableReader)):
        names = reader.read_names()
        if doubled := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"{reader.place}: several columns are called {doubled[0]}, which {kind} does not allow; name an --out "
                "that ends in .csv"
            )
    if kind in ("csv", "tsv", *JSON_KINDS) and isinstance(reader, TableReader):
        for field in reader.schema:
            if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type) or "binary" in str(field.type):
                raise UserError(
                    f"{reader.place}: column '{field.name}' holds {describe_type(field.type)}, which {kind} does not "
                    "have; name an --out that ends in .parquet"
                )


def _choose_dialect(kind: str, reader: Reader) -> tuple[str, str, str]:
    """(separator, quote character, encoding): as the file that is read, if it has the same format."""
    if not isinstance(reader, CsvReader) or not reader.extension.startswith(kind):
        return "\t" if kind == "tsv" else ",", '"', "utf-8"
    encoding = "utf-8-sig" if reader.has_mark else reader.options["encoding"]
    return reader.options["sep"], reader.options["quotechar"], encoding


def _is_array(kind: str, reader: Reader) -> bool:
    """Whether a file is a JSON array: a json file, unless it is read from a json file with one object a line."""
    from_lines = isinstance(reader, JsonReader) and not reader.is_array and reader.extension.partition(".")[0] == "json"
    return kind == "json" and not from_lines


def _add_answers(reader: Reader, next_answers: Answers, answer_type: pa.DataType) -> Iterator[pa.Table]:
    for table in reader.read_tables():
        for name, values in next_answers(len(table)).items():
            kind = answer_type if name == "prediction" else pa.float64()
            table = table.append_column(name, pa.array(values, kind))
        yield table


def _add_to_lines(reader: JsonReader, next_answers: Answers) -> Iterator[list[str]]:
    """Add keys to the end of each object's text, which stays as it is."""
    for chunk in reader.read_lines():
        columns = next_answers(len(chunk))
        added = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        texts = [json.dumps(answer, ensure_ascii=False) for answer in added]
        yield [
            f"{line[:-1].rstrip()}, {text[1:]}" if line else text for (_, line), text in zip(chunk, texts, strict=True)
        ]


def _as_json(table: pa.Table) -> list[str]:
    return [json.dumps(_as_json_value(row), ensure_ascii=False) for row in table.to_pylist()]


def _as_json_value(value: Any) -> Any:
    """A value that JSON has: null for a float that is not finite, text for a date."""
    if isinstance(value, dict):
        return {str(key): _as_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _write_json(file: Any, chunks: Iterable[list[str]], is_array: bool) -> None:
    separator = ",\n" if is_array else "\n"
    file.write(b"[\n" if is_array else b"")
    for number, lines in enumerate(chunks):
        file.write(((separator if number else "") + separator.join(lines)).encode())
    file.write(b"\n]\n" if is_array else b"\n")


def _write_csv(file: Any, tables: Iterable[pa.Table], sep: str, quotechar: str, encoding: str) -> None:
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    settings: dict[str, Any] = {"delimiter": sep, "quotechar": quotechar, "lineterminator": "\n"}
    writer = csv.writer(text, **settings)
    quoting_writer = csv.writer(text, quoting=csv.QUOTE_ALL, **settings)
    for number, table in enumerate(tables):
        if number == 0:
            writer.writerow(table.column_names)
        for row in zip(*(map(_as_cell, column.to_pylist()) for column in table.columns), strict=True):
            # Before Python 3.13, `csv` does not quote a carriage return, which ends a row.
            (quoting_writer if any("\r" in cell for cell in row) else writer).writerow(row)
    text.flush()
    text.detach()


def _as_cell(value: Any) -> str:
    """A value as text: nothing for a missing one, JSON for a list or an object."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return json.dumps(_as_json_value(value), ensure_ascii=False)
    return "" if value is None else str(value)


def _write_parquet(path: Path, tables: Iterable[pa.Table]) -> None:
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        group: list[pa.Table] = []
        for table in tables:
            writer = writer or stack.enter_context(pq.ParquetWriter(path, table.schema))
            group.append(table)
            if sum(map(len, group)) >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(group))
                group = []
        if writer and group:
            writer.write_table(pa.concat_tables(group))


def _write_arrow(path: Path, tables: Iterable[pa.Table], is_stream: bool) -> None:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(pa.OSFile(str(path), "wb"))
        writer: pa.ipc.RecordBatchStreamWriter | None = None
        for table in tables:
            new_writer = pa.ipc.new_stream if is_stream else pa.ipc.new_file
            writer = writer or stack.enter_context(new_writer(file, table.schema))
            writer.write_table(table)
