"""Splits are read from pinned files, by the names and slices in params.yaml."""

import gzip
import itertools
import lzma
import os
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.parameters import unpinned_params, use
from helpers.project import NANO, SHARED
from helpers.stages import assert_refused, run_stage_in_each, written
from helpers.tables import arrow, data_params, frame, parquet_folder

from stages.data.compression import decompress_zst
from stages.data.split_files import read_splits
from stages.runtime.errors import UserError
from stages.sources.manifest import build_manifest

SNLI = SHARED / "data" / "snli"
CLASSES = ["entailment", "neutral", "contradiction"]


@pytest.fixture
def nli(tmp_path, monkeypatch):
    """An empty folder for a data set in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nli").mkdir()
    return tmp_path / "nli"


def read(folder, names=None, **of_data):
    """{split: data frame} of a folder."""
    names = build_manifest(folder, "nli", None, "data")["files"] if names is None else names
    return {split: table.to_pandas() for split, table in read_splits(folder, names, data_params(**of_data)).items()}


def error_of(folder, **of_data):
    with pytest.raises(UserError) as caught:
        read(folder, **of_data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def splits(train="train", validation="train", test="train"):
    return {"train": train, "validation": validation, "test": test}


# --- only pinned files are read ---


def test_a_changed_file_with_the_same_path_and_time_is_read_again(nli):
    """`cp -p` makes such files, and so do archives that give all files the same time."""
    names = parquet_folder(nli, CLASSES)
    first = read(nli, names)
    times = {name: (nli / name).stat().st_mtime_ns for name in names}
    parquet_folder(nli, CLASSES, [2, 2, 2, 2])
    for name, time in times.items():
        os.utime(nli / name, ns=(time, time))
    assert list(first["test"]["label"]) == [0, 1, 2, -1]
    assert list(read(nli, names)["test"]["label"]) == [2, 2, 2, 2]


def zst(content, frames=1):
    """Compress bytes with Zstandard, as one or more frames of a file."""
    cuts = [len(content) * number // frames for number in range(frames + 1)]
    codec = pa.Codec("zstd")
    return b"".join(codec.compress(content[start:end], asbytes=True) for start, end in itertools.pairwise(cuts))


WRITERS = {
    "csv": lambda rows, path: rows.to_csv(path, index=False),
    "tsv": lambda rows, path: rows.to_csv(path, index=False, sep="\t"),
    "csv.gz": lambda rows, path: rows.to_csv(path, index=False),
    "json": lambda rows, path: rows.to_json(path, orient="records"),
    "jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "jsonl.xz": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "csv.zst": lambda rows, path: path.write_bytes(zst(rows.to_csv(index=False).encode())),
    "tsv.zst": lambda rows, path: path.write_bytes(zst(rows.to_csv(index=False, sep="\t").encode())),
    "json.zst": lambda rows, path: path.write_bytes(zst(rows.to_json(orient="records").encode())),
    "jsonl.zst": lambda rows, path: path.write_bytes(zst(rows.to_json(orient="records", lines=True).encode(), 3)),
    "json.gz": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "arrow": lambda rows, path: pa.RecordBatchStreamWriter(path, pa.Table.from_pandas(rows).schema).write_table(
        pa.Table.from_pandas(rows)
    ),
    "parquet": lambda rows, path: rows.to_parquet(path),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_files_of_every_format_that_is_read_are_pinned(nli, ending):
    def write(label):
        for split in ("train", "validation", "test"):
            WRITERS[ending](
                frame(("A man runs.", "He moves.", 0), ("A dog.", "A cat.", label)), nli / f"{split}.{ending}"
            )
        return build_manifest(nli, "nli", None, "data")

    first = write(1)
    label = ["0", "1"] if ending.startswith(("csv", "tsv")) else [0, 1]
    assert [list(rows["label"]) for rows in read(nli, first["files"]).values()] == [label] * 3
    assert write(2)["digest"] != first["digest"]


def test_zst_files_that_the_readme_names_are_read_and_no_file_next_to_them_is_written(nli):
    entries = [{"split": split, "path": f"{split}/part.jsonl.zst"} for split in ("train", "validation", "test")]
    configs = [{"config_name": "default", "data_files": entries}]
    (nli / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    for number, entry in enumerate(entries):
        (nli / entry["split"]).mkdir()
        WRITERS["jsonl.zst"](frame(("A man runs.", "He moves.", number)), nli / entry["path"])
    (nli / "train" / "part.jsonl").write_text("not touched")
    assert [list(rows["label"]) for rows in read(nli).values()] == [[0], [1], [2]]
    assert (nli / "train" / "part.jsonl").read_text() == "not touched"


def test_a_full_disk_is_not_reported_as_a_damaged_zst_file(nli):
    (nli / "train.csv.zst").write_bytes(zst(b"text,label\n" * 9999))
    with pytest.raises(OSError, match="No space left"):
        decompress_zst(nli / "train.csv.zst", Path("/dev/full"), "train.csv.zst")


def test_a_format_that_is_not_pinned_is_not_read(nli):
    """Its rows could change while the digest stays the same."""
    for split in ("train", "validation", "test"):
        (nli / f"{split}.xml").write_text("<r><premise>a</premise><hypothesis>b</hypothesis><label>0</label></r>")
    manifest = build_manifest(nli, "nli", None, "data")
    assert manifest["files"] == {}
    with pytest.raises(UserError, match=r"^data: .*nli: no table"):
        read(nli, manifest["files"])


def test_words_that_pandas_reads_as_missing_are_text(nli):
    words = ["None", "NA", "null", "nan", ""]
    pd.DataFrame({"text": words, "label": words}).to_csv(nli / "train.csv", index=False)
    rows = read(nli, splits=splits())["train"]
    for column in ("text", "label"):
        assert rows[column].fillna("missing").tolist() == ["None", "NA", "null", "nan", "missing"]


@pytest.mark.skipif(not SNLI.is_dir(), reason="needs SNLI in ../shared/data/snli, which is not part of the project")
def test_all_rows_of_snli_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snli = read(SNLI, [path.name for path in SNLI.glob("*.parquet")])
    assert {split: len(rows) for split, rows in snli.items()} == {
        split: pq.read_metadata(next(SNLI.glob(f"{split}*.parquet"))).num_rows for split in snli
    }


# --- cells of csv and tsv are text ---

# The cases of github.com/max-mapper/csv-spectrum with contents of our own: {case: (content of the file, its cells)}.
SPECTRUM = {
    "a comma in quotes": (
        'name,place,zip\nJo Low,"Aix, Vaud",08123\n',
        [{"name": "Jo Low", "place": "Aix, Vaud", "zip": "08123"}],
    ),
    "empty cells": (
        'a,b,c\n4,"",""\n5,6,7\n',
        [{"a": "4", "b": None, "c": None}, {"a": "5", "b": "6", "c": "7"}],
    ),
    "empty cells, CRLF": (
        'a,b,c\r\n4,"",""\r\n5,6,7\r\n',
        [{"a": "4", "b": None, "c": None}, {"a": "5", "b": "6", "c": "7"}],
    ),
    "doubled quotes": ('a,b\n7,"so ""so"" so"\n8,9\n', [{"a": "7", "b": 'so "so" so'}, {"a": "8", "b": "9"}]),
    "json in a cell": ('k,v\n01,"{""x"": [1.0, 0.50]}"\n', [{"k": "01", "v": '{"x": [1.0, 0.50]}'}]),
    "new lines in a cell": (
        'a,b\n"Twice \nupon a time",1.10\n3,4\n',
        [{"a": "Twice \nupon a time", "b": "1.10"}, {"a": "3", "b": "4"}],
    ),
    "new lines in a cell, CRLF": (
        'a,b\r\n"Twice \r\nupon a time",1.10\r\n3,4\r\n',
        [{"a": "Twice \r\nupon a time", "b": "1.10"}, {"a": "3", "b": "4"}],
    ),
    "quotes and new lines": ('a,b\n7,"so \n""so"" \nso"\n', [{"a": "7", "b": 'so \n"so" \nso'}]),
    "simple": ("a,b,c\n1,2,3\n", [{"a": "1", "b": "2", "c": "3"}]),
    "simple, CRLF": ("a,b,c\r\n1,2,3\r\n", [{"a": "1", "b": "2", "c": "3"}]),
    "no new line at the end": ("a,b\n1e3,True", [{"a": "1e3", "b": "True"}]),
    "UTF-8": ("a,b\n4,ʤ\n", [{"a": "4", "b": "ʤ"}]),
    "UTF-8 with a mark": ("\ufeffa,b\n4,ʤ\n", [{"a": "4", "b": "ʤ"}]),
}


@pytest.mark.parametrize("case", SPECTRUM)
def test_each_cell_of_a_csv_file_is_its_text(nli, case):
    content, cells = SPECTRUM[case]
    (nli / "train.csv").write_text(content, newline="", encoding="utf-8")
    rows = read(nli, splits=splits())["train"]
    assert rows.astype(object).where(rows.notna(), None).to_dict("records") == cells


def test_a_column_is_text_in_every_split(nli):
    for split, labels in {"train": ["01", "02", "1a"], "validation": ["01", "02"], "test": ["02", "02"]}.items():
        pd.DataFrame({"text": "0", "label": labels}).to_csv(nli / f"{split}.csv", index=False)
    rows = read(nli)
    assert {split: list(table["label"]) for split, table in rows.items()} == {
        "train": ["01", "02", "1a"], "validation": ["01", "02"], "test": ["02", "02"]
    }  # fmt: skip


def test_a_column_may_have_its_first_text_after_ten_thousand_empty_cells(nli):
    pd.DataFrame({"text": "a", "note": [None] * 10_000 + ["checked"]}).to_csv(nli / "train.csv", index=False)
    assert read(nli, splits=splits())["train"]["note"].tolist()[-1] == "checked"


def test_columns_get_the_types_that_the_readme_declares(nli):
    declared = datasets.Features(
        {"label": datasets.ClassLabel(names=["bad", "good"]), "stars": datasets.Value("int64")}
    )
    features = yaml.safe_dump({"dataset_info": {"features": declared._to_yaml_list()}})
    (nli / "README.md").write_text(f"---\n{features}---\n")
    (nli / "train.csv").write_text("text,label,stars\n01,good,01\n02,,\n03,0,3\n")
    names = build_manifest(nli, "nli", None, "data")["files"]
    table = read_splits(nli, names, data_params(splits=splits()))["train"]
    assert table.to_pydict() == {"text": ["01", "02", "03"], "label": [1, None, 0], "stars": [1, None, 3]}
    assert datasets.Features.from_arrow_schema(table.schema)["label"].names == ["bad", "good"]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_classes_that_the_readme_declares_name_the_integers_in_files_of_any_format(nli, ending):
    declared = datasets.Features({"label": datasets.ClassLabel(names=["bad", "good"])})
    features = yaml.safe_dump({"dataset_info": {"features": declared._to_yaml_list()}})
    (nli / "README.md").write_text(f"---\n{features}---\n")
    WRITERS[ending](pd.DataFrame({"text": ["a", "b"], "label": [1, 0]}), nli / f"train.{ending}")
    names = build_manifest(nli, "nli", None, "data")["files"]
    table = read_splits(nli, names, data_params(splits=splits()))["train"]
    assert datasets.Features.from_arrow_schema(table.schema)["label"].names == ["bad", "good"]
    assert table["label"].to_pylist() == [1, 0]


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (datasets.ClassLabel(names=["bad", "good"]), [1, None, 0]),
        (datasets.ClassLabel(names=["0.0", "0.5", "1.0"]), [2, None, 0]),
        (datasets.Value("int64"), [1, None, 0]),
    ],
    ids=["codes", "names", "integers"],
)
def test_declared_integers_may_be_written_as_floats_as_pandas_does_next_to_missing_values(nli, declared, expected):
    features = yaml.safe_dump({"dataset_info": {"features": datasets.Features({"label": declared})._to_yaml_list()}})
    (nli / "README.md").write_text(f"---\n{features}---\n")
    (nli / "train.csv").write_text("text,label\na,1.0\nb,\nc,0.0\n")
    names = build_manifest(nli, "nli", None, "data")["files"]
    assert read_splits(nli, names, data_params(splits=splits()))["train"]["label"].to_pylist() == expected


def test_a_column_that_contradicts_the_declared_type_is_an_error(nli):
    declared = datasets.Features({"label": datasets.ClassLabel(names=["bad", "good"])})
    features = yaml.safe_dump({"dataset_info": {"features": declared._to_yaml_list()}})
    (nli / "README.md").write_text(f"---\n{features}---\n")
    (nli / "train.csv").write_text("text,label\na,good\nb,so so\n")
    line = error_of(nli, splits=splits())
    assert "nli/train.csv: column 'label' is not what dataset_info in" in line and "so so" in line


def test_another_number_of_rows_than_the_readme_says_is_an_error(nli):
    """Some files may be missing."""
    (nli / "README.md").write_text("---\ndataset_info:\n  splits:\n  - {name: train, num_examples: 3}\n---\n")
    (nli / "train.csv").write_text("text,label\na,x\nb,y\n")
    assert "split 'train' has 2 rows, but dataset_info in README.md says 3" in error_of(nli, splits=splits())


# --- files that are not readable ---


def error_of_file(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = error_of(folder, splits=splits())
    assert ".tmp" not in line, "the error names a temporary link"
    assert line.startswith(f"data: {folder}/{name}: ")
    return line.removeprefix(f"data: {folder}/{name}: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train.csv",
            "text,label\nfine,a\nun café noir,b\n".encode("cp1252"),
            "not UTF-8: byte 0xe9 at position 24, in line 3 (as cp1252 it reads 'un café noir,b'); "
            "set data.read.encoding to cp1252",
        ),
        ("train.csv.gz", gzip.compress(b"text,label\n\xe9,a\n"), "not UTF-8: byte 0xe9 at position 11, in line 2"),
        ("train.csv", "text,label\nfine,a\n".encode("utf-16"), "not UTF-8: byte 0xff at position 0, in line 1 (it l"),
        ("train.jsonl", '{"text": "café", "label": "a"}\n'.encode("latin-1"), "not UTF-8: byte 0xe9 at position 13"),
        ("train.jsonl", '{"text": "a"}\n'.encode("utf-16"), "not UTF-8: byte 0xff at position 0"),
        ("train.csv", "text;label\nfine;a\n", "its cells seem to be separated by semicolons (text;label); set "),
        ("train.csv", "text;label\nwell, fine;a\nno;b\n", "its cells seem to be separated by semicolons (text;label)"),
        ("train.csv", "text;label\nno;b\na, b, c, d;a\n", "its cells seem to be separated by semicolons (text;label)"),
        ("train.csv", "text\tlabel\nfine\ta\n", "its cells seem to be separated by tabs"),
        ("train.tsv", "text,label\nfine,a\n", "its cells seem to be separated by commas (text,label); set data"),
        ("train.csv", "'text','label'\n'fine','a'\n", "its cells seem to be quoted by ' ('text','label'); set "),
        ("train.csv", "text,label\n'well, fine','a'\n", "its cells seem to be quoted by ' ('well, fine','a'); set "),
        ("train.csv", 'text,label\n"a\nb",x\na, b,x\n', "line 4 has 3 cells, the header 2 (['a', ' b', 'x']); allowed"),
        ("train.csv", "text,label\nfine,a,\nbad,b,\n", "its rows have more cells than its header; allowed"),
        ("train.csv", 'text,label\n"fine,a\nbad,b\n', 'a " is never closed; it opens in row 1; set data.read.qu'),
        ("train.csv", "", "the file is empty"),
        ("train.csv.gz", "text,label\n", "not readable (Not a gzipped file (b'te')); fetch or copy it whole"),
        ("train.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 9)[:-20], "not readable (Compressed file ended before"),
        ("train.jsonl.zst", zst(b'{"text": "a"}\n' * 9)[:-5], "not readable (Truncated compressed stream); fetch or"),
        ("train.csv.zst", "text,label\n", "not readable (ZSTD decompress failed: Unknown frame descriptor); fetch"),
        ("train.csv.zst", zst(b"text;label\nfine;a\n"), "its cells seem to be separated by semicolons (text;label)"),
        ("train.jsonl.zst", zst(b""), "the file has no rows"),
        ("train.jsonl.zst", zst(b'{"text": 1}\n{"text": ]\n'), "not readable as a data set ("),
        ("train.parquet", b"PAR1 and no more", "not readable as a data set ("),
    ],
    ids=["Windows-1252", "Windows-1252, packed", "UTF-16",
         "json in Latin-1", "json in UTF-16", "semicolons", "semicolons and a comma",
         "semicolons and commas", "tabs", "commas in tsv", "single quotes", "single quotes in the rows",
         "a row too long", "a comma at each end", "an open quote", "empty", "no gzip", "cut xz", "cut zst", "no zst",
         "semicolons in zst", "empty zst", "no json in zst", "parquet"],
)  # fmt: skip
def test_the_error_says_which_encoding_or_dialect_a_file_seems_to_have(nli, name, content, message, capfd):
    assert error_of_file(nli, name, content).startswith(message)
    assert capfd.readouterr().err == "", "a library logs something too"


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (
            "text,label\na,0\nb\nc,1\n",
            "line 3 has 1 cell, the header 2 (['b']); the cells that a row lacks are read as empty",
        ),
        (
            'text,label\na "x,0\n"b,0\nc,1\nd" y,1\n',
            '1 rows hold line breaks in a cell; if there should be more rows, look for a stray "',
        ),
        ("text,label\na,0\nb,\n", None),
    ],
    ids=["short row", "stray quote", "no label"],
)
def test_a_warning_is_printed_if_rows_may_be_read_wrongly(nli, capsys, content, warning):
    (nli / "train.csv").write_text(content)
    read(nli, splits=splits())
    lines = [line for line in capsys.readouterr().out.splitlines() if "train.csv: " in line]
    assert lines == ([f"data: {nli}/train.csv: {warning}"] if warning else [])


@pytest.mark.parametrize("content", ["", "\n", "[]", " []\n"])
def test_a_json_file_without_rows_is_an_error(nli, content):
    assert error_of_file(nli, "train.json", content) == "the file has no rows"


def test_tables_of_two_formats_in_two_splits_are_an_error(nli):
    (nli / "train.csv").write_text("text,label\na,0\n")
    (nli / "test.tsv").write_text("text\tlabel\na\t0\n")
    assert "tables of 2 kinds: csv (train.csv), tsv (test.tsv); keep one kind" in error_of(nli, splits=splits())


def test_the_readme_may_name_a_separator(nli):
    for sep in (";", r"\s*;\s*"):
        configs = [{"config_name": "default", "data_files": "train.csv", "sep": sep, "engine": "python"}]
        (nli / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
        (nli / "train.csv").write_text("text;label\nwell, fine;01\n")
        assert read(nli, splits=splits())["train"].to_dict("list") == {"text": ["well, fine"], "label": ["01"]}
        assert error_of_file(nli, "train.csv", "text;label\na;b;c;d\na;b\n").endswith(
            'with " around a cell that holds one'
        )


def test_the_texts_of_a_single_column_may_have_separators_and_quotes(nli):
    (nli / "train.csv").write_text("text\na; b\n'c'\n")
    assert list(read(nli, splits=splits())["train"]["text"]) == ["a; b", "'c'"]


ROWS = pd.DataFrame({"text": [f"text {row}" for row in range(500)], "label": ["a", None] * 250})


@pytest.mark.parametrize(
    "content",
    [
        ROWS.to_json(),
        ROWS.to_json(indent=1),
        ROWS.to_json(orient="index"),
        ROWS.to_json(orient="split"),
        f'{{"data": {ROWS.to_json(orient="records")}}}',
        f'{{"data": {ROWS.to_json(orient="records", indent=1)}}}',
        f'{{"version": 1, "data": {ROWS.to_json(orient="records")}}}',
    ],
    ids=["columns", "columns, indented", "index", "split", "data", "data, indented", "data and version"],
)
def test_a_json_file_that_is_one_object_is_an_error_that_says_what_to_write(nli, content):
    assert error_of_file(nli, "train.json", content) == (
        "the file is one object, not a list of rows; write one row a line, "
        'as DataFrame.to_json(path, orient="records", lines=True) does'
    )


def test_each_row_may_have_a_json_file_of_its_own(nli):
    for row in range(3):
        (nli / f"train[{row}].json").write_text(f'{{"text": "a {row}",\n "about": {{"page": {row}}}}}\n')
    assert list(read(nli, splits=splits())["train"]["text"]) == ["a 0", "a 1", "a 2"]


# --- which files ---


def test_tables_of_two_formats_are_an_error_unless_the_readme_names_the_files(reviews):
    """`datasets` would read only the more frequent format, or json if both are equally frequent."""
    (reviews / "dataset-metadata.json").write_text('[{"text": "a", "label": "b"}]')
    line = error_of(reviews, splits=splits())
    assert "tables of 2 kinds: csv (reviews.csv), json (dataset-metadata.json); keep one kind there" in line
    (reviews / "README.md").write_text("---\nconfigs:\n- {config_name: default, data_files: reviews.csv}\n---\n")
    assert len(read(reviews, splits=splits())["train"]) == 100


def test_a_folder_of_save_to_disk_is_read(nli):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows)).save_to_disk(nli)
    assert [list(split["label"]) for split in read(nli).values()] == [["x", "y"]] * 3


def test_a_table_that_belongs_to_no_split_is_ignored(nli):
    for split in ("train", "validation", "test"):
        frame(("A man runs.", "He moves.", 0)).to_csv(nli / f"{split}.csv", index=False)
    (nli / "dataset-metadata.json").write_text('{"title": "nli"}')
    assert [len(rows) for rows in read(nli).values()] == [1, 1, 1]


@pytest.mark.parametrize("name", ["D.CSV", "d.Csv", "d.CSV.gz", "D.TSV", "D.JSONL", "D.Parquet"])
def test_an_extension_may_be_in_upper_case(nli, name):
    rows = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    WRITERS[next(e for e in WRITERS if name.lower().endswith(f".{e}"))](rows, nli / "d")
    (nli / "d").rename(nli / name)
    if name.endswith(".gz"):
        (nli / name).write_bytes(gzip.compress((nli / name).read_bytes()))
    assert list(read(nli, splits=splits())["train"]["label"]) == ["x", "y"]


def test_two_files_whose_names_differ_only_in_case_are_an_error(nli):
    for name in ("train.csv", "train.CSV"):
        (nli / name).write_text("text,label\na,b\n")
    assert "train.CSV and train.csv differ only in case" in error_of(nli, splits=splits())


@pytest.mark.parametrize(
    "path", ["absolute", "../other/train.csv", "https://127.0.0.1:9/train.csv", "README.md", "data_dir"]
)
def test_a_readme_that_names_a_file_outside_the_folder_is_an_error(nli, tmp_path, path):
    """The rows of such a file could change while the digest stays the same."""
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/train.csv"
    for file in (other, nli / "train.csv"):
        file.write_text("text,label\na,b\n")
    config = f"data_files: {other if path == 'absolute' else path}"
    config = f"data_dir: {tmp_path}/other" if path == "data_dir" else config
    (nli / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {config}\n---\n")
    line = error_of(nli, splits=splits())
    assert line.startswith(f"{nli}/README.md: configs") and ".tmp" not in line
    if path == "../other/train.csv":  # relative to the folder of links, where there is no such file
        assert "Unable to find" in line
    else:
        named = path if path in ("README.md", "https://127.0.0.1:9/train.csv") else other
        assert f"{named} is not one of the tables in {nli}" in line


@pytest.mark.parametrize(
    "content", [b"---\nconfigs: [\n---\n", b"---\ntitle: caf\xe9\n---\n", b"---\na: 1\na: b: c\n---\n"]
)
def test_a_readme_with_an_unreadable_header_is_named(nli, content):
    (nli / "train.csv").write_text("text,label\na,b\n")
    (nli / "README.md").write_bytes(content)
    line = error_of(nli, splits=splits())
    assert line.startswith(f"{nli}/README.md: its header is not readable as YAML (") and ".tmp" not in line


def test_the_files_of_each_split_are_printed(nli, capsys):
    for number in range(5):
        (nli / f"train_{number}.csv").write_text("text,label\na,b\n")
    (nli / "test.CSV").write_text("text,label\na,b\n")
    read(nli, splits=splits("train[:3]", "train[3:]+test", "test"))
    some = "train_0.csv, train_1.csv, train_2.csv and 2 more"
    assert f"train from {some}; validation from train_0.csv, train_1.csv" in (printed := capsys.readouterr().out)
    assert printed.endswith("; test from test.CSV\n")


# --- columns that differ ---


@pytest.mark.parametrize("ending", WRITERS)
def test_columns_that_some_files_of_a_split_lack_are_left_out_and_printed(nli, ending, capsys):
    WRITERS[ending](pd.DataFrame({"text": ["a"], "label": ["x"], "id": [1]}), nli / f"train_0.{ending}")
    WRITERS[ending](pd.DataFrame({"label": ["y"], "text": ["b"]}), nli / f"train_1.{ending}")
    rows = read(nli, splits=splits())["train"]
    assert rows.to_dict("list") == {"text": ["a", "b"], "label": ["x", "y"]}
    assert (
        f"columns that differ between its files are left out: id (not in train_1.{ending})" in capsys.readouterr().out
    )


def test_columns_of_different_types_are_left_out_unless_they_have_a_common_type(nli, capsys):
    pd.DataFrame({"text": ["a"], "stars": [1], "id": [1]}).to_parquet(nli / "train_0.parquet")
    pd.DataFrame({"text": ["b"], "stars": [0.5], "id": ["x"]}).to_parquet(nli / "train_1.parquet")
    assert read(nli, splits=splits())["train"].to_dict("list") == {"text": ["a", "b"], "stars": [1.0, 0.5]}
    assert "id (Value('int64') and Value('string'))" in capsys.readouterr().out.replace("large_string", "string")


def test_class_labels_with_another_order_of_names_have_no_common_type(nli):
    for number, names in enumerate((["no", "yes"], ["yes", "no"])):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = datasets.Dataset.from_dict({"text": ["a"], "label": [0]}, features=features)
        rows.to_parquet(nli / f"train_{number}.parquet")
    assert "label" not in read(nli, splits=splits())["train"]


def test_a_split_that_params_yaml_does_not_name_is_not_read(nli):
    """For example a competition's test.csv, which has no labels or other columns."""
    (nli / "train.csv").write_text("text,label\na,x\nb,y\n")
    (nli / "test.csv").write_bytes(b"id;\xff\n")
    assert len(read(nli, splits=splits("train[:1]", "train[1:]", "train"))["test"]) == 2


