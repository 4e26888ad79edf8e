"""`data.read` says how files are written, `data.split` names a column that splits them. xlsx files are read as text."""

import datetime
import gzip
import json
import re

import datasets
import pandas as pd
import pytest
import yaml
from helpers.tables import data_params
from helpers.workbook import write_workbook

from stages.data.split_files import read_splits
from stages.download import describe_columns, describe_rows
from stages.runtime.errors import UserError
from stages.sources.manifest import build_manifest

HELD_OUT = {"validation": "10%", "test": "10%", "seed": 42, "columns": None}
ONLY_TRAIN = {"splits": {"train": "train", "validation": None, "test": None}, "holdout": HELD_OUT}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder for a data set in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def read_tables(folder, read=None, **of_data):
    """{split: arrow table} of a folder; by default only train, from which rows are held out."""
    read = dict.fromkeys(("sep", "encoding", "quotechar", "names")) | (read or {})
    names = build_manifest(folder, "mine", None, "data")["files"]
    return read_splits(folder, names, data_params(**(ONLY_TRAIN | {"read": read} | of_data)))


def read_rows(folder, read=None, **of_data):
    """The training rows, as {column: values}."""
    return read_tables(folder, read, **of_data)["train"].to_pydict()


def error_of(folder, read=None, **of_data):
    with pytest.raises(UserError) as caught:
        read_tables(folder, read, **of_data)
    assert "\n" not in str(caught.value) and ".tmp" not in str(caught.value)
    return str(caught.value)


def keys_to_set(line):
    """{key of `data.read`: value} that an error tells to set, as YAML reads them."""
    return {key: yaml.safe_load(value) for key, value in re.findall(r"data\.read\.(\w+) to (\".*?\"|[\w-]+)", line)}


# --- data.read ---

ROWS = {"text": ["un café, naïf", "l'été", "déjà; vu"], "label": ["01", "02", "01"]}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "text;label\nun café, naïf;01\nl'été;02\n\"déjà; vu\";01\n".encode(), "separated by semicolons"),
        ("a.csv", "text;label\nun café, naïf;01\nl'été;02\n'déjà; vu';01\n".encode("cp1252"), "not UTF-8: byte 0xe9"),
        ("a.csv", "'text','label'\n'un café, naïf','01'\n'l''été','02'\n'déjà; vu','01'\n".encode(), "quoted by '"),
        ("a.tsv", "'text','label'\n'un café, naïf','01'\n'l''été','02'\n'déjà; vu','01'\n".encode(), "by commas"),
        ("a.csv.gz", gzip.compress("text|label\nun café, naïf|01\nl'été|02\ndéjà; vu|01\n".encode("utf-16")),
         "looks like UTF-16"),
        ("a.jsonl", pd.DataFrame(ROWS).to_json(orient="records", lines=True, force_ascii=False).encode("cp1252"),
         "not UTF-8: byte 0xe9"),
        ("a.json", pd.DataFrame(ROWS).to_json(orient="records", force_ascii=False).encode("utf-16"),
         "looks like UTF-16"),
    ],
    ids=["semicolons", "semicolons, cp1252, '", "'", "commas in tsv", "bars, UTF-16, gzip", "jsonl", "json list"],
)  # fmt: skip
def test_the_keys_that_an_error_names_make_the_file_readable(folder, name, content, problem):
    (folder / name).write_bytes(content)
    line = error_of(folder)
    assert problem in line
    assert read_rows(folder, keys_to_set(line)) == ROWS


def test_quotes_that_are_text_are_read_with_the_keys_that_the_error_names(folder):
    (folder / "a.tsv").write_text('text\tlabel\n"open\tpos\nfine\tneg\n"No" he said\tpos\n"so\tneg\n')
    rows = read_rows(folder, keys_to_set(error_of(folder)))
    assert rows == {"text": ['"open', "fine", '"No" he said', '"so'], "label": ["pos", "neg", "pos", "neg"]}


def test_an_error_does_not_suggest_what_does_not_help(folder):
    (folder / "a.csv").write_text("text,label\na;b;c,pos\nwell, yes, no,neg\nfine;c,pos\n")
    assert error_of(folder).endswith('allowed: cells separated by commas, with " around a cell that holds one')


