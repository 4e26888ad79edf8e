"""Rows: chosen as published, checked, put into the template, cut to length."""

import json
import os

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.parameters import manifest_of, unpinned_params, use
from helpers.project import NANO, SHARED
from helpers.stages import assert_refused, error_line, run_stage_in_each, written

from stages.runtime.errors import UserError
from stages.sources.manifest import describe
from stages.task import dataset, tokens
from stages.task.labels import LABELS
from stages.task.tokens import load_tokenizer

SNLI = SHARED / "data" / "snli"
TEMPLATE = "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"


def frame(*rows):
    return pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])


def table(**columns):
    good = {"premise": ["A man runs.", "A dog."], "hypothesis": ["He moves.", "A cat."], "label": [0, 2]}
    return pa.table({name: column for name, column in {**good, **columns}.items() if column is not None})


# --- which rows ---


@pytest.mark.parametrize(
    ("rows", "samples", "published"),
    [(550_152, 1000, range(0, 550_000, 550)), (10_000, 100, range(0, 10_000, 100)), (7, 7, range(7))],
)
def test_rows_are_chosen_as_the_published_notebook_chose(rows, samples, published):
    chosen = dataset.choose(pd.DataFrame({"row": range(rows)}), samples)
    assert list(chosen["row"]) == list(published)


@pytest.mark.parametrize(("rows", "samples"), [(1000, 334), (550_152, 300_000), (26_288, 1000), (7, 5), (1000, 999)])
def test_any_other_number_of_rows_spreads_over_the_whole_split(rows, samples):
    """A split may be sorted by class: its end may not be left out."""
    chosen = dataset.choose(pd.DataFrame({"row": range(rows)}), samples)["row"].to_numpy()
    assert len(chosen) == samples
    steps = np.diff([*chosen, rows])  # the last one: what is left behind the last row
    assert chosen[0] == 0
    assert steps.min() >= rows // samples and steps.max() <= rows // samples + 1


def test_null_chooses_every_row():
    assert len(dataset.choose(pd.DataFrame({"row": range(10)}), None)) == 10


def test_more_rows_than_there_are_is_an_error_that_says_how_many_there_are():
    with pytest.raises(UserError, match="10 rows"):
        dataset.choose(pd.DataFrame({"row": range(10)}), 11)


@pytest.mark.skipif(not SNLI.is_dir(), reason="SNLI is not in the project; needs ../shared/data/snli")
def test_the_first_ten_test_labels_of_snli_are_the_published_ones():
    rows = dataset.check_split(pq.read_table(SNLI / "test.parquet"), "test")
    published = dataset.resolve_unlabelled(dataset.choose(rows, 100), "neutral")
    assert len(published) == 100
    assert list(published["label"])[:10] == [1, 0, 1, 1, 1, 2, 1, 2, 0, 1]


@pytest.mark.skipif(not SNLI.is_dir(), reason="SNLI is not in the project; needs ../shared/data/snli")
def test_all_of_snli_passes_the_checks_and_loses_its_unlabelled_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = dataset.load_splits(SNLI, [path.name for path in SNLI.glob("*.parquet")])
    unlabelled = {name: len(rows) - len(dataset.resolve_unlabelled(rows, "drop")) for name, rows in splits.items()}
    assert unlabelled["validation"] == 158
    assert unlabelled["test"] == 176


UNLABELLED = frame(("a", "b", 0), ("c", "d", -1), ("e", "f", 2), ("g", "h", -1))


def test_unlabelled_rows_are_dropped_and_the_others_keep_their_place():
    assert list(dataset.resolve_unlabelled(UNLABELLED, "drop").index) == [0, 2]


def test_unlabelled_rows_become_neutral_as_published():
    assert list(dataset.resolve_unlabelled(UNLABELLED, "neutral")["label"]) == [0, 1, 2, 1]
    assert list(UNLABELLED["label"]) == [0, -1, 2, -1], "the rows given are left alone"


def test_the_summary_counts_rows_chosen_dropped_kept_and_cut():
    kept = dataset.resolve_unlabelled(UNLABELLED, "drop").assign(input_ids=[[1, 2, 3], [1]], truncated=[True, False])
    assert dataset.summarize(pd.concat([UNLABELLED] * 3), UNLABELLED, kept) == {
        "rows": 12,
        "chosen": 4,
        "unlabelled": 2,
        "dropped": 2,
        "kept": 2,
        "truncated": 1,
        "tokens": 4,
        "tokens_mean": 2.0,
        "tokens_max": 3,
        "classes": {"entailment": 1, "neutral": 0, "contradiction": 1},
    }


