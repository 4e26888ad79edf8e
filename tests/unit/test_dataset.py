"""Rows: texts and classes taken from the columns, checked, chosen as published, counted."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.memory import traced_peak
from helpers.parameters import manifest_of
from helpers.project import NANO, SHARED
from helpers.stages import error_line, run_stage_in_each, written
from helpers.tables import arrow, data_group, three

from stages.data import dataset
from stages.data.split_files import read_splits
from stages.data.task import Task
from stages.runtime.errors import UserError

SNLI = SHARED / "data" / "snli"
COLUMNS = ("premise", "hypothesis")
TASK = Task(("entailment", "neutral", "contradiction"), COLUMNS, "premise")


def frame(*rows):
    """Rows as `prepare_rows` returns them."""
    table = pd.DataFrame(rows, columns=["text_premise", "text_hypothesis", "label"])
    return table.assign(group=table["text_premise"])


def take(splits, columns=COLUMNS, **of_data):
    return dataset.prepare_rows(splits, data_group(**of_data), columns)


def refused(*arguments, **of_data):
    with pytest.raises(UserError) as caught:
        take(*arguments, **of_data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- which rows ---


@pytest.mark.parametrize(
    ("rows", "samples", "published"),
    [(550_152, 1000, range(0, 550_000, 550)), (10_000, 100, range(0, 10_000, 100)), (7, 7, range(7))],
)
def test_rows_are_chosen_as_the_published_notebook_chose(rows, samples, published):
    chosen = dataset.sample_evenly(pd.DataFrame({"row": range(rows)}), samples)
    assert list(chosen["row"]) == list(published)


@pytest.mark.parametrize(("rows", "samples"), [(1000, 334), (550_152, 300_000), (26_288, 1000), (7, 5), (1000, 999)])
def test_any_other_number_of_rows_spreads_over_the_whole_split(rows, samples):
    """A split may be sorted by class: its end may not be left out."""
    chosen = dataset.sample_evenly(pd.DataFrame({"row": range(rows)}), samples)["row"].to_numpy()
    assert len(chosen) == samples
    steps = np.diff([*chosen, rows])  # the last one: what is left behind the last row
    assert chosen[0] == 0
    assert steps.min() >= rows // samples and steps.max() <= rows // samples + 1


def test_null_chooses_every_row():
    assert len(dataset.sample_evenly(pd.DataFrame({"row": range(10)}), None)) == 10


def test_more_rows_than_there_are_is_an_error_that_says_how_many_there_are():
    with pytest.raises(UserError, match="10 rows"):
        dataset.sample_evenly(pd.DataFrame({"row": range(10)}), 11)


@pytest.fixture(scope="module")
def snli(tmp_path_factory):
    """(task, rows by split) of the real SNLI."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("snli"))
        splits = read_splits(SNLI, [path.name for path in SNLI.glob("*.parquet")], data_group())
    return take(splits)


needs_snli = pytest.mark.skipif(not SNLI.is_dir(), reason="SNLI is not in the project; needs ../shared/data/snli")


@needs_snli
def test_the_first_ten_test_labels_of_snli_are_the_published_ones(snli):
    task, rows = snli
    published = dataset.resolve_unlabelled(dataset.sample_evenly(rows["test"], 100), "neutral", task)
    assert len(published) == 100
    assert list(published["label"])[:10] == [1, 0, 1, 1, 1, 2, 1, 2, 0, 1]


@needs_snli
def test_all_of_snli_passes_the_checks_and_loses_its_unlabelled_rows(snli):
    task, splits = snli
    unlabelled = {
        name: len(rows) - len(dataset.resolve_unlabelled(rows, "drop", task)) for name, rows in splits.items()
    }
    assert unlabelled["validation"] == 158
    assert unlabelled["test"] == 176


UNLABELLED = frame(("a", "b", 0), ("c", "d", -1), ("e", "f", 2), ("g", "h", -1))


def test_unlabelled_rows_are_dropped_and_the_others_keep_their_place():
    assert list(dataset.resolve_unlabelled(UNLABELLED, "drop", TASK).index) == [0, 2]


def test_unlabelled_rows_become_neutral_as_published():
    assert list(dataset.resolve_unlabelled(UNLABELLED, "neutral", TASK)["label"]) == [0, 1, 2, 1]
    assert list(UNLABELLED["label"]) == [0, -1, 2, -1], "the rows given are left alone"


