"""The Hugging Face Trainer as this project sets it: schedule, evaluation, a reproducible order, the captured step."""

from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from stages.kernels.errors import StepUnavailable
from stages.runtime.params import Params
from stages.runtime.recorder import Recorder
from stages.task.batching import collate, lay_end_to_end, order_of
from stages.training.checkpoints import WholeCheckpoints
from stages.training.history import History, Progress, validation_metrics

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class EpochOrder(Sampler):
    """The order of the rows in each epoch: a function of seed and epoch alone, so that resuming goes on as before."""

    def __init__(self, lengths, batch_size, order, seed):
        self.lengths, self.batch_size, self.order, self.seed = lengths, batch_size, order, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        return iter(order_of(self.lengths, self.order, self.batch_size, [self.seed, self.epoch]))


class ClassifierTrainer(Trainer):
    """Trainer with rows in a reproducible order, and each step's loss kept without waiting for the GPU.

    Attributes:
        step_losses: losses of this epoch's steps, on the device.
        fast_step: the captured step, or None for the Trainer's own.
        end_to_end: makes its batches where it takes rows without padding; else `data_collator` does.
    """

    def __init__(self, *args, batches, cuda_graphs, dequantize_once, pad_id, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches, self.cuda_graphs, self.pad_id = batches, cuda_graphs, pad_id
        self.dequantize_once = dequantize_once
        self.lengths = [len(row["input_ids"]) for row in self.train_dataset]
        rows = self.args.train_batch_size
        tokens = round(rows * sum(self.lengths) / len(self.lengths)) or 1  # a batch that is not whole has its size too
        self.end_to_end = partial(lay_end_to_end, pad_id=pad_id, rows=rows, tokens=tokens)
        self.step_losses = []
        self.fast_step = None

    def get_train_dataloader(self) -> DataLoader:
        self.fast_step, padded = self._make_fast_step(), self.data_collator
        if self.fast_step and self.fast_step.takes_rows_end_to_end and self.batches.padding == "none":
            self.data_collator = self.end_to_end
        elif self.batches.order == "balanced":
            print("rows are padded to the longest of their batch; `batches.order: grouped` leaves less padding")
        loader = super().get_train_dataloader()
        self.data_collator = padded  # validation has its own
        return loader

    def _get_train_sampler(self, train_dataset=None):
        return EpochOrder(self.lengths, self.args.train_batch_size, self.batches.order, self.args.seed)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Of the captured step's few tensors: with hundreds the host takes longer for a step than the GPU."""
        if self.fast_step is None or self.optimizer is not None:
            return super().create_optimizer(model)
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        decays = self.get_decay_parameter_names(self.model)
        kept = {p for name, p in self.model.named_parameters() if name not in decays}
        groups = [
            {"params": [p for p in self.fast_step.parameters if p not in kept], "weight_decay": self.args.weight_decay},
            {"params": [p for p in self.fast_step.parameters if p in kept], "weight_decay": 0.0},
        ]
        self.optimizer = kind([group for group in groups if group["params"]], **settings)
        return self.optimizer

    def _clip_grad_norm(self, model):
        if self.fast_step is None:
            return super()._clip_grad_norm(model)
        return torch.nn.utils.clip_grad_norm_(self.fast_step.parameters, self.args.max_grad_norm)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.fast_step is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            if not model.training:
                model.train()
            loss = self.fast_step(self._prepare_inputs(inputs), self.state.global_step)
        self.step_losses.append(loss.detach().clone())
        return loss.detach()

    def _make_fast_step(self):
        if not self.cuda_graphs or self.args.device.type != "cuda":
            return None
        try:
            from stages.training import fast_step  # needs Triton, which comes with PyTorch for CUDA alone

            return fast_step.FastStep(
                self.model.train(), self.args.train_batch_size, max(1, *self.lengths), self.args.seed, self.pad_id,
                self.dequantize_once,
            )  # fmt: skip
        except (ImportError, StepUnavailable) as error:
            print(f"training without CUDA graphs: {error}")
            return None

    def floating_point_ops(self, inputs) -> int:
        return 0  # counting parameters at each step takes the host longer than launching the step


def make_trainer(
    model: PeftModel,
    train_rows: list[dict],
    validation_rows: list[dict],
    params: Params,
    pad_id: int,
    output_dir: Path,
    recorder: Recorder,
) -> ClassifierTrainer:
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
        batches=params.batches,
        cuda_graphs=group.cuda_graphs,
        dequantize_once=group.dequantize_once,
        pad_id=pad_id,
    )
    trainer.add_callback(History(trainer, recorder))
    trainer.add_callback(WholeCheckpoints())
    for theirs in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(theirs)
    trainer.add_callback(Progress())
    return trainer
