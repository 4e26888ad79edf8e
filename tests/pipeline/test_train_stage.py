"""The stage `train_qlora` on a few rows: its outs, the epoch it keeps, the checkpoints it resumes."""

import gc
import importlib
import json
import math
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import peft
import pytest
import safetensors.torch
import torch
import yaml
from helpers.processes import wait_for
from helpers.project import CPU, ROOT
from helpers.small_disk import fill, small_disk
from helpers.stages import StartedModule, error_line, run_stage_in_each, stage_env, written
from helpers.tables import CLASSES, LABELS
from helpers.training_folder import adapter_bytes, prepare
from scipy.special import softmax
from transformers import PreTrainedModel
from transformers.integrations import integration_utils

from stages import train_qlora
from stages.data.batching import TokenizedRows
from stages.model.classifier import Classifier
from stages.runtime import files, params, progress
from stages.runtime import usage_recorder as recorder_module
from stages.runtime.errors import UserError
from stages.training import checkpoints, history
from stages.training.checkpoints import WholeCheckpoints
from stages.training.trainer import ClassifierTrainer

pytestmark = pytest.mark.slow


def curves(folder):
    return {name: pd.read_csv(folder / f"outs/results/train/{name}.csv") for name in ("steps", "epochs")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{case: folder of a finished training}."""
    top = tmp_path_factory.mktemp("training")
    cases = {"one": {}, "last": {"train__keep": "last"}, "frozen": {"train__freeze_head": True, "train__epochs": 1}}
    cases |= {f"{name}, raw": {**changes, "train__calibrate": False} for name, changes in cases.items()}
    made = {name: prepare(top / name, **changes) for name, changes in cases.items()}
    for name, done in run_stage_in_each("train_qlora", made.values()).items():
        assert done.returncode == 0, f"{name}: {done.stderr}"
    return made


def test_training_writes_adapter_curves_and_measurements_and_leaves_no_checkpoint(folders):
    assert not (folders["one"] / "outs/checkpoints").exists()
    folder = folders["one"]
    for name, expected in (
        ("results", "steps.csv epochs.csv validation.parquet summary.json"),
        ("measurements", "usage.csv run.json"),
    ):
        assert {path.name for path in (folder / "outs" / name / "train").iterdir()} == set(expected.split())
    run = json.loads((folder / "outs/measurements/train/run.json").read_text())
    assert run["seconds"] > 0
    assert run["resumed"] is False
    assert run["memory_plan"] is None  # on a CPU
    counts = json.loads((folder / "outs/results/train/summary.json").read_text())["parameters"]
    assert counts["trainable"] < counts["stored"] < counts["total"]


def test_each_step_and_each_epoch_is_in_the_history(folders):
    steps, epochs = curves(folders["one"]).values()
    assert list(steps["step"]) == list(range(1, 13))
    assert list(epochs["epoch"]) == [1, 2, 3]
    means = steps["loss"].to_numpy().reshape(3, 4).mean(axis=1)
    assert np.allclose(epochs["train_loss"], means)
    assert means[-1] < means[0], "the loss on its few rows falls"
    assert epochs["validation_accuracy"].between(0, 1).all()


def test_head_and_lora_are_trained(folders):
    weights = safetensors.torch.load_file(folders["one"] / "outs/adapter/adapter_model.safetensors")
    updates = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert updates
    assert all(tensor.abs().max() > 0 for tensor in updates), "B starts at zero"
    frozen = safetensors.torch.load_file(folders["frozen"] / "outs/adapter/adapter_model.safetensors")
    name = next(name for name in weights if "score" in name)
    assert not torch.equal(weights[name], frozen[name]), "both started with the seeded head, and one was trained"


def test_the_adapter_holds_nothing_of_the_base(folders):
    weights = safetensors.torch.load_file(folders["one"] / "outs/adapter/adapter_model.safetensors")
    assert all("lora_" in name or "score" in name for name in weights)


def test_train_keep_selects_the_best_or_the_last_epoch(folders):
    best, last = (
        json.loads((folders[name] / "outs/results/train/summary.json").read_text()) for name in ("one", "last")
    )
    epochs = curves(folders["one"])["epochs"]
    assert epochs.equals(curves(folders["last"])["epochs"])
    assert best["best_epoch"] == epochs.loc[epochs["validation_loss"].idxmin(), "epoch"]
    assert best["best_epoch"] < 3, "random labels, so a later epoch overfits; otherwise this test shows nothing"
    assert last["best_epoch"] == 3
    assert adapter_bytes(folders["one"]) != adapter_bytes(folders["last"])


def head_and_rest(folder):
    weights = safetensors.torch.load_file(folder / "outs/adapter/adapter_model.safetensors")
    name = next(name for name in weights if "score" in name)
    return weights.pop(name), weights


def validation_rows(folder):
    """(predictions, probabilities) of the validation rows."""
    table = pd.read_parquet(folder / "outs/results/train/validation.parquet")
    assert list(table["row"]) == list(range(12)) and list(table["label"]) == [0, 1, 2] * 4
    assert list(table["group"]) == list(table["row"])
    return table["prediction"].to_numpy(), table[[f"p_{name}" for name in CLASSES]].to_numpy()


@pytest.mark.parametrize("case", ["one", "last", "frozen"])
def test_calibration_divides_the_head_by_the_temperature_and_changes_no_answer(folders, case):
    calibrated, raw = folders[case], folders[f"{case}, raw"]
    summaries = [json.loads((f / "outs/results/train/summary.json").read_text()) for f in (calibrated, raw)]
    temperature = summaries[0].pop("temperature")
    assert summaries[1].pop("temperature") is None and summaries[0] == summaries[1]
    assert temperature["rows"] == 12 and 0 < temperature["low"] < temperature["value"] < temperature["high"]
    (head, lora), (raw_head, raw_lora) = head_and_rest(calibrated), head_and_rest(raw)
    assert torch.equal(head, raw_head / temperature["value"])
    assert lora.keys() == raw_lora.keys() and all(torch.equal(lora[name], raw_lora[name]) for name in lora)
    (answers, probabilities), (raw_answers, raw_probabilities) = map(validation_rows, (calibrated, raw))
    assert (answers == raw_answers).all() and (probabilities.argmax(axis=1) == answers).all()
    expected = softmax(np.log(raw_probabilities) / temperature["value"], axis=1)
    assert probabilities == pytest.approx(expected, abs=1e-4) and probabilities != pytest.approx(raw_probabilities)


@pytest.mark.parametrize("case", ["one", "last"])
def test_the_validation_rows_are_predicted_by_the_epoch_that_is_kept(folders, case):
    folder = folders[f"{case}, raw"]
    answers, probabilities = validation_rows(folder)
    epoch = json.loads((folder / "outs/results/train/summary.json").read_text())["best_epoch"]
    history = curves(folder)["epochs"].set_index("epoch").loc[epoch]
    gold = np.arange(12) % 3
    loss = -np.log(probabilities[np.arange(12), gold]).mean()
    assert loss == pytest.approx(history["validation_loss"], rel=1e-3)
    assert (answers == gold).mean() == pytest.approx(history["validation_accuracy"])


@pytest.mark.parametrize("case", ["one", "frozen, raw"])
def test_the_saved_adapter_predicts_the_validation_rows_as_the_table_has_them(folders, case, monkeypatch):
    monkeypatch.chdir(folders[case])
    p, manifest = params.load(), json.loads(Path("outs/base_model.json").read_text())
    rows = TokenizedRows.from_table(files.read_columns("outs/tokenized/validation.parquet"), LABELS)
    classifier = Classifier.load(manifest, p, p.tokenize.max_length, LABELS, CPU, Path("outs/adapter"))
    assert classifier.predict(rows, 4) == pytest.approx(validation_rows(Path())[1], abs=1e-3)


def test_class_weights_change_the_training_only_if_classes_have_unequal_rows(tmp_path, folders):
    """With equally many rows of each class every weight is 1."""
    even, uneven, weighted = (tmp_path / name for name in ("even", "uneven", "weighted"))
    prepare(even, train__class_weights="balanced", train__epochs=1)
    prepare(uneven, train__epochs=1)
    prepare(weighted, train__class_weights="balanced", train__epochs=1)
    for folder, label in ((even, None), (uneven, 0), (weighted, 0)):
        path = folder / "outs/tokenized/train.parquet"
        rows = pd.read_parquet(path)[:30]
        rows["label"] = rows["label"] if label is None else np.where(rows.index % 10, label, 1)
        rows.to_parquet(path, index=False)
    plain = prepare(tmp_path / "plain", train__epochs=1)
    shutil.copy(even / "outs/tokenized/train.parquet", plain / "outs/tokenized")
    for name, done in run_stage_in_each("train_qlora", [even, uneven, weighted, plain]).items():
        assert done.returncode == 0, (name, done.stderr)
    losses = {folder.name: curves(folder)["steps"]["loss"] for folder in (even, plain, uneven, weighted)}
    assert losses["even"].to_numpy() == pytest.approx(losses["plain"].to_numpy(), rel=1e-3)
    assert abs(losses["weighted"] - losses["uneven"]).max() > 0.05


class Killed(Exception):
    pass


def kill_after_an_epoch(folder):
    """Start `train_qlora`, and kill it when its first checkpoint is complete."""
    process = StartedModule("stages.train_qlora", [], folder, stage_env())
    while process.poll() is None and not list(folder.glob(f"outs/checkpoints/*/checkpoint-*/{checkpoints.WHOLE}")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the stage ended before it could be killed"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A training killed after its first epoch: run again unchanged (`same`), and with another seed (`seed`).

    `moved` and `edited` are copies of the killed one, not run again.
    """
    top = tmp_path_factory.mktemp("killed")
    kill_after_an_epoch(prepare(top / "same"))
    left = sorted(str(path.relative_to(top / "same")) for path in (top / "same").glob("*/*"))
    for name in ("seed", "moved", "edited"):
        shutil.copytree(top / "same", top / name)
    raw = yaml.safe_load((top / "seed/params.yaml").read_text())
    (top / "seed/params.yaml").write_text(yaml.safe_dump(raw | {"seed": 7}))
    done = run_stage_in_each("train_qlora", [top / "same", top / "seed"])
    assert [outcome.returncode for outcome in done.values()] == [0, 0], done
    return SimpleNamespace(top=top, left=left, stdout={name: outcome.stdout for name, outcome in done.items()})


def test_a_killed_training_leaves_no_outs(killed):
    assert [name for name in killed.left if not name.startswith("outs/checkpoints")] == [
        "outs/base_model.json",
        "outs/task.json",
        "outs/tokenized",
    ]


def test_a_killed_training_resumes_and_ends_like_an_uninterrupted_one(killed, folders):
    folder = killed.top / "same"
    assert "resuming from" in killed.stdout["same"]
    assert json.loads((folder / "outs/measurements/train/run.json").read_text())["resumed"] is True
    assert adapter_bytes(folder) == adapter_bytes(folders["one"])
    for name, curve in curves(folder).items():
        assert curve.equals(curves(folders["one"])[name]), f"{name}: the epochs before the kill are included and equal"
    assert not (folder / "outs/checkpoints").exists()


@pytest.mark.parametrize("case", ["one", "last"])
def test_a_training_killed_after_its_last_epoch_resumes_and_ends_like_an_uninterrupted_one(
    tmp_path, monkeypatch, folders, case
):
    folder = prepare(tmp_path / "run", train__keep={"one": "best", "last": "last"}[case])
    monkeypatch.chdir(folder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train_qlora, "scale_head", lambda *_: (_ for _ in ()).throw(Killed))
        train_qlora.main()
    train_qlora.main()
    assert json.loads((folder / "outs/measurements/train/run.json").read_text())["resumed"] is True
    assert adapter_bytes(folder) == adapter_bytes(folders[case])
    for name in ("validation.parquet", "summary.json"):
        resumed, uninterrupted = (top / "outs/results/train" / name for top in (folder, folders[case]))
        assert resumed.read_bytes() == uninterrupted.read_bytes(), name


def test_a_checkpoint_of_other_parameters_is_not_resumed_and_not_removed(killed, folders):
    folder = killed.top / "seed"
    assert "resuming" not in killed.stdout["seed"]
    assert json.loads((folder / "outs/measurements/train/run.json").read_text())["resumed"] is False
    assert adapter_bytes(folder) != adapter_bytes(folders["one"]), "another seed"
    (left,) = (folder / "outs/checkpoints").iterdir()
    lines = [line for line in killed.stdout["seed"].splitlines() if f"outs/checkpoints/{left.name}" in line]
    assert len(lines) == 1 and " MB" in lines[0] and "rm -r" in lines[0], killed.stdout["seed"]
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(raw | {"seed": 42}))
    done = run_stage_in_each("train_qlora", [folder])["seed"]
    assert f"resuming from outs/checkpoints/{left.name}/" in done.stdout
    assert adapter_bytes(folder) == adapter_bytes(folders["one"])
    assert not (folder / "outs/checkpoints").exists()