def test_the_summary_counts_rows_chosen_dropped_kept_empty_and_cut():
    rows = UNLABELLED.assign(text_hypothesis=["b", "d", " ", "h"])
    kept = dataset.resolve_unlabelled(rows, "drop", TASK).assign(input_ids=[[1, 2, 3], [1]], truncated=[True, False])
    assert dataset.summarize_split(pd.concat([rows] * 3), rows, kept, TASK) == {
        "rows": 12,
        "chosen": 4,
        "unlabelled": 2,
        "dropped": 2,
        "kept": 2,
        "empty": {"premise": 0, "hypothesis": 1},
        "truncated": 1,
        "tokens": 4,
        "tokens_mean": 2.0,
        "tokens_max": 3,
        "classes": {"entailment": 1, "neutral": 0, "contradiction": 1},
    }
    assert dataset.summarize_split(rows, rows[:3], kept, TASK)["unlabelled"] == 1


# --- columns ---


def test_the_columns_of_the_template_become_texts_in_its_order():
    task, rows = take(three(arrow(genre=["x", "y"])), ("hypothesis", "genre"))
    assert task == Task(TASK.classes, ("hypothesis", "genre"), None)
    assert list(rows["train"].columns) == ["text_hypothesis", "text_genre", "label", "group"]
    assert list(rows["train"]["text_genre"]) == ["x", "y"]
    assert rows["train"]["label"].dtype == "int64"


def test_columns_of_any_name_are_taken():
    """Some are names that this project's own tables have too."""
    table = pa.table({"label": ["a", "b"], "row": ["c", "d"], "prediction": [0, 1], "{x": ["e", "f"]})
    task, rows = take(three(table), ("label", "row"), label="prediction", classes=["no", "yes"])
    assert task.classes == ("no", "yes")
    assert list(rows["test"]["text_label"]) == ["a", "b"] and list(rows["test"]["label"]) == [0, 1]


@pytest.mark.parametrize(
    ("columns", "of_data", "said"),
    [
        (
            ("premise", "text"),
            {},
            "params.yaml: tokenize.template: {text}: split 'train' has no such column; all its files have premis",
        ),
        (
            COLUMNS,
            {"label": "labels"},
            "params.yaml: data.label: labels: split 'train' has no such column; all its files have premise,",
        ),
        (COLUMNS, {"group": "author"}, "params.yaml: data.group: author: split 'train' has no such column"),
        (
            ("premise", "number"),
            {},
            "params.yaml: tokenize.template: {number}: holds int64 in split 'train'; allowed: text",
        ),
        (("premise", "words"), {}, "{words}: holds list<"),
        (("premise", "bytes"), {}, "{bytes}: holds binary"),
        (
            ("premise", "pages"),
            {},
            "{pages}: holds struct<0: string, 1: string, 2: string, 3: string, 4: string… in split",
        ),
        (
            ("premise", "name"),
            {"label": "name", "classes": None},
            "{name}: is data.label, the class to be predicted",
        ),
        (
            COLUMNS,
            {"unlabelled": "none"},
            "params.yaml: data.unlabelled: none; allowed: drop, or a class (entailment, neu",
        ),
    ],
)
def test_a_wrong_column_is_one_line_that_names_the_key_and_those_it_has(columns, of_data, said):
    table = arrow(
        number=[1, 2],
        words=[["a"], ["b"]],
        bytes=[b"a", b"b"],
        name=["a", "b"],
        pages=[dict.fromkeys("0123456789", "a")] * 2,
    )
    assert said in refused(three(table), columns, **of_data)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_split_that_lacks_a_column_is_named(split):
    splits = three(arrow(), **{split: arrow(label=None)})
    assert f"data.label: label: split '{split}' has no such column" in refused(splits)


def test_an_empty_text_beside_another_is_taken():
    _, rows = take(three(arrow(hypothesis=["He moves.", None], premise=["", "A dog."])))
    assert rows["train"][["text_premise", "text_hypothesis"]].to_numpy().tolist() == [["", "He moves."], ["A dog.", ""]]


def test_a_row_without_any_text_is_one_line():
    splits = three(arrow(), validation=arrow(premise=["A man.", None], hypothesis=["a", " \n"]))
    assert refused(splits) == "data: split 'validation': columns premise, hypothesis are all empty in row 1"
    splits = three(arrow(premise=["", "a"]))
    assert refused(splits, ("premise",)) == "data: split 'train': column 'premise' is empty in row 0"


def test_an_unlabelled_row_may_be_empty():
    _, rows = take(three(arrow(label=[-1, 0], hypothesis=["", "A cat."], premise=["", "A dog."])))
    assert list(rows["train"]["label"]) == [-1, 0]


# --- what rows share ---


def test_a_group_is_the_column_that_is_named_and_a_row_without_it_is_alone():
    table = pa.table({"text": list("abcde"), "author": ["x", "y", "x", None, None], "label": [0, 1, 2, 0, 1]})
    _, rows = take(three(table), ("text",), group="author")
    groups = dataset.number_rows(rows["test"])["group"]
    assert groups[0] == groups[2]
    assert groups.nunique() == 4


