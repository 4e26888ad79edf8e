"""benchmarks/: what is compared, as far as a CPU can run it; the measurements want a GPU."""

import functools
import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from helpers.project import COMMITTED, CPU, EMBEDDED, NANO, ROOT
from transformers import TrainingArguments

from stages.runtime import params
from stages.runtime.errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare
import recipes
import table


@pytest.fixture(scope="module")
def inputs():
    p = params.load(COMMITTED / "embedded/params.yaml")
    return recipes.load_inputs(NANO, EMBEDDED / "assets/everyday-nli", p)


def test_the_recipes_that_are_planned_are_there_and_have_a_row_in_the_table():
    assert {name for name, *_ in compare.PLAN} == set(recipes.TRAINERS) == set(table.NAMES)


@pytest.mark.parametrize("name", recipes.TRAINERS)
def test_each_recipe_trains(inputs, monkeypatch, name):
    monkeypatch.setattr(recipes, "DEVICE", CPU)
    monkeypatch.setattr(recipes, "TrainingArguments", functools.partial(TrainingArguments, use_cpu=True))
    trainer = recipes.TRAINERS[name](inputs, batch_size=4, steps=1)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.state.global_step == 1
    changed = {n for n, p in trainer.model.named_parameters() if n in before and not torch.equal(p, before[n])}
    assert {n for n in before if "lora_B" in n} <= changed  # A has no gradient yet: B is zero
    assert any("score" in n for n in changed) == (name != "notebook"), "as published, the notebook's head is frozen"


def test_frozen_weights_are_those_of_the_quantized_layers(inputs, monkeypatch):
    monkeypatch.setattr(recipes, "DEVICE", CPU)
    base = recipes.our_base(inputs)
    packed = sum(p.numel() for p in base.parameters() if p.dtype == torch.uint8)  # two weights a byte
    assert recipes.frozen_weights(NANO) == 2 * packed > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["compare.py", str(NANO), str(EMBEDDED), "--out", str(tmp_path / "out.json")])
    with pytest.raises(UserError, match="PyTorch sees no CUDA GPU"):
        compare.main()
    assert not (tmp_path / "out.json").exists()


def test_settings_are_trained_and_tested_on_real_weights_seed_by_seed(tmp_path):
    """Here on the nano model, on a CPU: two settings of one seed; a second call finds all done."""
    real = ROOT / "benchmarks/real"
    small = [
        "device=cpu",
        "threads=1",
        "data.train_rows=48",
        "data.validation_rows=16",
        "data.test_rows=64",
        "train.epochs=1",
    ]
    command = [
        sys.executable, real / "run.py", NANO, EMBEDDED / "assets/everyday-nli", tmp_path, "ours", "template",
        "--seeds", "42", *(word for value in small for word in ("--set", value)),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(line.split(":")[0] for line in done.stdout.splitlines()) == [
        "ours 42", "template 42"
    ]  # fmt: skip
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
    (tmp_path / "into").mkdir()
    subprocess.run([sys.executable, real / "collect.py", tmp_path, tmp_path / "into"], check=True)
    table = pd.read_parquet(tmp_path / "into/predictions.parquet")
    assert list(table) == [
        "row", "gold", "group", "base 42", "ours 42", "template 42"
    ]  # fmt: skip
    results = json.loads((tmp_path / "into/results.json").read_text())
    for run in results["runs"]:
        answers = table["{setting} {seed}".format(**run)]
        assert run["accuracy"] == pytest.approx((answers == table["gold"]).mean()) and run["rows"]["train"] <= 48
    assert set(results["times"]) == {"ours", "template"}
    assert (table["ours 42"] != table["template 42"]).any(), "the setting's change did not reach the run"
