"""The tables of `tools.predict --out`: every cell comes out as it came in, in every format; errors name the place."""

import csv
import gzip
import io
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.hub_server import Hub
from helpers.workbook import write_workbook
from huggingface_hub import constants

from stages.data.compression import open_file
from stages.runtime.errors import UserError
from stages.sources.manifest import find_extension
from tools.predict import read_tables
from tools.predict.find_files import InputFile, find_files
from tools.predict.read_tables import open_reader
from tools.predict.write_tables import check_target, write_table

NEW = ["prediction", "probability"]
HEADER = ["id", "text", "note", ""]
CELLS = [
    ["007", "A man sleeps.", "NA", "null"],
    ["1.0", 'He said "no", twice', "None", ""],
    ["", "two\nlines", " spaces ", "nan"],
    ["1e5", "a\r\nb", "a;b\tc|d", "\r"],
    ["-0", "NUL \0 here", "'single'", '"'],
    ["9" * 30, "é ü € “quoted”", '""', ","],
    ["True", "last", "#N/A", "x" * 200_000],
]


def as_input(path):
    return InputFile(path, path.name, find_extension(path.name), "")


def reader_of(path, columns=("text",), **options):
    """The reader of a file, after its check -> (reader, texts)."""
    reader = open_reader(as_input(path), **{"sep": None, "encoding": None, "quotechar": None} | options)
    return reader, [row for chunk in reader.read_texts(columns, NEW) for row in chunk]


def answers(rows):
    """New columns: every third row has no answer."""
    labels = [None if row % 3 == 2 else f"class {row % 2}" for row in range(rows)]
    return {"prediction": labels, "probability": [row / 8 for row in range(rows)]}


def convert(path, out, **options):
    """Write a copy of a file with new columns -> the texts that were read."""
    reader, texts = reader_of(path, **options)
    extension = find_extension(out.name)
    check_target(extension, str(out), reader, ["class 0", "class 1"])
    write_table(out, extension, reader, answers)
    return texts


def write_cells(path, encoding="utf-8", newline="\n", sep=",", quotechar='"', cells=CELLS):
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=sep, quotechar=quotechar, lineterminator=newline, quoting=csv.QUOTE_ALL)
        writer.writerows([HEADER, *cells])
    return path


def read_cells(path, encoding="utf-8", sep=",", quotechar='"'):
    csv.field_size_limit(1_000_000)
    with (
        open_file(path, str(path)) as file,
        io.TextIOWrapper(file, encoding=encoding, newline="") as lines,
    ):
        return list(csv.reader(lines, delimiter=sep, quotechar=quotechar))


DIALECTS = {
    "usual": {},
    "semicolons and CRLF": {"sep": ";", "newline": "\r\n"},
    "single quotes": {"quotechar": "'"},
    "with a mark": {"encoding": "utf-8-sig"},
    "Windows-1252": {"encoding": "cp1252"},
    "UTF-16": {"encoding": "utf-16"},
}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_a_csv_file_keeps_every_cell_and_its_dialect(tmp_path, dialect):
    cells = CELLS if dialect.get("encoding") != "cp1252" else [row for row in CELLS if "\0" not in row[1]]
    path = write_cells(tmp_path / "in.csv", cells=cells, **dialect)
    written = {key: value for key, value in dialect.items() if key != "newline"}
    given = {key: dialect[key] for key in ("sep", "quotechar") if key in dialect}
    if dialect.get("encoding") in ("cp1252", "utf-16"):  # the few letters here are too few to detect it
        given["encoding"] = dialect["encoding"]
    texts = convert(path, tmp_path / "out.csv", **given)
    assert texts == [(row[1],) for row in cells]
    header, *rows = read_cells(tmp_path / "out.csv", **written)
    assert header == [*HEADER, *NEW]
    assert [row[:4] for row in rows] == cells
    assert [row[4:] for row in rows] == [
        [label or "", str(p)] for label, p in zip(*answers(len(cells)).values(), strict=True)
    ]
    has_mark = dialect.get("encoding") == "utf-8-sig"
    assert (tmp_path / "out.csv").read_bytes().startswith(b"\xef\xbb\xbf") == has_mark


