"""Damaged files and wrong columns: each is an error of one line, and the stage writes nothing."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.parameters import manifest_of, unpinned_params, use
from helpers.project import NANO
from helpers.stages import assert_refused, run_stage_in_each, written
from helpers.tables import CLASSES
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.data.task import Task

ROWS = {"premise": ["A man runs.", "A dog."], "hypothesis": ["He moves.", "A cat."], "label": [0, 2]}


@pytest.fixture(scope="module")
def raw():
    raw = unpinned_params()
    use(raw, "model", str(NANO))
    return raw


DATA = {  # {case: (columns of all three splits, words of the error)}
    "other labels": (
        {"label": ["entailment", "maybe"]},
        ["'label'", "'maybe' in row 2 of train.parquet, counted from 1"],
    ),
    "a label without a class": ({"label": [0, 3]}, ["'label'", "'3' in row 2 of train.parquet, counted from 1"]),
    "premise of integers": ({"premise": [1, 2]}, ["{premise}", "int64"]),
    "hypothesis of lists": ({"hypothesis": [["a"], ["b"]]}, ["{hypothesis}", "list"]),
    "label of fractions": ({"label": [0.5, 1.0]}, ["data.label", "double"]),
    "label of booleans": ({"label": [True, False]}, ["'label'", "'True' in row 1 of train.parquet, counted from 1"]),
    "label of dates": ({"label": pa.array([1, 2], pa.timestamp("s"))}, ["data.label", "timestamp"]),
    "only nulls": ({"hypothesis": pa.nulls(2)}, ["{hypothesis}", "null"]),
}
FILES = {"no parquet": b"PK\x03\x04", "empty file": b"", "a pickle": b"\x80\x04]\x94."}


@pytest.fixture(scope="module")
def downloads(raw, tmp_path_factory):
    top = tmp_path_factory.mktemp("damaged")
    use(raw, "data", "./nli")
    contents = {name: pa.table(ROWS | columns) for name, (columns, _) in DATA.items()} | FILES
    for name, content in contents.items():
        (top / name / "nli").mkdir(parents=True)
        (top / name / "params.yaml").write_text(yaml.safe_dump(raw))
        for split in ("train", "validation", "test"):
            path = top / name / f"nli/{split}.parquet"
            path.write_bytes(content) if isinstance(content, bytes) else pq.write_table(content, path)
    done = run_stage_in_each("download,tokenize", [top / name for name in contents])
    # `tokenize` rejects wrong columns, after `download` has written its outputs; `download` rejects files.
    downloaded = ("outs/splits/", "outs/data_source.json", "outs/base_model.json")
    for name, outcome in done.items():
        allowed = ("nli/",) if name in FILES else ("nli/", *downloaded)
        outcome.written = [path for path in written(top / name) if not path.startswith(allowed)]
    return done


@pytest.mark.parametrize("name", [*DATA, *FILES])
def test_damaged_data_is_an_error_of_one_line_and_nothing_is_written(downloads, name):
    assert_refused(downloads[name], DATA[name][1] if name in DATA else ["data: nli/train.parquet: "])


@pytest.fixture(scope="module")
def evaluations(raw, tmp_path_factory):
    """{case: the finished `eval_base`}, with a missing shard of the model, and with a truncated file of tokens."""
    top = tmp_path_factory.mktemp("evaluated")
    shards = top / "shards"
    AutoModelForCausalLM.from_pretrained(NANO).save_pretrained(shards, max_shard_size="600KB")
    AutoTokenizer.from_pretrained(NANO).save_pretrained(shards)
    shard = sorted(shards.glob("*.safetensors"))[1]
    pq.write_table(pa.table(ROWS | {"row": [0, 1], "input_ids": [[5, 6], [7]]}), top / "whole.parquet")
    content = (top / "whole.parquet").read_bytes()
    before = manifest_of(shards)
    shard.unlink()
    after = manifest_of(shards)
    cases = {
        "shard missing since download": (before, content),
        "shard missing at download": (after, content),
        "truncated tokens": (manifest_of(NANO), content[: len(content) // 2]),
        "no tokens": (manifest_of(NANO), None),
    }
    for name, (manifest, tokens) in cases.items():
        (top / name / "outs/tokenized").mkdir(parents=True)
        (top / name / "params.yaml").write_text(yaml.safe_dump(raw))
        Task(CLASSES, "{premise}{hypothesis}", "premise").write(top / name / "outs/task.json")
        (top / name / "outs/base_model.json").write_text(json.dumps(manifest))
        if tokens:
            (top / name / "outs/tokenized/test.parquet").write_bytes(tokens)
    done = run_stage_in_each("eval_base", [top / name for name in cases])
    for name, outcome in done.items():
        outcome.written = [
            path for path in written(top / name) if path.startswith(("outs/results", "outs/measurements"))
        ]
    return done


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shard missing since download", ["-00002-of-", "missing or changed since `download`"]),
        ("shard missing at download", ["model: ", "-00002-of-"]),
        ("truncated tokens", ["outs/tokenized/test.parquet: not readable as parquet"]),
        ("no tokens", ["outs/tokenized/test.parquet: not readable as parquet"]),
    ],
)
def test_a_damaged_input_of_a_later_stage_is_an_error_of_one_line(evaluations, name, words):
    assert_refused(evaluations[name], words)
