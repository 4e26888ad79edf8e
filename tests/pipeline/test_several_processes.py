"""Stages on several ranks: they train and predict as on one rank, also after a resume with another number of ranks."""

import re

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
from helpers.processes import run_on_forked_ranks, try_on_forked_ranks, without_dropout
from helpers.project import NANO
from helpers.stages import run_stage_in_each
from helpers.training_folder import adapter_bytes, prepare, use_several_labels

from stages.training.checkpoints import WHOLE

pytestmark = pytest.mark.slow


def curve(folder, name):
    return pd.read_csv(folder / f"outs/results/train/{name}.csv")


def weights(folder):
    return safetensors.torch.load_file(folder / "outs/adapter/adapter_model.safetensors")


CASES = {  # {case: changes of params.yaml}
    "plain": {},
    "padded and weighted": {
        "batches__padding": "max_length",
        "batches__order": "random",
        "train__class_weights": "balanced",
    },
    "dropped": {"lora__dropout": 0.3},
    "several labels": {"train__class_weights": "balanced", "train__micro_batch": 2},
    "each step": {"lora__dropout": 0.3, "train__checkpoint_minutes": 1e-6},  # a checkpoint after the first step
}
ROWS = 33  # in batches of 8: the last batch has one row, fewer than ranks


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A folder with folders of finished stages: CASE-RANKS, and trainings that were interrupted and then resumed."""
    top = tmp_path_factory.mktemp("ranks")
    model = without_dropout(NANO, top / "model")

    def make(name, case):
        folder = prepare(top / name, ROWS, model, **{"train__epochs": 2, "lora__dropout": 0.0, **CASES[case]})
        rows = pd.read_parquet(folder / "outs/tokenized/train.parquet")
        rows["label"] = np.where(rows.index % 4, rows["label"], 0)  # uneven classes
        rows.to_parquet(folder / "outs/tokenized/train.parquet", index=False)
        if case == "several labels":
            use_several_labels(folder)

    finished = [case for case in CASES if case != "each step"]
    for case in finished:
        make(f"{case}-one", case)
        make(f"{case}-three", case)
    make("one-then-three", "plain")
    make("three-then-one", "several labels")
    make("three-then-three", "each step")
    make("terminated", "each step")
    run_on_forked_ranks(1, [f"broken:{top}/one-then-three"])
    tasks = [f"broken:{top}/three-then-one", f"broken:{top}/three-then-three", f"train_qlora:{top}/one-then-three"]
    tasks += [f"train_qlora:{top}/three-then-three", f"eval_base:{top}/plain-three"]
    output = run_on_forked_ranks(3, [*tasks, *(f"train_qlora:{top}/{case}-three" for case in finished)])
    (top / "output").write_text(output)
    done = run_stage_in_each("train_qlora", [top / "three-then-one", *(top / f"{case}-one" for case in finished)])
    done["eval_base"] = run_stage_in_each("eval_base", [top / "plain-one"])["plain-one"]
    assert {outcome.returncode for outcome in done.values()} == {0}, done
    assert "resuming from" in done["three-then-one"].stdout
    return top


@pytest.mark.parametrize("case", ["plain", "padded and weighted", "several labels"])
def test_three_ranks_train_as_one_rank_does(top, case):
    one, three = top / f"{case}-one", top / f"{case}-three"
    for name in ("steps", "epochs"):
        assert np.allclose(curve(one, name), curve(three, name), rtol=1e-3), name
    x, y = weights(one), weights(three)
    assert sum((x[name] - y[name]).norm() ** 2 for name in x) < 1e-6 * sum(w.norm() ** 2 for w in x.values())


def test_the_cases_are_different_trainings(top):
    losses = [curve(top / f"{case}-one", "steps")["loss"].sum() for case in CASES if case != "each step"]
    assert len({round(loss, 3) for loss in losses}) == len(losses)


@pytest.mark.parametrize(
    ("name", "uninterrupted"), [("one-then-three", "plain-one"), ("three-then-one", "several labels-one")]
)
def test_a_training_resumes_with_another_number_of_ranks(top, name, uninterrupted):
    for table in ("steps", "epochs"):
        assert np.allclose(curve(top / name, table), curve(top / uninterrupted, table), rtol=1e-3), table
    assert not (top / name / "outs/checkpoints").exists()


def test_rows_and_dropout_after_a_resume_in_an_epochs_middle_are_those_of_an_undisturbed_training(top):
    assert re.search(r"resuming from \S+/checkpoint-1: step 1 of 10\n", (top / "output").read_text())
    assert adapter_bytes(top / "three-then-three") == adapter_bytes(top / "dropped-three")
    for table in ("steps", "epochs"):
        assert curve(top / "three-then-three", table).equals(curve(top / "dropped-three", table))


def test_sigterm_to_one_rank_saves_a_checkpoint_and_ends_all_ranks(top):
    """As on several machines of which one is reclaimed."""
    done = try_on_forked_ranks(2, [f"terminated:{top}/terminated"])
    line = "train_qlora: SIGTERM: checkpoint of step 3 written; `dvc repro` continues there"
    assert done.stderr.count(line) == 1, done.stderr
    (saved,) = (top / "terminated/outs/checkpoints").glob("*/checkpoint-*")
    assert saved.name == "checkpoint-3" and (saved / WHOLE).exists()
    assert not (top / "terminated/outs/adapter").exists()


def test_three_ranks_write_the_same_predictions_as_one_byte_for_byte(top):
    one, three = (top / f"plain-{ranks}/outs/results/base/predictions.parquet" for ranks in ("one", "three"))
    assert one.read_bytes() == three.read_bytes()
