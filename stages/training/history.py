"""The history of a training: what each step and epoch lost and scored, kept for the curves and shown as it comes."""

import math
import time

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerState

from stages.data.confusion import class_counts, confusion_counts, f1_weighted
from stages.runtime import distributed
from stages.runtime.usage_recorder import Recorder


class History(TrainerCallback):
    """Puts each step's loss and an epoch's seconds into the state, so that the epoch's checkpoint carries them.

    An epoch whose loss is not finite ends the training, and gets no checkpoint: it is never the Trainer's best one, and
    a resumed run meets it again. All ranks have the same losses, and so end together.
    """

    def __init__(self, trainer: Trainer, recorder: Recorder):
        self.trainer, self.recorder = trainer, recorder

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.recorder.phase = f"epoch_{round(state.epoch) + 1}"
        self.begun = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        losses = torch.stack(self.trainer.step_losses).float().tolist()
        self.trainer.step_losses.clear()
        first = state.global_step - len(losses) + 1
        state.log_history += [{"step": first + i, "step_loss": loss} for i, loss in enumerate(losses)]

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        state.log_history.append({"step": state.global_step, "epoch_seconds": time.perf_counter() - self.begun})
        if not is_finite(read_curves(state)[1][-1]):
            control.should_training_stop, control.should_save = True, False


class Progress(TrainerCallback):
    """A line for each epoch in place of the Trainer's dictionaries; on a terminal a bar of the steps beside it."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        steps, done = state.max_steps, state.global_step
        self.bar = tqdm(
            total=steps, initial=done, desc="train", unit="step", disable=distributed.progress_bar_disabled()
        )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        epoch = read_curves(state)[1][-1]
        self.bar.write(
            f"epoch {epoch['epoch']} of {round(state.num_train_epochs)}: "
            f"training loss {epoch['train_loss']:.4f}, validation loss {epoch['validation_loss']:.4f}, "
            f"accuracy {epoch['validation_accuracy']:.1%}, weighted F1 {epoch['validation_f1_weighted']:.1%}"
        )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy and weighted F1 of an epoch's validation."""
    gold, logits = prediction.label_ids, prediction.predictions
    predicted = logits.argmax(axis=-1)
    confusion = confusion_counts(gold, predicted, classes=logits.shape[-1])
    return {"accuracy": float(np.mean(predicted == gold)), "f1_weighted": float(f1_weighted(class_counts(confusion)))}


def read_curves(state: TrainerState) -> tuple[list[dict], list[dict]]:
    """Per-step and per-epoch curves of a finished run.

    Returns:
        (steps, epochs): lists of dicts; steps have `step`, `loss`; epochs have `epoch`, `train_loss` (mean over the
        epoch's steps), `validation_loss`, `validation_accuracy`, `validation_f1_weighted`.
    """
    steps = [{"step": e["step"], "loss": e["step_loss"]} for e in state.log_history if "step_loss" in e]
    evaluations = [e for e in state.log_history if "eval_loss" in e]
    epochs, first = [], 0
    for number, entry in enumerate(evaluations, start=1):
        losses = [s["loss"] for s in steps if first < s["step"] <= entry["step"]]
        first = entry["step"]
        epochs.append(
            {
                "epoch": number,
                "train_loss": sum(losses) / len(losses),
                "validation_loss": entry["eval_loss"],
                "validation_accuracy": entry["eval_accuracy"],
                "validation_f1_weighted": entry["eval_f1_weighted"],
            }
        )
    return steps, epochs


def is_finite(epoch: dict) -> bool:
    """Whether training and validation loss of an epoch are numbers: else the training has diverged."""
    return math.isfinite(epoch["train_loss"]) and math.isfinite(epoch["validation_loss"])


def best_epoch(epochs: list[dict]) -> int | None:
    """Number of the epoch with the lowest validation loss, the first of equals; None where no epoch is finite."""
    finite = [epoch for epoch in epochs if is_finite(epoch)]
    return min(finite, key=lambda epoch: epoch["validation_loss"])["epoch"] if finite else None