# --- checks ---


@pytest.mark.parametrize(
    ("columns", "column", "said"),
    [
        ({"label": None}, "label", "no column"),
        ({"premise": None}, "premise", "no column"),
        ({"hypothesis": None}, "hypothesis", "no column"),
        ({"label": ["entailment", "neutral"]}, "label", "allowed: integers 0"),
        ({"label": [0.0, 1.0]}, "label", "double"),
        ({"label": [0, 3]}, "label", "3 in row 1"),
        ({"label": [-2, 0]}, "label", "-2 in row 0"),
        ({"label": pa.array([0, None], pa.int64())}, "label", "nulls (row 1)"),
        ({"premise": ["A man.", None]}, "premise", "nulls (row 1)"),
        ({"hypothesis": ["A man.", "  \n"]}, "hypothesis", "empty in row 1"),
        ({"premise": ["", "A man."]}, "premise", "empty in row 0"),
        ({"premise": [1, 2]}, "premise", "int64"),
        ({"hypothesis": [["a"], ["b"]]}, "hypothesis", "list"),
        ({"hypothesis": [b"a", b"b"]}, "hypothesis", "binary"),
    ],
)
def test_a_bad_column_is_named_with_its_split(columns, column, said):
    with pytest.raises(UserError) as caught:
        dataset.check_split(table(**columns), "validation")
    assert "split 'validation'" in str(caught.value)
    assert f"column '{column}'" in str(caught.value)
    assert said in str(caught.value)


# --- what a data set says of its own classes ---

SWAPPED = ["contradiction", "Neutral ", "entailment"]


def parquet_folder(folder, names, label=(0, 1, 2, -1)):
    """A data set as `datasets` writes it, whose label column names its classes."""
    features = datasets.Features(
        {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
         "label": datasets.ClassLabel(names=list(names))}
    )  # fmt: skip
    texts = [f"text {code}" for code in label]
    rows = datasets.Dataset.from_dict({"premise": texts, "hypothesis": texts, "label": list(label)}, features=features)
    for split in ("train", "validation", "test"):
        rows.to_parquet(folder / f"{split}.parquet")
    return sorted(path.name for path in folder.glob("*.parquet"))


