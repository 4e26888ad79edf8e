"""Splits: read from the files that are pinned, by the names and slices that params.yaml asks for."""

import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.parameters import unpinned_params, use
from helpers.project import NANO, SHARED
from helpers.stages import assert_refused, run_stage_in_each, written
from helpers.tables import arrow, data_group, frame, parquet_folder

from stages.runtime.errors import UserError
from stages.sources.manifest import describe
from stages.task.source import read_splits

SNLI = SHARED / "data" / "snli"
CLASSES = ["entailment", "neutral", "contradiction"]


@pytest.fixture
def nli(tmp_path, monkeypatch):
    """An empty folder for a data set, named relative to the folder of the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nli").mkdir()
    return tmp_path / "nli"


def read(folder, names=None, **of_data):
    """{split: data frame} of a folder."""
    names = describe(folder, "nli", "none", "data")["files"] if names is None else names
    return {split: table.to_pandas() for split, table in read_splits(folder, names, data_group(**of_data)).items()}


def refusal(folder, **of_data):
    with pytest.raises(UserError) as caught:
        read(folder, **of_data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def splits(train="train", validation="train", test="train"):
    return {"train": train, "validation": validation, "test": test}


# --- the files that are read are the files that are pinned ---


def test_rows_changed_under_the_same_path_and_time_are_read_anew(nli):
    """As by `cp -p`, or from an archive that gives all files one time."""
    names = parquet_folder(nli, CLASSES)
    before = read(nli, names)
    times = {name: (nli / name).stat().st_mtime_ns for name in names}
    parquet_folder(nli, CLASSES, [2, 2, 2, 2])
    for name, time in times.items():
        os.utime(nli / name, ns=(time, time))
    assert list(before["test"]["label"]) == [0, 1, 2, -1]
    assert list(read(nli, names)["test"]["label"]) == [2, 2, 2, 2]


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
    def write(label):
        for split in ("train", "validation", "test"):
            WRITERS[ending](
                frame(("A man runs.", "He moves.", 0), ("A dog.", "A cat.", label)), nli / f"{split}.{ending}"
            )
        return describe(nli, "nli", "none", "data")

    first = write(1)
    assert [list(rows["label"]) for rows in read(nli, first["files"]).values()] == [[0, 1]] * 3
    assert write(2)["digest"] != first["digest"]


def test_a_format_that_is_not_pinned_is_not_read(nli):
    """Else its rows could change under the same digest."""
    for split in ("train", "validation", "test"):
        (nli / f"{split}.xml").write_text("<r><premise>a</premise><hypothesis>b</hypothesis><label>0</label></r>")
    manifest = describe(nli, "nli", "none", "data")
    assert manifest["files"] == {}
    with pytest.raises(UserError, match=r"data\.name: .*nli: no table"):
        read(nli, manifest["files"])


def test_words_that_pandas_takes_for_nothing_are_text(nli):
    words = ["None", "NA", "null", "nan", ""]
    pd.DataFrame({"text": words, "label": words}).to_csv(nli / "train.csv", index=False)
    rows = read(nli, splits=splits())["train"]
    for column in ("text", "label"):
        assert rows[column].fillna("missing").tolist() == ["None", "NA", "null", "nan", "missing"]


@pytest.mark.skipif(not SNLI.is_dir(), reason="SNLI is not in the project; needs ../shared/data/snli")
def test_snli_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read_whole = read(SNLI, [path.name for path in SNLI.glob("*.parquet")])
    assert {split: len(rows) for split, rows in read_whole.items()} == {
        split: pq.read_metadata(next(SNLI.glob(f"{split}*.parquet"))).num_rows for split in read_whole
    }


# --- names and slices of splits ---


@pytest.fixture
def reviews(nli):
    """One file, as most people have it."""
    pd.DataFrame({"text": [f"text {i}" for i in range(100)], "label": ["a", "b"] * 50}).to_csv(
        nli / "reviews.csv", index=False
    )
    return nli


def test_slices_make_three_splits_of_one(reviews):
    found = read(reviews, splits=splits("train[:70%]", "train[70%:80%]", "train[80:]"))
    assert {split: list(rows["text"]) for split, rows in found.items()} == {
        "train": [f"text {i}" for i in range(70)],
        "validation": [f"text {i}" for i in range(70, 80)],
        "test": [f"text {i}" for i in range(80, 100)],
    }


def test_splits_may_be_joined(reviews):
    assert len(read(reviews, splits=splits("train[:10]+train[90:]"))["train"]) == 20


def test_splits_of_other_names_are_taken(nli):
    parquet_folder(nli, CLASSES)
    (nli / "validation.parquet").rename(nli / "dev_matched.parquet")
    (nli / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.parquet}\n"
        "  - {split: dev_matched, path: dev_matched.parquet}\n  - {split: test, path: test.parquet}\n---\n"
    )
    assert len(read(nli, splits=splits("train", "dev_matched", "test"))["validation"]) == 4


@pytest.mark.parametrize(
    ("wanted", "said"),
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
def test_a_split_that_is_not_there_is_one_line_that_says_which_are(reviews, split, wanted, said):
    line = refusal(reviews, splits=splits(**{split: wanted}))
    assert line.startswith(f"params.yaml: data.splits.{split}: {wanted} ")
    assert said in line
    assert line.endswith("allowed: the data's own splits (train), or slices of them such as train[:90%]")


def test_a_split_without_rows_is_one_line(reviews):
    (reviews / "test.csv").write_text("text,label\n")
    (reviews / "reviews.csv").rename(reviews / "train.csv")
    line = refusal(reviews, splits=splits(test="test"))
    assert line.startswith("params.yaml: data.splits.test: test")


# --- subsets ---


@pytest.fixture
def glue(nli):
    """Two subsets in one folder, as the hub's data sets have them."""
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