def read_log_lines(text):
    """The progress lines of a training -> [(step, total, epoch, epochs, loss)]."""
    pattern = r"train: step (\d+) of (\d+), epoch (\d+) of (\d+), loss ([\d.]+), [\d.,]+ rows/s, about .* left"
    found = [re.fullmatch(pattern, line) for line in text.splitlines() if line.startswith("train: ")]
    return [(*map(int, match.groups()[:4]), float(match[5])) for match in found]


def test_log_lines_and_live_curves_have_the_losses_also_after_a_resume_and_change_no_out(
    tmp_path, monkeypatch, capsys, folders
):
    """The first run ends in the second epoch, of whose 4 steps one point is made."""
    pytest.importorskip("dvclive")
    folder, plain, count = prepare(tmp_path / "run", train__report_to="dvclive"), ClassifierTrainer.training_step, []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)

    def training_step(*arguments, **named):
        count.append(None)
        if len(count) == 6:
            raise Killed
        return plain(*arguments, **named)

    monkeypatch.setattr(ClassifierTrainer, "training_step", training_step)
    steps = curves(folders["one"])["steps"]["loss"].to_numpy()
    means = steps.reshape(3, 4).mean(axis=1)
    with pytest.raises(Killed):
        train_qlora.main()
    assert read_log_lines(capsys.readouterr().err) == [(4, 12, 1, 3, pytest.approx(means[0], abs=1e-4))]
    train_qlora.main()
    assert read_log_lines(capsys.readouterr().err) == [(8, 12, 2, 3, pytest.approx(means[1], abs=1e-4))]

    assert adapter_bytes(folder) == adapter_bytes(folders["one"])
    for path in (folders["one"] / "outs/results/train").iterdir():
        assert (folder / "outs/results/train" / path.name).read_bytes() == path.read_bytes(), path.name
    (run,) = (folder / "logs/dvclive").iterdir()
    losses = pd.read_csv(run / "plots/metrics/loss.tsv", sep="\t")
    assert list(losses["step"]) == [4, 8, 12]
    assert losses["loss"].to_numpy() == pytest.approx(means, rel=1e-6)
    accuracy = pd.read_csv(run / "plots/metrics/eval/accuracy.tsv", sep="\t")["accuracy"]
    assert list(accuracy) == list(curves(folder)["epochs"]["validation_accuracy"])


