"""Stage `eval_base`: which references it computes, and what it writes about them."""

import importlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.stages import run_stage_in_each
from helpers.training_folder import prepare

from stages import eval_base

REFERENCES = ["majority_class", "bag_of_words", "zero_shot", "probe", "untrained_head"]
CASES = {  # {case: changes of params.yaml}
    "all": {},
    "again": {},
    "probe": {"analysis__references": ["probe"]},
    "untrained": {"analysis__references": ["untrained_head", "bag_of_words"]},
    "none": {"analysis__references": ["majority_class"]},
    "no_template": {"tokenize__template": "{text} "},
    "no_reference": {"tokenize__template": "{text} ", "analysis__references": ["zero_shot"]},
}


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    top = tmp_path_factory.mktemp("eval_base")
    for case, changes in CASES.items():
        prepare(top / case, **{"analysis__references": REFERENCES, **changes})
    done = run_stage_in_each("eval_base", [top / case for case in CASES])
    failed = done.pop("no_reference")
    assert {outcome.returncode for outcome in done.values()} == {0}, done
    (top / "stdout").write_text(done["no_template"].stdout)
    (top / "stderr").write_text(failed.stderr)
    return top


def read(top, case):
    folder = top / case / "outs/results/base"
    return pd.read_parquet(folder / "predictions.parquet"), json.loads((folder / "summary.json").read_text())


def test_all_references_are_class_numbers_of_the_test_rows(top):
    table, summary = read(top, "all")
    assert list(table) == ["row", "label", "group", "untrained_head", "zero_shot", "probe"]
    assert len(table) == 40 and set(np.unique(table[["untrained_head", "zero_shot", "probe"]])) <= {0, 1, 2}
    assert summary["references"]["probe"]["rows"] == 32
    assert list(summary["references"]["zero_shot"]["tokens"]) == ["entailment", "neutral", "contradiction"]
    assert summary["parameters"]["total"] == 525312


def test_a_second_run_writes_the_same_bytes(top):
    for name in ("predictions.parquet", "summary.json"):
        first, second = (top / case / "outs/results/base" / name for case in ("all", "again"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(("case", "columns"), [("probe", ["probe"]), ("untrained", ["untrained_head"]), ("none", [])])
def test_a_reference_that_is_not_asked_for_is_not_computed(top, case, columns):
    table, summary = read(top, case)
    everything, whole = read(top, "all")
    assert list(table.columns[3:]) == columns
    assert table.equals(everything[list(table)]), "the answers do not depend on the other references"
    assert list(summary["references"]) == [name for name in columns if name != "untrained_head"]
    assert summary["parameters"] == whole["parameters"]


def test_zero_shot_is_left_out_with_its_reason(top):
    table, summary = read(top, "no_template")
    reason = summary["references"]["zero_shot"]["left_out"]
    assert "the template's last token changes" in reason
    assert f"analysis.references: zero_shot is left out: {reason}\n" in (top / "stdout").read_text()
    assert list(table.columns[3:]) == ["untrained_head", "probe"]


def test_a_run_without_any_reference_ends_before_the_training(top):
    line = (top / "stderr").read_text().splitlines()[-1]
    assert "params.yaml: analysis.references: zero_shot is left out: the template's last token changes" in line
    assert not (top / "no_reference/outs/results/base").exists()


def test_the_probe_reads_some_rows_of_the_training_file(top, tmp_path, monkeypatch):
    """With other rows in that file it answers otherwise."""
    folder = prepare(tmp_path / "run", analysis__references=["probe"])
    tokenized = folder / "outs/tokenized"
    shutil.copy(tokenized / "test.parquet", tokenized / "train.parquet")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(eval_base, "PROBE_ROWS", 10)
    importlib.import_module("stages.eval_base").main()
    summary = json.loads((folder / "outs/results/base/summary.json").read_text())
    assert summary["references"]["probe"]["rows"] == 10
    ours = pd.read_parquet(folder / "outs/results/base/predictions.parquet")["probe"]
    assert not ours.equals(read(top, "all")[0]["probe"])
