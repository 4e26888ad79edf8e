"""tools.init: from a file of somebody's to the keys of params.yaml, in the folder of a pipeline."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from dvc.utils.serialize import modify_yaml
from helpers.hub_server import Hub
from helpers.project import COMMITTED, NANO
from huggingface_hub import constants

from stages.data.label_column import read_label_columns
from stages.data.task import Task
from stages.runtime import params
from stages.runtime.errors import UserError
from tools.init import __main__ as init
from tools.init import choose_classes, choose_params, describe_data
from tools.init.params_file import Draft

WORDS = ("rain", "sun", "snow", "wind", "cloud", "storm", "heat", "frost", "mist", "hail", "light", "dark", "north")


def texts(count, seed=0):
    """Different texts of 4 to 12 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 13))) + f" {number}" for number in range(count)]


def table(**classes):
    """Rows sorted by class, {class: rows}."""
    labels = [name for name, rows in classes.items() for _ in range(rows)]
    return pd.DataFrame({"text": texts(len(labels)), "mood": labels})


def git(*arguments, at="."):
    author = ["-c", "user.name=test", "-c", "user.email=test"]
    subprocess.run(["git", *author, *arguments], cwd=at, check=True, capture_output=True)


@pytest.fixture(params=["demo/params.yaml"])
def pipeline(request, tmp_path, monkeypatch):
    """A pipeline's folder in a repository with one commit, and the data in a folder next to it."""
    folder = tmp_path / "pipeline"
    folder.mkdir()
    (tmp_path / "data").mkdir()
    shutil.copy(COMMITTED / request.param, folder / "params.yaml")
    (folder / "dvc.yaml").write_text("stages: {}\n")
    with modify_yaml(folder / "params.yaml") as raw:
        raw["model"] |= {"folder": str(NANO), "name": None, "revision": None, "digest": None}
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "as it is"]):
        git(*command, at=folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(pipeline, monkeypatch, capsys):
    """A function that runs the command -> (new parameters, what it printed). Without a terminal, as in a test."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["init", *map(str, arguments)])
        init.main()
        return params.load(), capsys.readouterr().out

    return run


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts}


def sorted_csv(folder):
    path = folder.parent / "data/moods.csv"
    table(glad=40, mad=30, sad=30).to_csv(path, index=False)
    return path


def test_a_sorted_file_is_held_out_by_class(run, pipeline):
    path = sorted_csv(pipeline)
    p, printed = run(path)
    assert p.data.folder == str(path)
    assert (p.data.label, p.data.classes, p.data.group) == ("mood", None, None)
    assert p.data.splits.model_dump() == {"train": "train", "validation": None, "test": None}
    assert (p.data.holdout.validation, p.data.holdout.test, p.data.holdout.columns) == ("10%", "10%", ["text"])
    assert p.tokenize.template == "{text}\nMood:"
    assert p.data.digest is None
    for words in ("3 classes", "40.0% glad (40)", "80 train, 10 validation, 10 test", "leads with accuracy"):
        assert words in printed
    assert printed.endswith("Next: dvc repro, which writes metrics/report.html\n")


@pytest.mark.parametrize("pipeline", ["params.yaml", "demo/params.yaml"], indirect=True)
def test_other_lines_and_comments_stay_and_none_is_about_other_data(run, pipeline):
    before = (pipeline / "params.yaml").read_text()
    run(sorted_csv(pipeline))
    after = (pipeline / "params.yaml").read_text()
    old, new = before.splitlines(), after.splitlines()
    sections = ("batches:", "lora:", "train:", "eval:", "analysis:", "device:", "threads:", "seed:")
    for name in sections:
        start = next(i for i, line in enumerate(old) if line.startswith(name))
        assert old[start : start + 5] == new[(at := new.index(old[start])) : at + 5]
    assert all(line in new for line in old if line.startswith(("  holdout:", "    seed:", "  duplicates:")))
    about_data = "\n".join([new[0], *new[new.index("data:") : new.index("batches:")]])
    for word in ("NLI", "toy", "premise", "550", "10,000", "81 tokens", "entailment"):
        assert word not in about_data.replace("such as a premise", ""), word


@pytest.mark.parametrize("pipeline", ["params.yaml", "demo/params.yaml"], indirect=True)
def test_a_later_change_by_dvc_leaves_no_further_diff(run, pipeline):
    data = table(yes=40, no=30)
    data.to_csv(pipeline.parent / "data/answers.csv", index=False)
    run(pipeline.parent / "data/answers.csv")
    path = pipeline / "params.yaml"
    written = path.read_text()
    with modify_yaml(path) as raw:
        raw["seed"] = 43
    assert path.read_text().replace("seed: 43", "seed: 42", 1) == written
    params.load()


def test_a_dialect_is_written_to_read(run, pipeline):
    data = table(gut=30, schlecht=30)
    data["text"] = "Größe; " + data["text"]
    path = pipeline.parent / "data/kunden.csv"
    data.to_csv(path, index=False, sep=";", encoding="cp1252", quotechar="'", quoting=csv.QUOTE_ALL)
    p, printed = run(path)
    assert p.data.read.model_dump() == {"sep": ";", "encoding": "cp1252", "quotechar": "'", "names": None}
    assert "cp1252; cells are separated by semicolons and quoted by '" in printed
    assert (p.data.label, p.tokenize.template) == ("mood", "{text}\nMood:")


def test_a_file_of_plain_ascii_is_no_other_dialect(run, pipeline):
    for split, word in (("train", "plain "), ("test", "für ")):
        data = table(glad=40, sad=30)
        data["text"] = word + data["text"]
        data.to_csv(pipeline.parent / f"data/{split}.csv", index=False, encoding="cp1252")
    p, _ = run(pipeline.parent / "data")
    assert p.data.read.encoding == "cp1252"


def test_files_in_different_dialects_are_rejected(run, pipeline):
    for split, separator in (("train", ","), ("test", ";")):
        table(glad=40, sad=30).to_csv(pipeline.parent / f"data/{split}.csv", index=False, sep=separator)
    with pytest.raises(UserError, match=r"separated by (commas|semicolons).*written in the same way"):
        run(pipeline.parent / "data")


def test_a_file_without_a_header_gets_names(run, pipeline):
    path = pipeline.parent / "data/plain.csv"
    table(yes=30, no=30)[["mood", "text"]].to_csv(path, index=False, header=False)
    p, _ = run(path)
    assert p.data.read.names == ["label", "text"]
    assert (p.data.label, p.tokenize.template) == ("label", "{text}\nLabel:")


def test_a_folder_with_train_and_test_only_holds_out_validation_rows(run, pipeline):
    for split, rows in (("train", 50), ("test", 20)):
        table(ham=rows, spam=rows // 5).to_parquet(pipeline.parent / f"data/{split}.parquet")
    p, printed = run(pipeline.parent / "data")
    assert p.data.splits.model_dump() == {"train": "train", "validation": None, "test": "test"}
    assert (p.data.holdout.validation, p.data.holdout.test) == ("10%", None)
    assert "leads with macro F1" in printed


@pytest.fixture
def write_tickets(pipeline):
    """A function that writes train.csv, and test.csv with other columns -> their folder."""
    rows = pd.DataFrame({
        "Kunde": [f"K-{i:04}" for i in range(120)],
        "Author": [f"author {i * 7 % 40}" for i in range(120)],
        "Betreff": [f"Mein Paket Nummer {i} ist leider noch nicht da" for i in range(120)],
        "Inhalt": [f"Seit Tagen warte ich auf meine Bestellung mit der Nummer {i}" for i in range(120)],
        "Kategorie": ["Lob", "Frage", "Kritik"] * 40,
    })  # fmt: skip
    folder = pipeline.parent / "data"

    def write(change):
        rows.to_csv(folder / "train.csv", index=False)
        change(rows).to_csv(folder / "test.csv", index=False)
        return folder

    return write


def rename(**columns):
    return lambda rows: rows.rename(columns=columns)


def drop(*columns):
    return lambda rows: rows.drop(columns=[*columns])


RENAMED = {
    "a text": (
        rename(Betreff="Subject"), [], "no column Betreff, a text in train.csv. It has Subject instead: if this is the "
        "same, give both the same name; if not, name the texts with --text"
    ),
    "a text that is named": (
        rename(Betreff="Subject"), ["--text", "Betreff"], "no column Betreff, a text in train.csv. It has Subject"
    ),
    "all texts": (
        drop("Betreff", "Inhalt"), [], "no columns Betreff, Inhalt, texts in train.csv. Add it, or name the texts with "
        "--text"
    ),
    "a missing text that is named": (
        drop("Inhalt"), ["--text", "Betreff", "--text", "Inhalt"], "no column Inhalt, a text in train.csv. Add it, or"
    ),
    "the group": (
        rename(Author="Autor"), [], "no column Author, a group in train.csv. It has Autor instead: if this is the "
        "same, give both the same name; if not, add --group none"
    ),
    "a missing group that is named": (
        drop("Author"), ["--group", "Author"], "no column Author, a group in train.csv. Add it, or add --group none"
    ),
    "the label": (
        rename(Kategorie="Klasse"), [], "no column Kategorie, the label in train.csv. It has Klasse instead, with the "
        "same values: give both the same name, or remove Klasse if it is not the label"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RENAMED)
def test_a_chosen_column_that_a_split_calls_otherwise_is_an_error(run, write_tickets, case):
    change, arguments, words = RENAMED[case]
    folder = write_tickets(change)
    with pytest.raises(UserError) as error:
        run(folder, *arguments)
    assert str(error.value).startswith(f"{folder}: test.csv has {words}") and "\n" not in str(error.value)


@pytest.mark.parametrize(("option", "column"), [("--text", "Subject"), ("--label", "Klasse"), ("--group", "Autor")])
def test_a_named_column_that_only_another_split_has_is_an_error(run, write_tickets, option, column):
    folder = write_tickets(rename(Betreff="Subject", Kategorie="Klasse", Author="Autor"))
    with pytest.raises(UserError, match=f"^{option}: {column}: test.csv has this column, but train.csv has not; "):
        run(folder, option, column)


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (rename(Betreff="Subject"), ["--text", "Inhalt"], "texts: Inhalt; as --text says"),
        (rename(Author="Autor"), ["--group", "none"], "group: none; as --group says"),
        (rename(Kunde="Customer"), [], "group: Author"),
        (lambda rows: rows.assign(seen="yes"), [], "group: Author"),
        (drop("Inhalt"), [], "test.csv has no column Inhalt, so it is not used\n"),
        (drop("Author"), [], "test.csv has no column Author, so it is not used\n"),
    ],
)
def test_splits_may_differ_in_columns_that_are_not_used(run, write_tickets, change, arguments, words):
    p, printed = run(write_tickets(change), *arguments)
    assert words in printed and p.data.splits.test == "test"
    assert "\nlabel: Kategorie, 3 values in 120 rows; no other candidate\n" in printed


def test_a_label_column_that_may_have_another_name_in_a_split_is_a_warning(run, write_tickets):
    folder = write_tickets(lambda rows: rows.rename(columns={"Kategorie": "Klasse"}).replace("Kritik", "kritisch"))
    p, printed = run(folder)
    assert p.data.splits.test is None
    assert (
        "\nWARNING: the test split is not labelled, so its rows are not used: test.csv has no column Kategorie, the "
        "label in train.csv. It has Klasse instead: if this is the label, rename it\n" in printed
    )


@pytest.mark.parametrize("columns", [{}, {"mood": None}, {"mood": "-1"}])
def test_a_test_split_without_labels_is_not_used(run, pipeline, columns):
    table(glad=40, sad=30).to_csv(pipeline.parent / "data/train.csv", index=False)
    table(glad=20)[["text"]].assign(**columns).to_csv(pipeline.parent / "data/test.csv", index=False)
    p, printed = run(pipeline.parent / "data")
    assert p.data.splits.test is None and p.data.holdout.test == "10%"
    assert "\nthe test split is not labelled, so its rows are not used\n" in printed


def test_a_split_column_is_obeyed(run, pipeline):
    data = table(glad=60, sad=60).sample(frac=1, random_state=1)
    data["split"] = ["train"] * 80 + ["dev"] * 20 + ["test"] * 20
    data.to_csv(pipeline.parent / "data/all.csv", index=False)
    p, printed = run(pipeline.parent / "data/all.csv")
    assert p.data.split == "split"
    assert p.data.splits.model_dump() == {"train": "train", "validation": "dev", "test": "test"}
    assert "80 train, 20 validation, 20 test" in printed


def test_groups_are_held_out_whole_and_counted_as_fewer_rows(run, pipeline):
    data = table(glad=60, sad=60)
    data["author"] = [f"author {number}" for number in range(30)] * 4
    data.to_csv(pipeline.parent / "data/all.csv", index=False)
    p, printed = run(pipeline.parent / "data/all.csv")
    assert (p.data.group, p.data.holdout.columns) == ("author", None)
    assert "if rows with the same author are right or wrong together" in printed


def test_a_column_of_groups_may_be_named(run, pipeline):
    data = table(glad=60, sad=60)
    data["batch"] = [f"b {number}" for number in range(20)] * 6
    data.to_csv(pipeline.parent / "data/all.csv", index=False)
    p, printed = run(pipeline.parent / "data/all.csv")
    assert p.data.group is None and "columns that are not used: batch" in printed
    p, _ = run(pipeline.parent / "data/all.csv", "--group", "batch", "--force")
    assert p.data.group == "batch"
    data["author"], data["id"] = [f"author {number}" for number in range(30)] * 4, range(120)
    data.to_csv(pipeline.parent / "data/all.csv", index=False)
    assert run(pipeline.parent / "data/all.csv", "--force")[0].data.group == "author"
    p, printed = run(pipeline.parent / "data/all.csv", "--group", "none", "--force")
    assert p.data.group is None and "\ngroup: none; as --group says\n" in printed
    _, printed = run(pipeline.parent / "data/all.csv", "--group", "id", "--force")
    assert "\ngroup: id, 120 values; as --group says. No two rows share one, so it has no effect\n" in printed


def test_a_class_that_is_missing_because_of_the_group_is_explained(run, pipeline):
    data = table(glad=60, sad=60, mad=20)
    data["author"] = [f"author {number}" for number in range(30)] * 4 + ["one", "two"] * 10
    data.to_csv(pipeline.parent / "data/all.csv", index=False)
    printed = run(pipeline.parent / "data/all.csv")[1]
    assert "\nNo test row has the class mad: nothing is known about it.\n" in printed
    assert (
        "\nclasses are missing because rows with the same author stay in one split; with --group none, no class is "
        "missing\n" in printed
    )
    assert "row has the class" not in run(pipeline.parent / "data/all.csv", "--group", "none", "--force")[1]
    folder = pipeline.parent / "data"
    (folder / "all.csv").unlink()
    data.to_csv(folder / "train.csv", index=False)
    for split in ("dev", "test"):  # the data's own splits lack the class
        data[:120].assign(text=texts(120, seed=1)).to_csv(folder / f"{split}.csv", index=False)
    _, printed = run(folder, "--force")
    assert (
        "No test row has the class mad" in printed
        and "group: author" in printed
        and "are missing because" not in printed
    )


def test_the_configs_of_a_readme_are_obeyed(run, pipeline):
    folder = pipeline.parent / "data"
    table(glad=40, sad=40).to_csv(folder / "mine.csv", index=False, sep=";")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  sep: ;\n  data_files:\n  - split: train\n    path: mine.csv\n---\n"
    )
    p, printed = run(folder)
    assert set(p.data.read.model_dump().values()) == {None}
    assert p.data.label == "mood" and "README.md: its configs" in printed


def test_a_subset_is_asked_for_by_its_option(run, pipeline):
    folder = pipeline.parent / "data"
    table(glad=40, sad=40).to_csv(folder / "one.csv", index=False)
    configs = "".join(f"- config_name: {name}\n  data_files: one.csv\n" for name in ("en", "de"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    with pytest.raises(UserError, match=r"^--subset: null; allowed .*: en, de"):
        run(folder)
    p, _ = run(folder, "--subset", "de")
    assert p.data.subset == "de"


FORMS = {
    "lists": ("rows.jsonl", "tags", None),
    "text": ("rows.csv", "tags", "|"),
    "columns": ("rows.csv", ["rainy", "windy", "cold"], None),
}


def several(form, rows=120):
    """Rows with any of three labels; every sixth has none."""
    names = ("rainy", "windy", "cold")
    labels = [[name for bit, name in enumerate(names) if row % 6 >> bit & 1] for row in range(rows)]
    data = pd.DataFrame({"text": texts(rows)})
    if form == "columns":
        return data.assign(**{name: [int(name in of) for of in labels] for name in names})
    return data.assign(tags=labels if form == "lists" else ["|".join(of) for of in labels])


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_several_labels_a_row_are_recognised(run, pipeline, form):
    name, label, separator = FORMS[form]
    path = pipeline.parent / "data" / name
    data = several(form)
    data.to_json(path, orient="records", lines=True) if form == "lists" else data.to_csv(path, index=False)
    p, printed = run(path)
    assert (p.data.label, p.data.separator, p.data.classes) == (label, separator, None)
    assert p.tokenize.template == ("{text}\nLabels:" if form == "columns" else "{text}\nTags:")
    for words in ("of which a row may have several", "3 labels:", "50.0% rainy (60)", "16.7% of the training, 16.7% of "
                  "the validation and 16.7% of the test rows have none of the labels", "leads with micro F1",
                  "96 train, 12 validation, 12 test"):  # fmt: skip
        assert words in printed
    p, _ = run(sorted_csv(pipeline), "--force")
    assert (p.data.label, p.data.separator) == ("mood", None)


def test_a_separator_of_spaces_is_written_as_it_is(run, pipeline):
    path = pipeline.parent / "data/rows.csv"
    data = several("text")
    data.assign(tags=data["tags"].str.replace("|", "  ")).to_csv(path, index=False)
    p, printed = run(path, "--label", "tags", "--separator", "  ")
    assert (p.data.label, p.data.separator) == ("tags", "  ")
    assert "3 labels:" in printed


@pytest.mark.parametrize("form", ["lists", "text"])
def test_a_label_twice_in_a_row_is_the_same_error_in_lists_and_in_text(run, pipeline, form):
    name = FORMS[form][0]
    path = pipeline.parent / "data" / name
    data = several(form)
    data.at[17, "tags"] = ["windy", "cold", "windy"] if form == "lists" else "windy|cold|windy"
    data.to_json(path, orient="records", lines=True) if form == "lists" else data.to_csv(path, index=False)
    row = "18 of rows.jsonl, counted from 1" if form == "lists" else "19 of rows.csv, numbered as in a spreadsheet"
    with pytest.raises(UserError, match=rf"column 'tags' has 'windy' twice in row {row}; name each label once$"):
        run(path)


def test_columns_of_0_and_1_may_be_named_and_one_of_them_is_a_single_label(run, pipeline):
    path = pipeline.parent / "data/rows.csv"
    several("columns").to_csv(path, index=False)
    p, _ = run(path, "--label", "rainy", "--label", "cold")
    assert p.data.label == ["rainy", "cold"]
    p, printed = run(path, "--label", "rainy", "--force")
    assert p.data.label == "rainy" and "2 classes:" in printed


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["b"] * 5 + ["a"] * 5, None),
        (["spam"] * 9 + ["ham"] * 2, ["spam", "ham"]),
        (["ham"] * 9 + ["spam"] * 2, None),
        (["0"] * 2 + ["1"] * 9, ["1", "0"]),
        (["-1"] * 4 + ["0"] * 3 + ["1"] * 4, ["-1", "0", "1"]),
        (["-1"] * 4 + ["0", "1", "2"] * 3, ["0", "1", "2"]),
        (["-2", "-1", "0", "1", "2"] * 3, ["-2", "-1", "0", "1", "2"]),
        (["0.5"] * 4 + ["1.0"] * 4 + ["10"] * 4, ["0.5", "1.0", "10"]),
        (["-"] * 2 + ["a", "b", "c"] * 4, ["a", "b", "c"]),
        (["Spam"] * 5 + ["spam"] + ["ham"] * 5 + ["eggs"] * 5, ["eggs", "ham", "Spam"]),
    ],
)
def test_classes_are_listed_only_where_the_data_does_not_say_them(labels, classes):
    columns = read_label_columns({"train": pa.table({"y": labels})}, "y")
    listed, _ = choose_classes.choose_classes(columns)
    assert listed == classes


def notes_on(*labels):
    """What is said about the labels of 24 rows each of billing, shipping 1 and bug, and others."""
    columns = read_label_columns({"train": pa.table({"y": ["billing", "shipping 1", "bug"] * 24 + [*labels]})}, "y")
    return choose_classes.choose_classes(columns)[1]


@pytest.mark.parametrize(
    ("value", "is_typo"),
    [("biling", True), ("biilling", True), ("blilnig", False), ("biliing", True), ("billnig", True), ("bags", False),
     ("shipping 2", False), ("Bililng", True)],
)  # fmt: skip
def test_a_label_of_one_row_that_is_nearly_a_frequent_one_may_be_a_typo(value, is_typo):
    line = f"{value} (1 row) is a class of its own; if it is a typo of billing (24 rows), correct it in the data"
    assert notes_on(value) == [line] * is_typo
    assert notes_on(*[value] * 2) == [], "two of 24 are too many for a typo"


def test_exchanged_letters_of_a_short_name_are_a_typo():
    assert choose_classes.is_near("refnud", "Refund") and choose_classes.is_near("lgoin", "login")
    assert not choose_classes.is_near("bad", "bda") and not choose_classes.is_near("form", "from the")


def test_spellings_and_typos_are_one_line_each():
    assert notes_on("Billing", "BILLING", "BILLING") == ["BILLING (2 rows), Billing (1 row) are read as billing"]
    assert notes_on("Billing", "billnig", "biling") == [
        "Billing (1 row) is read as billing",
        "biling (1 row), billnig (1 row) are classes of their own; if they are typos of billing (25 rows), billing "
        "(25 rows), correct them in the data",
    ]
    columns = read_label_columns({"train": pa.table({"y": ["1", "2"] * 5 + ["1.0", "2.5"]})}, "y")
    assert "1.0 (1 row) is read as 1" in choose_classes.choose_classes(columns)[1]


@pytest.mark.parametrize("missing", ["nan", "None", "?"])
def test_a_class_that_may_mean_no_label_is_pointed_out(missing):
    columns = read_label_columns({"train": pa.table({"y": ["a", "b", missing] * 9})}, "y")
    advice = "is read as a class; if it means that a row is not labelled, empty these cells of the data"
    assert choose_classes.choose_classes(columns)[1][0] == f"{missing} {advice}"


@pytest.mark.parametrize(
    ("cells", "separator", "advice"),
    [
        (["a|b", "nan", "b"], "|", "write - in these cells; empty them if it means that the row has none of the "
         "labels"),
        ([["a", "b"], ["nan"], ["b"]], None, "write null in place of the list; write an empty list if it means that "
         "the row has none of the labels"),
    ],
)  # fmt: skip
def test_the_advice_about_a_label_that_may_be_missing_fits_the_form(cells, separator, advice):
    columns = read_label_columns({"train": pa.table({"y": cells * 9})}, "y", separator)
    assert choose_classes.choose_classes(columns, separator)[1] == [
        f"nan is read as a class; if it means that a row is not labelled, {advice}"
    ]


def test_a_column_of_0_and_1_may_be_called_none():
    columns = read_label_columns({"train": pa.table({"bug": [0, 1], "none": [1, 0]})}, ["bug", "none"])
    assert choose_classes.choose_classes(columns) == (None, [])


def test_other_classes_in_another_split_are_rejected_as_the_stage_does():
    tables = {"train": pa.table({"y": [0, 1, 2]}), "test": pa.table({"y": ["a", "b", "c"]})}
    with pytest.raises(UserError, match="declares other classes in one split"):
        choose_classes.choose_classes(read_label_columns(tables, "y"))


def test_too_many_labels_are_rejected_as_the_stage_does():
    columns = read_label_columns({"train": pa.table({"y": [f"{number / 7:.3f}" for number in range(100)]})}, "y")
    with pytest.raises(UserError, match="numbers to be predicted"):
        choose_classes.choose_classes(columns)


@pytest.mark.parametrize(
    ("lengths", "positions", "expected"),
    [
        ([20] * 99 + [40], None, 128),  # later rows may be longer
        ([100] * 99 + [200], None, 208),  # all rows, since that costs little
        ([200] * 995 + [5000] * 5, None, 208),  # 99%
        ([600] * 100, 512, 512),
        ([9000] * 100, None, 8192),
    ],
)
def test_max_length_holds_nearly_all_rows_and_no_more_than_the_model_has(monkeypatch, lengths, positions, expected):
    monkeypatch.setattr(choose_params, "read_positions", lambda manifest: positions)
    draft = Draft(COMMITTED / "demo/params.yaml")
    limit = choose_params.find_longest_input({})
    assert choose_params.choose_max_length(draft, np.array(lengths), limit) == expected
    assert draft.params().tokenize.max_length == expected


def test_the_line_about_tokens_says_what_is_lost_and_that_the_model_sets_the_limit():
    lengths = np.array([100] * 8 + [1100] * 2)  # 3,000 tokens
    for limit, expected in (
        (2048, "max_length 500 truncates 2 of them (20.0%), which loses 40.0% of all tokens"),
        (500, "max_length 500, the most with this model, truncates 2 of them (20.0%), which loses 40.0% of all tokens"),
    ):
        assert describe_data.describe_tokens(lengths, 10, 500, limit).endswith(f"; {expected}")
    assert describe_data.describe_tokens(lengths, 10, 2048, 2048).endswith("; max_length 2048 truncates none of them")


def test_a_template_longer_than_the_model_allows_is_rejected_as_the_stage_does(run, pipeline):
    model = model_folder(pipeline.parent, config={"max_position_embeddings": 8})
    data = table(glad=40, sad=30).rename(columns={"mood": "the label that says in many words how the writer felt"})
    data.to_csv(pipeline.parent / "data/moods.csv", index=False)
    with pytest.raises(UserError, match=r"tokenize\.max_length: 8 is less than the template"):
        run(pipeline.parent / "data/moods.csv", "--model", model)


def test_what_the_test_rows_can_show():
    task = Task(("a", "b"), "{text}", None)
    rows = pd.DataFrame({"text_text": texts(1000), "label": [0, 1] * 500, "group": range(1000)})
    _, accuracy, difference = describe_data.describe_test_rows(rows, task, 0.95)
    assert "±1.9 points" in accuracy
    assert "10% of the rows must differ by 2.8 points of accuracy to" in difference  # (1.96 + 0.84) sqrt(0.1 / 1000)
    few, _, difference = describe_data.describe_test_rows(
        rows.assign(group=[*range(100)] * 10), Task(("a", "b"), "{text}", "author"), 0.95
    )
    assert "1,000, which count as 100" in few
    assert "differ by 8.9 points" in difference


def test_duplicates_are_counted_for_each_split():
    texts_of = {"train": ["a", "a", "b", "c", "d", "c"], "validation": ["b", "e"], "test": ["c", "f"]}
    splits = {split: pd.DataFrame({"text_text": of, "label": 0}) for split, of in texts_of.items()}
    (line,) = describe_data.describe_duplicates(splits, Task(("x", "y"), "{text}", None))
    assert line == (
        "duplicates: 4 of 6 training rows have the texts of another row: 2 of an earlier training row, 1 of a "
        "validation row, 2 of a test row; data.duplicates: drop leaves them out"
    )


def placed(**columns):
    """Rows of a split with their places."""
    rows = pd.DataFrame(columns).assign(file="a.csv")
    return rows.assign(file_row=[*range(2, len(rows) + 2)])


def test_rows_without_a_label_are_counted_apart_and_named():
    task = Task(("x", "y"), "{text}", None)
    train = placed(text_text=["a", "b", "c", "a"], label=[0, -1, 1, -1])
    splits = {"train": train, "validation": train[2:3], "test": train[:1]}
    assert describe_data.describe_rows(splits) == "rows: 4 of 6 are labelled: 2 train, 1 validation, 1 test"
    line = "  2 rows are not labelled and left out: rows 3 and 5 of a.csv, numbered as in a spreadsheet"
    assert line in describe_data.describe_classes(splits, task)
    labelled = {split: rows[rows["label"] >= 0] for split, rows in splits.items()}
    assert describe_data.describe_rows(labelled) == "rows: 2 train, 1 validation, 1 test"
    assert not [line for line in describe_data.describe_classes(labelled, task) if "labelled" in line]
    alone = splits | {"validation": train[:0], "test": train[:0]}
    assert not [*describe_data.describe_duplicates(alone, task)], "a row that is not labelled is no duplicate"


def test_rows_of_a_text_with_several_labels_are_named():
    task = Task(("x", "y"), "{text}", None)
    everything = placed(text_text=[*"abcabcabcddee"], label=[0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0])
    splits = {"train": everything[5:], "validation": everything[:2], "test": everything[2:5]}
    *_, line = describe_data.describe_duplicates(splits, task)
    assert line == (
        "duplicates: 4 texts have rows of several classes: rows 2, 5 and 8 of a.csv; rows 4, 7 and 10 of a.csv; "
        "rows 11 and 12 of a.csv and 1 more, numbered as in a spreadsheet"
    )


@pytest.mark.parametrize(("rows", "is_alarm"), [(6, True), (7, False)])
def test_many_classes_without_test_rows_are_an_alarm(rows, is_alarm):
    splits = {"test": pd.DataFrame({"label": [*range(rows), -1]})}
    task = Task(tuple(map(str, range(10))), "{text}", None)
    alarms = list(describe_data.describe_rare_classes(splits, task, "do this"))
    assert alarms == (
        ["WARNING: 4 of 10 classes have no test row. Is this the label column? If not, name it by --label; do this"]
        if is_alarm
        else []
    )


def change(folder):
    with open(folder / "params.yaml", "a") as file:
        file.write("# mine\n")


def change_unseen(folder):
    git("update-index", "--assume-unchanged", "params.yaml", at=folder)
    change(folder)


def remove_repository(folder):
    shutil.rmtree(folder / ".git")


REFUSED = {
    "uncommitted changes": (change, [], "params.yaml: has uncommitted changes"),
    "changes that Git is told not to see": (change_unseen, [], "params.yaml: has uncommitted changes"),
    "no repository": (remove_repository, [], "params.yaml: Git can't restore it"),
    "an existing --out": (lambda folder: None, ["--out", "dvc.yaml"], "--out: dvc.yaml exists"),
    "another folder": (lambda folder: (folder / "dvc.yaml").unlink(), [], "dvc.yaml: not in this folder"),
    "an unknown label": (lambda folder: None, ["--label", "x"], "--label: x: no such column"),
    "the label as a text": (
        lambda folder: None,
        ["--text", "mood"],
        "--text: mood: is the likeliest label, 3 values in",
    ),
    "an unknown text": (lambda folder: None, ["--text", "x"], "--text: x: no such column"),
    "no model": (lambda folder: None, ["--model", "../data"], "data: no model here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_and_writes_nothing(run, pipeline, case):
    prepare, arguments, words = REFUSED[case]
    path = sorted_csv(pipeline)
    prepare(pipeline)
    before = files(pipeline.parent)
    with pytest.raises(UserError) as error:
        run(path, *arguments)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert files(pipeline.parent) == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none.csv", "none.csv: no such file or folder"),
        ("../none/moods.csv", "no such file or folder"),
        (".", "the pipeline writes outs/ there"),
        (".git", "no table here"),
        ("outs/moods.csv", "the pipeline writes outs/ there"),
    ],
)
def test_a_wrong_path_is_named(run, pipeline, path, words):
    if path.startswith("outs"):
        (pipeline / "outs").mkdir()
        shutil.copy(sorted_csv(pipeline), pipeline / path)
    with pytest.raises(UserError, match=words):
        run(path)


def test_force_keeps_the_other_uncommitted_changes(run, pipeline):
    change(pipeline)
    run(sorted_csv(pipeline), "--force")
    assert (pipeline / "params.yaml").read_text().endswith("# mine\n")


def test_check_writes_nothing_even_with_uncommitted_changes(run, pipeline):
    path = sorted_csv(pipeline)
    change(pipeline)
    before = files(pipeline.parent)
    _, printed = run(path, "--check")
    assert files(pipeline.parent) == before and not (pipeline / "outs").exists()
    assert "label: mood" in printed and printed.endswith("nothing was written (--check)\n")


def test_a_closed_pipe_is_no_error(pipeline, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "argv", ["init", str(sorted_csv(pipeline)), "--check"])
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            init.main()
    assert end.value.code == 1


def test_out_writes_another_file(run, pipeline):
    before = (pipeline / "params.yaml").read_bytes()
    _, printed = run(sorted_csv(pipeline), "--out", "my own.yaml")
    assert (pipeline / "params.yaml").read_bytes() == before
    assert params.load("my own.yaml").data.label == "mood"
    assert printed.endswith("Next: cp 'my own.yaml' params.yaml && dvc repro, which writes metrics/report.html\n")


def test_a_path_in_the_repository_is_relative(run, pipeline):
    shutil.copytree(sorted_csv(pipeline).parent, pipeline / "own")
    p, _ = run(pipeline / "own")
    assert p.data.folder == "own"


def test_on_a_terminal_the_label_is_asked_for_and_no_keeps_the_file(run, pipeline, monkeypatch, capsys):
    data = table(glad=40, sad=30)
    data["topic"] = ["home", "work"] * 35
    data.to_csv(pipeline.parent / "data/two.csv", index=False)
    before = files(pipeline)
    answers = iter(["topic", "n"])
    monkeypatch.setattr(init, "is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    _, printed = run(pipeline.parent / "data/two.csv")
    assert files(pipeline) == before
    assert "\nlabel: topic, 2 values in 70 rows; as you answered\n" in printed
    assert printed.endswith("nothing was written\n")


def test_an_end_of_input_writes_nothing(run, pipeline, monkeypatch):
    def end(question):
        raise EOFError

    before = files(pipeline)
    monkeypatch.setattr(init, "is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", end)
    with pytest.raises(UserError, match="nothing was written"):
        run(sorted_csv(pipeline))
    assert files(pipeline) == before


def model_folder(folder, config=(), tokenizer=()):
    """A copy of the nano model with some keys of its files changed."""
    copy = folder / "model"
    shutil.copytree(NANO, copy)
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        path = copy / name
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(changes)))
    return copy


@pytest.mark.parametrize(("activation", "expected"), [("gelu_new", "gelu_pytorch_tanh"), ("silu", None)])
def test_a_models_activation_is_replaced_only_by_an_equal_one(run, pipeline, activation, expected):
    model = model_folder(pipeline.parent, config={"hidden_act": activation})
    p, _ = run(sorted_csv(pipeline), "--model", model)
    assert (p.model.folder, p.model.hidden_act, p.model.digest) == (str(model), expected, None)


CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}<|assistant|>"


def test_a_models_chat_template_is_used(run, pipeline):
    p, _ = run(sorted_csv(pipeline), "--model", model_folder(pipeline.parent, tokenizer={"chat_template": CHAT}))
    assert p.tokenize.chat is True
    assert p.tokenize.template == "Text: {text}\nMood:"  # the chat template removes spaces at the start of a message


def test_names_on_the_hub_are_pinned_to_their_present_commits(run, pipeline, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    data = io.BytesIO()
    table(glad=40, sad=30).to_parquet(data)
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(pipeline.parent / "hub")}.items():
        monkeypatch.setattr(constants, name, value)
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        address = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        hub.add("datasets", "tests/moods", commit, {"train.parquet": data.getvalue()})
        hub.add("models", "tests/nano", commit, {path.name: path.read_bytes() for path in NANO.iterdir()})
        p, printed = run("tests/moods", "--model", "tests/nano")
        with pytest.raises(UserError, match="no tests/none on the hub"):
            run("tests/none", "--force")
    for section, name in ((p.data, "tests/moods"), (p.model, "tests/nano")):
        assert (section.folder, section.name, section.revision) == ("from_hub", name, commit)
    fetched = {path for name, kind, path in hub.seen if (name, kind) == ("tests/nano", "get")}
    assert "tokenizer.json" in fetched and "model.safetensors" not in fetched
    assert "tests/moods: no such path here" in printed


def test_yes_and_no_without_quotes_are_text(tmp_path):
    """DVC's -S writes them without quotes."""
    raw = (COMMITTED / "demo/params.yaml").read_text()
    text = raw.replace("  - entailment\n  - neutral\n  - contradiction\n", "  - yes\n  - no\n  - 12:30\n")
    assert params.parse(text, tmp_path).data.classes == ["yes", "no", "12:30"]
    assert yaml.safe_load("[yes, 12:30]") == [True, 750]  # what PyYAML itself reads