def test_a_missing_logger_is_an_error_before_the_base_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(prepare(tmp_path / "run", train__report_to="mlflow"))
    monkeypatch.setattr(integration_utils, "is_mlflow_available", lambda: False)
    monkeypatch.delattr(train_qlora, "load_base")
    with pytest.raises(UserError, match=r"^params\.yaml: train\.report_to: mlflow: its package is not installed; run"):
        train_qlora.main()


def copy_of_the_code(root, **edits):
    """Copy stages/ below `root`; each edit is {file: (text, its replacement)}."""
    shutil.copytree(ROOT / "stages", root / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in edits.items():
        path = root / "stages" / name
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))
    return str(root)


def test_a_killed_training_resumes_in_a_moved_clone_whose_other_stages_were_edited(killed, folders, tmp_path):
    code = copy_of_the_code(tmp_path, **{"analyze.py": ("import csv\n", "import csv  # edited\n")})
    done = run_stage_in_each("train_qlora", [killed.top / "moved"], PYTHONPATH=code)["moved"]
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    assert adapter_bytes(killed.top / "moved") == adapter_bytes(folders["one"])


def test_a_checkpoint_of_other_code_is_not_resumed(killed, folders, tmp_path):
    max_grad_norm = "        max_grad_norm=train.max_grad_norm,\n"
    edit = (max_grad_norm, f"{max_grad_norm}        adam_beta2=0.9,\n")
    code = copy_of_the_code(tmp_path, **{"training/trainer.py": edit})
    edited, uninterrupted = killed.top / "edited", prepare(tmp_path / "uninterrupted")
    done = run_stage_in_each("train_qlora", [edited, uninterrupted], PYTHONPATH=code)
    assert [outcome.returncode for outcome in done.values()] == [0, 0], done
    assert "resuming" not in done["edited"].stdout
    assert adapter_bytes(edited) == adapter_bytes(uninterrupted)
    assert adapter_bytes(edited) != adapter_bytes(folders["one"]), "the edit changes the training"