def test_pandas_reads_the_same_cells_from_both_files(tmp_path):
    """A carriage return in a cell ends a row unless it is quoted."""
    path = write_cells(tmp_path / "in.csv")
    convert(path, tmp_path / "out.csv")
    before, after = (pd.read_csv(file, dtype=str, keep_default_na=False) for file in (path, tmp_path / "out.csv"))
    pd.testing.assert_frame_equal(after.iloc[:, :4], before)


@pytest.mark.parametrize("ending", ["csv.gz", "csv.bz2", "csv.xz", "csv.zst", "tsv"])
def test_the_ending_of_the_target_is_its_format(tmp_path, ending):
    convert(write_cells(tmp_path / "in.csv"), tmp_path / f"out.{ending}")
    rows = read_cells(tmp_path / f"out.{ending}", sep="\t" if ending == "tsv" else ",")
    assert [row[:4] for row in rows[1:]] == CELLS
    again = tmp_path / "again" / f"out.{ending}"
    again.parent.mkdir()
    convert(tmp_path / "in.csv", again)
    assert again.read_bytes() == (tmp_path / f"out.{ending}").read_bytes()


def test_columns_of_a_csv_file_with_the_same_name_stay(tmp_path):
    (tmp_path / "in.csv").write_text("text,a,a\nx,1,2\n")
    convert(tmp_path / "in.csv", tmp_path / "out.csv")
    assert read_cells(tmp_path / "out.csv") == [["text", "a", "a", *NEW], ["x", "1", "2", "class 0", "0.0"]]
    with pytest.raises(UserError, match=r"in\.csv: several columns are called a, which jsonl does not allow"):
        convert(tmp_path / "in.csv", tmp_path / "out.jsonl")


def test_columns_of_a_parquet_file_with_the_same_name_stay_or_are_an_error(tmp_path):
    table = pa.table([pa.array(["x"]), pa.array([1]), pa.array([2])], names=["text", "a", "a"])
    pq.write_table(table, tmp_path / "in.parquet")
    convert(tmp_path / "in.parquet", tmp_path / "out.csv")
    assert read_cells(tmp_path / "out.csv")[1][:3] == ["x", "1", "2"]
    with pytest.raises(UserError, match=r"in\.parquet: several columns are called a, which jsonl does not allow"):
        convert(tmp_path / "in.parquet", tmp_path / "out.jsonl")


LINES = [
    '{"id": 9007199254740993, "text": "a", "f": 1.10, "nested": {"b": [1, null]}}',
    '{ "text": null , "id":1, "f": 2, "nested": "x"  }',
    '{"text": "\\u00e9 \\ud83d\\ude00", "id": 1e2, "f": null, "new": true}',
]


@pytest.mark.parametrize("ending", ["jsonl", "json", "ndjson", "jsonl.gz"])
def test_json_lines_stay_as_they_are(tmp_path, ending):
    content = ("\r\n".join(LINES)).encode()
    path = tmp_path / f"in.{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    assert convert(path, tmp_path / f"out.{ending}") == [("a",), ("",), ("é 😀",)]
    with open_file(tmp_path / f"out.{ending}", "") as file:
        lines = file.read().decode().splitlines()
    for before, after, label in zip(LINES, lines, ["class 0", "class 1", None], strict=True):
        assert after.startswith(before[:-1].rstrip())
        assert json.loads(after)["prediction"] == label