@pytest.mark.parametrize(("subset", "label"), [("cola", 0), ("sst2", 1)])
def test_the_subset_that_is_named_is_read(glue, subset, label):
    assert [list(rows["label"]) for rows in read(glue, subset=subset).values()] == [[label]] * 3


@pytest.mark.parametrize(("subset", "named"), [(None, "null"), ("mnli", "mnli")])
def test_a_subset_that_is_not_there_is_one_line_that_says_which_are(glue, subset, named):
    line = refusal(glue, subset=subset)
    assert line.startswith(f"params.yaml: data.subset: {named}; allowed with ")
    assert line.endswith(": cola, sst2")


def test_a_subset_of_a_data_set_that_has_none_is_refused(reviews):
    assert "params.yaml: data.subset: sst2; allowed with" in refusal(reviews, subset="sst2", splits=splits())
    assert "null" in refusal(reviews, subset="sst2", splits=splits())


# --- the stage ---


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

    pq.write_table(arrow(), top / "whole.parquet")
    whole = (top / "whole.parquet").read_bytes()
    good = {"train": arrow(), "validation": arrow(), "test": arrow()}
    folders = [
        case("good", **good),
        case("cut file", **good | {"test": whole[: len(whole) // 2]}),
        case("no test split", train=arrow(), validation=arrow()),
        case("no rows", **good | {"test": arrow().slice(0, 0)}),
        case("nothing"),
    ]
    done = run_stage_in_each("download", folders, HF_HOME=str(top / "hf"))
    for name, outcome in done.items():
        outcome.written = [name for name in written(top / name) if not name.startswith("nli/")]
    return done


def test_a_good_folder_becomes_three_tables_and_two_manifests(stage_outcomes):
    assert stage_outcomes["good"].returncode == 0, stage_outcomes["good"].stderr
    assert stage_outcomes["good"].written == [
        "outs/base_model.json", "outs/data_source.json",
        "outs/splits/test.parquet", "outs/splits/train.parquet", "outs/splits/validation.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cut file", ["data.name"]),
        ("no test split", ["data.splits.test: test ", "(train, validation)"]),
        ("no rows", ["data.name", "not readable"]),
        ("nothing", ["data.name"]),
    ],
)
def test_a_damaged_folder_is_one_line_and_nothing_is_written(stage_outcomes, name, said):
    assert_refused(stage_outcomes[name], said)