def test_seconds_are_those_of_all_epochs_before_and_after_a_resume(tmp_path, monkeypatch):
    """On the test's clock each step takes a second. The first run ends in the second step of the second epoch."""
    monkeypatch.chdir(prepare(tmp_path / "run"))
    clock, plain = SimpleNamespace(now=0), ClassifierTrainer.training_step

    def training_step(*arguments, **named):
        clock.now += 1
        if clock.now == 6:
            raise Killed
        return plain(*arguments, **named)

    for module in (recorder_module, history):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now, time=lambda: clock.now))
    monkeypatch.setattr(ClassifierTrainer, "training_step", training_step)
    with pytest.raises(Killed):
        train_qlora.main()
    train_qlora.main()
    run = json.loads((tmp_path / "run/outs/measurements/train/run.json").read_text())
    assert run["resumed"] is True
    assert run["seconds"] == 4 + 8, "one epoch before the kill and two after it, without the lost step"


@pytest.mark.parametrize(
    ("free", "message"),  # free bytes: too few for any file, for the whole adapter, for the whole optimizer state
    [(4096, "No space left"), (150_000, "No space left"), (600_000, "a write was cut short")],
)
def test_a_disk_that_fills_up_at_a_checkpoint_is_an_error_of_one_line_and_the_next_run_resumes(
    tmp_path, monkeypatch, folders, free, message
):
    plain, fillers = WholeCheckpoints.on_save, []

    def fill_after_the_first(self, args, state, control, **named):
        plain(self, args, state, control, **named)
        if not fillers:
            fillers.append(fill(disk, free))

    with small_disk(tmp_path / "disk", 16_000_000) as disk:
        folder = prepare(disk / "run")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(WholeCheckpoints, "on_save", fill_after_the_first)
        with pytest.raises(UserError, match=rf"^outs/checkpoints/\w+: not written \({message}.*; 0\.\d MB free"):
            train_qlora.main()
        assert [path.name for path in folder.glob("outs/checkpoints/*/*")] == ["checkpoint-4"]
        assert not (folder / "outs/adapter").exists()
        fillers[0].unlink()
        train_qlora.main()
        assert json.loads((folder / "outs/measurements/train/run.json").read_text())["resumed"] is True
        assert adapter_bytes(folder) == adapter_bytes(folders["one"])
        monkeypatch.chdir(tmp_path)


