"""The history of a training: losses and scores of steps and epochs, recorded for the curves and printed."""

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from stages.data.confusion import count_classes, f1_macro, f1_micro, f1_weighted
from stages.data.labels import decide_like, equal_rows
from stages.runtime.progress import format_rate, progress_bar
from stages.runtime.usage_recorder import Recorder
from stages.training.live_losses import RecentSteps


class History(TrainerCallback, ExportableState):
    """Records the loss of each step and the seconds of each epoch in the state, which the checkpoint contains.

    An epoch's seconds are those of its steps, its validation and the checkpoints in its middle. After a resume in the
    middle of an epoch the seconds before its checkpoint count too, and the steps after it count once.

    Training ends after an epoch whose loss is not finite. Its checkpoint stays as it was before the validation, so it
    cannot become the Trainer's best one, and a resumed run validates it again. All ranks have the same losses, and end
    together.

    - on_train_begin: reads the seconds of the epoch that a resumed training continues.
    - on_epoch_begin: names the phase of the recorder's samples, starts the epoch's clock.
    - on_epoch_end: moves the steps' losses from the device to the state.
    - on_evaluate: records the epoch's seconds, stops a diverged training.
    - state: the seconds of the unfinished epoch, for a checkpoint.

    Args:
        step_losses: the Trainer's list, to which each step appends its loss; emptied here.
    """

    def __init__(self, step_losses: list[torch.Tensor], recorder: Recorder) -> None:
        self.step_losses, self.recorder = step_losses, recorder
        self.epoch_start: float | None = None  # None: no epoch has begun, or its validation has ended
        self.seconds_before = 0.0

    def state(self) -> dict[str, dict[str, float]]:
        seconds = 0.0 if self.epoch_start is None else time.perf_counter() - self.epoch_start
        return {"args": {}, "attributes": {"epoch_seconds": seconds}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds_before = _unfinished_seconds(state)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recorder.phase = f"epoch_{int(state.epoch or 0) + 1}"
        self.epoch_start, self.seconds_before = time.perf_counter() - self.seconds_before, 0.0

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        record_step_losses(self.step_losses, state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        seconds = self.state()["attributes"]["epoch_seconds"]
        state.log_history.append({"step": state.global_step, "epoch_seconds": seconds})
        self.epoch_start = None
        if not is_finite(read_curves(state)[1][-1]):
            control.should_training_stop, control.should_save = True, False


def record_step_losses(step_losses: list[torch.Tensor], state: TrainerState) -> None:
    """Move the losses of the steps before this moment from the device to the state."""
    if step_losses:
        losses = torch.stack(step_losses).float().tolist()
        step_losses.clear()
        first = state.global_step - len(losses) + 1
        state.log_history += [{"step": first + i, "step_loss": loss} for i, loss in enumerate(losses)]


def sum_seconds(state: TrainerState) -> float:
    """Seconds of the epochs and of the unfinished epoch that a checkpoint's state has."""
    return sum(entry.get("epoch_seconds", 0.0) for entry in state.log_history) + _unfinished_seconds(state)


def _unfinished_seconds(state: TrainerState) -> float:
    return state.stateful_callbacks[History.__name__]["attributes"]["epoch_seconds"]  # type: ignore[index, call-overload]


class Progress(TrainerCallback):
    """Shows steps, loss, speed and time left, and prints a line for each epoch instead of the Trainer's dictionaries.

    - on_train_begin, on_train_end: open and close the progress bar. Without a terminal it is a line every 30 seconds.
    - on_epoch_begin: leaves validation out of the time left.
    - on_evaluate: prints the epoch's line.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = progress_bar(state.max_steps, "train", "step", state.global_step)
        self.epochs = round(state.num_train_epochs)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.unpause()

    def show(self, recent: RecentSteps) -> None:
        """Move the bar to these steps, which `LiveLosses` passes on."""
        self.bar.set_postfix_str(
            f"epoch {math.ceil(recent.epoch)} of {self.epochs}, loss {recent.loss:.4f}, "
            f"{format_rate(recent.rows_per_second)} rows/s",
            refresh=False,
        )
        self.bar.update(recent.step - self.bar.n)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch = read_curves(state)[1][-1]
        self.bar.write(
            f"epoch {epoch['epoch']} of {self.epochs}: "
            f"training loss {epoch['train_loss']:.4f}, validation loss {epoch['validation_loss']:.4f}, "
            f"{describe_scores(kwargs['metrics'])}"
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.close()


def describe_scores(metrics: Mapping[str, float]) -> str:
    """An epoch's scores, of which the report leads with one. Only rows with several labels have a micro F1."""
    if "eval_f1_micro" in metrics:
        return f"micro F1 {metrics['eval_f1_micro']:.1%}, subset accuracy {metrics['eval_accuracy']:.1%}"
    return f"accuracy {metrics['eval_accuracy']:.1%}, macro F1 {metrics['eval_f1_macro']:.1%}"


def compute_validation_metrics(gold: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Accuracy, weighted and macro F1 of an epoch's validation, from a gold label array and logits [rows, classes].

    If a row may have several labels, it is right if all of them are, and micro F1 is in place of macro F1.
    """
    predicted = decide_like(gold, logits)
    counts = count_classes(gold, predicted, classes=logits.shape[-1])
    scores = {"accuracy": float(equal_rows(predicted, gold).mean()), "f1_weighted": float(f1_weighted(counts))}
    name, score = ("f1_micro", f1_micro) if predicted.ndim > 1 else ("f1_macro", f1_macro)
    return scores | {name: float(score(counts))}


def read_curves(state: TrainerState) -> tuple[list[dict], list[dict]]:
    """Read the curves of steps and epochs from the state of a run.

    Returns:
        (steps, epochs): lists of dicts. Steps have `step`, `loss`. Epochs have `epoch`, `train_loss` (mean over the
        epoch's steps), `validation_loss`, `validation_accuracy`, `validation_f1_weighted`; and
        `validation_f1_micro`, if rows may have several labels.
    """
    steps = [{"step": e["step"], "loss": e["step_loss"]} for e in state.log_history if "step_loss" in e]
    evaluations = [e for e in state.log_history if "eval_loss" in e]
    epochs: list[dict] = []
    previous_step = 0.0
    for number, entry in enumerate(evaluations, start=1):
        losses = [s["loss"] for s in steps if previous_step < s["step"] <= entry["step"]]
        previous_step = entry["step"]
        epochs.append(
            {
                "epoch": number,
                "train_loss": sum(losses) / len(losses),
                "validation_loss": entry["eval_loss"],
                "validation_accuracy": entry["eval_accuracy"],
                "validation_f1_weighted": entry["eval_f1_weighted"],
                **({"validation_f1_micro": entry["eval_f1_micro"]} if "eval_f1_micro" in entry else {}),
            }
        )
    return steps, epochs


def is_finite(epoch: dict) -> bool:
    """Whether training and validation loss of an epoch are finite. If not, training has diverged."""
    return math.isfinite(epoch["train_loss"]) and math.isfinite(epoch["validation_loss"])


def best_epoch(epochs: list[dict]) -> int | None:
    """Number of the epoch with the lowest validation loss, the first of equal ones. None: no epoch is finite."""
    finite = [epoch for epoch in epochs if is_finite(epoch)]
    return min(finite, key=lambda epoch: epoch["validation_loss"])["epoch"] if finite else None
