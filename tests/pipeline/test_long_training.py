"""A training saves checkpoints in the middle of an epoch, resumes there, and ends like an undisturbed one."""

import json
import re
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.stages import StartedModule, run_stage_in_each, stage_env
from helpers.training_folder import prepare

from stages import train_qlora
from stages.runtime import shutdown
from stages.runtime import usage_recorder as recorder_module
from stages.training import history
from stages.training.checkpoints import WholeCheckpoints
from stages.training.epoch_batches import EpochBatches
from stages.training.trainer import ClassifierTrainer

pytestmark = pytest.mark.slow
EACH_STEP = 1e-6  # minutes: a checkpoint after each step
STEPS = 4  # per epoch, of three epochs
RESULTS = ("adapter", "results/train")


class Killed(Exception):
    pass


def results(folder):
    """{file: bytes} of what a training found."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in RESULTS
        for path in (folder / "outs" / name).iterdir()
    }


def final_state(monkeypatch):
    """A list that gets each finished trainer's log, without seconds, and its optimizer's and scheduler's state."""
    states, plain = [], ClassifierTrainer.compute_validation_logits

    def compute_validation_logits(self):
        log = [entry for entry in self.state.log_history[:-1] if "epoch_seconds" not in entry]
        log = [{key: v for key, v in entry.items() if not key.endswith(("_second", "_runtime"))} for entry in log]
        optimizer = self.optimizer.state_dict()["state"]
        moments = [value.clone() for values in optimizer.values() for value in values.values()]
        states.append((log, moments, self.lr_scheduler.state_dict()))
        return plain(self)

    monkeypatch.setattr(ClassifierTrainer, "compute_validation_logits", compute_validation_logits)
    return states


def kill_in_step(patch, step):
    plain = ClassifierTrainer.training_step

    def training_step(self, *arguments, **named):
        if self.state.global_step == step - 1:
            raise Killed
        return plain(self, *arguments, **named)

    patch.setattr(ClassifierTrainer, "training_step", training_step)


def kill_in_validation(patch, epoch):
    plain = ClassifierTrainer.evaluation_loop

    def evaluation_loop(self, *arguments, **named):
        if self.state.global_step == epoch * STEPS:
            raise Killed
        return plain(self, *arguments, **named)

    patch.setattr(ClassifierTrainer, "evaluation_loop", evaluation_loop)


def saved_steps(folder):
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob("outs/checkpoints/*/*/whole"))


def test_a_training_killed_in_many_steps_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    states = final_state(monkeypatch)
    undisturbed = prepare(tmp_path / "undisturbed", lora__dropout=0.3)
    folder = prepare(tmp_path / "run", lora__dropout=0.3, train__checkpoint_minutes=EACH_STEP)
    read, plain = [], EpochBatches.__getitem__
    monkeypatch.setattr(EpochBatches, "__getitem__", lambda self, number: read.append(number) or plain(self, number))
    monkeypatch.chdir(undisturbed)
    train_qlora.main()
    monkeypatch.chdir(folder)
    for kill, place, saved in (
        (kill_in_step, 3, 2),
        (kill_in_step, 4, 3),  # an epoch's last step
        (kill_in_validation, 1, 4),
        (kill_in_validation, 1, 4),  # that was missing
        (kill_in_step, 5, 4),  # an epoch's first step
        (kill_in_step, 12, 11),
        (kill_in_validation, 3, 12),
    ):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill(patch, place)
            read.clear()
            train_qlora.main()
        assert saved_steps(folder)[-1] == saved
    assert read == [3], "the batches before the checkpoint are not read"
    train_qlora.main()
    assert results(folder) == results(undisturbed)
    (log, moments, scheduler), (expected_log, expected_moments, expected_scheduler) = reversed(states)
    assert log == expected_log and scheduler == expected_scheduler
    assert all(torch.equal(*pair) for pair in zip(moments, expected_moments, strict=True))
    assert not (folder / "outs/checkpoints").exists()