def set_loss(monkeypatch, epoch, loss, training_loss=None):
    """Set the validation loss of an epoch, and the loss of its first step.

    Returns:
        {epoch: the adapter's weights}, filled during training.
    """
    plain, step, adapters = ClassifierTrainer.evaluation_loop, ClassifierTrainer.training_step, {}

    def training_step(self, *arguments, **named):
        done = step(self, *arguments, **named)
        if training_loss and self.state.global_step == (epoch - 1) * 4:
            self.step_losses[-1] = torch.tensor(training_loss)
        return done

    def evaluation_loop(self, *arguments, **named):
        output, number = plain(self, *arguments, **named), round(self.state.epoch)
        adapters[number] = {k: v.clone() for k, v in peft.get_peft_model_state_dict(self.model).items()}
        if number == epoch:
            output.metrics["eval_loss"] = loss
        return output

    monkeypatch.setattr(ClassifierTrainer, "training_step", training_step)
    monkeypatch.setattr(ClassifierTrainer, "evaluation_loop", evaluation_loop)
    return adapters


@pytest.mark.parametrize(
    ("loss", "training_loss"), [(math.nan, None), (math.inf, None), (-math.inf, None), (0.0, math.inf), (0.0, math.nan)]
)
def test_training_ends_after_an_epoch_with_a_loss_that_is_not_finite_and_an_earlier_one_is_kept(
    tmp_path, monkeypatch, capsys, loss, training_loss
):
    folder = prepare(tmp_path / "run", train__keep="best", train__calibrate=False)  # calibration changes the head
    monkeypatch.chdir(folder)
    adapters = set_loss(monkeypatch, 2, loss, training_loss)
    train_qlora.main()
    assert list(adapters) == list(curves(folder)["epochs"]["epoch"]) == [1, 2], "training ends after it"
    assert "training diverged in epoch 2: train.keep: best keeps epoch 1" in capsys.readouterr().out
    assert json.loads((folder / "outs/results/train/summary.json").read_text())["best_epoch"] == 1
    kept = safetensors.torch.load_file(folder / "outs/adapter/adapter_model.safetensors")
    equal = [n for n, adapter in adapters.items() if all(torch.equal(adapter[name], kept[name]) for name in kept)]
    assert equal == [1]


