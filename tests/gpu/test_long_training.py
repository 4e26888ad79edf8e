"""On one GPU or two, a training resumed in an epoch's middle is byte-equal to an undisturbed one: `pytest -m gpu`."""

import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.processes import TORCHRUN, run_on_ranks
from helpers.stages import stage_env
from helpers.training_folder import adapter_bytes, prepare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA GPU"),
]
DEVICE = "cuda"
GPUS = [1, pytest.param(2, marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"))]
EACH_STEP = 1e-6  # minutes. Several ranks agree to save after their first step, then about every 5 seconds


def prepare_two(top, rows, epochs):
    """(folder of an undisturbed training, folder of one that saves as often as it can)."""
    options = {"device": DEVICE, "lora__dropout": 0.3, "train__epochs": epochs}
    undisturbed = prepare(top / "undisturbed", rows, **options)
    return undisturbed, prepare(top / "run", rows, **options, train__checkpoint_minutes=EACH_STEP)


def assert_same_results(folder, undisturbed):
    assert adapter_bytes(folder) == adapter_bytes(undisturbed)
    for name in ("steps.csv", "epochs.csv", "validation.parquet", "summary.json"):
        first, second = (top / "outs/results/train" / name for top in (folder, undisturbed))
        assert first.read_bytes() == second.read_bytes(), name


@pytest.mark.parametrize("gpus", GPUS)
def test_a_training_killed_in_an_epochs_middle_ends_like_an_undisturbed_one(tmp_path, gpus):
    """It is killed after its first, second and third step. Each epoch has 5 steps, and the last batch has one row."""
    undisturbed, folder = prepare_two(tmp_path, rows=33, epochs=2)
    output = run_on_ranks(
        gpus, [*3 * [f"broken:{folder}"], f"train_qlora:{folder}"], CUDA_VISIBLE_DEVICES=visible(gpus)
    )
    assert re.findall(r"checkpoint-(\d+): step", output) == ["1", "2", "3"]
    assert "without CUDA graphs" not in output and "eagerly" not in output
    run_on_ranks(gpus, [f"train_qlora:{undisturbed}"], CUDA_VISIBLE_DEVICES=visible(gpus))
    assert_same_results(folder, undisturbed)


@pytest.mark.parametrize("gpus", GPUS)
def test_sigterm_saves_a_checkpoint_and_the_next_run_continues_there(tmp_path, gpus):
    """On two GPUs torchrun gets the signal, and passes it on."""
    undisturbed, folder = prepare_two(tmp_path, rows=8 * 500, epochs=2)
    launcher = [*TORCHRUN, f"--nproc-per-node={gpus}"] if gpus > 1 else [sys.executable]
    process = subprocess.Popen(
        [*launcher, "-m", "stages.train_qlora"], cwd=folder, env=stage_env(CUDA_VISIBLE_DEVICES=visible(gpus)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not list(folder.glob("outs/checkpoints/*/*/whole")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 143 if gpus == 1 else process.returncode != 0, output
    lines = re.findall(r"train_qlora: SIGTERM: checkpoint of step (\d+) written; `dvc repro` continues there\n", output)
    assert len(lines) == 1, output
    resumed = run_on_ranks(gpus, [f"train_qlora:{folder}"], CUDA_VISIBLE_DEVICES=visible(gpus))
    assert f"checkpoint-{lines[0]}: step {lines[0]} of 1000" in resumed
    run_on_ranks(gpus, [f"train_qlora:{undisturbed}"], CUDA_VISIBLE_DEVICES=visible(gpus))
    assert_same_results(folder, undisturbed)


def visible(gpus):
    return ",".join(map(str, range(gpus)))
