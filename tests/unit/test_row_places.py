"""Each row says where it is in the user's files."""

import csv
import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tables import arrow, data_params, three
from helpers.workbook import write_workbook

from stages.data.dataset import prepare_rows
from stages.data.row_places import add_places, describe_places, list_columns, read_places
from stages.data.split_files import read_splits
from stages.runtime.errors import UserError

ONLY_TRAIN = {
    "splits": {"train": "train", "validation": None, "test": None},
    "holdout": {"validation": "10%", "test": "10%", "seed": 1, "columns": None},
}
READ = dict.fromkeys(("sep", "encoding", "quotechar", "names"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder for a data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def places(folder, **of_data):
    """(text, file, row of the file) of each training row."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    table = read_splits(folder, names, data_params(**(ONLY_TRAIN | of_data)), with_places=True)["train"]
    found = read_places(table)
    return list(zip(table["text"].to_pylist(), found["file"], found["file_row"], strict=True))


def number_in_spreadsheet(path):
    """{text: number of its row}, as Python's csv module reads the file."""
    with path.open(newline="") as file:
        return {row[0]: number for number, row in enumerate(csv.reader(file), 1) if len(row) > 1}


@pytest.mark.parametrize(
    "content",
    [
        "text,label\na,x\nb,y\n",
        'text,label\n"a\n\nsecond",x\nb,y\n',
        "text,label\n\na,x\n  \n\nb,y\n",
        "text,label\r\n\r\na,x\r\nb,y\r\n",
        "\n\ntext,label\na,x\n,\nb,y\n",
    ],
    ids=["plain", "an empty line in a cell", "empty rows", "CRLF", "empty rows above the header"],
)
def test_a_row_of_a_csv_file_has_the_number_that_a_spreadsheet_shows(folder, content):
    (folder / "tickets.csv").write_text(content, newline="")
    expected = number_in_spreadsheet(folder / "tickets.csv")
    found = {text: row for text, file, row in places(folder) if text and file == "tickets.csv"}
    assert len(found) == 2 and found == {text: expected[text] for text in found}


def test_a_csv_file_without_a_header_begins_with_row_1(folder):
    (folder / "tickets.csv").write_text("a,x\nb,y\n")
    expected = [("a", "tickets.csv", 1), ("b", "tickets.csv", 2)]
    assert places(folder, read=READ | {"names": ["text", "label"]}) == expected


def test_lines_that_the_readme_skips_count(folder):
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  skiprows: 1\n  data_files: a.csv\n---\n"
    )
    (folder / "a.csv").write_text("Tickets of May\ntext,label\na,x\nb,y\n")
    assert places(folder) == [("a", "a.csv", 3), ("b", "a.csv", 4)]


def test_a_row_of_a_json_file_has_the_number_of_its_line(folder):
    (folder / "a.jsonl").write_text('{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y"}\n')
    assert places(folder) == [("a", "a.jsonl", 1), ("b", "a.jsonl", 3)]


def test_a_row_of_a_json_list_is_counted_from_1(folder):
    (folder / "a.json").write_text('[\n {"text": "a",\n "label": "x"},\n {"text": "b", "label": "y"}]')
    assert places(folder) == [("a", "a.json", 1), ("b", "a.json", 2)]


def test_a_row_of_a_workbook_has_the_number_of_the_sheet(folder):
    write_workbook(folder / "a.xlsx", Sheet=[[None, None], ["text", "label"], ["a", "x"], [None, None], ["b", "y"]])
    assert places(folder) == [("a", "a.xlsx", 3), ("b", "a.xlsx", 5)]


def test_rows_of_several_files_are_counted_in_each(folder):
    (folder / "train").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"]}), folder / "train/1.parquet")
    pq.write_table(pa.table({"text": ["c"], "label": ["x"]}), folder / "train/2.parquet")
    assert places(folder) == [("a", "train/1.parquet", 1), ("b", "train/1.parquet", 2), ("c", "train/2.parquet", 1)]


def test_slices_and_a_split_column_keep_the_numbers(folder):
    with gzip.open(folder / "a.csv.gz", "wt") as file:
        file.write("text,label,fold\na,x,1\nb,y,2\nc,x,1\nd,y,1\n")
    splits = {"train": "1[1:]", "validation": None, "test": None}
    assert places(folder, split="fold", splits=splits) == [("c", "a.csv.gz", 4), ("d", "a.csv.gz", 5)]


def test_the_places_are_no_columns_of_the_user(folder):
    (folder / "a.csv").write_text("text,label\na,x\nb,y\n")
    data = data_params(**ONLY_TRAIN)
    table = read_splits(folder, ["a.csv"], data, with_places=True)["train"]
    assert list_columns(table) == read_splits(folder, ["a.csv"], data)["train"].column_names == ["text", "label"]
    assert read_places(add_places(table, "b.csv", [7, 8]))["file_row"].tolist() == [7, 8]  # a file of outs/splits
    with pytest.raises(UserError, match=r"all its files have text, label$"):
        prepare_rows({"train": table}, data, "{body}")


def placed(**columns):
    table = arrow(**columns)
    return add_places(table, "tickets.csv", np.arange(len(table)) * 10 + 2)


def test_errors_about_rows_name_the_rows_of_the_file():
    empty = ["", "a", None, " "]
    table = placed(premise=empty, hypothesis=empty, label=[0, 1, 2, 0])
    with pytest.raises(UserError, match=r"empty in rows 2, 22 and 32 of tickets\.csv, numbered as in a spreadsheet; "):
        prepare_rows(three(table), data_params(), "{premise}{hypothesis}")
    for label in ("maybe", "row 1, counted from 0"):
        line = rf"has '{label}' in row 12 of tickets\.csv, numbered as in a spreadsheet; data"
        with pytest.raises(UserError, match=line):
            prepare_rows(three(placed(label=["neutral", label])), data_params(), "{premise}{hypothesis}")


def test_many_rows_and_files_are_counted():
    def of(**files):
        rows = [(f"{file}.jsonl", row) for file, numbers in files.items() for row in numbers]
        return describe_places(pd.DataFrame(rows, columns=["file", "file_row"]))

    assert of(a=[1500]) == "row 1,500 of a.jsonl, counted from 1"
    assert of(a=range(9, 0, -1)) == "rows 1, 2, 3, 4, 5 and 4 more of a.jsonl, counted from 1"
    assert of(b=[4, 3], a=[1]) == "row 1 of a.jsonl; rows 3 and 4 of b.jsonl, counted from 1"
    assert of(a=[1, 2, 3], b=[1, 2, 3], c=[1]) == (
        "rows 1, 2 and 3 of a.jsonl; rows 1, 2 and 3 of b.jsonl and of 1 more file, counted from 1"
    )