def assert_diverged(folder, line, learning_rate):
    assert "params.yaml: train.learning_rate" in line and learning_rate in line and "diverged" in line
    assert written(folder) == [
        "outs/base_model.json",
        "outs/task.json",
        "outs/tokenized/test.parquet",
        "outs/tokenized/train.parquet",
        "outs/tokenized/validation.parquet",
    ]
    assert not (folder / "outs/checkpoints").exists()


def test_a_diverged_training_is_an_error_of_one_line_and_writes_nothing(tmp_path):
    made = {keep: prepare(tmp_path / keep, train__learning_rate=1e6, train__keep=keep) for keep in ("best", "last")}
    for name, done in run_stage_in_each("train_qlora", made.values()).items():
        assert_diverged(made[name], error_line(done), "1000000.0")
        assert "the loss of epoch 1 is NaN or infinite" in error_line(done)
        assert done.stdout.count("epoch") == 1, "training ends after the first epoch"


@pytest.mark.parametrize(
    ("epoch", "loss", "training_loss"), [(3, math.nan, None), (2, math.nan, None), (2, 0.5, math.nan)]
)
def test_a_diverged_last_epoch_is_an_error_with_train_keep_last(tmp_path, monkeypatch, epoch, loss, training_loss):
    folder = prepare(tmp_path / "run", train__keep="last")
    monkeypatch.chdir(folder)
    adapters = set_loss(monkeypatch, epoch, loss, training_loss)
    with pytest.raises(UserError, match=f"the loss of epoch {epoch} is NaN or infinite") as raised:
        train_qlora.main()
    assert_diverged(folder, str(raised.value), "0.01")
    assert max(adapters) == epoch


