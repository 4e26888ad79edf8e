"""Live curves: what a training shows in TensorBoard, Weights & Biases, MLflow or DVCLive while it runs.

`train.report_to` of params.yaml selects one of the Trainer's own callbacks. The user installs its package. None of the
files is an out of a stage, and no result depends on them.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils
from transformers.utils.generic import flatten_dict

from stages.runtime import distributed, errors, files, params
from stages.training.history import read_curves
from stages.training.live_losses import RecentSteps

LOGS = Path("logs")  # in .gitignore


def prepare(p: params.Params) -> "LiveCurves | None":
    """Check `train.report_to` before anything is loaded. None: nothing is reported, or not by this rank.

    Raises:
        UserError: its package is not installed, or it needs a login.
    """
    name = p.train.report_to
    if name == "none" or not distributed.is_main():
        return None
    if not getattr(integration_utils, f"is_{name}_available")():
        raise _error(name, f"its package is not installed; run `pip install {LOGGERS[name].package}`")
    try:
        return LiveCurves(LOGGERS[name](integration_utils.INTEGRATION_TO_CALLBACK[name]()), p)
    except Exception as error:
        raise _error(name, errors.type_and_first_line(error)) from error


def _error(name: str, reason: str) -> errors.UserError:
    return errors.UserError(f"params.yaml: train.report_to: {name}: {reason.rstrip('.')}, or set none")


class LiveCurves(TrainerCallback):
    """Passes losses and scores to a logger.

    The Trainer does not call the logger itself, for three reasons: it would log the mean of each epoch into the curve
    of the steps, it would record each point in the checkpoints, and an error of the logger would end the training.

    - on_evaluate: logs an epoch's mean loss and its validation.
    - on_save: records the logger's run next to the checkpoint, so that a resumed training continues it.

    Args:
        logger: as `train.report_to` says.
        p: the parameters, which the logger shows.
    """

    def __init__(self, logger: "Logger", p: params.Params) -> None:
        self.logger, self.p, self.active = logger, p, False

    def start(self, folder: Path, checkpoint: Path | None) -> None:
        """Start the logger's run, or continue that of the checkpoint.

        Args:
            folder: of the checkpoints; its name is the run's digest.
            checkpoint: from which the training resumes, or None.

        Raises:
            UserError: the logger cannot start.
        """
        self.run_file = folder / "live_run.json"
        step, run_id = 0, None
        name = os.environ.get("DVC_EXP_NAME", folder.name)
        values = self.p.model_dump(exclude={"train": params.NO_EFFECT_ON_RESULTS})
        try:
            if checkpoint:
                step = int(checkpoint.name.split("-")[1])
                runs = files.read_json(self.run_file) if self.run_file.exists() else {}
                run_id = runs.get(self.p.train.report_to)
            where = self.logger.start(name, folder, step, run_id, values)
        except Exception as error:
            raise _error(self.p.train.report_to, errors.type_and_first_line(error)) from error
        self.active = True
        print(f"live curves: {where}", flush=True)

    def log_steps(self, recent: RecentSteps) -> None:
        """Log the loss, the learning rate and the speed of recent steps."""
        logs = {"loss": recent.loss, "learning_rate": recent.learning_rate, "rows_per_second": recent.rows_per_second}
        self._try(lambda: self.logger.log(logs | {"epoch": recent.epoch}, recent.step))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch = read_curves(state)[1][-1]
        logs = {name.replace("validation_", "eval_"): value for name, value in epoch.items() if name != "train_loss"}
        self._try(lambda: self.logger.log(logs | {"epoch_loss": epoch["train_loss"]}, state.global_step))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._try(self._record_run)

    def _record_run(self) -> None:
        if run_id := self.logger.run_id():
            files.write_json(self.run_file, {self.p.train.report_to: run_id})

    def end(self) -> None:
        """End the logger's run. What it has not sent yet, it sends now."""
        self._try(self.logger.end)

    def _try(self, call: Callable[[], None]) -> None:
        """Call the logger. Its error ends the curves, not the training."""
        if not self.active:
            return
        try:
            call()
        except Exception as error:
            self.active = False
            reason = errors.type_and_first_line(error)
            print(f"live curves: the training goes on without {self.p.train.report_to}: {reason}", flush=True)


