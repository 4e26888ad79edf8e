"""Training by the Hugging Face Trainer: schedule, logging, evaluation, checkpoints, resuming."""

import hashlib
import json
import math
import shutil
import time
from functools import partial
from importlib.machinery import PathFinder
from modulefinder import ModuleFinder
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from stages.kernels.errors import StepUnavailable
from stages.runtime.files import remove_folder, sha256
from stages.task.batching import collate, length_grouped_order, random_order

WHOLE = "whole"  # marks a checkpoint that was written to its end
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class EpochOrder(Sampler):
    """The order of the rows in each epoch: a function of seed and epoch alone, so that resuming goes on as before."""

    def __init__(self, lengths, batch_size, group_by_length, seed):
        self.lengths, self.batch_size, self.group_by_length, self.seed = lengths, batch_size, group_by_length, seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        seed = [self.seed, self.epoch]
        if self.group_by_length:
            return iter(length_grouped_order(self.lengths, self.batch_size, seed))
        return iter(random_order(len(self.lengths), seed))


class ClassifierTrainer(Trainer):
    """Trainer with rows in a reproducible order, and each step's loss kept without waiting for the GPU.

    Attributes:
        step_losses: losses of this epoch's steps, on the device.
        fast_step: the captured step, or None for the Trainer's own.
    """

    def __init__(self, *args, group_by_length, cuda_graphs, dequantize_once, pad_id, **kwargs):
        super().__init__(*args, **kwargs)
        self.group_by_length, self.cuda_graphs, self.pad_id = group_by_length, cuda_graphs, pad_id
        self.dequantize_once = dequantize_once
        self.step_losses = []
        self.fast_step = None

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(row["input_ids"]) for row in self.train_dataset]
        return EpochOrder(lengths, self.args.train_batch_size, self.group_by_length, self.args.seed)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.cuda_graphs and self.fast_step is None:
            self.fast_step = self._make_fast_step(model)
        if self.fast_step is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            if not model.training:
                model.train()
            inputs = self._prepare_inputs(inputs)
            loss = self.fast_step(inputs["input_ids"], inputs["labels"], self.state.global_step)
        self.step_losses.append(loss.detach().clone())
        return loss.detach()

    def _make_fast_step(self, model):
        self.cuda_graphs = False  # asked for once
        if self.args.device.type != "cuda":
            return None
        try:
            from stages.training import fast_step  # needs Triton, which comes with PyTorch for CUDA alone

            model.train()
            return fast_step.FastStep(
                model, self.args.train_batch_size, self.args.seed, self.pad_id, self.dequantize_once
            )
        except (ImportError, StepUnavailable) as error:
            print(f"training without CUDA graphs: {error}")
            return None

    def floating_point_ops(self, inputs):
        return 0  # counting parameters at each step takes the host longer than launching the step


class History(TrainerCallback):
    """Puts each step's loss and an epoch's seconds into the state, so that the epoch's checkpoint carries them."""

    def __init__(self, trainer, recorder):
        self.trainer, self.recorder = trainer, recorder

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.recorder.phase = f"epoch_{round(state.epoch) + 1}"
        self.begun = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        losses = torch.stack(self.trainer.step_losses).float().tolist()
        self.trainer.step_losses.clear()
        first = state.global_step - len(losses) + 1
        state.log_history += [{"step": first + i, "step_loss": loss} for i, loss in enumerate(losses)]

    def on_evaluate(self, args, state, control, **kwargs):
        state.log_history.append({"step": state.global_step, "epoch_seconds": time.perf_counter() - self.begun})


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole once it is; keeps the best and the last."""

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir)
        last = folder / f"checkpoint-{state.global_step}"
        (last / WHOLE).touch()
        best = Path(state.best_model_checkpoint or last)
        for old in folder.glob("checkpoint-*"):
            if old.name not in (last.name, best.name):
                _discard(old)


def _discard(checkpoint):
    (checkpoint / WHOLE).unlink(missing_ok=True)  # first, so that one half removed is never resumed
    shutil.rmtree(checkpoint)


def checkpoint_to_resume(folder):
    """The newest whole checkpoint below `folder`, or None; broken ones are removed."""
    checkpoints = sorted(Path(folder).glob("checkpoint-*"), key=_step)
    for checkpoint in checkpoints:
        if not (checkpoint / WHOLE).exists():
            shutil.rmtree(checkpoint)
    whole = [checkpoint for checkpoint in checkpoints if checkpoint.exists()]
    return whole[-1] if whole else None


def _step(checkpoint):
    return int(checkpoint.name.split("-")[1])


def seconds_before(checkpoint, state):
    """Seconds of the epochs that a run resumed from `checkpoint` did not train again; 0 where it is None.

    An epoch's seconds are those of its steps and its validation. The part of an epoch that a kill cut off is not in
    them, nor what loading and saving took.

    Args:
        state: the `TrainerState` of the run, resumed.
    """
    if checkpoint is None:
        return 0.0
    epochs = [entry for entry in state.log_history if "epoch_seconds" in entry]
    return sum(epoch["epoch_seconds"] for epoch in epochs if epoch["step"] <= _step(checkpoint))


def remove_checkpoints(folder):
    """Remove a run's checkpoints, and what a kill left of such a removal; say which other runs' stay beside them."""
    remove_folder(folder)
    top = folder.parent
    for remains in top.glob(".*.tmp"):
        shutil.rmtree(remains)
    others = sorted(top.iterdir())
    if others:
        names = ", ".join(f"{other} ({_megabytes(other):.1f} MB)" for other in others)
        print(f"checkpoints of runs that were broken off are kept for them: {names}; `rm -r {top}` removes them")
    else:
        top.rmdir()


def _megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def run_digest(*values):
    """Digest of all that determines a run; names the folder of its checkpoints."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class _Imports(ModuleFinder):
    """A ModuleFinder that passes over folders without `__init__.py`, which it can't read."""

    def find_module(self, name, path, parent=None):
        spec = PathFinder.find_spec(name, path or self.path)
        if spec and spec.loader is None:
            raise ImportError(name)
        return super().find_module(name, path, parent)