@pytest.fixture
def nli(tmp_path, monkeypatch):
    """An empty folder for a data set, named relative to the folder of the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nli").mkdir()
    return tmp_path / "nli"


def test_classes_are_matched_by_the_names_that_the_data_set_gives_them(nli):
    for split, rows in dataset.load_splits(nli, parquet_folder(nli, SWAPPED)).items():
        assert list(rows["premise"]) == ["text 0", "text 1", "text 2", "text -1"], split
        assert list(rows["label"]) == [2, 1, 0, -1], split


@pytest.mark.parametrize(
    "names", [["entailment", "neutral"], ["yes", "maybe", "no"], ["neutral", "entailment", "contradiction", "hidden"]]
)
def test_classes_of_other_names_are_refused_with_both_lists(nli, names):
    with pytest.raises(UserError) as caught:
        dataset.load_splits(nli, parquet_folder(nli, names, [0, 1]))
    assert ", ".join(names) in str(caught.value)
    assert "entailment, neutral, contradiction" in str(caught.value)


# --- the files that are read are the files that are pinned ---


def test_rows_changed_under_the_same_path_and_time_are_read_anew(nli):
    """As by `cp -p`, or from an archive that gives all files one time."""
    names = parquet_folder(nli, LABELS)
    before = dataset.load_splits(nli, names)
    times = {name: (nli / name).stat().st_mtime_ns for name in names}
    parquet_folder(nli, LABELS, [2, 2, 2, 2])
    for name, time in times.items():
        os.utime(nli / name, ns=(time, time))
    assert list(before["test"]["label"]) == [0, 1, 2, -1]
    assert list(dataset.load_splits(nli, names)["test"]["label"]) == [2, 2, 2, 2]


WRITERS = {
    "csv": lambda rows, path: rows.to_csv(path, index=False),
    "tsv": lambda rows, path: rows.to_csv(path, index=False, sep="\t"),
    "csv.gz": lambda rows, path: rows.to_csv(path, index=False),
    "json": lambda rows, path: rows.to_json(path, orient="records"),
    "jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "jsonl.xz": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "json.gz": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "arrow": lambda rows, path: pa.RecordBatchStreamWriter(path, pa.Table.from_pandas(rows).schema).write_table(
        pa.Table.from_pandas(rows)
    ),
    "parquet": lambda rows, path: rows.to_parquet(path),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_a_format_that_is_read_is_pinned(nli, ending):
    def written(label):
        for split in ("train", "validation", "test"):
            WRITERS[ending](
                frame(("A man runs.", "He moves.", 0), ("A dog.", "A cat.", label)), nli / f"{split}.{ending}"
            )
        return describe(nli, "nli", "none", "data")

    first = written(1)
    assert [list(rows["label"]) for rows in dataset.load_splits(nli, first["files"]).values()] == [[0, 1]] * 3
    assert written(2)["digest"] != first["digest"]


def test_a_format_that_is_not_pinned_is_not_read(nli):
    """Else its rows could change under the same digest."""
    for split in ("train", "validation", "test"):
        (nli / f"{split}.xml").write_text("<r><premise>a</premise><hypothesis>b</hypothesis><label>0</label></r>")
    manifest = describe(nli, "nli", "none", "data")
    assert manifest["files"] == {}
    with pytest.raises(UserError, match=r"data\.name: .*nli: no table"):
        dataset.load_splits(nli, manifest["files"])


# --- rows that stand in two splits ---


def test_rows_that_stand_in_the_training_split_are_counted():
    train = frame(("a", "b", 0), ("c", "d", 1), ("e", "f", 2))
    rows = frame(("a", "b", 0), ("a", "b", 2), ("c", "x", 1), ("y", "f", 2))
    assert dataset.in_train(rows, train) == {"rows": 2, "premises": 3}
    assert dataset.in_train(rows.iloc[3:], train) == {"rows": 0, "premises": 0}


def test_a_split_without_rows_is_an_error():
    with pytest.raises(UserError, match="split 'test' has no rows"):
        dataset.check_split(table().slice(0, 0), "test")


def test_an_unlabelled_row_may_be_empty():
    rows = dataset.check_split(table(label=[-1, 0], hypothesis=["", "A cat."]), "train")
    assert list(rows["label"]) == [-1, 0]


def test_small_integers_and_further_columns_are_taken():
    rows = dataset.check_split(table(label=pa.array([0, 2], pa.int8()), genre=["x", "y"]), "train")
    assert list(rows.columns) == ["premise", "hypothesis", "label"]
    assert rows["label"].dtype == "int64"


# --- text to tokens ---


@pytest.fixture(scope="module")
def words():
    return load_tokenizer(manifest_of(NANO))


def encoded(words, premise, hypothesis, max_length=128, template=TEMPLATE):
    return tokens.tokenize(frame((premise, hypothesis, 0)), words, template, max_length).iloc[0]


def test_progress_counts_rows(words):
    told = []
    tokens.tokenize(frame(*[("a man sleeps", "a man runs", 0)] * 2500), words, TEMPLATE, 128, told.append)
    assert told == [1000, 1000, 500]


def test_braces_in_a_text_are_text():
    assert tokens.fill("P: {premise} H: {hypothesis}.", "{hypothesis} {0}", "{premise}") == (
        "P: {hypothesis} {0} H: {premise}."
    )


def test_the_template_stands_around_both_texts(words):
    row = encoded(words, "a man sleeps", "a man runs")
    assert words.decode(row["input_ids"]) == "Premise: a man sleeps\nHypothesis: a man runs\nLabel:"
    assert not row["truncated"]


def test_the_name_of_a_special_token_in_a_text_is_text(words):
    plain = encoded(words, "a man <|endoftext|> sleeps", "a man runs")["input_ids"]
    assert words.eos_token_id not in plain


LONG = {
    "premise": ("a man sleeps " * 200, "a man runs"),
    "hypothesis": ("a man sleeps", "a man runs " * 200),
    "both": ("a man sleeps " * 200, "a dog runs " * 150),
    "one word": ("x" * 100_000, "a man runs"),
    "emoji": ("👩🏽‍🚀" * 20_000, "a man runs"),
}


@pytest.mark.parametrize("name", LONG)
def test_an_over_long_text_is_cut_and_the_templates_end_stays(words, name):
    row = encoded(words, *LONG[name], max_length=48)
    text = words.decode(row["input_ids"])
    assert row["truncated"]
    assert len(row["input_ids"]) <= 48
    assert text.startswith("Premise: ")
    assert text.endswith("\nLabel:")
    assert "\nHypothesis: " in text


@pytest.mark.parametrize("name", ["premise", "hypothesis", "both"])
def test_a_cut_text_loses_no_more_than_it_must(words, name):
    assert len(encoded(words, *LONG[name], max_length=48)["input_ids"]) >= 45


def test_the_longer_text_is_cut_first(words):
    text = words.decode(encoded(words, *LONG["premise"], max_length=48)["input_ids"])
    assert text.endswith("\nHypothesis: a man runs\nLabel:")


def test_a_text_of_just_the_longest_length_is_not_cut(words):
    ids = encoded(words, "a man sleeps", "a man runs")["input_ids"]
    row = encoded(words, "a man sleeps", "a man runs", max_length=len(ids))
    assert list(row["input_ids"]) == list(ids)
    assert not row["truncated"]


def test_a_template_longer_than_max_length_is_an_error(words):
    with pytest.raises(UserError, match=r"tokenize\.max_length: 8 "):
        encoded(words, *LONG["both"], max_length=8)


@pytest.mark.parametrize(
    "text", ["🙂 smile", "שלום עולם", "مرحبا", "a\0b", "naïve café", "\u202eright to left", "👩🏽‍🚀"]
)
def test_any_text_comes_out_as_it_went_in(words, text):
    decoded = words.decode(encoded(words, text, text)["input_ids"])
    assert decoded == f"Premise: {text}\nHypothesis: {text}\nLabel:"


def test_no_rows_make_no_tokens(words):
    assert len(tokens.tokenize(frame(), words, TEMPLATE, 128)) == 0


# --- the stages ---


@pytest.fixture(scope="module")
def stage_outcomes(tmp_path_factory):
    """{case: what `download` did with a damaged data folder}; the model is the nano one."""
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

    pq.write_table(table(), top / "whole.parquet")
    whole = (top / "whole.parquet").read_bytes()
    good = {"train": table(), "validation": table(), "test": table()}
    no_label = {name: split.drop_columns("label") for name, split in good.items()}
    folders = [
        case("good", **good),
        case("no label column", **no_label),
        case("one split without labels", **good | {"test": table().drop_columns("label")}),
        case("a class too many", **good | {"validation": table(label=[0, 3])}),
        case("cut file", **good | {"test": whole[: len(whole) // 2]}),
        case("no test split", train=table(), validation=table()),
        case("nothing"),
    ]
    done = run_stage_in_each("download", folders, HF_HOME=str(top / "hf"))
    for name, outcome in done.items():
        outcome.written = [name for name in written(top / name) if not name.startswith("nli/")]
    return done


def test_a_good_folder_becomes_three_tables_and_two_manifests(stage_outcomes):
    assert stage_outcomes["good"].returncode == 0, stage_outcomes["good"].stderr
    assert stage_outcomes["good"].written == [
        "data/raw/test.parquet", "data/raw/train.parquet", "data/raw/validation.parquet",
        "data/source.json", "models/base.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no label column", ["'train'", "'label'"]),
        ("one split without labels", ["'test'", "'label'", "nulls"]),
        ("a class too many", ["'validation'", "'label'", "3 in row 1"]),
        ("cut file", ["data.name"]),
        ("no test split", ["no split 'test'"]),
        ("nothing", ["data.name"]),
    ],
)
def test_a_damaged_folder_is_one_line_and_nothing_is_written(stage_outcomes, name, said):
    assert_refused(stage_outcomes[name], said)


def test_a_split_without_any_gold_label_is_one_line(tmp_path, raw_params):
    raw_params["data"]["test_rows"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw_params))
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base.json").write_text(json.dumps(manifest_of(NANO)))
    for split in ("train", "validation", "test"):
        labels = [-1, 0] if split == "test" else [0, 2]
        pq.write_table(table(label=labels), tmp_path / f"data/raw/{split}.parquet")
    before = written(tmp_path)
    line = error_line(run_stage_in_each("tokenize", [tmp_path])[tmp_path.name])
    assert "split 'test'" in line
    assert "'label'" in line
    assert written(tmp_path) == before
