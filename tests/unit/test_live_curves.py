"""Live curves: what each logger gets, and that a logger's error does not end a training."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from transformers.integrations import integration_utils

from stages.runtime.errors import UserError
from stages.training import live_curves
from stages.training.live_losses import RecentSteps

POINTS = [RecentSteps(step, step / 10, 1 / step, 0.5 / step, 100.0 + step) for step in (3, 6, 10, 13, 16, 20)]
LOSSES = [(point.step, pytest.approx(point.loss)) for point in POINTS]


def scores(step):
    """The state of the Trainer after a validation."""
    return SimpleNamespace(
        global_step=step,
        log_history=[
            {"step": step, "step_loss": 0.25},
            {"step": step, "eval_loss": 0.5, "eval_accuracy": 0.75, "eval_f1_weighted": 0.7},
        ],
    )


def report(p, folder, points, checkpoint=None, finish=True):
    """Report points, a checkpoint after each tenth step. `finish=False`: as if the process was killed then."""
    curves = live_curves.prepare(p)
    curves.start(folder, checkpoint)
    for point in points:
        curves.log_steps(point)
        if point.step % 10 == 0:
            curves.on_evaluate(None, scores(point.step), None)
            folder.mkdir(parents=True, exist_ok=True)
            curves.on_save(None, scores(point.step), None)
    if finish:
        curves.end()
    return curves


def read_tensorboard():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = live_curves.LOGS.glob("tensorboard/*")
    events = EventAccumulator(str(run))
    events.Reload()
    assert "tokenize" in events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    curves = {name: events.Scalars(name) for name in ("train/loss", "train/learning_rate", "eval/accuracy")}
    return [[(event.step, event.value) for event in curve] for curve in curves.values()]


def read_dvclive():
    (run,) = live_curves.LOGS.glob("dvclive/*")
    assert "lora.r: 16" in (run / "params.yaml").read_text()
    tables = [
        pd.read_csv(run / f"plots/metrics/{name}.tsv", sep="\t") for name in ("loss", "learning_rate", "eval/accuracy")
    ]
    return [list(table.itertuples(index=False, name=None)) for table in tables]


def read_mlflow():
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert run.data.params["lora.r"] == "16"
    curves = [client.get_metric_history(run.info.run_id, name) for name in ("loss", "learning_rate", "eval_accuracy")]
    return [sorted({(metric.step, metric.value) for metric in curve}) for curve in curves]


READERS = {"tensorboard": read_tensorboard, "dvclive": read_dvclive, "mlflow": read_mlflow}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a run's checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    return tmp_path / "outs/checkpoints/0123abcd"


@pytest.mark.parametrize("name", READERS)
def test_a_logger_gets_losses_rates_scores_and_parameters(make_params, folder, name):
    pytest.importorskip(name)
    report(make_params(train__report_to=name), folder, POINTS)
    losses, rates, accuracies = READERS[name]()
    assert losses == LOSSES
    assert rates == [(point.step, pytest.approx(point.learning_rate)) for point in POINTS]
    assert accuracies == [(10, 0.75), (20, 0.75)]


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_training_continues_the_run(make_params, folder, name):
    """It was killed after step 13, and its last checkpoint is that of step 10."""
    pytest.importorskip(name)
    p = make_params(train__report_to=name)
    killed = report(p, folder, POINTS[:4], finish=False)
    if name == "mlflow":
        killed.logger.callback._ml_flow.end_run("FAILED")  # a new process has no active run
    report(p, folder, POINTS[3:], checkpoint=folder / "checkpoint-10")
    losses, _, accuracies = READERS[name]()
    assert losses == LOSSES, "step 13 was trained twice, and is there once"
    assert accuracies == [(10, 0.75), (20, 0.75)]


def test_wandb_gets_losses_and_parameters_offline(make_params, folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    curves = live_curves.prepare(make_params(train__report_to="wandb"))
    curves.start(folder, None)
    run = curves.logger.callback._wandb.run
    for point in POINTS[:3]:
        curves.log_steps(point)
    assert run.config["lora.r"] == 16
    assert dict(run.summary)["train/loss"] == POINTS[2].loss and run.summary["train/global_step"] == 10
    curves.end()
    assert list(folder.parents[2].glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "dvclive"])
def test_a_missing_package_is_an_error_of_one_line(make_params, monkeypatch, name):
    monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: False)
    package = {"mlflow": "mlflow-skinny sqlalchemy alembic"}.get(name, name)
    line = (
        f"params.yaml: train.report_to: {name}: its package is not installed; run `pip install {package}`, or set none"
    )
    with pytest.raises(UserError, match=f"^{line}$"):
        live_curves.prepare(make_params(train__report_to=name))


def test_nothing_is_reported_by_other_ranks_or_with_none(make_params, monkeypatch):
    assert live_curves.prepare(make_params()) is None
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert live_curves.prepare(make_params(train__report_to="dvclive")) is None


class Broken(live_curves.Logger):
    """A logger whose calls raise after so many."""

    def __init__(self, good_calls):
        super().__init__(self)
        self.good_calls, self.calls = good_calls, []

    def open(self, *arguments):
        return "nowhere"

    def __getattr__(self, event):
        def call(*arguments, **named):
            self.calls.append(event)
            if len(self.calls) > self.good_calls:
                raise ConnectionError("no route to host.\nat line 3")

        return call


def test_a_logger_that_fails_during_a_training_is_left_out_and_reported_once(make_params, folder, capsys):
    curves = live_curves.LiveCurves(logger := Broken(2), make_params(train__report_to="wandb"))
    curves.start(folder, None)
    for point in POINTS:
        curves.log_steps(point)
    curves.end()
    assert logger.calls == ["on_train_begin", "on_log", "on_log"]
    assert capsys.readouterr().out.splitlines() == [
        "live curves: nowhere",
        "live curves: the training goes on without wandb: ConnectionError: no route to host.",
    ]


def test_a_run_that_cannot_be_recorded_ends_the_curves_and_not_the_training(make_params, folder, monkeypatch, capsys):
    """As when a user's code has ended the logger's run. The record of an earlier checkpoint stays whole."""
    curves = live_curves.LiveCurves(logger := Broken(9), make_params(train__report_to="wandb"))
    monkeypatch.setattr(logger, "run_id", lambda: "first", raising=False)
    curves.start(folder, None)
    curves.on_save(None, scores(10), None)
    monkeypatch.setattr(logger, "run_id", lambda: logger.callback.run.id)
    monkeypatch.setattr(logger, "callback", SimpleNamespace(run=None))
    curves.on_save(None, scores(20), None)
    assert json.loads((folder / "live_run.json").read_text()) == {"wandb": "first"}
    assert "the training goes on without wandb: AttributeError" in capsys.readouterr().out


def test_a_damaged_record_of_the_run_is_an_error_of_one_line(make_params, folder):
    folder.mkdir(parents=True)
    (folder / "live_run.json").touch()
    curves = live_curves.LiveCurves(Broken(9), make_params(train__report_to="wandb"))
    with pytest.raises(UserError, match=r"^params.yaml: train.report_to: wandb: .*live_run.json.*, or set none$"):
        curves.start(folder, folder / "checkpoint-10")


def test_a_logger_that_cannot_start_is_an_error_of_one_line(make_params, folder):
    curves = live_curves.LiveCurves(Broken(0), make_params(train__report_to="wandb"))
    with pytest.raises(UserError, match=r"^params.yaml: train.report_to: wandb: ConnectionError: no route to host, or"):
        curves.start(folder, None)


def test_the_parameters_that_a_logger_shows_change_no_key_that_a_resumed_run_may_change(make_params, folder):
    """MLflow rejects a run's parameter that changes."""
    logger = Broken(9)
    live_curves.LiveCurves(logger, make_params(train__report_to="wandb")).start(folder, None)
    values = logger.arguments.to_dict()
    assert values["train.learning_rate"] == json.loads(logger.arguments.to_json_string())["train"]["learning_rate"]
    assert not {"train.report_to", "train.checkpoint_minutes"} & set(values)
