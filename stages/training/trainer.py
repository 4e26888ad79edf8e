"""The Hugging Face Trainer as this project sets it: schedule, evaluation, a reproducible order, the captured step."""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from stages.data.batching import count_tokens, pack_rows, pad_rows
from stages.kernels.errors import StepUnavailable
from stages.runtime import distributed
from stages.runtime.params import Params
from stages.runtime.usage_recorder import Recorder
from stages.training.checkpoints import WholeCheckpoints, saving
from stages.training.epoch_batches import EpochBatches, EpochLoader
from stages.training.history import History, Progress, validation_metrics

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class ClassifierTrainer(Trainer):
    """Trainer with rows in a reproducible order, on any number of ranks; it keeps each step's loss on the GPU.

    A batch is that of all ranks together. Each computes its part, and counts it by its share of the rows, so that the
    sum of the ranks' gradients is the gradient of the batch.

    Attributes:
        step_losses: losses of this epoch's steps, on the device.
        captured_step: the captured step, or None for the Trainer's own, which several ranks take through PyTorch's
            DistributedDataParallel.
        collate_packed: makes its batches where it takes rows without padding; else `data_collator` does.
    """

    def __init__(self, *args, batches, cuda_graphs, dequantize_once, pad_id, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches, self.cuda_graphs, self.pad_id = batches, cuda_graphs, pad_id
        self.dequantize_once = dequantize_once
        self.lengths = count_tokens(self.train_dataset)
        whole = min(self.args.train_batch_size, len(self.lengths))  # rows of the largest batch that there is
        self.rows = -(-whole // distributed.world_size())  # of a rank's part
        tokens = round(self.rows * self.lengths.mean()) or 1  # a batch that is not whole has its size too
        self.collate_packed = partial(_collate_packed, pad_id=pad_id, capacity=self.rows, least=tokens)
        self.step_losses = []
        self.captured_step = None

    def get_train_dataloader(self) -> EpochLoader:
        self.captured_step = self._capture_step()
        self._compare_ranks()
        if self.captured_step:  # it adds up the gradients itself
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        if self.captured_step and self.captured_step.takes_packed_rows and self.batches.padding == "none":
            lay = self.collate_packed
        else:
            lay = partial(_collate_padded, collate=self.data_collator)
            if self.batches.order == "balanced":
                print("rows are padded to the longest of their batch; `batches.order: grouped` leaves less padding")
        batches = EpochBatches(self.train_dataset, self.args.train_batch_size, self.batches.order, self.args.seed, lay)
        return EpochLoader(batches, self.args.dataloader_pin_memory)

    def get_batch_samples(self, epoch_iterator, num_batches, device) -> tuple[list, torch.Tensor | int | None]:
        if self.captured_step is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        return [next(epoch_iterator)], None  # to count rows that no one asks for, the host would wait for the GPU

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Batches as one rank has them, whole, of which each rank takes every so many."""
        size, rows = self.args.eval_batch_size, len(self.eval_dataset)
        batches = [range(start, min(start + size, rows)) for start in range(0, rows, size)]
        return DataLoader(
            self.eval_dataset, batch_sampler=batches[distributed.rank() :: distributed.world_size()],
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )  # fmt: skip

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """The ranks' answers, put together in the order of the rows: on any number of ranks the same.

        The Trainer's own repeats rows until each rank has as many as another, and the last batch's loss is of those.
        """
        self.model.eval()
        found = [self.prediction_step(self.model, inputs, prediction_loss_only=False) for inputs in dataloader]
        found = [tuple(part.cpu() for part in batch) for batch in found]
        turns = itertools.zip_longest(*distributed.all_gather(found))
        losses, logits, labels = zip(*(batch for turn in turns for batch in turn if batch), strict=True)
        by_row = [loss.repeat(len(batch)) for loss, batch in zip(losses, labels, strict=True)]
        logits, labels = torch.cat(logits).float().numpy(), torch.cat(labels).numpy()
        metrics = self.compute_metrics(EvalPrediction(predictions=logits, label_ids=labels))
        metrics["loss"] = torch.cat(by_row).numpy().mean().item()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=logits, label_ids=labels, metrics=metrics, num_samples=len(labels))

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Of the captured step's few tensors: with hundreds the host takes longer for a step than the GPU."""
        if self.captured_step is None or self.optimizer is not None:
            return super().create_optimizer(model)
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        decays = self.get_decay_parameter_names(self.model)
        kept = {p for name, p in self.model.named_parameters() if name not in decays}
        groups = [
            {
                "params": [p for p in self.captured_step.parameters if p not in kept],
                "weight_decay": self.args.weight_decay,
            },
            {"params": [p for p in self.captured_step.parameters if p in kept], "weight_decay": 0.0},
        ]
        self.optimizer = kind([group for group in groups if group["params"]], **settings)
        return self.optimizer

    def _clip_grad_norm(self, model):
        if self.captured_step is None:
            return super()._clip_grad_norm(model)
        return torch.nn.utils.clip_grad_norm_(self.captured_step.parameters, self.args.max_grad_norm)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        inputs = {name: value.to(self.args.device, non_blocking=True) for name, value in inputs.items()}
        step = self.state.global_step
        if self.captured_step:
            if not model.training:
                model.train()
            loss = self.captured_step(inputs, step)
        elif distributed.world_size() == 1:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            torch.manual_seed(_seed_of(self.args.seed, step, distributed.rank()))  # dropout's masks, after a resume too
            loss = super().training_step(model, inputs, num_items_in_batch) / distributed.world_size()
            distributed.all_reduce(loss)
        self.step_losses.append(loss.detach().clone())
        return loss.detach()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> torch.Tensor | tuple:
        """The Trainer's; weighed so that the mean of the ranks, which DDP takes of their gradients, is the batch's."""
        weight = inputs.get("weight")
        inputs = {name: value for name, value in inputs.items() if name != "weight"}
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return found if weight is None else found * weight * distributed.world_size()

    def _save_checkpoint(self, model, trial):
        self._compare_ranks()
        with saving(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def _compare_ranks(self):
        """Raise RuntimeError where ranks have different weights: the first's are saved, and nobody would see it."""
        if distributed.world_size() > 1:
            weights = [weight.detach() for weight in self.model.parameters() if weight.requires_grad]
            sums = distributed.all_gather([checksum(weight) for weight in weights])
            if any(others != sums[0] for others in sums):
                raise RuntimeError("the ranks have different weights")

    def _save_rng_state(self, output_dir):
        if distributed.is_main():  # several ranks seed each step anew
            super()._save_rng_state(output_dir)

    def _capture_step(self):
        if not self.cuda_graphs or self.args.device.type != "cuda":
            return None
        try:
            from stages.training import captured_step  # needs Triton, which comes with PyTorch for CUDA alone

            return captured_step.CapturedStep(
                self.model.train(), self.rows, max(1, int(self.lengths.max())), self.args.seed, self.pad_id,
                self.dequantize_once,
            )  # fmt: skip
        except (ImportError, StepUnavailable) as error:
            print(f"training without CUDA graphs: {error}")
            return None

    def floating_point_ops(self, inputs) -> int:
        return 0  # counting parameters at each step takes the host longer than launching the step


def _collate_packed(rows, tokens, longest, pad_id, capacity, least):
    return pack_rows(rows, pad_id, rows=capacity, tokens=max(tokens, least))


def _collate_padded(rows, tokens, longest, collate):
    return collate(rows, longest=longest)


def checksum(weight: torch.Tensor) -> int:
    """Sum of a fp32 tensor's bits, each element's times its place, so that elements that have moved are seen too."""
    bits = weight.flatten().view(torch.int32).long()
    return (bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum().item()


def _seed_of(*numbers):
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def make_trainer(
    model: PeftModel,
    train_rows: Sequence[dict],
    validation_rows: Sequence[dict],
    params: Params,
    pad_id: int,
    output_dir: Path,
    recorder: Recorder,
) -> ClassifierTrainer:
    """A Trainer for these rows and parameters.

    Args:
        model: from `add_lora`.
        train_rows, validation_rows: of {"input_ids", "labels"}.
        params: all of params.yaml.
        output_dir: folder of the checkpoints.
        recorder: a `Recorder`, whose samples are to name their epoch.
    """
    group = params.train
    if group.batch_size < distributed.world_size():
        print(f"train.batch_size: {group.batch_size} is less than {distributed.world_size()} processes: some are idle")
    steps = -(-len(train_rows) // group.batch_size) * group.epochs
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        seed=params.seed,
        use_cpu=params.device == "cpu",
        num_train_epochs=group.epochs,
        per_device_train_batch_size=group.batch_size,  # of all ranks together: `EpochBatches` divides it
        # No activations are kept. Not eval.batch_size, which may change without training.
        per_device_eval_batch_size=4 * -(-group.batch_size // distributed.world_size()),
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
        average_tokens_across_devices=False,  # `compute_loss` does it
        ddp_find_unused_parameters=True,  # else layerdrop breaks it, and sums have another order after a resume
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer splits each batch over all GPUs that it sees
    trainer = ClassifierTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        data_collator=partial(pad_rows, pad_id=pad_id, batches=params.batches, max_length=params.tokenize.max_length),
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
