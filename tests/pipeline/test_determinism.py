"""Equal parameters give equal bytes; another seed gives other bytes."""

import json

import pandas as pd
import pytest
import yaml
from helpers.stages import run_stage_in_each
from helpers.tables import CLASSES
from helpers.training_folder import adapter_bytes, prepare

from stages.data import dataset, tokenization
from stages.data.task import Task
from stages.data.tokenization import load_tokenizer

pytestmark = pytest.mark.slow


def folder_with_rows(folder, **changes):
    """A folder in which `train_qlora` and `eval_lora` can run."""
    prepare(folder, train__epochs=2, **changes)
    p = yaml.safe_load((folder / "params.yaml").read_text())
    tokenizer = load_tokenizer(json.loads((folder / "outs/base_model.json").read_text()))
    texts = [f"a man {verb} a {noun}" for verb in ("sees", "holds", "likes") for noun in ("dog", "cat", "red ball")]
    rows = pd.DataFrame({"text_premise": texts, "text_hypothesis": texts[::-1], "label": [0, 1, 2] * 3, "group": texts})
    rows = rows.assign(file="test.csv", file_row=range(2, len(rows) + 2))
    task = Task(CLASSES, "{premise}{hypothesis}", "premise")
    task.write(folder / "outs/task.json")
    test = tokenization.tokenize_rows(rows, tokenizer, p["tokenize"]["template"], 128)
    dataset.write_rows(test, folder / "outs/tokenized/test.parquet", task.labels)
    return folder


def results(folder):
    """{file: its bytes} of the adapter and of outs/results."""
    adapter = {f"adapter/{name}": content for name, content in adapter_bytes(folder).items()}
    paths = (path for path in (folder / "outs/results").rglob("*") if path.is_file())
    return adapter | {str(path.relative_to(folder / "outs/results")): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{case: `results`}. `again` runs in another process with another hash seed and another HF_HUB_OFFLINE."""
    top = tmp_path_factory.mktemp("determinism")
    first = [folder_with_rows(top / "once"), folder_with_rows(top / "seed", seed=7)]
    again = [folder_with_rows(top / "again")]
    stages = "train_qlora,eval_lora"
    done = run_stage_in_each(stages, first)  # Python draws their hash seed
    done |= run_stage_in_each(stages, again, PYTHONHASHSEED="2", HF_HUB_OFFLINE="0")
    for name, outcome in done.items():
        assert outcome.returncode == 0, f"{name}: {outcome.stderr}"
    return {folder.name: results(folder) for folder in (*first, *again)}


def test_two_runs_are_equal_with_different_hash_seeds(runs):
    assert [name for name in runs["once"] if runs["once"][name] != runs["again"].get(name)] == []
    assert runs["once"].keys() == runs["again"].keys()


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "train/steps.csv", "tuned/predictions.parquet"])
def test_another_seed_gives_another_model(runs, name):
    assert runs["once"][name] != runs["seed"][name]