def test_without_a_group_rows_share_with_their_equals_alone():
    _, rows = take(three(arrow(premise=["a", "a", "a"], hypothesis=["b", "b", "c"], label=[0, 1, 2])))
    groups = dataset.number_rows(rows["test"])["group"]
    assert groups[0] == groups[1] != groups[2]


def test_a_whole_number_is_the_same_group_where_a_split_has_gaps():
    """pandas writes integers next to gaps as floats, so one split has 1.0 and another 1."""
    task, texts = Task(("a", "b"), ("text",), "author"), pd.DataFrame({"text": list("abc")})
    splits = (pa.array([1, 12, 3]), pa.array([1.0, 12.0, None]), pa.array([1.0, 12.0, float("nan")]))
    found = [dataset.read_groups(pa.table({"author": authors}), task, texts, "train").tolist() for authors in splits]
    assert [groups[:2] for groups in found] == [["1", "12"]] * 3
    assert found[1][2] == found[2][2] != "nan"


def test_groups_of_whole_numbers_are_the_same_in_every_split_and_a_null_is_nobodys():
    def table(texts, authors):
        return pa.table({"text": list(texts), "author": pa.array(authors, pa.int64()), "label": [0, 1, 2]})

    authors = [2**60, 2**60 + 1, None]
    train, validation, test = table("abc", authors), table("def", authors), table("ghi", [2**60 + 1, 7, 8])
    task, rows = take(three(train, validation=validation, test=test), ("text",), group="author")
    assert rows["train"]["group"].nunique() == 3
    assert dataset.count_overlap(rows["test"], rows["train"], task)["groups"] == 1
    assert dataset.count_overlap(rows["validation"], rows["train"], task)["groups"] == 2, (
        "the row without an author is alone"
    )


def test_numbers_may_be_groups():
    table = pa.table({"text": list("abc"), "author": [7, 8, 7], "label": [0, 1, 2]})
    _, rows = take(three(table), ("text",), group="author")
    assert dataset.number_rows(rows["test"])["group"].tolist() == [0, 1, 0]


def test_rows_that_stand_in_another_split_are_counted():
    train = frame(("a", "b", 0), ("c", "d", 1), ("e", "f", 2))
    rows = frame(("a", "b", 0), ("a", "b", 2), ("c", "x", 1), ("y", "f", 2), ("a", "d", 0))
    assert dataset.count_overlap(rows, train, TASK) == {"rows": 2, "groups": 2}, "a row is counted once"
    assert dataset.count_overlap(rows.iloc[3:4], train, TASK) == {"rows": 0, "groups": 0}
    assert dataset.count_overlap(rows.iloc[4:], train, TASK) == {"rows": 0, "groups": 1}, "of two rows, not of one"
    assert dataset.count_overlap(rows, train, Task(TASK.classes, COLUMNS, None)) == {"rows": 2}


def test_a_row_is_the_same_in_another_split_wherever_its_place_is():
    """The rows of a split keep their places, of which some are missing."""
    train = frame(("c", "d", 1), ("a", "b", 0))
    rows = frame(("x", "y", 0), ("a", "z", 0), ("a", "b", 0), ("c", "q", 0))[1:]
    assert dataset.count_overlap(rows, train, TASK) == {"rows": 1, "groups": 2}


def test_to_find_rows_in_another_split_its_texts_are_no_python_objects():
    train = frame(*((f"premise {row}", f"hypothesis {row}", 0) for row in range(20_000)))
    found = []
    peak = traced_peak(lambda: found.append(dataset.count_overlap(train[:100], train, TASK)))
    assert found == [{"rows": 100, "groups": 0}]
    assert peak / 20_000 < 30


def test_what_is_written_is_read_again_row_for_row(tmp_path):
    rows = frame(("a", "b", 0), ("c", "d", 1), ("a", "f", 2))[1:]
    ids = pd.arrays.ArrowExtensionArray(pa.chunked_array([[[1, 2]], [[3]]]))
    dataset.write_rows(rows.assign(input_ids=ids, truncated=[False, True]), tmp_path / "split.parquet")
    read = pd.read_parquet(tmp_path / "split.parquet")
    assert read.drop(columns="input_ids").to_dict("list") == {
        "row": [1, 2], "text_premise": ["c", "a"], "text_hypothesis": ["d", "f"], "label": [1, 2], "group": [0, 1],
        "truncated": [False, True],
    }  # fmt: skip
    assert [list(ids) for ids in read["input_ids"]] == [[1, 2], [3]]


