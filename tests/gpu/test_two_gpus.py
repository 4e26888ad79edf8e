"""Training on two GPUs, by NCCL and with CUDA graphs, gives the results of one GPU: `pytest -m gpu` with two GPUs."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from helpers.processes import run_on_ranks, without_dropout
from helpers.project import NANO
from helpers.training_folder import prepare, use_several_labels

from stages import eval_base, train_qlora

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="PyTorch sees fewer than two GPUs"),
]
ROWS = 33  # with batches of 8 the last one has one row, so the second GPU has none
PLAIN = {"device": "cuda", "model__precision": "fp32", "lora__dropout": 0.0, "train__epochs": 2}
LEARNS = {"device": "cuda", "train__batch_size": 16, "train__learning_rate": 1e-3, "train__epochs": 1}


def learnable(folder: Path, rows: int = 63 * 16) -> None:
    """Write training rows whose class can be read from their last tokens."""
    rng, label = np.random.default_rng(0), np.arange(rows) % 3
    ids = [[*rng.integers(10, 200, 20 + i % 29), *3 * [10 + i % 3]] for i in range(rows)]
    table = pd.DataFrame({"row": range(rows), "label": label, "input_ids": ids})
    table.to_parquet(folder / "outs/tokenized/train.parquet", index=False)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """Folders of finished stages, and the output of the two ranks in the file `output`."""
    top = tmp_path_factory.mktemp("gpus")
    model = without_dropout(NANO, top / "model")
    for name in ("one", "two", "one-then-two", "two-then-one"):
        prepare(top / name, ROWS, model, **PLAIN)
    prepare(top / "padded-one", ROWS, model, **PLAIN, batches__padding="longest")
    prepare(top / "padded-two", ROWS, model, **PLAIN, batches__padding="longest")
    for ranks in ("one", "two"):
        use_several_labels(prepare(top / f"several-{ranks}", ROWS, model, **PLAIN, train__class_weights="balanced"))
    for name, seed in (("learns-one", 42), ("learns-other-seed", 43), ("learns-two", 42)):
        learnable(prepare(top / name, **LEARNS, seed=seed))
    run_on_ranks(1, [f"broken:{top}/one-then-two"], CUDA_VISIBLE_DEVICES="0")
    twice = [f"train_qlora:{top}/{name}" for name in ("two", "padded-two", "several-two", "one-then-two", "learns-two")]
    output = run_on_ranks(2, [f"broken:{top}/two-then-one", *twice, f"eval_base:{top}/two"])
    (top / "output").write_text(output)
    here = Path.cwd()
    try:
        for name in ("one", "padded-one", "several-one", "two-then-one", "learns-one", "learns-other-seed"):
            os.chdir(top / name)
            train_qlora.main()
        os.chdir(top / "one")
        eval_base.main()
    finally:
        os.chdir(here)
    return top


def curve(folder, name="steps"):
    return pd.read_csv(folder / f"outs/results/train/{name}.csv")


def test_both_ranks_replay_cuda_graphs(top):
    output = (top / "output").read_text()
    assert "CUDA graph" not in output and "eagerly" not in output, "no warning that graphs are not used"


@pytest.mark.parametrize("name", ["", "padded-", "several-"])
def test_two_gpus_train_like_one(top, name):
    one, two = top / f"{name}one", top / f"{name}two"
    for table in ("steps", "epochs"):
        assert np.allclose(curve(one, table), curve(two, table), rtol=5e-3, atol=1e-4), table
    ones, twos = (safetensors.torch.load_file(f / "outs/adapter/adapter_model.safetensors") for f in (one, two))
    assert sum((ones[k] - twos[k]).norm() ** 2 for k in ones) < 1e-4 * sum(w.norm() ** 2 for w in ones.values())


@pytest.mark.parametrize("name", ["one-then-two", "two-then-one"])
def test_a_training_resumes_on_another_number_of_gpus(top, name):
    for table in ("steps", "epochs"):
        assert np.allclose(curve(top / name, table), curve(top / "one", table), rtol=5e-3, atol=1e-4), table


def test_the_loss_of_two_gpus_differs_no_more_than_that_of_two_seeds(top):
    first, second, two = (
        curve(top / f"learns-{name}")["loss"].rolling(7).mean().dropna() for name in ("one", "other-seed", "two")
    )
    assert len(two) == 57 and two.iloc[-1] < 0.5 * two.iloc[0], "the loss falls"
    assert (two - first).abs().mean() <= 1.5 * (second - first).abs().mean()


def test_two_gpus_predict_the_same_bytes_as_one(top):
    one, two = (top / f"{gpus}/outs/results/base/predictions.parquet" for gpus in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