def test_a_run_killed_after_it_diverged_does_not_resume_beyond_the_divergence(tmp_path, monkeypatch):
    folder = prepare(tmp_path / "run", train__keep="last")
    monkeypatch.chdir(folder)
    set_loss(monkeypatch, 2, math.nan)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(history, "best_epoch", lambda epochs: (_ for _ in ()).throw(Killed))
        train_qlora.main()
    names = {path.name for path in folder.glob("outs/checkpoints/*/*")}
    assert names == {"checkpoint-4", "checkpoint-8"}, "the latter lacks its validation, so the next run validates it"
    with pytest.raises(UserError, match="the loss of epoch 2 is NaN or infinite"):
        train_qlora.main()


def test_a_wrongly_saved_adapter_is_an_error(tmp_path, monkeypatch):
    """The checkpoints stay, so the next run resumes from the last one."""
    folder, plain = prepare(tmp_path / "run"), train_qlora.save_adapter

    def save_adapter(model, tokenizer, manifest, settings, to):
        plain(model, tokenizer, manifest, settings, to)
        config = json.loads((to / "adapter_config.json").read_text())
        (to / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 32}))

    monkeypatch.chdir(folder)
    monkeypatch.setattr(train_qlora, "save_adapter", save_adapter)
    with pytest.raises(UserError, match=r"outs/adapter: not saved: .*predicts otherwise"):
        train_qlora.main()
    assert not (folder / "outs/adapter").exists()
    assert not (folder / "outs/results").exists()
    monkeypatch.setattr(train_qlora, "save_adapter", plain)
    train_qlora.main()
    assert json.loads((folder / "outs/measurements/train/run.json").read_text())["resumed"] is True
    assert (folder / "outs/adapter").is_dir()


def test_the_trained_model_is_freed_before_the_adapter_is_loaded_again(tmp_path, monkeypatch):
    """Otherwise a GPU with memory for one base would fail at the end. The cache keeps the base as it was loaded."""
    alive, plain = [], train_qlora.verify_saved_adapter

    def verify_saved_adapter(*arguments):
        alive.extend(model for model in gc.get_objects() if isinstance(model, PreTrainedModel))
        plain(*arguments)

    monkeypatch.chdir(prepare(tmp_path / "run"))
    monkeypatch.setattr(train_qlora, "verify_saved_adapter", verify_saved_adapter)
    gc.collect()
    before = sum(isinstance(model, PreTrainedModel) for model in gc.get_objects())
    train_qlora.main()
    assert len(alive) == before + 2, "of the cached base, the classifier and the decoder in it"


def test_the_stage_ends_when_dvc_is_killed(tmp_path):
    """A killed `dvc` sends no signal to its stage. The training saves a checkpoint, or its last one was just saved."""
    folder = prepare(tmp_path / "orphan", train__epochs=500)
    dvc = subprocess.Popen(["sleep", "600"])
    env = stage_env(DVC_STAGE="train_qlora", DVC_PID=str(dvc.pid))
    stage = StartedModule("stages.train_qlora", [], folder, env, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: stage.poll() is not None or list(folder.glob("outs/checkpoints/*/checkpoint-*")))
        assert stage.poll() is None
        dvc.kill()
        dvc.wait()
        wait_for(lambda: stage.poll() is not None, 10)
        line = stage.stderr.read().splitlines()[-1]
        assert line.startswith("train_qlora: `dvc` or the launcher has ended: checkpoint of step "), line
    finally:
        dvc.kill()
        stage.kill()


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("stage", "broken", "message"),
    [("train_qlora", "transformers.Trainer.train", "tokenize.max_length: 128: the smallest part of a batch"),
     ("eval_base", "stages.model.classifier.Classifier._compute_logits", "tokenize.max_length: 128: a batch of one")],
)  # fmt: skip
def test_a_batch_that_does_not_fit_the_gpu_is_an_error_of_one_line(tmp_path, monkeypatch, stage, broken, message):
    folder = prepare(tmp_path / "run", eval__batch_size=256)
    shutil.copy(folder / "outs/tokenized/train.parquet", folder / "outs/tokenized/test.parquet")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(broken, out_of_memory)
    with pytest.raises(UserError, match=f"params.yaml: {message}"):
        importlib.import_module(f"stages.{stage}").main()
    assert not any((folder / name).exists() for name in ("outs/results", "outs/measurements"))
