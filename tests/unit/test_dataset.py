"""Rows of a data set: columns are checked, rows are chosen and labelled; the stage `tokenize` as a whole."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.parameters import manifest_of
from helpers.project import NANO, SHARED
from helpers.stages import error_line, run_stage_in_each, written
from helpers.tables import arrow, data_params, template_of, three
from pydantic import ValidationError

from stages.data import dataset
from stages.data.data_summary import count_overlap
from stages.data.sampling import sample_evenly
from stages.data.split_files import read_splits
from stages.data.task import Task
from stages.runtime.errors import UserError
from stages.tokenize import label_rows

SNLI = SHARED / "data" / "snli"
COLUMNS = ("premise", "hypothesis")
TASK = Task(("entailment", "neutral", "contradiction"), template_of(COLUMNS), "premise")


def frame(*rows):
    """Rows as `prepare_rows` returns them."""
    table = pd.DataFrame(rows, columns=["text_premise", "text_hypothesis", "label"])
    return table.assign(group=table["text_premise"])


def prepare(splits, columns=COLUMNS, **of_data):
    return dataset.prepare_rows(splits, data_params(**of_data), template_of(columns))


def error_of(*arguments, **of_data):
    with pytest.raises(UserError) as caught:
        prepare(*arguments, **of_data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- choosing and labelling rows ---


@pytest.mark.parametrize(
    ("rows", "samples", "expected"),
    [(550_152, 1000, range(0, 550_000, 550)), (10_000, 100, range(0, 10_000, 100)), (7, 7, range(7))],
)
def test_rows_are_chosen_as_in_the_published_notebook(rows, samples, expected):
    chosen = sample_evenly(pd.DataFrame({"row": range(rows)}), samples)
    assert list(chosen["row"]) == list(expected)


@pytest.mark.parametrize(("rows", "samples"), [(1000, 334), (550_152, 300_000), (26_288, 1000), (7, 5), (1000, 999)])
def test_any_other_number_of_rows_is_spread_over_the_whole_split(rows, samples):
    """A split may be sorted by class, so its end must not be left out."""
    chosen = sample_evenly(pd.DataFrame({"row": range(rows)}), samples)["row"].to_numpy()
    assert len(chosen) == samples
    steps = np.diff([*chosen, rows])  # the last step is from the last chosen row to the end
    assert chosen[0] == 0
    assert steps.min() >= rows // samples and steps.max() <= rows // samples + 1


def test_null_chooses_every_row():
    assert len(sample_evenly(pd.DataFrame({"row": range(10)}), None)) == 10


def test_asking_for_too_many_rows_is_an_error_that_says_how_many_there_are():
    with pytest.raises(UserError, match="10 rows"):
        sample_evenly(pd.DataFrame({"row": range(10)}), 11)


@pytest.fixture(scope="module")
def snli(tmp_path_factory):
    """(task, rows by split) of the real SNLI."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("snli"))
        splits = read_splits(SNLI, [path.name for path in SNLI.glob("*.parquet")], data_params())
    return prepare(splits)


needs_snli = pytest.mark.skipif(
    not SNLI.is_dir(), reason="needs SNLI in ../shared/data/snli, which is not part of the project"
)


@needs_snli
def test_the_first_ten_test_labels_of_snli_are_those_of_the_notebook(snli):
    task, rows = snli
    chosen = dataset.resolve_unlabelled(sample_evenly(rows["test"], 100), "neutral", task)
    assert len(chosen) == 100
    assert list(chosen["label"])[:10] == [1, 0, 1, 1, 1, 2, 1, 2, 0, 1]


@needs_snli
def test_all_of_snli_passes_the_checks_and_its_unlabelled_rows_are_dropped(snli):
    task, splits = snli
    unlabelled = {
        name: len(rows) - len(dataset.resolve_unlabelled(rows, "drop", task)) for name, rows in splits.items()
    }
    assert unlabelled["validation"] == 158
    assert unlabelled["test"] == 176


UNLABELLED = frame(("a", "b", 0), ("c", "d", -1), ("e", "f", 2), ("g", "h", -1))


def test_unlabelled_rows_are_dropped_and_the_others_have_the_same_index():
    assert list(dataset.resolve_unlabelled(UNLABELLED, "drop", TASK).index) == [0, 2]