def test_utf_8_is_not_read_in_another_encoding(folder):
    """Windows-1252 would make two letters of each é, without an error."""
    for name, content in (("a.csv", "text,label\nété,a\n"), ("b.jsonl", '{"text": "été"}\n')):
        (folder / name).write_text(content)
        line = error_of(folder, {"encoding": "cp1252"})
        assert line == f"data: {folder}/{name}: it is UTF-8, not CP1252; set data.read.encoding to utf-8"
        assert read_rows(folder, {"encoding": "utf-8-sig"})["text"] == ["été"]
        (folder / name).unlink()


def test_names_are_the_columns_of_a_file_without_a_header(folder):
    (folder / "a.csv").write_text("a film;1\nb film;2\n")
    read = {"sep": ";", "names": ["text", "label"]}
    assert read_rows(folder, read) == {"text": ["a film", "b film"], "label": ["1", "2"]}
    for names in (["text"], ["text", "label", "more"]):
        assert error_of(folder, read | {"names": names}) == (
            f"params.yaml: data.read.names: has {len(names)} names, but data: {folder}/a.csv has 2 columns; "
            "list one name for each column"
        )


def test_data_read_replaces_a_key_of_the_readme_and_keeps_the_others(folder):
    configs = [{"config_name": "default", "data_files": "a.csv", "sep": "|", "encoding": "cp1252", "names": ["x", "y"]}]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    (folder / "a.csv").write_bytes("été;a\nthé;b\n".encode("cp1252"))
    assert read_rows(folder, {"sep": ";"}) == {"x": ["été", "thé"], "y": ["a", "b"]}
    assert list(read_rows(folder, {"sep": ";", "names": ["text", "label"]})) == ["text", "label"]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("a.jsonl", "sep", ";"), ("a.jsonl", "names", ["a"]), ("a.parquet", "encoding", "cp1252"), ("a.xlsx", "sep", ",")],
)
def test_a_key_that_has_no_effect_on_the_format_is_an_error(folder, name, key, value):
    (folder / name).touch()
    line = error_of(folder, {key: value})
    assert line.startswith(f"params.yaml: data.read.{key}: has no effect on {name[2:].replace('jsonl', 'json')} files")


@pytest.mark.parametrize(
    ("content", "is_data"),
    [
        ("I liked it, all of it,pos\nnot for me,neg\nthe best of all,pos\n".replace("it, all", "it all"), True),
        ("17,good,pos\n18,bad,neg\n19,fine,pos\n", True),
        ("这部电影真的很好看，我喜欢。,1\n不好看,0\n还可以,1\n", True),
        ("How do you feel about the price?,label\nwell,a\nbadly,b\n", False),
        ("text,label\ntext,label\na long text and a label,label\n", False),
        ("id,1,2,label\na,1,2,x\nb,2,1,y\n", False),
        ("0,1\na film,1\nb film,0\n", False),
        ("good,pos\nbad,neg\nfine,pos\n", False),
    ],
    ids=["text", "id", "Chinese", "a question", "the word text", "numbers", "counted", "names or data"],
)
def test_a_header_that_is_surely_data_is_an_error(folder, content, is_data):
    (folder / "a.csv").write_text(content)
    if not is_data:
        assert len(read_tables(folder)["train"]) > 0
        return
    line = error_of(folder)
    count = content.split("\n")[0].count(",") + 1
    assert "its first row seems to be data" in line
    assert line.endswith(f"set data.read.names to the names of its {count} columns")
    names = [f"c{i}" for i in range(count)]
    assert len(read_tables(folder, {"names": names})["train"]) == 3


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_of_rows_is_read(folder, indent):
    rows = [{"text": "a\nb", "label": "01", "n": 1}, {"text": "ü", "label": "02", "n": None}]
    (folder / "a.json").write_text(json.dumps(rows, indent=indent))
    assert read_tables(folder)["train"].to_pylist() == rows