def test_splits_may_have_different_columns(nli):
    (nli / "train.csv").write_text("text,label,id\na,x,1\n")
    (nli / "test.csv").write_text("label,text\ny,b\n")
    rows = read(nli, splits=splits(test="test"))
    assert rows["train"].to_dict("list") == {"text": ["a"], "label": ["x"], "id": ["1"]}
    assert rows["test"].to_dict("list") == {"label": ["y"], "text": ["b"]}


def test_a_string_view_is_text(nli):
    """polars writes this type."""
    texts = pa.array(["a", None], pa.string_view())
    table = pa.table({"text": texts, "label": pa.array(["x", "y"], pa.string_view())})
    pq.write_table(table, nli / "train.parquet")
    names = build_manifest(nli, "nli", None, "data")["files"]
    read_table = read_splits(nli, names, data_params(splits=splits()))["train"]
    assert read_table.to_pydict() == {"text": ["a", None], "label": ["x", "y"]}
    assert all(kind in (pa.string(), pa.large_string()) for kind in read_table.schema.types)


# --- names and slices of splits ---


@pytest.fixture
def reviews(nli):
    """A data set of a single file."""
    pd.DataFrame({"text": [f"text {i}" for i in range(100)], "label": ["a", "b"] * 50}).to_csv(
        nli / "reviews.csv", index=False
    )
    return nli