@pytest.mark.parametrize(
    "name, content",
    [
        ("in.csv", 'text\na\n\n  \nb\n""\n\n\n'),
        ("in.csv", "\r\n\r\ntext,id\r\na,1\r\n\r\n,\r\nb,2\r\n,\r\n\r\n\r\n"),
        ("in.csv", "\r\rtext,id\ra,1\r\r,\rb,2\r,\r\r\r"),
        ("in.csv", "\r\r\ntext,id\r\r\na,1\r\r\n\r\r\n,\r\r\nb,2\r\r\n,\r\r\n\r\r\n"),
        ("in.jsonl", '{"text": "a"}\n\n  \n{"text": "b"}\n{"text": ""}\n\n\n'),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_an_empty_line_between_rows_is_a_row_without_a_text(tmp_path, name, content, ending):
    (tmp_path / name).write_text(content, newline="")
    texts = convert(tmp_path / name, tmp_path / f"out.{ending}")
    assert [text.strip() for (text,) in texts] == ["a", "", "", "b", ""]
    read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}
    written = read.get(ending, lambda path: pd.read_json(path, lines=True))(tmp_path / f"out.{ending}")
    assert written["probability"].tolist() == answers(5)["probability"]
    assert written["text"].fillna("").str.strip().tolist() == ["a", "", "", "b", ""]


def test_an_array_of_json_stays_an_array(tmp_path):
    rows = [json.loads(line) for line in LINES]
    (tmp_path / "in.json").write_text(json.dumps(rows, indent=1))
    convert(tmp_path / "in.json", tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert [{key: row[key] for key in row if key not in NEW} for row in written] == rows
    convert(tmp_path / "in.json", tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == written


def test_keys_of_json_become_columns_with_types(tmp_path):
    lines = [
        {"text": "a", "count": 1, "share": 1, "flag": True, "mixed": 1, "big": 2**60},
        {"text": "b", "count": None, "share": 0.5, "flag": False, "mixed": [1], "big": 1, "late": "x"},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    convert(tmp_path / "in.jsonl", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "text": "string", "count": "int64", "share": "double", "flag": "bool", "mixed": "string", "big": "string",
        "late": "string", "prediction": "string", "probability": "double",
    }  # fmt: skip
    assert table.to_pylist()[1] | {"prediction": 0, "probability": 0} == {
        **lines[1], "mixed": "[1]", "big": "1", "prediction": 0, "probability": 0,
    }  # fmt: skip


@pytest.fixture
def typed():
    """A table with types that text can't keep."""
    table = pa.table(
        {
            "text": pa.array(["a", None, "c"]).dictionary_encode(),
            "small": pa.array([1, None, 3], pa.int8()),
            "when": pa.array([0, 1, None], pa.timestamp("ms")),
            "list": pa.array([[1, 2], [], None], pa.list_(pa.int32())),
            "share": pa.array([0.1, float("nan"), None]),
        }
    )
    return table.replace_schema_metadata({"info": "kept"})


def read_stream(path):
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as file:
        return file.read_all()


def read_arrow(path):
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        return file.read_all()


def write_arrow(new_writer, table, path):
    with pa.OSFile(str(path), "wb") as file, new_writer(file, table.schema) as writer:
        writer.write_table(table)


TYPED = {
    "parquet": ("parquet", pq.write_table, pq.read_table),
    "arrow file": ("arrow", lambda table, path: write_arrow(pa.ipc.new_file, table, path), read_arrow),
    "arrow stream": ("arrow", lambda table, path: write_arrow(pa.ipc.new_stream, table, path), read_stream),
}


@pytest.mark.parametrize(("ending", "write", "read"), TYPED.values(), ids=TYPED)
def test_types_and_metadata_stay(tmp_path, typed, ending, write, read):
    write(typed, tmp_path / f"in.{ending}")
    assert convert(tmp_path / f"in.{ending}", tmp_path / f"out.{ending}") == [("a",), ("",), ("c",)]
    before, written = read(tmp_path / f"in.{ending}"), read(tmp_path / f"out.{ending}")
    assert written.drop_columns(NEW).schema.equals(before.schema, check_metadata=True)
    assert str(written.drop_columns(NEW)) == str(before)  # `equals` says that NaN is not NaN
    assert written.schema.metadata[b"info"] == b"kept"
    assert written.select(NEW).to_pydict() == answers(3)


def test_a_parquet_file_becomes_text(tmp_path, typed):
    pq.write_table(typed, tmp_path / "in.parquet")
    convert(tmp_path / "in.parquet", tmp_path / "out.csv")
    assert read_cells(tmp_path / "out.csv")[1:] == [
        ["a", "1", "1970-01-01 00:00:00", "[1, 2]", "0.1", "class 0", "0.0"],
        ["", "", "1970-01-01 00:00:00.001000", "[]", "nan", "class 1", "0.125"],
        ["c", "3", "", "", "", "", "0.25"],
    ]
    convert(tmp_path / "in.parquet", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())[1] == {
        "text": None, "small": None, "when": "1970-01-01 00:00:00.001000", "list": [], "share": None,
        "prediction": "class 1", "probability": 0.125,
    }  # fmt: skip


def test_a_workbook_is_read_but_not_written(tmp_path):
    path = tmp_path / "in.xlsx"
    write_workbook(path, rows=[["id", "text"], ["007", "a"], ["8", None]])
    assert convert(path, tmp_path / "out.csv") == [("a",), ("",)]
    assert read_cells(tmp_path / "out.csv")[1] == ["007", "a", "class 0", "0.0"]
    with pytest.raises(UserError, match=r"out\.xlsx: not a format that is written; allowed: a name that ends in \."):
        convert(path, tmp_path / "out.xlsx")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "arrow"])
def test_chunks_make_no_difference(tmp_path, monkeypatch, ending):
    table = pd.DataFrame({"text": [f"text {row}" for row in range(25)]})
    if ending == "arrow":
        write_arrow(pa.ipc.new_stream, pa.Table.from_pandas(table), tmp_path / "in.arrow")
    else:
        write = {"csv": table.to_csv, "parquet": table.to_parquet, "jsonl": table.to_json}[ending]
        write(tmp_path / f"in.{ending}", **({"orient": "records", "lines": True} if ending == "jsonl" else {}))
    monkeypatch.setattr(read_tables, "CHUNK", 7)
    numbers = iter(range(25))

    def count(rows):
        return {"prediction": [str(next(numbers)) for _ in range(rows)]}

    reader, texts = reader_of(tmp_path / f"in.{ending}")
    write_table(tmp_path / "out.csv", "csv", reader, count)
    written = pd.read_csv(tmp_path / "out.csv")
    assert [text for (text,) in texts] == written["text"].tolist() == table["text"].tolist()
    assert (written["prediction"] == np.arange(25)).all()


BAD = {
    "no column": ("in.csv", b"a,b\n1,2\n", "no column text; it has a, b; name the right one with --column text="),
    "no header": ("in.csv", b"1,2\n1,2\n3,4\n", "no column text; .*; if its first line is a row, add a line"),
    "more cells": ("in.csv", b"text,b\n1,2\n3,4,5\n", "line 3 has 3 cells, the first row 2"),
    "two text columns": ("in.csv", b"text,text\n1,2\n", "several columns are called text"),
    "a new column": ("in.csv", b"text,prediction\n1,2\n", "has a column prediction, the name of a new column"),
    "wrong UTF-8": ("in.csv", "text\né é é é\n".encode() + b"\xff\n", "UTF-8, but with 1 wrong bytes.* in line 3"),
    "an empty file": ("in.csv", b"", r"in\.csv: the file is empty"),
    "cut gzip": ("in.csv.gz", gzip.compress(b"text\n" + bytes(range(32, 127)) * 99)[:-20], "fetch or copy it whole"),
    "a cut line": ("in.jsonl", b'{"text": "a"}\n\n{"text"', r"in\.jsonl, line 3: not JSON"),
    "a list": ("in.jsonl", b"[1]", "line 1: must be an object"),
    "a number": ("in.jsonl", b'{"text": 1}', "line 1: text: must be text"),
    "no key": ("in.jsonl", b'{"text": "a"}\n{"b": 1, "c": 2}', "line 2: no column text; it has b, c; .*--column text="),
    "a new key": ("in.jsonl", b'{"text": "a", "probability": 1}', "line 1: has a column probability"),
    "half of a character": ("in.jsonl", rb'{"text": "a", "b": "\ud800"}', "line 1: not valid text"),
    "deep": ("in.jsonl", b"[" * 100_000, "line 1: nested too deep"),
    "Windows-1252": ("in.jsonl", '{"text": "né né né"}'.encode("cp1252"), "not UTF-8: .*; set --encoding to "),
    "columns": ("in.json", b'{"text": ["a", "b"]}', "the file is one object, not a list of rows"),
    "a row of an array": ("in.json", b'[{"text": "a"}, 5]', "row 1, counted from 0: must be an object"),
    "no parquet": ("in.parquet", b"PAR1", r"in\.parquet: not readable as parquet"),
    "no arrow": ("in.arrow", b"ARROW1", r"in\.arrow: not readable as Arrow"),
    "no workbook": ("in.xlsx", b"", r"in\.xlsx: not readable as a workbook"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_the_error_says_what_is_wrong_with_a_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        reader_of(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and "data.read" not in str(caught.value)


def test_numbers_are_no_texts(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"in\.parquet: column 'text' holds .*; allowed: text"):
        reader_of(tmp_path / "in.parquet")


def test_options_that_do_not_fit_the_file_are_errors(tmp_path):
    (tmp_path / "in.csv").write_text('text,b\né,"2\n3,4\n')
    with pytest.raises(UserError, match='a " is never closed'):
        reader_of(tmp_path / "in.csv", quotechar='"')
    with pytest.raises(UserError, match="it is UTF-8, not CP1252"):
        reader_of(tmp_path / "in.csv", encoding="cp1252")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match="--sep: has no effect on parquet files"):
        reader_of(tmp_path / "in.parquet", sep=";")


def test_a_class_that_the_encoding_lacks_is_an_error(tmp_path):
    (tmp_path / "in.csv").write_bytes("text\né é é é\n".encode("cp1252"))
    reader, _ = reader_of(tmp_path / "in.csv", encoding="cp1252")
    with pytest.raises(UserError, match=r"^out\.csv: would be written in cp1252, as \S*in\.csv is, which has no '好'"):
        check_target("csv", "out.csv", reader, ["a", "好"])


def test_bytes_are_only_written_where_a_format_has_them(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "image": [b"\xff"]}), tmp_path / "in.parquet")
    convert(tmp_path / "in.parquet", tmp_path / "out.arrow")
    with pytest.raises(UserError, match=r"column 'image' holds .*, which csv does not have; name an --out that ends"):
        convert(tmp_path / "in.parquet", tmp_path / "out.csv")


def test_the_tables_of_a_folder_are_found_in_order(tmp_path):
    for name in ("b.csv", "a/c.jsonl", "README.md", "dataset_info.json", "notes.txt", ".hidden/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\na\n")
    assert [(file.name, file.extension) for file in find_files(str(tmp_path), None)] == [
        ("a/c.jsonl", "jsonl"), ("b.csv", "csv"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="--subset: is for a data set on the hub"):
        find_files(str(tmp_path), "en")
    for given in ("nowhere.csv", "a/b/c.csv"):
        with pytest.raises(UserError, match=re.escape(f"{given}: no such file or folder; allowed: a path, or")):
            find_files(given, None)


CARD = b"""---
configs:
- config_name: en
  data_files: en/*.csv
- config_name: de
  data_files: de/*.csv
---
"""


def test_the_tables_of_a_subset_on_the_hub_are_read_at_a_commit_that_is_printed(tmp_path, monkeypatch, capsys):
    commit, table = "1" * 40, b"text\na\n"
    files = {"README.md": CARD, "en/test.csv": table, "en/train.csv": table, "de/test.csv": table}
    monkeypatch.chdir(tmp_path)
    with Hub() as hub:
        hub.add("datasets", "me/pairs", commit, files)
        for name, value in {
            "ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        assert [file.name for file in find_files("me/pairs", "en")] == ["en/test.csv", "en/train.csv"]
        assert f"me/pairs: no such path here, so it is read from the hub, at commit {commit}" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"^--subset: null; allowed with .*: en, de$"):
            find_files("me/pairs", None)
        with pytest.raises(UserError, match=r"^no me/other on the hub; correct the name"):
            find_files("me/other", None)
    assert not (tmp_path / "outs").exists()