# --- the stage ---


def tokenize_in(folder, raw, splits):
    """What the stage `tokenize` makes of splits in a folder."""
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    (folder / "outs/splits").mkdir(parents=True)
    (folder / "outs/base_model.json").write_text(json.dumps(manifest_of(NANO)))
    for split, table in splits.items():
        pq.write_table(table, folder / f"outs/splits/{split}.parquet")
    before = written(folder)
    done = run_stage_in_each("tokenize", [folder])[folder.name]
    return done, [name for name in written(folder) if name not in before]


def test_a_split_without_any_gold_label_is_one_line(tmp_path, raw_params):
    raw_params["data"]["test_rows"] = 1
    done, made = tokenize_in(tmp_path, raw_params, three(arrow(), test=arrow(label=[-1, 0])))
    line = error_line(done)
    assert "split 'test'" in line and "'label'" in line
    assert made == []


def test_a_data_set_of_another_kind_is_one_line(tmp_path, raw_params):
    done, made = tokenize_in(tmp_path, raw_params, three(arrow(label=[0.5, 1.5])))
    assert "params.yaml: data.label: label: holds double in split 'train'" in error_line(done)
    assert made == []


def test_a_maximum_beyond_the_models_positions_is_one_line_before_anything_is_read(tmp_path, raw_params):
    raw_params["tokenize"]["max_length"] = 512
    done, made = tokenize_in(tmp_path, raw_params, {})
    assert error_line(done) == (
        f"error: params.yaml: tokenize.max_length: 512: {NANO} has 256 positions; allowed: 8 to 256"
    )
    assert made == []


def test_the_stage_names_the_special_tokens_of_the_template(tmp_path, raw_params):
    raw_params["tokenize"]["template"] = "<|endoftext|>{premise}<|im_end|>{hypothesis}"
    done, _ = tokenize_in(tmp_path, raw_params, three(arrow()))
    assert "tokenize.template: read as special tokens: <|endoftext|>\n" in done.stdout
    assert f"tokenize.template: read as text, since {NANO} has no such token: <|im_end|>\n" in done.stdout


def test_the_stage_says_what_is_to_be_known_of_the_rows(tmp_path, raw_params):
    raw_params["data"]["group"] = None
    raw_params["tokenize"]["max_length"] = 24
    table = arrow(premise=["A man runs. " * 9, "A dog."], hypothesis=["He moves.", ""])
    done, made = tokenize_in(tmp_path, raw_params, three(table))
    assert done.returncode == 0, done.stderr
    assert made == [
        "outs/data_summary.json",
        "outs/task.json",
        *(f"outs/tokenized/{s}.parquet" for s in ("test", "train", "validation")),
    ]
    for said in (
        "3 classes: entailment, neutral, contradiction",
        "No training row has the class neutral: the model can't learn it.",
        "No test row has the class neutral: nothing is known of it.",
        "Of 2 test rows, 2 stand in the training rows too, word for word: scores may be too high.",
        "Of 2 test rows, 2 stand in the validation rows too, word for word: ",
        "Of 2 validation rows, 2 stand in the training rows too, word for word: ",
        "Of 2 training rows, 1 (50.0%) were longer than tokenize.max_length and were cut.",
        "Of 2 test rows, 1 has an empty hypothesis.",
    ):
        assert said in done.stdout


@pytest.mark.parametrize("duplicates", [0, 1])
def test_the_stage_says_which_rows_share_a_group_however_many_are_duplicates(tmp_path, raw_params, duplicates):
    raw_params["data"] |= {"group": "author", "classes": ["no", "yes"]}
    raw_params["tokenize"]["template"] = "{text}"
    texts = [f"text {row}" for row in range(20)]

    def split(name, authors):
        own = [f"{text} of {name}" for text in texts]
        return pa.table({"text": ["the same"] * duplicates + own[duplicates:], "author": authors, "label": [0, 1] * 10})

    known = [f"author {row}" for row in range(20)]
    splits = {
        "train": split("train", known),
        "validation": split("validation", known[:5] + [f"new {row}" for row in range(15)]),
        "test": split("test", [*known[:19], "other"]),
    }
    done, _ = tokenize_in(tmp_path, raw_params, splits)
    assert done.returncode == 0, done.stderr
    of = f"the other {20 - duplicates}" if duplicates else "20"
    for said in (
        f"Of {of} test rows, {19 - duplicates} share their author with a training row: ",
        f"Of {of} test rows, {5 - duplicates} share their author with a validation row: ",
        f"Of {of} validation rows, {5 - duplicates} share their author with a training row: ",
    ):
        assert said in done.stdout
    assert done.stdout.count("word for word") == 3 * duplicates
