"""Training on all GPUs of a machine, by NCCL, gives the results of one GPU: `pytest -m gpu` with two GPUs or more."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch
import yaml
from helpers.processes import TORCHRUN, alive, run_on_ranks, wait_for, without_dropout
from helpers.project import NANO, ROOT
from helpers.stages import stage_env
from helpers.training_folder import prepare, use_several_labels

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS < 2, reason="PyTorch sees fewer than two GPUs"),
]
ROWS = 33  # with batches of 8 the last one has one row, so the other GPUs have none
PLAIN = {"device": "cuda", "model__precision": "fp32", "lora__dropout": 0.0, "train__epochs": 2}
LEARNS = {"device": "cuda", "train__batch_size": 16, "train__learning_rate": 1e-3, "train__epochs": 1}
CASES = {
    "plain": {},
    "padded": {"batches__padding": "longest"},
    "parts": {"batches__padding": "longest", "train__batch_size": 16, "train__micro_batch": 1},
    "eager": {"train__cuda_graphs": False},
    "several labels": {"train__class_weights": "balanced"},
}
EACH_STEP = {"train__checkpoint_minutes": 1e-6}
RESUMED = {"epoch": {}, "step": EACH_STEP}  # interrupted after the first epoch, or after the first step


def learnable(folder: Path, rows: int = 63 * 16) -> None:
    """Write training rows whose class can be read from their last tokens."""
    rng, label = np.random.default_rng(0), np.arange(rows) % 3
    ids = [[*rng.integers(10, 200, 20 + i % 29), *3 * [10 + i % 3]] for i in range(rows)]
    table = pd.DataFrame({"row": range(rows), "label": label, "input_ids": ids})
    table.to_parquet(folder / "outs/tokenized/train.parquet", index=False)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """Folders of finished stages, and the outputs of the ranks in the files one.txt and all.txt."""
    top = tmp_path_factory.mktemp("gpus")
    model = without_dropout(NANO, top / "model")
    on_one, on_all = [], []
    for case, changes in CASES.items():
        for name, folders in ((f"{case}-one", on_one), (f"{case}-all", on_all)):
            folders.append(prepare(top / name, ROWS, model, **PLAIN | changes))
            if case == "several labels":
                use_several_labels(top / name)
    for moment, changes in RESUMED.items():
        for name in (f"{moment}-one-then-all", f"{moment}-all-then-one"):
            prepare(top / name, ROWS, model, **PLAIN, **changes)
    for name, seed in (("learns-one", 42), ("learns-other-seed", 43), ("learns-all", 42)):
        learnable(prepare(top / name, **LEARNS, seed=seed))
    run_on_ranks(1, [f"broken:{top}/{moment}-one-then-all" for moment in RESUMED], CUDA_VISIBLE_DEVICES="0")
    broken = [f"broken:{top}/{moment}-all-then-one" for moment in RESUMED]
    on_all += [*(top / f"{moment}-one-then-all" for moment in RESUMED), top / "learns-all"]
    on_one += [*(top / f"{moment}-all-then-one" for moment in RESUMED), top / "learns-one", top / "learns-other-seed"]
    on_all, on_one = ([f"train_qlora:{folder}" for folder in folders] for folders in (on_all, on_one))
    (top / "all.txt").write_text(run_on_ranks(GPUS, [*broken, *on_all, f"eval_base:{top}/plain-all"]))
    (top / "one.txt").write_text(run_on_ranks(1, [*on_one, f"eval_base:{top}/plain-one"], CUDA_VISIBLE_DEVICES="0"))
    return top


def curve(folder, name="steps"):
    return pd.read_csv(folder / f"outs/results/train/{name}.csv")


def assert_same_curves(folder, other):
    for table in ("steps", "epochs"):
        assert np.allclose(curve(folder, table), curve(other, table), rtol=5e-3, atol=1e-4), table


def test_the_trainings_run_as_their_cases_say(top):
    """Rank 0 prints the plan of a captured step: of all trainings but the eager one, and those that are interrupted."""
    output = (top / "all.txt").read_text()
    assert "CUDA graph" not in output and "eagerly" not in output, "no warning that graphs are not used"
    plans = [line for line in output.splitlines() if line.startswith("GPU memory: ")]
    assert len(plans) == len(CASES) - 1 + 2 * len(RESUMED) + 1
    assert sum("in up to" in plan for plan in plans) == 1, "in parts"


@pytest.mark.parametrize("case", CASES)
def test_all_gpus_train_like_one(top, case):
    one, several = top / f"{case}-one", top / f"{case}-all"
    assert_same_curves(one, several)
    ones, others = (safetensors.torch.load_file(f / "outs/adapter/adapter_model.safetensors") for f in (one, several))
    assert sum((ones[k] - others[k]).norm() ** 2 for k in ones) < 1e-4 * sum(w.norm() ** 2 for w in ones.values())


@pytest.mark.parametrize("moment", RESUMED)
@pytest.mark.parametrize("order", ["one-then-all", "all-then-one"])
def test_a_training_resumes_on_another_number_of_gpus(top, moment, order):
    output = (top / f"{order.rpartition('-')[2]}.txt").read_text()
    step = {"epoch": 5, "step": 1}[moment]
    assert re.search(rf"resuming from \S+/checkpoint-{step}: step {step} of 10\n", output)
    assert_same_curves(top / f"{moment}-{order}", top / "plain-one")


def test_the_loss_of_all_gpus_differs_no_more_than_that_of_two_seeds(top):
    first, second, several = (
        curve(top / f"learns-{name}")["loss"].rolling(7).mean().dropna() for name in ("one", "other-seed", "all")
    )
    assert len(several) == 57 and several.iloc[-1] < 0.5 * several.iloc[0], "the loss falls"
    assert (several - first).abs().mean() <= 1.5 * (second - first).abs().mean()


def test_all_gpus_predict_the_same_bytes_as_one(top):
    one, several = (top / f"plain-{gpus}/outs/results/base/predictions.parquet" for gpus in ("one", "all"))
    assert one.read_bytes() == several.read_bytes()


@pytest.mark.parametrize("victim", ["rank", "torchrun", "dvc"])
def test_after_a_kill_all_ranks_end_and_one_gpu_resumes(tmp_path, victim):
    """DVC runs the stage's own command. The kill comes after the first checkpoint, in the middle of an epoch."""
    folder = prepare(tmp_path / "run", 8 * 100, device="cuda", train__epochs=2, **EACH_STEP)
    command = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train_qlora"]["cmd"]
    command = command.replace("${launcher}", " ".join([*TORCHRUN, "--nproc-per-node=gpu"]))
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train_qlora": {"cmd": command}}}))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=folder, check=True)
    dvc = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=folder, env=stage_env())
    wait_for(lambda: list(folder.glob("outs/checkpoints/*/*/whole")), 120)
    torchrun = next(child for child in psutil.Process(dvc.pid).children() if "torch.distributed.run" in child.cmdline())
    ranks = torchrun.children()
    assert len(ranks) == GPUS
    {"rank": ranks[-1], "torchrun": torchrun, "dvc": psutil.Process(dvc.pid)}[victim].kill()
    killed = time.monotonic()
    wait_for(lambda: not alive([torchrun.pid, *(rank.pid for rank in ranks)]), 40)
    print(f"{victim} killed: all ranks ended after {time.monotonic() - killed:.1f} s")
    assert dvc.wait(timeout=20) != 0
    assert not (folder / "outs/adapter").exists()
    resumed = run_on_ranks(1, [f"train_qlora:{folder}"], CUDA_VISIBLE_DEVICES="0")
    assert re.search(r"checkpoint-(\d+): step \1 of 200", resumed)
    assert len(curve(folder)) == 200
