"""Rows that are held out of the training rows, duplicates that are dropped, slices that leave a class out."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import finished_run
from helpers.parameters import manifest_of
from helpers.project import NANO
from helpers.stages import error_line, run_stage_in_each, written
from helpers.tables import data_params

from stages.data.assign_splits import assign_splits
from stages.data.data_summary import DataSummary, DroppedDuplicates, count_dropped
from stages.data.dataset import prepare_rows
from stages.data.holdout import choose_units, describe_holdout
from stages.data.split_files import read_splits
from stages.report.recipe import recipe
from stages.report.run_description import RunDescription, Source
from stages.runtime import params
from stages.runtime.errors import UserError
from stages.tokenize import count_divided

NAMES = ("ham", "spam", "other")


def table(labels, prefix="text", **columns):
    """Rows with these labels, each with a text of its own."""
    texts = [f"{prefix} {row}" for row in range(len(labels))]
    return pa.table({"text": texts, "label": list(labels)} | columns)


def data_of(validation="10%", test="10%", columns=None, seed=42, train="train", **of_data):
    """The section `data`: a split without a size is named."""
    sizes = {"validation": validation, "test": test}
    splits = {"train": train} | {split: None if size else split for split, size in sizes.items()}
    holdout = sizes | {"seed": seed, "columns": columns}
    return data_params(**{"splits": splits, "holdout": holdout, "classes": None} | of_data)


def assign(tables, template="{text}", **of_data):
    """(task, rows as they were read, rows of the three splits) of a table, or of {split: table}."""
    data = data_of(**of_data)
    task, rows = prepare_rows(tables if isinstance(tables, dict) else {"train": tables}, data, template)
    return task, rows, assign_splits(rows, data, task)


def held_out(tables, template="{text}", column="text_text", **of_data):
    """{split: texts, in order}."""
    return {split: rows[column].tolist() for split, rows in assign(tables, template, **of_data)[2].items()}


def counts_of(tables, **of_data):
    """{split: rows of each class}."""
    return {split: np.bincount(rows["label"]).tolist() for split, rows in assign(tables, **of_data)[2].items()}


def error_of(tables, **of_data):
    with pytest.raises(UserError) as caught:
        assign(tables, **of_data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shuffle(rows, seed=0):
    return rows.take(np.random.default_rng(seed).permutation(len(rows)))


SORTED = table(["ham"] * 200 + ["spam"] * 90 + ["other"] * 14)


# --- which rows are held out ---


def test_rows_without_a_label_are_held_out_only_if_they_get_one():
    rows = table(["ham"] * 60 + ["spam"] * 60 + [None] * 900)
    assert np.bincount(assign(rows, validation="10", test="40")[2]["test"]["label"]).tolist() == [20, 20]
    task, read, splits = assign(rows)
    data = data_of()
    assert len(describe_holdout(splits, count_divided(read["train"], data), data.holdout, task)) == 1, "no warning"
    given = assign(rows, validation="10", test="40", unlabelled="spam")[2]["test"]["label"]
    assert 30 <= (given == -1).sum() <= 40, "900 of 1,020 rows get their label later"


def test_each_class_of_a_sorted_file_has_its_share_in_each_split():
    assert counts_of(SORTED) == {"train": [160, 12, 72], "validation": [20, 1, 9], "test": [20, 1, 9]}
    assert counts_of(SORTED, validation="25%", test="1%")["validation"] == [50, 4, 23], "3.5 and 22.5 are rounded up"


def test_each_row_is_in_one_split_and_keeps_its_number_in_the_file():
    splits = assign(SORTED)[2]
    assert sorted(pd.concat(splits.values()).index) == list(range(len(SORTED)))
    for split in splits.values():
        assert split["text_text"].tolist() == [f"text {row}" for row in split.index]
        assert list(split) == ["text_text", "label", "group"]


def test_a_number_of_rows_is_held_out_exactly():
    for number in (1, 31, 100):
        assert sum(counts_of(SORTED, test=str(number))["test"]) == number
    assert counts_of(SORTED, test="31")["test"] == [20, 2, 9], "20.4, 1.4 and 9.2: the largest remainders get the rest"


def test_the_same_rows_are_held_out_on_every_machine():
    """Written down once: another hash, hash seed, locale or version of a library must not move a row."""
    texts = ["élève", "Straße", "中文", "a\nb", "c", "i", "I", "İ", " xx", "x", "0", "00", "1e5", "ß", "ss", "z"]
    rows = pa.table({"text": texts, "label": ["a", "b"] * 8})
    splits = held_out(rows, validation="2", test="4")
    assert splits["test"] == ["1e5", "z", "Straße", "ss"] and splits["validation"] == ["i", "I"]


def test_the_order_of_the_file_does_not_matter():
    """Not even for equal texts with different labels, or for rows without a label."""
    labels = ["a", "b", None, "b", "c"] * 60
    rows = pa.table({"text": [f"text {row // 2 % 70}" for row in range(300)], "label": labels})
    read = {}
    for seed in range(3):
        _, _, splits = assign(shuffle(rows, seed), classes=["a", "b", "c"])
        read[seed] = {split: table.drop(columns="group").to_dict("list") for split, table in splits.items()}
    assert read[0] == read[1] == read[2]


@pytest.mark.parametrize("group", [None, "author"])
def test_the_kind_of_file_does_not_matter(tmp_path, monkeypatch, group):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(
        {"text": [f"text, {row % 90}\n«{row}»" if row % 9 else "" for row in range(200)],
         "author": [None if row % 7 == 0 else row // 5 for row in range(200)],
         "title": [f"title {row}" for row in range(200)], "label": [0, 1] * 100}
    )  # fmt: skip
    frames = {"csv": frame, "parquet": frame.astype({"author": "Int64"}), "jsonl": frame}
    found = []
    for kind, rows in frames.items():
        folder = tmp_path / kind
        folder.mkdir()
        path = folder / f"train.{kind}"
        if kind == "jsonl":
            rows.to_json(path, orient="records", lines=True)
        else:
            getattr(rows, f"to_{kind}")(path, index=False)
        named = data_params(splits=dict.fromkeys(("train", "validation", "test"), "train"), classes=None)
        train = read_splits(folder, [path.name], named)["train"]
        found.append(held_out(train, "{text}{title}", "text_title", group=group))
    assert found[0] == found[1] == found[2]
    assert len(found[0]["test"]) in range(18, 24)


def test_the_template_and_the_other_size_do_not_matter():
    rows = shuffle(table(["ham", "spam"] * 100, title=[f"title {row}" for row in range(200)]))
    first = held_out(rows, "{text}{title}")
    assert held_out(rows, "{title} and {text}") == first
    assert held_out(rows, "{text}", columns=["title", "text"])["test"] == first["test"]
    assert held_out(rows, "{text}")["test"] != first["test"], "else the line above shows nothing"
    assert held_out(rows, "{text}{title}", validation="40")["test"] == first["test"]
    named = {"train": rows, "validation": table(["ham", "spam"], "other", title=["", ""])}
    assert held_out(named, "{text}{title}", validation=None)["test"] == first["test"]


def test_another_seed_holds_out_other_rows():
    first, second = (set(held_out(SORTED, seed=seed)["test"]) for seed in (42, 43))
    assert len(first & second) < len(first) / 2


def test_rows_of_other_classes_change_no_test_row_and_rows_of_the_same_class_few():
    """Exact shares and rows that never change exclude each other. Simulated 100 times: 3 of 250, at most 19."""
    labels = [f"class {row % 4}" for row in range(10_000)] + ["class 0"] * 1000
    rows = table(labels)
    before, after = (assign(part)[2]["test"] for part in (rows[:10_000], rows))
    for label in range(4):
        first, second = (set(test["text_text"][test["label"] == label]) for test in (before, after))
        assert len(first - second) <= (20 if label == 0 else 0)
        assert len(second - first) == len(first - second) + (100 if label == 0 else 0)


def test_rows_of_new_groups_replace_few_groups():
    """Simulated 20 times with 10% more groups: 6 of 200 test groups of one class each, at most 13."""
    labels = [f"class {row // 7 % 4}" for row in range(7700)]
    rows = table(labels, author=[row // 7 for row in range(7700)])
    before, after = (set(assign(part, group="author")[2]["test"]["group"]) for part in (rows[:7000], rows))
    assert len(before) in range(95, 106) and len(before - after) <= 10 and len(after) in range(105, 116)


# --- what is not separated ---


def test_rows_with_equal_texts_are_in_one_split():
    rows = pa.table({"text": [f"text {row // 3}" for row in range(300)], "label": ["ham", "spam", "ham"] * 100})
    splits = held_out(shuffle(rows))
    sets = {split: set(texts) for split, texts in splits.items()}
    assert not sets["train"] & sets["test"] and not sets["validation"] & (sets["train"] | sets["test"])
    assert [len(texts) for texts in splits.values()] == [240, 30, 30]


def test_rows_whose_texts_look_the_same_are_in_one_split():
    texts = [form.format(row) for form in ("à la {}", "a\u0300 la {}", " à  la {}\r\n") for row in range(100)]
    _, _, splits = assign(pa.table({"text": texts, "label": [*"ab"] * 150}))
    units = [{row % 100 for row in rows.index} for rows in splits.values()]
    assert sum(map(len, units)) == 100


def test_rows_of_a_group_are_in_one_split_and_equal_texts_without_a_group_too():
    authors = [None if row % 3 == 0 else row // 10 for row in range(600)]
    texts = [f"text {row % 40}" if row % 3 == 0 else f"own {row}" for row in range(600)]
    rows = pa.table({"text": texts, "label": ["ham", "spam"] * 300, "author": authors})
    _, _, splits = assign(shuffle(rows), group="author")
    units = {split: set(rows["group"].where(rows["group"].str.isdigit(), rows["text_text"]))
             for split, rows in splits.items()}  # fmt: skip
    assert not units["train"] & units["test"] and not units["validation"] & (units["train"] | units["test"])
    assert all(abs(len(splits[split]) - 60) < 12 for split in ("validation", "test"))


def test_spaces_around_a_group_and_the_number_1_0_make_no_other_group():
    groups = [f"{row % 50}{('', ' ', '.0')[row // 50 % 3]}" for row in range(300)]
    _, _, splits = assign(table("ab" * 150, author=groups), group="author")
    authors = [{row % 50 for row in rows.index} for rows in splits.values()]
    assert sum(map(len, authors)) == len(set().union(*authors)) == 50
    assert [rows["group"].nunique() for rows in splits.values()] == [*map(len, authors)]


@pytest.mark.parametrize("blank", ["", " "])
def test_rows_with_a_blank_group_are_independent_as_those_without_a_group(blank):
    groups = [f"author {row // 3}" if row < 150 else None for row in range(300)]
    rows, blanks = (table("ab" * 150, author=[group or empty for group in groups]) for empty in (None, blank))
    assert held_out(blanks, group="author") == held_out(rows, group="author")
    assert assign(blanks, group="author")[1]["train"]["group"].nunique() == 200


def test_rows_with_equal_values_in_holdout_columns_are_in_one_split_unless_there_is_a_group():
    rows = table(["ham", "spam"] * 50, page=[row // 4 for row in range(100)], author=[row // 2 for row in range(100)])
    for of_data, size in (({}, 4), ({"group": "author"}, 2)):
        test = assign(rows, columns=["page"], **of_data)[2]["test"]
        assert set(np.unique(test.index // size, return_counts=True)[1]) == {size}


def test_a_unit_is_chosen_if_it_brings_the_counts_nearer_to_the_targets():
    units = {
        0: [(0, 5)],
        1: [(0, 1), (1, 1)],
        2: [(1, 9)],
        3: [(0, 1)],
        4: [(0, 1)],
        5: [(1, 3)],
        6: [(1, 1)],
        7: [(0, 1)],
    }
    assert choose_units(units, [2, 4]) == [1, 3, 5], "5 and 9 rows are too many; then both targets are met"


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_class_keeps_rows_in_training(rows):
    """Even if both sizes are so large that they would take all of them."""
    splits = counts_of(table(["common"] * 100 + ["rare"] * rows), validation="45%", test="45%")
    assert splits["train"][1] >= 1


def test_only_one_split_may_be_held_out_and_train_may_be_a_slice():
    test = table(["spam", "ham"] * 10, "other")
    splits = held_out({"train": SORTED, "test": test}, test=None, classes=list(NAMES), train="train[:50%]")
    assert splits["test"] == test["text"].to_pylist()
    assert [len(splits[split]) for split in ("train", "validation")] == [274, 30]


@pytest.mark.parametrize(
    "rows, of_data, message",
    [
        (SORTED, {"test": "304"}, "params.yaml: data.holdout.test: 304: leaves no row to train on, because there are "
         "304 rows; allowed: a smaller size"),
        (SORTED, {"test": "60%", "validation": "50%"}, "params.yaml: data.holdout.validation: 50%: leaves no row to "
         "train on, because there are 304 rows, and data.holdout.test takes 182 of them; allowed: a smaller size"),
        (table([f"class {row // 4}" for row in range(80)]), {}, "params.yaml: data.holdout.test: 10% of 80 rows: no "
         "row can be held out, because this is less than half a row of each class; allowed: a larger share, or a "
         "number such as 8"),
        (table(["ham", "spam"] * 50, author=[row // 50 for row in range(100)]), {"group": "author"},
         "params.yaml: data.holdout.test: 10% of 100 rows: no row can be held out, because rows with the same author "
         "are not separated (the fewest such rows are 50), and some rows of each class stay in training; allowed: "),
        *((table([None] * 60), {"test": size, "classes": ["ham", "spam"]}, "params.yaml: data.label: no row of train "
           "has a label") for size in ("10", "10%")),
        (SORTED, {"columns": ["id"]}, "params.yaml: data.holdout.columns: id: split 'train' has no such column; all "
         "its files have text, label"),
        (table(["ham", "spam"], id=[[1], [2]]), {"columns": ["id"]}, "params.yaml: data.holdout.columns: id: holds "
         "list<item: int64> in split 'train'; allowed: text or numbers"),
    ],
)  # fmt: skip
def test_what_can_not_be_held_out_is_an_error_that_names_the_key(rows, of_data, message):
    assert error_of(rows, **of_data).startswith(message)


def test_a_size_that_is_missed_by_far_is_reported():
    rows = table(["ham", "spam"] * 50, author=[row // 10 for row in range(100)])
    data = data_of(test="6%", validation="10%", group="author")
    task, read = prepare_rows({"train": rows}, data, "{text}")
    assert describe_holdout(assign_splits(read, data, task), 100, data.holdout, task) == [
        "held out of 100 training rows: 10 test rows and 10 validation rows",
        "WARNING: data.holdout.test: 6%: 10 rows were held out, not 6, because rows with the same author are not "
        "separated, and each class has a whole number of rows",
    ]
    assert describe_holdout({}, 100, data_params().holdout, task) == []


# --- duplicates ---


def test_duplicates_are_dropped_from_training_but_not_from_the_other_splits():
    def rows(*pairs):
        return pa.table(dict(zip(("text", "label"), zip(*pairs, strict=True), strict=True)))

    named = {
        "train": rows(
            ("a", "x"), ("b", "x"), ("a", "y"), ("c", "x"), ("d", "-"), ("d", "y"), ("e", "y"), ("e", "y"), ("e", "x")
        ),
        "validation": rows(("b", "x"), ("b", "y")),
        "test": rows(("c", "y"), ("b", "x"), ("c", "y")),
    }
    keep = {"validation": None, "test": None, "classes": ["x", "y"]}
    task, before, splits = assign(named, duplicates="drop", **keep)
    assert splits["train"].index.tolist() == [0, 5, 6], "of equal rows, the first that has a label"
    assert [len(splits[split]) for split in ("validation", "test")] == [2, 3]
    dropped = count_dropped(before, splits, task)
    assert dropped == DroppedDuplicates(rows=6, in_validation=1, in_test=2, other_label=2)
    assert assign(named, **keep)[2]["train"].equals(before["train"])
    assert "params.yaml: data.duplicates: drop: each training row has the same texts as " in error_of(
        named | {"train": named["test"]}, duplicates="drop", **keep
    )


def test_duplicates_of_another_group_are_dropped_after_rows_are_held_out():
    texts = [f"text {row % 80}" for row in range(160)]
    rows = pa.table({"text": texts, "label": ["ham", "spam"] * 80, "author": [row // 4 for row in range(160)]})
    task, before, splits = assign(shuffle(rows), group="author", duplicates="drop")
    train, test, validation = (splits[split]["text_text"] for split in ("train", "test", "validation"))
    assert not train.duplicated().any() and not {*train} & {*test, *validation}
    assert count_dropped(before, splits, task).rows == 160 - len(train) - len(test) - len(validation) > 40


# --- slices ---


def sliced(labels="abababab", **splits):
    """Arguments of `assign`: training rows with these labels, validation rows of b, c and d, test rows of d and e."""
    tables = {"train": table(labels), "validation": table("bcd"), "test": table("de")}
    splits = {"train": "train[:80%]", "validation": "train[80%:90%]", "test": "train[90%:]"} | splits
    return tables, {"validation": None, "test": None, "splits": splits}


@pytest.mark.parametrize(
    "splits, cure",
    [
        ({}, "train, data.splits.validation and data.splits.test to null, and data.holdout.validation and "
         "data.holdout.test to 10%"),
        ({"test": "test"}, "train, data.splits.validation to null, and data.holdout.validation to 10%"),
        ({"validation": "dev", "test": "test[:50%]"}, "train and data.train_rows to 8, which takes rows from the whole "
         "file"),
    ],
)  # fmt: skip
def test_a_slice_that_leaves_classes_out_of_training_is_an_error_with_the_cure(splits, cure):
    tables, of_data = sliced(**splits)
    assert error_of(tables, **of_data) == (
        "params.yaml: data.splits.train: train[:80%] has no row of 2 of the 3 classes of data.splits.validation "
        f"(c, d), as in a sorted file; set data.splits.train to {cure}"
    )


def test_a_slice_that_leaves_a_label_out_of_training_calls_it_a_label():
    rows = table([["a"], ["b"], [], ["a", "b"], ["c"], ["c", "a"]])
    error = error_of({"train": rows[:4], "test": rows[4:]}, test=None, train="train[:50%]")
    assert "train[:50%] has no row of 1 of the 2 labels of data.splits.test (c), as in a sorted file" in error


def test_other_splits_may_lack_classes_and_a_whole_split_too():
    for tables, of_data in (sliced(train="train"), sliced("abcdeeee")):
        assert len(assign(tables, **of_data)[2]["train"]) == 8


# --- the stage and the report ---


def tokenize_in(folder, raw, rows, **of_data):
    """Run `tokenize` on one split of rows -> (the finished process, its files)."""
    raw["data"] |= {"group": None, "classes": None, "splits": {"train": "train", "validation": None, "test": None}}
    raw["data"] |= {"holdout": {"validation": "10%", "test": "10%", "seed": 42, "columns": None}} | of_data
    raw["tokenize"]["template"] = "{text}"
    (folder / "outs/splits").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    (folder / "outs/base_model.json").write_text(json.dumps(manifest_of(NANO)))
    pq.write_table(rows, folder / "outs/splits/train.parquet")
    before = written(folder)
    done = run_stage_in_each("tokenize", [folder])[folder.name]
    return done, [name for name in written(folder) if name not in before]


def test_the_stage_writes_rows_with_their_numbers_in_the_file(tmp_path, raw_params):
    rows = table(["ham"] * 60 + ["spam"] * 40, author=[f"author {row}" for row in range(100)])
    rows = rows.set_column(0, "text", [["the same"] * 2 + rows["text"].to_pylist()[2:]])
    more = {"duplicates": "drop", "group": "author", "train_rows": 50}
    done, _ = tokenize_in(tmp_path, raw_params, rows, **more)
    assert done.returncode == 0, done.stderr
    assert "held out of 100 training rows: 10 test rows and 10 validation rows\n" in done.stdout
    assert "dropped, since other rows have the same texts: 1 of 80 training rows (0 equal a test row, " in done.stdout
    assert "WARNING" not in done.stdout
    assert DataSummary.read(tmp_path / "outs/data_summary.json").dropped_duplicates == DroppedDuplicates(1, 0, 0, 0)
    written_rows = {split: pd.read_parquet(tmp_path / f"outs/tokenized/{split}.parquet") for split in
                    ("train", "validation", "test")}  # fmt: skip
    assert [len(table) for table in written_rows.values()] == [50, 10, 10]
    for written_split in written_rows.values():
        assert written_split["text_text"].tolist() == rows["text"].to_pandas()[written_split["row"]].tolist()
        assert not written_split["row"].is_monotonic_increasing


def test_the_stage_writes_nothing_if_no_row_can_be_held_out(tmp_path, raw_params):
    done, files = tokenize_in(tmp_path, raw_params, table(["ham", "spam"]))
    assert error_line(done).startswith("error: params.yaml: data.holdout.test: 10% of 2 rows: no row can be held out")
    assert files == []


def test_the_recipe_says_where_the_rows_are_from(tmp_path, raw_params):
    folder = finished_run.make(tmp_path, rows=20, train_rows=40)
    summary = DataSummary.read(folder / "outs/data_summary.json")

    def lines(dropped=None, **of_data):
        raw = raw_params | {"data": raw_params["data"] | of_data}
        source, p = Source("name", None, "digest"), params.Params.model_validate(raw)
        run = RunDescription(task, source, source, p, "cpu", {}, "a" * 64, {}, {})
        facts = dict(recipe(DataSummary(summary.splits, summary.padding, 128, dropped), run))
        return [facts[name] for name in ("rows", "rows held out", "duplicate training rows")]

    task = prepare_rows({"train": SORTED}, data_of(), "{text}")[0]
    splits = {"train": "train", "validation": None, "test": "dev"}
    holdout = {"validation": "10%", "test": None, "seed": 42, "columns": ["id", "text"]}
    assert lines() == ["40 train, 50 validation, 20 test", "none", "keep"]
    of_columns = {"splits": splits, "holdout": holdout, "group": None}
    assert lines(DroppedDuplicates(3, 0, 0, 0), **of_columns, duplicates="drop") == [
        "40 train, 50 validation (held out of train), 20 test (of dev)",
        "validation 10%, seed 42; rows with equal id, text are not separated",
        "3 dropped",
    ]
    author = lines(**of_columns | {"group": "author"})[1]
    assert author == "validation 10%, seed 42; rows with the same author are not separated"
    of_template = {"splits": splits | {"test": None}, "holdout": holdout | {"test": "5", "columns": None}}
    assert lines(**of_template, group=None)[1] == (
        "validation 10%, test 5, seed 42; rows with equal texts in all columns of the template are not separated"
    )
    splits = {"train": "1", "validation": "2", "test": "3"}
    assert (
        lines(split="fold", splits=splits)[0]
        == "40 train (of fold: 1), 50 validation (of fold: 2), 20 test (of fold: 3)"
    )