def test_the_best_epochs_checkpoint_and_the_last_one_are_kept(tmp_path, monkeypatch):
    folder, plain, kept = prepare(tmp_path / "run", train__checkpoint_minutes=EACH_STEP), WholeCheckpoints.on_save, []

    def on_save(self, args, state, control, **named):
        plain(self, args, state, control, **named)
        kept.append((state.global_step, state.best_global_step or 0, saved_steps(folder)))

    monkeypatch.setattr(WholeCheckpoints, "on_save", on_save)
    monkeypatch.chdir(folder)
    train_qlora.main()
    assert [step for step, *_ in kept] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12], "before a validation too"
    assert {best for _, best, _ in kept[4:]} <= {4, 8, 12}, "an epoch's end"
    assert all(saved == sorted({step, best} - {0}) for step, best, saved in kept)
    best_epoch = json.loads((folder / "outs/results/train/summary.json").read_text())["best_epoch"]
    assert best_epoch < 3 and kept[-1][1] == 4 * best_epoch, "otherwise no checkpoint but the last had to be kept"


def test_seconds_are_those_of_all_steps_that_were_not_lost(tmp_path, monkeypatch):
    """On the test's clock each step takes a second. The first run ends in the fourth step of the second epoch."""
    folder = prepare(tmp_path / "run", train__checkpoint_minutes=EACH_STEP, train__epochs=2)
    monkeypatch.chdir(folder)
    clock, plain, epochs = SimpleNamespace(now=0), ClassifierTrainer.training_step, []

    def training_step(*arguments, **named):
        clock.now += 1
        if clock.now == 8:
            raise Killed
        return plain(*arguments, **named)

    for module in (recorder_module, history):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now, time=lambda: clock.now))
    monkeypatch.setattr(ClassifierTrainer, "training_step", training_step)
    with pytest.raises(Killed):
        train_qlora.main()
    clock.now = 100
    on_evaluate = history.History.on_evaluate
    monkeypatch.setattr(
        history.History,
        "on_evaluate",
        lambda self, args, state, *more, **named: (
            on_evaluate(self, args, state, *more, **named),
            epochs.extend(e["epoch_seconds"] for e in state.log_history if "epoch_seconds" in e),
        )[0],
    )
    train_qlora.main()
    assert epochs == [4, 4]
    assert json.loads((folder / "outs/measurements/train/run.json").read_text())["seconds"] == 8


def test_sigterm_saves_a_checkpoint_and_the_next_run_continues_there(tmp_path):
    """The next run has another `train.checkpoint_minutes`, which changes no result."""
    folder = prepare(tmp_path / "run", train_rows=320, train__epochs=1, train__checkpoint_minutes=1e-3)
    undisturbed = prepare(tmp_path / "undisturbed", train_rows=320, train__epochs=1)
    stage = StartedModule("stages.train_qlora", [], folder, stage_env(), stderr=subprocess.PIPE)
    while stage.poll() is None and not saved_steps(folder):
        time.sleep(0.01)
    stage.send_signal(signal.SIGTERM)
    stderr = stage.stderr.read()
    assert stage.wait() == 143
    (saved,) = saved_steps(folder)
    line = f"train_qlora: SIGTERM: checkpoint of step {saved} written; `dvc repro` continues there\n"
    assert stderr.endswith(line) and "Traceback" not in stderr and saved < 40, "40 steps"
    assert not (folder / "outs/adapter").exists() and not list(folder.rglob(".*.tmp"))
    shutil.copy(undisturbed / "params.yaml", folder)
    done = run_stage_in_each("train_qlora", [folder, undisturbed])
    assert re.search(rf"resuming from \S+/checkpoint-{saved}: step {saved} of 40\n", done["run"].stdout)
    assert results(folder) == results(undisturbed)


def test_a_signal_waits_for_a_checkpoint_except_in_a_validation_and_after_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(prepare(tmp_path / "run", train__epochs=2, train__checkpoint_minutes=EACH_STEP))
    events, deferred = set(), []

    def log(name):
        plain = getattr(ClassifierTrainer, name)

        def logged(self, *arguments, **named):
            events.add((name, deferred[-1]))
            return plain(self, *arguments, **named)

        monkeypatch.setattr(ClassifierTrainer, name, logged)

    for name in (
        "training_step", "_save_optimizer_and_scheduler", "evaluation_loop", "_save_state", "compute_validation_logits",
    ):  # fmt: skip
        log(name)
    monkeypatch.setattr(shutdown, "defer", lambda: deferred.append(True))
    monkeypatch.setattr(shutdown, "stop_deferring", lambda: deferred.append(False))
    train_qlora.main()
    assert events == {
        ("training_step", True), ("_save_optimizer_and_scheduler", True), ("evaluation_loop", False),
        ("_save_state", False), ("compute_validation_logits", False),
    }  # fmt: skip