def test_rows_under_a_key_of_a_json_object_are_an_error_in_any_encoding(folder):
    (folder / "a.json").write_bytes('{"data": [{"text": "été", "label": "a"}]}'.encode("cp1252"))
    assert "the file is one object, not a list of rows; write" in error_of(folder, {"encoding": "cp1252"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_line_for_excel_above_the_header_is_an_error(folder, encoding):
    (folder / "a.csv").write_text("sep=;\ntext;label\na;b\nc;d\n", encoding=encoding)
    assert error_of(folder, {"sep": ";", "encoding": encoding}).endswith(
        "its first line, sep=, is a note for Excel; delete it"
    )


def test_names_for_a_file_that_has_a_header_are_an_error_or_a_line(folder, capsys):
    (folder / "a.csv").write_text("text,label\na,b\nc,d\n")
    assert "the first row of" in error_of(folder, {"names": ["text", "label"]})
    capsys.readouterr()
    read_rows(folder, {"names": ["x", "y"]})
    assert "a.csv: its first line is read as a row, as data.read.names says: text, label" in capsys.readouterr().out


@pytest.mark.parametrize(
    "lines",
    [
        ["Tickets 2024", "text,label", "a,x", "b,y"],
        ["Tickets 2024,", "text,label", "a,x", "b,y"],
        ["Tickets 2024,,", "text,label,id", "a,x,1", "c,x,2"],
        ["Tickets 2024", "text;label", '"a, b";x', "b;y"],
        ["Tickets 2024", "", "Asked on 1 May", "text,label,id", "a,x,1", "c,x,2"],
    ],
)
def test_a_title_above_the_header_is_an_error_that_names_the_lines(folder, lines):
    (folder / "a.csv").write_text("\n".join(lines))
    number, names = next((i, re.split("[,;]", line)) for i, line in enumerate(lines, 1) if line.startswith("text"))
    assert error_of(folder).endswith(
        f"a.csv: line 1 has one cell (Tickets 2024), line {number} has {len(names)} ({', '.join(names)}); if line "
        f"{number} names the columns, delete the lines above it, else "
        + ('put " around cells with ;' if ";" in lines[1] else "name each column in line 1")
    )


@pytest.mark.parametrize("refused, changed", [
    ("text,\nhello,pos\nbye,neg\n", "text,label\nhello,pos\nbye,neg\n"),
    ("text\nhello;you\nbye;they\nno;we\n", 'text\n"hello;you"\n"bye;they"\n"no;we"\n'),
])  # fmt: skip
def test_a_file_that_seems_to_have_a_title_is_read_after_the_change_that_the_error_names(folder, refused, changed):
    (folder / "a.csv").write_text(refused)
    assert "delete the lines above it, else" in error_of(folder)
    (folder / "a.csv").write_text(changed)
    assert read_rows(folder)["text"][0].startswith("hello")


def test_columns_without_a_name_at_the_end_are_no_title(folder):
    (folder / "a.csv").write_text("v1,v2,,\nham,a,,\nspam,b,,\n")
    assert read_rows(folder)["v1"] == ["ham", "spam"]


def test_a_mark_of_utf_8_in_an_empty_first_line_is_no_title(folder):
    (folder / "a.csv").write_text("\ufeff\ntext,label\nA dog,x\nA cat,y\n")
    assert read_rows(folder)["text"] == ["A dog", "A cat"]


def test_with_names_in_the_params_no_line_is_a_title(folder):
    (folder / "a.csv").write_text("hello\nbye,neg\nfoo,pos\n")
    assert "delete the lines above it" not in error_of(folder, {"names": ["text", "label"]})


def test_a_comma_in_each_text_of_a_file_with_semicolons_makes_no_title(folder):
    (folder / "a.csv").write_text("text;label\nA dog, brown;x\nA cat, grey;y\nA cow, red;x\n")
    assert read_rows(folder, {"sep": ";"})["text"] == ["A dog, brown", "A cat, grey", "A cow, red"]


@pytest.mark.parametrize(
    "content",
    [
        "text,\nA dog runs,0\nA cat,1\n",
        "text,\nA dog,x\nA cat,x\n",
        ",text\nfirst,A dog\nsecond,A cat\n",
        "text\nA dog; it runs\nA cat\nA cow\n",
        "text\nA dog now 1; it runs\nA cat now 2; it sits\nA cow now 3; it eats\n",
    ],
)
def test_a_column_without_a_name_and_a_single_column_are_no_title(folder, content):
    (folder / "a.csv").write_text(content)
    assert len(read_rows(folder)["text"]) in (2, 3)


def test_files_that_are_in_no_split_are_listed(folder, capsys):
    for name in ("train", "test", "extra"):
        (folder / f"{name}.csv").write_text("text,label\na,b\n")
    (folder / "README.md").write_text("No table.\n")
    read_rows(folder)
    assert "not read, since data.splits names no split with them: extra.csv, test.csv\n" in capsys.readouterr().out


def test_a_link_to_a_folder_is_an_error_because_its_files_would_be_left_out(folder):
    for name in ("mine/train", "elsewhere"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "a.csv").write_text("text,label\na,b\n")
    (folder / "test").symlink_to(folder.parent / "elsewhere")
    assert "data.folder: mine: test is a link to a folder, whose files are not read" in error_of(folder)


# --- xlsx ---


def test_cells_of_a_workbook_are_text_as_in_a_csv_file(folder):
    day, hour = datetime.datetime(2024, 3, 1), datetime.datetime(2024, 3, 1, 9, 30)
    rows = [["text", "label", "when", 7], ["a\nb", "01", day, 1], ["NA", 2, hour, 0.5], [None, True, None, 3.0]]
    write_workbook(folder / "train.XLSX", Sheet1=rows, Empty=[], Notes=[])
    assert read_rows(folder) == {
        "text": ["a\nb", "NA", None],
        "label": ["01", "2", "True"],
        "when": ["2024-03-01", "2024-03-01T09:30:00", None],
        "7": ["1", "0.5", "3"],
    }


def test_a_table_may_begin_in_any_cell_of_a_sheet(folder):
    rows = [[None, None, None], [None, "text", "label"], [None, None, None], [None, "a", "b"]]
    write_workbook(folder / "a.xlsx", Mine=rows)
    assert read_rows(folder) == {"text": ["a"], "label": ["b"]}


@pytest.mark.parametrize("header", [["Report", None], ["text", "text"], [1, "1"]])
def test_a_title_above_a_table_and_columns_of_one_name_are_an_error(folder, header):
    write_workbook(folder / "a.xlsx", Mine=[header, ["text", "label"], ["a", "b"]])
    assert "a.xlsx: the first row does not name its 2 columns (" in error_of(folder)


def test_a_workbook_of_several_sheets_is_an_error_that_names_them(folder):
    rows = [["text", "label"], ["a", "b"]]
    write_workbook(folder / "a.xlsx", Mine=rows, Yours=rows)
    assert error_of(folder).endswith(
        "a.xlsx: 2 sheets with rows: Mine, Yours; allowed: one; save it as a file of its own"
    )
    (folder / "a.xlsx").write_bytes(b"no workbook")
    assert "a.xlsx: not readable as a workbook (" in error_of(folder)


# --- data.split ---


@pytest.fixture
def folds(folder):
    """Two files whose rows have a split in the column `fold`."""
    (folder / "a.csv").write_text("text,label,fold\na,x,train\nb,y, train\nc,x,dev set\nd,y,train\n")
    (folder / "b.csv").write_text("text,label,fold\ne,x,test\nf,y,\ng,x,train\nh,y,no set\n")
    return folder


def test_a_column_assigns_rows_to_splits(folds, capsys):
    splits = {"train": "train", "validation": "dev set", "test": "test+dev set[:1]"}
    tables = read_tables(folds, split="fold", splits=splits, holdout=HELD_OUT | {"validation": None, "test": None})
    assert {split: table["text"].to_pylist() for split, table in tables.items()} == {
        "train": ["a", "b", "d", "g"], "validation": ["c"], "test": ["e", "c"]
    }  # fmt: skip
    assert "fold" in tables["train"].column_names
    assert "column fold: rows in none of data.splits: 1 no set, 1 empty" in capsys.readouterr().out


def test_values_of_the_column_may_be_sliced(folds):
    splits = {"train": "train[:50%]", "validation": "train[50%:]", "test": "dev set[:1]"}
    tables = read_tables(folds, split="fold", splits=splits, holdout=HELD_OUT | {"validation": None, "test": None})
    assert [table["text"].to_pylist() for table in tables.values()] == [["a", "b"], ["d", "g"], ["c"]]


def test_a_value_that_the_column_does_not_have_is_an_error_that_lists_its_values(folds):
    line = error_of(folds, split="fold", splits={"train": "Train", "validation": None, "test": None})
    assert line.startswith('params.yaml: data.splits.train: Train (Unknown split "Train"); allowed: ')
    assert "(train (4 rows), dev set (1 rows), test (1 rows), no set (1 rows))" in line


def test_a_column_that_does_not_name_splits_is_an_error(folds):
    line = error_of(folds, split="group")
    assert line == "params.yaml: data.split: group: no such column; the data has text, label, fold"
    (folds / "c.csv").write_text("text,label,fold\n" + "".join(f"t{i},x,train\n" for i in range(30)))
    line = error_of(folds, split="text")
    assert line.startswith("params.yaml: data.split: text: 38 different values, such as ") and "at most 20" in line


@pytest.mark.parametrize(
    ("feature", "values", "spec"),
    [
        (datasets.ClassLabel(names=["fit", "check"]), [0, 1, -1, 0], "fit"),
        (datasets.Value("int64"), [1, 2, None, 1], "1"),
        (datasets.Value("float64"), [1.0, 2.0, None, 1.0], "1"),
        (datasets.Value("bool"), [True, False, None, True], "True"),
    ],
    ids=["ClassLabel", "integers", "floats", "booleans"],
)
def test_a_column_of_codes_assigns_rows_by_their_names(folder, feature, values, spec):
    features = datasets.Features({"text": datasets.Value("string"), "fold": feature})
    rows = datasets.Dataset.from_dict({"text": list("abcd"), "fold": values}, features=features)
    rows.to_parquet(folder / "a.parquet")
    splits = {"train": spec, "validation": None, "test": None}
    assert read_rows(folder, split="fold", splits=splits)["text"] == ["a", "d"]


def test_a_split_of_the_data_without_the_column_is_left_out_with_a_line(folder, capsys):
    (folder / "train.csv").write_text("text,label,fold\na,x,train\nb,y,dev\n")
    (folder / "test.csv").write_text("id,text\n1,c\n")
    assert read_rows(folder, split="fold") == {"text": ["a"], "label": ["x"], "fold": ["train"]}
    assert "no column fold, so not used: split test\n" in capsys.readouterr().out


# --- splits that are held out ---


def test_only_named_splits_are_read_and_the_others_are_announced(folder):
    (folder / "a.csv").write_text("text,label\na,x\nb,y\n")
    tables = read_tables(folder)
    assert list(tables) == ["train"]
    assert describe_rows(tables) == "2 train; `tokenize` holds out the validation and test rows"
    assert describe_columns(tables) == ["columns: text, label"]


@pytest.mark.parametrize(
    ("files", "cure"),
    [
        (["a"], "set data.splits.validation and data.splits.test to null, and data.holdout.validation and "
                "data.holdout.test to 10%"),
        (["train", "test"], "set data.splits.validation to null, and data.holdout.validation to 10%"),
        (["train", "validation"], "set data.splits.test to null, and data.holdout.test to 10%"),
    ],
)  # fmt: skip
def test_a_split_that_does_not_exist_is_an_error_whose_cure_works(folder, files, cure):
    for name in files:
        (folder / f"{name}.csv").write_text("text,label\na,x\nb,y\n")
    splits = {split: split for split in ("train", "validation", "test")}
    holdout = HELD_OUT | {"validation": None, "test": None}
    assert error_of(folder, splits=splits, holdout=holdout).endswith(f"; to hold rows out of train, {cure}")
    for split in re.findall(r"splits\.(\w+)", cure):
        splits[split], holdout[split] = None, "10%"
    assert set(read_tables(folder, splits=splits, holdout=holdout)) == {k for k, v in splits.items() if v}