def test_unlabelled_rows_become_neutral_as_in_the_notebook():
    assert list(dataset.resolve_unlabelled(UNLABELLED, "neutral", TASK)["label"]) == [0, 1, 2, 1]
    assert list(UNLABELLED["label"]) == [0, -1, 2, -1], "the argument was changed"


# --- columns ---


def test_the_columns_of_the_template_become_text_columns_in_its_order():
    task, rows = prepare(three(arrow(genre=["x", "y"])), ("hypothesis", "genre"))
    assert task == Task(TASK.classes, "{hypothesis}{genre}", None)
    assert list(rows["train"].columns) == ["text_hypothesis", "text_genre", "label", "group"]
    assert list(rows["train"]["text_genre"]) == ["x", "y"]
    assert rows["train"]["label"].dtype == "int64"


def test_columns_may_have_the_names_of_this_projects_own_columns():
    table = pa.table({"label": ["a", "b"], "row": ["c", "d"], "prediction": [0, 1], "{x": ["e", "f"]})
    task, rows = prepare(three(table), ("label", "row"), label="prediction", classes=["no", "yes"])
    assert task.classes == ("no", "yes")
    assert list(rows["test"]["text_label"]) == ["a", "b"] and list(rows["test"]["label"]) == [0, 1]


@pytest.mark.parametrize(
    ("columns", "of_data", "message"),
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
def test_a_wrong_column_is_an_error_that_names_the_key_and_the_column(columns, of_data, message):
    table = arrow(
        number=[1, 2],
        words=[["a"], ["b"]],
        bytes=[b"a", b"b"],
        name=["a", "b"],
        pages=[dict.fromkeys("0123456789", "a")] * 2,
    )
    assert message in error_of(three(table), columns, **of_data)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_split_that_lacks_a_column_is_named(split):
    splits = three(arrow(), **{split: arrow(label=None)})
    assert f"data.label: label: split '{split}' has no such column" in error_of(splits)


def test_a_row_may_have_an_empty_text_if_another_is_not_empty():
    _, rows = prepare(three(arrow(hypothesis=["He moves.", None], premise=["", "A dog."])))
    assert rows["train"][["text_premise", "text_hypothesis"]].to_numpy().tolist() == [["", "He moves."], ["A dog.", ""]]


def test_a_labelled_row_without_any_text_is_an_error():
    splits = three(arrow(), validation=arrow(premise=["A man.", None], hypothesis=["a", " \n"]))
    assert (
        error_of(splits)
        == "data: split 'validation': columns premise, hypothesis are all empty in row 1, counted from 0; "
        "fill or delete them"
    )
    splits = three(arrow(premise=["", "a"]))
    error = error_of(splits, ("premise",))
    assert error == "data: split 'train': column 'premise' is empty in row 0, counted from 0; fill or delete them"


def test_an_unlabelled_row_may_be_empty():
    _, rows = prepare(three(arrow(label=[-1, 0], hypothesis=["", "A cat."], premise=["", "A dog."])))
    assert list(rows["train"]["label"]) == [-1, 0]


# --- groups of rows ---


def test_data_group_names_the_column_and_a_row_without_a_value_has_its_own_group():
    table = pa.table({"text": list("abcde"), "author": ["x", "y", "x", None, None], "label": [0, 1, 2, 0, 1]})
    _, rows = prepare(three(table), ("text",), group="author")
    groups = dataset.number_rows(rows["test"])["group"]
    assert groups[0] == groups[2]
    assert groups.nunique() == 4


def test_without_data_group_only_duplicates_share_a_group():
    _, rows = prepare(three(arrow(premise=["a", "a", "a"], hypothesis=["b", "b", "c"], label=[0, 1, 2])))
    groups = dataset.number_rows(rows["test"])["group"]
    assert groups[0] == groups[1] != groups[2]


def test_an_integer_is_the_same_group_in_a_split_with_missing_values():
    """pandas writes integers next to missing values as floats, so one split has 1.0 and another 1."""
    task, texts = Task(("a", "b"), "{text}", "author"), pd.DataFrame({"text": list("abc")})
    splits = (pa.array([1, 12, 3]), pa.array([1.0, 12.0, None]), pa.array([1.0, 12.0, float("nan")]))
    columns = [dataset.read_groups(pa.table({"author": authors}), task, texts, "train").tolist() for authors in splits]
    assert [groups[:2] for groups in columns] == [["1", "12"]] * 3
    assert columns[1][2] == columns[2][2] != "nan"


def test_large_integers_are_exact_and_a_null_shares_no_group_with_another_split():
    def table(texts, authors):
        return pa.table({"text": list(texts), "author": pa.array(authors, pa.int64()), "label": [0, 1, 2]})

    authors = [2**60, 2**60 + 1, None]
    train, validation, test = table("abc", authors), table("def", authors), table("ghi", [2**60 + 1, 7, 8])
    task, rows = prepare(three(train, validation=validation, test=test), ("text",), group="author")
    assert rows["train"]["group"].nunique() == 3
    assert count_overlap(rows["test"], rows["train"], task).groups == 1
    assert count_overlap(rows["validation"], rows["train"], task).groups == 2, "a row without an author shares no group"


def test_integers_may_be_groups():
    table = pa.table({"text": list("abc"), "author": [7, 8, 7], "label": [0, 1, 2]})
    _, rows = prepare(three(table), ("text",), group="author")
    assert dataset.number_rows(rows["test"])["group"].tolist() == [0, 1, 0]


def test_written_rows_are_read_back_equal(tmp_path):
    rows = frame(("a", "b", 0), ("c", "d", 1), ("a", "f", 2))[1:]
    ids = pd.arrays.ArrowExtensionArray(pa.chunked_array([[[1, 2]], [[3]]]))
    dataset.write_rows(rows.assign(input_ids=ids, truncated=[False, True]), tmp_path / "split.parquet", TASK.labels)
    read = pd.read_parquet(tmp_path / "split.parquet")
    assert read.drop(columns="input_ids").to_dict("list") == {
        "row": [1, 2], "text_premise": ["c", "a"], "text_hypothesis": ["d", "f"], "label": [1, 2], "group": [0, 1],
        "truncated": [False, True],
    }  # fmt: skip
    assert [list(ids) for ids in read["input_ids"]] == [[1, 2], [3]]


# --- the stage ---


def tokenize_in(folder, raw, splits):
    """Run the stage `tokenize` on splits in a folder -> (the finished process, the files that it wrote)."""
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    (folder / "outs/splits").mkdir(parents=True)
    (folder / "outs/base_model.json").write_text(json.dumps(manifest_of(NANO)))
    for split, table in splits.items():
        pq.write_table(table, folder / f"outs/splits/{split}.parquet")
    before = written(folder)
    done = run_stage_in_each("tokenize", [folder])[folder.name]
    return done, [name for name in written(folder) if name not in before]


def test_a_split_without_any_gold_label_is_an_error(tmp_path, raw_params):
    raw_params["data"]["test_rows"] = 1
    done, outputs = tokenize_in(tmp_path, raw_params, three(arrow(), test=arrow(label=[-1, 0])))
    line = error_line(done)
    assert "split 'test'" in line and "'label'" in line
    assert outputs == []


def test_chosen_rows_that_have_none_of_several_labels_are_an_error():
    """F1 is not defined for them."""
    task, rows = prepare(three(arrow(label=["a|b", ""])), separator="|", classes=["a", "b"])
    with pytest.raises(UserError, match="split 'test': column 'label' has no label in any of the chosen rows"):
        label_rows(rows["test"][1:], "test", data_params(separator="|", classes=["a", "b"]), task)


def test_a_label_column_of_numbers_is_an_error(tmp_path, raw_params):
    done, outputs = tokenize_in(tmp_path, raw_params, three(arrow(label=[0.5, 1.5])))
    assert "params.yaml: data.label: label: holds double in split 'train'" in error_line(done)
    assert outputs == []


def test_a_max_length_beyond_the_models_positions_is_an_error_before_the_splits_are_read(tmp_path, raw_params):
    raw_params["tokenize"]["max_length"] = 512
    done, outputs = tokenize_in(tmp_path, raw_params, {})
    assert error_line(done) == (
        f"error: params.yaml: tokenize.max_length: 512: {NANO} has 256 positions; allowed: 8 to 256"
    )
    assert outputs == []


def test_the_stage_prints_the_special_tokens_of_the_template(tmp_path, raw_params):
    raw_params["tokenize"]["template"] = "<|endoftext|>{premise}<|im_end|>{hypothesis}"
    done, _ = tokenize_in(tmp_path, raw_params, three(arrow()))
    assert "tokenize.template: read as special tokens: <|endoftext|>\n" in done.stdout
    assert f"tokenize.template: read as text, since {NANO} has no such token: <|im_end|>\n" in done.stdout


def test_the_stage_prints_warnings_about_the_rows(tmp_path, raw_params):
    raw_params["data"]["group"] = None
    raw_params["tokenize"]["max_length"] = 24
    table = arrow(premise=["A man runs. " * 9, "A dog."], hypothesis=["He moves.", ""])
    done, outputs = tokenize_in(tmp_path, raw_params, three(table))
    assert done.returncode == 0, done.stderr
    assert outputs == [
        "outs/data_summary.json",
        "outs/task.json",
        *(f"outs/tokenized/{s}.parquet" for s in ("test", "train", "validation")),
    ]
    for line in (
        "3 classes: entailment, neutral, contradiction",
        "WARNING: No training row has the class neutral: the model can't learn it.",
        "No test row has the class neutral: nothing is known about it.",
        "2 of 2 test rows (100.0%) are duplicates of training rows: scores may be too high.",
        "2 of 2 test rows (100.0%) are duplicates of validation rows: ",
        "2 of 2 validation rows (100.0%) are duplicates of training rows: ",
        "WARNING: 1 of 2 training rows (50.0%), 1 of 2 validation rows (50.0%) and 1 of 2 test rows (50.0%) were "
        "longer than tokenize.max_length: 24, the longest has ",
        "1 of 2 test rows (50.0%) has an empty hypothesis.",
    ):
        assert line in done.stdout


@pytest.mark.parametrize("duplicates", [0, 1])
def test_the_stage_prints_how_many_rows_share_a_group_apart_from_duplicates(tmp_path, raw_params, duplicates):
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
    for line in (
        f"{19 - duplicates} of {of} test rows share their author with a training row: ",
        f"{5 - duplicates} of {of} test rows share their author with a validation row: ",
        f"{5 - duplicates} of {of} validation rows share their author with a training row: ",
    ):
        assert line in done.stdout
    assert done.stdout.count(" is a duplicate of ") == 3 * duplicates


# --- several labels a row ---

LABEL_FORMS = {  # {form: (column or columns of the data, keys of `data`)}
    "lists": ({"label": [["b", "a"], [], ["c"], None]}, {}),
    "text with a separator": ({"label": ["b; a", "", "c", "-"]}, {"separator": ";"}),
    "columns of 0 and 1": (
        {"a": [1, 0, 0, None], "b": [1, 0, 0, None], "c": [0, 0, 1, None]}, {"label": ["a", "b", "c"], "classes": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_each_form_of_several_labels_becomes_the_same_task_rows_and_file(tmp_path, form):
    columns, keys = LABEL_FORMS[form]
    table = pa.table({"premise": list("defg"), "hypothesis": list("hijk"), **columns})
    task, rows = prepare(three(table), **{"classes": list("abc"), **keys})
    assert task.multi_label and task.classes == ("a", "b", "c")
    assert rows["train"]["label"].tolist() == [0b011, 0, 0b100, -1]
    kept = dataset.resolve_unlabelled(rows["train"], "drop", task)
    assert len(kept) == 3, "the row without labels stays, and the one without a gold label does not"
    assert dataset.resolve_unlabelled(rows["train"], "b", task)["label"].tolist() == [0b011, 0, 0b100, 0b010]
    dataset.write_rows(kept, tmp_path / "split.parquet", task.labels)
    assert pq.read_table(tmp_path / "split.parquet")["label"].to_pylist() == [[0, 1], [], [2]]


def test_a_missing_column_of_0_and_1_is_named():
    table = pa.table({"premise": ["a"], "hypothesis": ["b"], "x": [1], "y": [0]})
    assert "data.label: z: split 'train' has no such column" in error_of(three(table), label=["x", "z"], classes=None)


def test_classes_of_columns_of_0_and_1_are_the_names_of_the_columns():
    with pytest.raises(ValidationError, match="must be empty if"):
        data_params(label=["a", "b", "c"])