def test_slices_make_three_splits_of_one_file(reviews):
    rows = read(reviews, splits=splits("train[:70%]", "train[70%:80%]", "train[80:]"))
    assert {split: list(table["text"]) for split, table in rows.items()} == {
        "train": [f"text {i}" for i in range(70)],
        "validation": [f"text {i}" for i in range(70, 80)],
        "test": [f"text {i}" for i in range(80, 100)],
    }


def test_slices_may_be_joined(reviews):
    assert len(read(reviews, splits=splits("train[:10]+train[90:]"))["train"]) == 20


def test_splits_may_have_other_names(nli):
    parquet_folder(nli, CLASSES)
    (nli / "validation.parquet").rename(nli / "dev_matched.parquet")
    (nli / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.parquet}\n"
        "  - {split: dev_matched, path: dev_matched.parquet}\n  - {split: test, path: test.parquet}\n---\n"
    )
    assert len(read(nli, splits=splits("train", "dev_matched", "test"))["validation"]) == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("test", 'Unknown split "test"'),
        ("train[", "Unrecognized"),
        ("train[a:b]", "Unrecognized"),
        ("train[:200%]", "Percent"),
        ("train[200:]", "no data"),
        ("train[5:5]", "no data"),
        ("train train", ""),
        ("🙂", ""),
        ("../train", ""),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_wrong_split_is_an_error_that_lists_the_splits(reviews, split, spec, message):
    line = error_of(reviews, splits=splits(**{split: spec}))
    assert line.startswith(f"params.yaml: data.splits.{split}: {spec} ")
    assert message in line
    assert "; allowed: the data's own splits (train" in line and "), or slices of them such as train[:90%]" in line