def code_digests(script):
    """{file, seen from the root: SHA-256} of a stage's script and of every file of this repository that it imports.

    Imports inside functions count too; nothing is run.
    """
    script = Path(script).resolve()
    root = script.parent.parent
    imports = _Imports([str(root)])
    imports.run_script(str(script))
    paths = [Path(module.__file__) for module in imports.modules.values() if module.__file__]  # a built-in one has none
    return {path.relative_to(root).as_posix(): sha256(path) for path in paths}


def make_trainer(model, train_rows, validation_rows, params, pad_id, output_dir, recorder):
    """A Trainer for these rows and parameters.

    Args:
        model: from `add_lora`.
        train_rows, validation_rows: lists of {"input_ids", "labels"}.
        params: all of params.yaml.
        output_dir: folder of the checkpoints.
        recorder: a `Recorder`, whose samples are to name their epoch.
    """
    group = params.train
    steps = -(-len(train_rows) // group.batch_size) * group.epochs
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        seed=params.seed,
        use_cpu=params.device == "cpu",
        num_train_epochs=group.epochs,
        per_device_train_batch_size=group.batch_size,
        per_device_eval_batch_size=4
        * group.batch_size,  # no activations are kept; not eval.batch_size, which may change without training
        learning_rate=group.learning_rate,
        lr_scheduler_type=SCHEDULES[group.schedule],
        warmup_steps=int(steps * group.warmup_ratio),
        weight_decay=group.weight_decay,
        max_grad_norm=group.max_grad_norm,
        optim="adamw_torch_fused" if params.device == "cuda" else "adamw_torch",
        gradient_checkpointing=group.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if group.gradient_checkpointing else None,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=group.keep == "best",
        metric_for_best_model="loss",
        greater_is_better=False,
        logging_nan_inf_filter=False,  # it waits for the GPU at each step
        remove_unused_columns=False,
        dataloader_pin_memory=params.device == "cuda",
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer splits each batch over all GPUs that it sees
    trainer = ClassifierTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        data_collator=partial(collate, pad_id=pad_id, batches=params.batches, max_length=params.tokenize.max_length),
        compute_metrics=validation_metrics,
        group_by_length=params.batches.group_by_length,
        cuda_graphs=group.cuda_graphs,
        dequantize_once=group.dequantize_once,
        pad_id=pad_id,
    )
    trainer.add_callback(History(trainer, recorder))
    trainer.add_callback(WholeCheckpoints())
    return trainer


def validation_metrics(prediction):
    """Accuracy and weighted F1 of an epoch's validation."""
    predicted = prediction.predictions.argmax(axis=-1)
    return {
        "accuracy": accuracy_score(prediction.label_ids, predicted),
        "f1_weighted": f1_score(prediction.label_ids, predicted, average="weighted", zero_division=0),
    }


def history(state):
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


def best_epoch(epochs):
    """Number of the epoch with the lowest validation loss, the first of equals; None where no loss is finite."""
    finite = [epoch for epoch in epochs if math.isfinite(epoch["validation_loss"])]
    return min(finite, key=lambda epoch: epoch["validation_loss"])["epoch"] if finite else None