class Logger:
    """One of the Trainer's own callbacks, and how a run of it starts, continues and ends.

    Args:
        callback: the Trainer's.

    Attributes:
        package: what the user installs.
    """

    package: str

    def __init__(self, callback: TrainerCallback) -> None:
        self.callback: Any = callback

    def start(self, name: str, folder: Path, step: int, run_id: str | None, values: dict) -> str:
        """Start a run -> where to see it.

        Args:
            name: of the run.
            folder: of the checkpoints; its name is the run's digest.
            step: the last one of an earlier, interrupted run.
            run_id: that run's id.
            values: of params.yaml.
        """
        # The callbacks need no more of `TrainingArguments`, and show what these two functions return as the recipe.
        self.arguments = SimpleNamespace(
            run_name=name,
            output_dir=str(folder),
            to_dict=lambda: flatten_dict(values),
            to_json_string=lambda: json.dumps(values, indent=2),
        )
        where = self.open(name, folder, step, run_id)
        self._call("on_train_begin", step)
        return where

    def open(self, name: str, folder: Path, step: int, run_id: str | None) -> str:
        """Give the callback a run to write to, where its own would not do -> where to see it."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], step: int) -> None:
        """Log values of a step."""
        self._call("on_log", step, logs=logs)

    def end(self) -> None:
        """End the run."""
        self._call("on_train_end", 0)

    def run_id(self) -> str | None:
        """The id by which a resumed training continues this run."""
        return None

    def _call(self, event: str, step: int, **values: Any) -> None:
        state = TrainerState(global_step=step)
        getattr(self.callback, event)(self.arguments, state, TrainerControl(), model=None, **values)


class TensorBoard(Logger):
    package = "tensorboard"

    def open(self, name: str, folder: Path, step: int, run_id: str | None) -> str:
        from torch.utils.tensorboard import SummaryWriter

        root = Path(os.environ.get("TENSORBOARD_LOGGING_DIR", LOGS / "tensorboard")).expanduser()
        self.callback.tb_writer = SummaryWriter(root / folder.name, purge_step=step + 1)  # hides what is trained again
        return f"`tensorboard --logdir {root}`, run {folder.name}"


class WeightsAndBiases(Logger):
    package = "wandb"

    def __init__(self, callback: TrainerCallback) -> None:
        super().__init__(callback)
        self.callback._wandb.login()  # without a key and a terminal, it raises an error

    def open(self, name: str, folder: Path, step: int, run_id: str | None) -> str:
        wandb = self.callback._wandb
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "huggingface"),  # as the callback does
            name=name,
            id=run_id,
            resume="allow" if run_id else None,
            settings=wandb.Settings(finish_timeout=60),  # by default it waits for a lost connection without end
        )
        return run.url or f"`wandb sync {os.path.relpath(Path(run.dir).parent)}`"

    def end(self) -> None:
        super().end()
        self.callback._wandb.finish()

    def run_id(self) -> str:
        return self.callback._wandb.run.id


class MLflow(Logger):
    # The package mlflow would replace pyarrow by an older version. Its sqlite file needs the other two.
    package = "mlflow-skinny sqlalchemy alembic"

    def open(self, name: str, folder: Path, step: int, run_id: str | None) -> str:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 7 take minutes
        if run_id:
            os.environ["MLFLOW_RUN_ID"] = run_id
        return f"MLflow, {self.callback._ml_flow.get_tracking_uri()}, run {name}"

    def run_id(self) -> str:
        return self.callback._ml_flow.active_run().info.run_id


class DVCLive(Logger):
    package = "dvclive"

    def open(self, name: str, folder: Path, step: int, run_id: str | None) -> str:
        from dvclive import Live

        where = LOGS / "dvclive" / folder.name
        for path in where.rglob("*.tsv"):  # of an interrupted run, whose last steps are trained again
            table = pd.read_csv(path, sep="\t")
            table[table["step"] <= step].to_csv(path, sep="\t", index=False)
        # DVC itself records the experiment, and dvc.yaml is the pipeline's.
        self.callback.live = Live(str(where), resume=step > 0, save_dvc_exp=False, dvcyaml=None)
        return f"DVCLive, {where}"

    def log(self, logs: dict[str, float], step: int) -> None:
        self.callback.live.step = step  # the callback counts calls
        super().log(logs, step)


LOGGERS: dict[str, type[Logger]] = {
    "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow, "dvclive": DVCLive,
}  # fmt: skip