def test_a_split_without_rows_is_an_error(reviews):
    (reviews / "test.csv").write_text("text,label\n")
    (reviews / "reviews.csv").rename(reviews / "train.csv")
    line = error_of(reviews, splits=splits(test="test"))
    assert line.startswith("params.yaml: data.splits.test: test")


# --- subsets ---


@pytest.fixture
def glue(nli):
    """Two subsets in one folder, as in data sets on the hub."""
    for subset, label in (("cola", 0), ("sst2", 1)):
        (nli / subset).mkdir()
        for split in ("train", "validation", "test"):
            frame(("a", "b", label)).to_csv(nli / subset / f"{split}.csv", index=False)
    entries = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - {{split: {split}, path: {name}/{split}.csv}}\n" for split in ("train", "validation", "test"))
        for name in ("cola", "sst2")
    )
    (nli / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    return nli


@pytest.mark.parametrize(("subset", "label"), [("cola", "0"), ("sst2", "1")])
def test_data_subset_names_the_subset(glue, subset, label):
    assert [list(rows["label"]) for rows in read(glue, subset=subset).values()] == [[label]] * 3


@pytest.mark.parametrize(("subset", "named"), [(None, "null"), ("mnli", "mnli")])
def test_a_wrong_subset_is_an_error_that_lists_the_subsets(glue, subset, named):
    line = error_of(glue, subset=subset)
    assert line.startswith(f"params.yaml: data.subset: {named}; allowed with ")
    assert line.endswith(": cola, sst2")


@pytest.mark.parametrize("first", ["sst2", "cola"])
def test_a_subset_in_another_format_than_the_first_one_is_an_error(nli, first):
    """`datasets` reads all subsets in the format of the first one: json as csv, for example."""
    frame(("a", "b", 1)).to_csv(nli / "sst2.csv", index=False)
    frame(("a", "b", 1)).to_json(nli / "cola.jsonl", orient="records", lines=True)
    kinds = {"sst2": "csv", "cola": "jsonl"}
    entries = "".join(
        f"- {{config_name: {name}, data_files: {name}.{kinds[name]}}}\n" for name in sorted(kinds, key=first.__ne__)
    )
    (nli / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    other = next(name for name in kinds if name != first)
    assert f"configs: {other}.{kinds[other]} would be read as " in error_of(nli, subset=other, splits=splits())
    assert read(nli, subset=first, splits=splits())["train"]["premise"].tolist() == ["a"]


def test_naming_a_subset_of_a_data_set_without_subsets_is_an_error(reviews):
    assert "params.yaml: data.subset: sst2; allowed with" in error_of(reviews, subset="sst2", splits=splits())
    assert "null" in error_of(reviews, subset="sst2", splits=splits())


# --- the stage ---


@pytest.fixture(scope="module")
def stage_outcomes(tmp_path_factory):
    """{case: the finished `download` of a data folder}; the model is nano-phi."""
    top = tmp_path_factory.mktemp("data")
    raw = unpinned_params()
    use(raw, "model", str(NANO))

    def case(name, **files):
        folder = top / name
        (folder / "nli").mkdir(parents=True)
        for file, content in files.items():
            path = folder / "nli" / f"{file}.parquet"
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                pq.write_table(content, path)
        use(raw, "data", "./nli")
        (folder / "params.yaml").write_text(yaml.safe_dump(raw))
        return folder

    pq.write_table(arrow(), top / "whole.parquet")
    content = (top / "whole.parquet").read_bytes()
    whole = {"train": arrow(), "validation": arrow(), "test": arrow()}
    folders = [
        case("whole", **whole),
        case("cut file", **whole | {"test": content[: len(content) // 2]}),
        case("no test split", train=arrow(), validation=arrow()),
        case("no rows", **whole | {"test": arrow().slice(0, 0)}),
        case("nothing"),
    ]
    done = run_stage_in_each("download", folders)
    for name, outcome in done.items():
        outcome.written = [name for name in written(top / name) if not name.startswith("nli/")]
    return done


def test_a_whole_folder_becomes_three_tables_and_two_manifests(stage_outcomes):
    assert stage_outcomes["whole"].returncode == 0, stage_outcomes["whole"].stderr
    assert stage_outcomes["whole"].written == [
        "outs/base_model.json", "outs/data_source.json",
        "outs/splits/test.parquet", "outs/splits/train.parquet", "outs/splits/validation.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut file", ["data"]),
        ("no test split", ["data.splits.test: test ", "(train, validation)"]),
        ("no rows", ["data", "not readable"]),
        ("nothing", ["data"]),
    ],
)
def test_a_damaged_folder_is_an_error_of_one_line_and_nothing_is_written(stage_outcomes, name, words):
    assert_refused(stage_outcomes[name], words)
    assert stage_outcomes[name].stderr.count("\n") == 1, "a library logs something too"
