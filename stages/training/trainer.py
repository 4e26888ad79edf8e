"""The Hugging Face Trainer, adapted: a reproducible order of rows, any number of ranks, the captured step."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput

from stages.data.batching import (
    EVALUATION_TOKENS,
    count_batch_tokens,
    count_tokens,
    pack_rows,
    pad_rows,
    padded_length,
    split_batches,
)
from stages.kernels.errors import StepUnavailable
from stages.runtime import distributed, files
from stages.runtime.errors import UserError
from stages.runtime.params import Batches, Params, Train
from stages.runtime.progress import progress_bar
from stages.runtime.usage_recorder import Recorder
from stages.training.captured_optimizer import CapturedAdamW
from stages.training.checkpoints import WholeCheckpoints, remove_partial_if_disk_is_full
from stages.training.epoch_batches import EpochBatches, EpochLoader, Part
from stages.training.history import History, Progress, compute_validation_metrics, record_step_losses
from stages.training.live_curves import LiveCurves
from stages.training.live_losses import LiveLosses
from stages.training.loss import compute_loss
from stages.training.part_collator import PartCollator
from stages.training.timed_checkpoints import TimedCheckpoints

if TYPE_CHECKING:  # it imports Triton, which comes only with PyTorch for CUDA
    from stages.training.captured_step import CapturedStep

VALIDATION_ROWS = 4  # of a validation batch, at most so many for each row of a training batch
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class ClassifierTrainer(Trainer):
    """Trainer with the same batches on any number of ranks, and with the captured step.

    A batch has the rows of all ranks together. Each rank computes its share in one or more parts. It weights each part
    by its share of the rows, so the sum of all parts' gradients is the gradient of the batch.

    What it overrides, and why:

    - get_train_dataloader: builds the captured step, and loads `EpochBatches`.
    - get_batch_samples: the Trainer counts labels, which no step needs. The host would wait for the GPU.
    - training_step: computes a batch in parts, by the captured step if there is one; seeds dropout on several ranks;
      records the loss.
    - compute_loss: computes the loss from the logits, and weights that of a part.
    - create_optimizer: captures clipping and AdamW too. It passes the captured step's few tensors: with hundreds the
      host takes longer for a step than the GPU.
    - _clip_grad_norm: leaves it to this optimizer.
    - the model's zero_grad: each captured step overwrites all gradients. To look for them in phi-2's 2,300 modules took
      7 ms on a slow CPU core.
    - floating_point_ops: the Trainer counts the parameters at each step, which takes longer than launching the step.
    - get_eval_dataloader: divides batches of limited size among the ranks, without repeating rows.
    - evaluation_loop: the Trainer repeats rows to give all ranks equally many, and counts them in the loss.
    - _maybe_log_save_evaluate: the Trainer evaluates before it saves. A kill in a long validation would lose the epoch.
    - _init_training_state, _run_epoch: resume such a checkpoint, whose validation is missing.
    - _save_checkpoint: first compares the ranks' weights and records the steps' losses; leaves no partial checkpoint if
      the disk is full. After a validation it only adds the scores to the checkpoint of before.
    - _save_rng_state: only rank 0 writes it. Several ranks do not need it, because they seed each step.

    Args:
        train_rows, validation_rows: of {"input_ids", "labels"}.
        batches, train: these sections of params.yaml.
        max_length: `tokenize.max_length`.
        pad_id: token that fills batches.
        trainer_arguments: further arguments of `Trainer`.

    Attributes:
        step_losses: losses of the steps that are not in the state yet, on the device.
        saved_step: the step of the newest checkpoint, or 0.
        captured_optimizer: None without captured step.
        captured_step: None if the Trainer's own step runs, on several ranks by PyTorch's DistributedDataParallel.
        memory_plan: how a batch is computed, in words; None without captured step.
        collate: of the parts of batches.
        validation_tokens: the most tokens of a validation batch.
    """

    def __init__(
        self,
        model: PeftModel,
        train_rows: Sequence[dict],
        validation_rows: Sequence[dict],
        *,
        batches: Batches,
        train: Train,
        max_length: int,
        pad_id: int,
        **trainer_arguments: Any,
    ) -> None:
        rows: dict[str, Any] = {"train_dataset": train_rows, "eval_dataset": validation_rows}  # any Sequence will do
        super().__init__(model, **rows, **trainer_arguments)
        self.classifier, self.train_rows, self.validation_rows = model, train_rows, validation_rows
        self.validation_lengths = count_tokens(validation_rows)
        self.batches, self.train_params, self.max_length, self.pad_id = batches, train, max_length, pad_id
        self.step_losses: list[torch.Tensor] = []
        self.saved_step, self.validation_tokens = 0, EVALUATION_TOKENS
        self.captured_step: CapturedStep | None = None
        self.captured_optimizer: CapturedAdamW | None = None
        self.memory_plan: str | None = None

    def get_train_dataloader(self) -> EpochLoader:
        self.captured_step = self._make_captured_step()
        self._compare_ranks()
        if not self.packs_rows and self.batches.order == "balanced":
            print("rows are padded to the longest of their batch; `batches.order: grouped` leaves less padding")
        self.collate = PartCollator(self.packs_rows, self.pad_id, self.batches, self.max_length)
        micro_batch = None if self.train_params.micro_batch == "auto" else self.train_params.micro_batch
        batches = EpochBatches(
            self.train_rows, self.args.train_batch_size, self.batches.order, self.args.seed, self.collate_part,
            micro_batch,
        )  # fmt: skip
        if self.captured_step:
            from stages.training.prepare_step import prepare_step

            # The captured step sums the ranks' gradients itself, so no DistributedDataParallel.
            without_ddp = partial(self.accelerator.prepare_model, evaluation_mode=True)
            self.accelerator.prepare_model = without_ddp  # type: ignore[method-assign]  # the Trainer has no option
            self.classifier.zero_grad = _keep_gradients  # type: ignore[method-assign]
            self.memory_plan = prepare_step(
                self.captured_step, batches, self.collate, self.train_params, self.try_largest_validation_batch,
                self.list_validation_limits(),
            )  # fmt: skip
        elif self.args.device.type == "cuda":
            self.try_largest_validation_batch(EVALUATION_TOKENS)
        return EpochLoader(batches, self.args.dataloader_pin_memory)

    @property
    def packs_rows(self) -> bool:
        """Whether the rows of a batch follow one another without padding."""
        packs = self.captured_step is not None and self.captured_step.takes_packed_rows
        return packs and self.batches.padding == "none"

    def collate_part(self, rows: list[dict], offsets: np.ndarray) -> Part:
        """Make tensors of the rows of a part of a batch; offsets: where each row begins in the batch."""
        return self.collate(rows, offsets)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        return [next(epoch_iterator)], None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """This rank's validation batches: for each batch the numbers of its rows, int64 [rows]."""
        return self._split_validation(self.validation_tokens)[distributed.rank() :: distributed.world_size()]

    def _split_validation(self, max_tokens: int) -> list[np.ndarray]:
        """The numbers of the rows of each validation batch of up to so many tokens.

        Long rows are sorted by length, so that little padding is computed. Short ones keep their order: another one
        rounds otherwise.
        """
        order = np.arange(len(self.validation_lengths))
        if self.validation_lengths.max() * self.args.eval_batch_size > max_tokens:
            order = np.argsort(-self.validation_lengths, kind="stable")
        return split_batches(
            self.validation_lengths, order.tolist(), self.args.eval_batch_size, max_tokens, self._pad_length()
        )

    def _pad_length(self) -> Callable[[int], int] | None:
        return None if self.packs_rows else partial(padded_length, batches=self.batches, max_length=self.max_length)

    def _count_batch_tokens(self, rows: np.ndarray) -> int:
        return count_batch_tokens(self.validation_lengths[rows], self._pad_length())

    def list_validation_limits(self) -> dict[int, int]:
        """Limits of a validation batch's tokens, `EVALUATION_TOKENS` and its halves, and the largest batch's of each.

        A limit that makes the largest batch no smaller is left out: a row longer than a limit is a batch.
        """
        limits: dict[int, int] = {}
        for limit in (EVALUATION_TOKENS // 2**halvings for halvings in range(4)):
            tokens = max(map(self._count_batch_tokens, self._split_validation(limit)))
            if not limits or tokens < min(limits.values()):
                limits[limit] = tokens
        return limits

    def try_largest_validation_batch(self, max_tokens: int) -> None:
        """Compute the largest validation batch, to find out before the first step whether it fits the GPU's memory.

        It changes no weight, no mode of a module and no random generator.

        Args:
            max_tokens: of a validation batch, from here on.

        Raises:
            UserError: it does not fit.
        """
        self.validation_tokens = max_tokens
        modes = {module: module.training for module in self.classifier.modules()}
        largest = max(self._split_validation(max_tokens), key=self._count_batch_tokens)
        tokens = self._count_batch_tokens(largest)
        self.classifier.eval()
        try:
            self._predict_validation_batch(largest)
        except torch.OutOfMemoryError as error:
            fewer = f"train.batch_size (validation takes up to {VALIDATION_ROWS} times as many rows) or a smaller "
            raise UserError(
                f"params.yaml: a validation batch of {tokens:,} tokens does not fit the GPU's memory; "
                f"to use less, set a smaller {fewer if len(largest) > VALIDATION_ROWS else ''}tokenize.max_length"
            ) from error
        finally:
            for module, mode in modes.items():
                module.training = mode

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        losses, all_logits, all_labels = self._predict_on_all_ranks(dataloader)
        metrics = compute_validation_metrics(all_labels, all_logits) | {"loss": losses.mean().item()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(
            predictions=all_logits, label_ids=all_labels, metrics=metrics, num_samples=len(all_labels)
        )

    def compute_validation_logits(self) -> np.ndarray:
        """Logits of the validation rows by the current weights, float32 [rows, classes]. All ranks must call it."""
        return self._predict_on_all_ranks(self.get_eval_dataloader())[1]

    def _predict_on_all_ranks(self, batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Put the ranks' batches together in the order of the rows: the result is the same on any number of ranks.

        Args:
            batches: of this rank, from `get_eval_dataloader`.

        Returns:
            each row's loss, which is its batch's mean, [rows]; logits [rows, classes]; gold label array
        """
        self.classifier.eval()
        outputs = []
        with progress_bar(sum(map(len, batches)), "validate", "row", disable=not distributed.is_main()) as bar:
            for rows in batches:
                outputs.append(self._predict_validation_batch(rows))
                bar.update(len(rows))
        batches_of_rank = [
            (rows, loss.cpu().repeat(len(rows)), logits.float().cpu(), labels.cpu())
            for rows, (loss, logits, labels) in zip(batches, outputs, strict=True)
        ]
        all_batches = itertools.chain(*distributed.all_gather(batches_of_rank))
        rows, *results = (np.concatenate(parts) for parts in zip(*all_batches, strict=True))
        losses, logits, labels = (values[np.argsort(rows)] for values in results)
        return losses, logits, labels

    def _predict_validation_batch(self, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Mean loss, logits [rows, classes] and gold label array of a validation batch, on the device."""
        batch = [self.validation_rows[row] for row in rows.tolist()]
        if self.packs_rows:
            longest = max(1, *(len(row["input_ids"]) for row in batch))
            inputs = pack_rows(batch, self.pad_id) | {"longest": longest}
        else:
            inputs = self.data_collator(batch)
        return self.prediction_step(self.classifier, inputs, prediction_loss_only=False)  # type: ignore[return-value]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.captured_step is None or self.optimizer is not None:
            return super().create_optimizer(model)
        _, settings = self.get_optimizer_cls_and_kwargs(self.args)
        decayed_names = self.get_decay_parameter_names(self.classifier)
        not_decayed = {p for name, p in self.classifier.named_parameters() if name not in decayed_names}
        parameters = self.captured_step.parameters
        groups = [
            {"params": [p for p in parameters if p not in not_decayed], "weight_decay": self.args.weight_decay},
            {"params": [p for p in parameters if p in not_decayed], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.captured_optimizer = CapturedAdamW(groups, self.args.max_grad_norm, **settings)
        self.optimizer = self.captured_optimizer
        return self.optimizer

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        if self.captured_optimizer is None:
            return super()._clip_grad_norm(model)
        return self.captured_optimizer.grad_norm  # the Trainer reads it after the optimizer's step

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: list[Part],  # type: ignore[override]
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        step = self.state.global_step
        if self.captured_step:
            if not model.training:
                model.train()
            loss = self.captured_step(inputs, step)
        else:
            parts = [
                {name: value.to(self.args.device, non_blocking=True) for name, value in part.items()} for part in inputs
            ]
            if distributed.world_size() > 1:
                torch.manual_seed(_derive_seed(self.args.seed, step, distributed.rank()))  # the same after a resume
            losses = [self._compute_part(model, part, is_last=part is parts[-1]) for part in parts]
            loss = torch.stack(losses).sum()
            if distributed.world_size() > 1:
                loss = loss / distributed.world_size()
                distributed.all_reduce(loss)
        self.step_losses.append(loss.detach().clone())
        return loss.detach()

    def _compute_part(self, model: torch.nn.Module, part: Part, is_last: bool) -> torch.Tensor:
        """Add a part's gradients to `.grad` and return its share of the loss. At the last part the ranks sum theirs."""
        with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
            return super().training_step(model, part, None)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch or of a part of it.

        A part's is weighted so that the batch's gradient is the mean of the ranks' gradients, which DDP computes.
        """
        if "starts" in inputs:  # packed rows, in validation: the captured step does not call this method
            from stages.kernels import packed_rows

            logits = packed_rows.compute_logits(self.classifier, inputs, int(inputs["longest"]))
        else:
            logits = model(input_ids=inputs["input_ids"]).logits
        loss = compute_loss(self.classifier, logits, inputs["labels"])
        if "weight" in inputs:
            loss = loss * inputs["weight"] * distributed.world_size()
        return (loss, {"logits": logits}) if return_outputs else loss

    def _maybe_log_save_evaluate(self, *arguments: Any, **named: Any) -> None:
        validates, self.control.should_evaluate = self.control.should_evaluate, False
        super()._maybe_log_save_evaluate(*arguments, **named)
        if validates:
            self.control.should_evaluate = self.control.should_save = True
            super()._maybe_log_save_evaluate(*arguments, **named)

    def _init_training_state(self, max_steps: int, steps_per_epoch: int, *arguments: Any) -> tuple[int, int]:
        epochs, steps = super()._init_training_state(max_steps, steps_per_epoch, *arguments)
        self.saved_step = self.state.global_step
        validated = max((entry["step"] for entry in self.state.log_history if "eval_loss" in entry), default=0)
        return (epochs - 1, steps_per_epoch) if not steps and validated < self.saved_step else (epochs, steps)

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        step = self.state.global_step
        super()._run_epoch(*arguments, **named)
        if self.state.global_step == step:  # only the validation was missing; the Trainer loads it before a step
            self._load_rng_state(named["resume_from_checkpoint"])

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)  # type: ignore[arg-type]  # `make_trainer` sets it
        with remove_partial_if_disk_is_full(folder):
            if self.saved_step == self.state.global_step:
                self._save_state(folder / f"checkpoint-{self.saved_step}")
                return
            self._compare_ranks()
            record_step_losses(self.step_losses, self.state)
            super()._save_checkpoint(model, trial)
            self.saved_step = self.state.global_step

    def _save_state(self, checkpoint: Path) -> None:
        """Replace the Trainer's state in a complete checkpoint, the only file that a validation changes."""
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(checkpoint)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()  # type: ignore[index, call-overload]
        if distributed.is_main():
            with files.atomic_file(checkpoint / TRAINER_STATE_NAME) as temporary:
                self.state.save_to_json(str(temporary))

    def _compare_ranks(self) -> None:
        """Raise RuntimeError if ranks have different weights: only rank 0's are saved, and no later check finds it."""
        if distributed.world_size() > 1:
            weights = [weight.detach() for weight in self.classifier.parameters() if weight.requires_grad]
            checksums = distributed.all_gather([checksum(weight) for weight in weights])
            if any(rank_checksums != checksums[0] for rank_checksums in checksums):
                raise RuntimeError("the ranks have different weights")

    def _save_rng_state(self, output_dir: str) -> None:
        if distributed.is_main():
            super()._save_rng_state(output_dir)

    def _make_captured_step(self) -> "CapturedStep | None":
        if not self.train_params.cuda_graphs or self.args.device.type != "cuda":
            return None
        try:
            from stages.training.captured_step import CapturedStep

            longest = max(1, int(count_tokens(self.train_rows).max()))
            return CapturedStep(self.classifier.train(), 1, longest, self.args.seed, self.pad_id)
        except (ImportError, StepUnavailable) as error:
            print(f"training without CUDA graphs: {error}")
            return None

    def floating_point_ops(self, inputs: dict[str, torch.Tensor | Any]) -> int:
        return 0


def _keep_gradients(set_to_none: bool = True) -> None:
    pass


class LossSinceLog(TrainerCallback):
    """Gives a resumed Trainer the sum of the losses since its last log, which its checkpoint does not contain.

    Otherwise the loss that it logs at an epoch's end would be the mean of the steps after the resume.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logged = max((int(entry["step"]) for entry in state.log_history if "loss" in entry), default=0)
        losses = [entry["step_loss"] for entry in state.log_history if "step_loss" in entry and entry["step"] > logged]
        self.trainer._globalstep_last_logged = logged
        for loss in np.asarray(losses, dtype=np.float32):  # in the Trainer's order: another one rounds otherwise
            self.trainer._tr_loss += float(loss)


def checksum(weight: torch.Tensor) -> int:
    """Sum of a fp32 tensor's bits, each element's multiplied by its position, so moved elements change it too."""
    bits = weight.flatten().view(torch.int32).long()
    return int((bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum().item())


def _derive_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def make_trainer(
    model: PeftModel,
    train_rows: Sequence[dict],
    validation_rows: Sequence[dict],
    params: Params,
    pad_id: int,
    output_dir: Path,
    recorder: Recorder,
    curves: LiveCurves | None = None,
) -> ClassifierTrainer:
    """Make the Trainer for these rows and parameters.

    Args:
        model: from `add_lora`.
        train_rows, validation_rows: of {"input_ids", "labels"}.
        params: the parameters of params.yaml.
        output_dir: folder of the checkpoints.
        recorder: its samples get the name of their epoch.
        curves: live curves of losses and scores.
    """
    train = params.train
    if train.batch_size < distributed.world_size():
        print(f"train.batch_size: {train.batch_size} is less than {distributed.world_size()} processes: some are idle")
    steps = -(-len(train_rows) // train.batch_size) * train.epochs
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        seed=params.seed,
        use_cpu=params.device == "cpu",
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,  # on all ranks together: `EpochBatches` divides it
        # 4 times the rows, because no activations are kept. Not eval.batch_size: its change needs no training.
        per_device_eval_batch_size=VALIDATION_ROWS * train.batch_size,  # at most: `EVALUATION_TOKENS` limits the tokens
        learning_rate=train.learning_rate,
        lr_scheduler_type=SCHEDULES[train.schedule],
        warmup_steps=int(steps * train.warmup_ratio),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch_fused" if params.device == "cuda" else "adamw_torch",
        gradient_checkpointing=train.gradient_checkpointing is True,  # auto: the captured step decides
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing is True else None,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=train.keep == "best",
        metric_for_best_model="loss",
        greater_is_better=False,
        logging_nan_inf_filter=False,  # the filter waits for the GPU at each step
        remove_unused_columns=False,
        dataloader_pin_memory=params.device == "cuda",
        average_tokens_across_devices=False,  # `compute_loss` does it
        ddp_find_unused_parameters=True,  # otherwise layerdrop fails, and a resumed run sums in another order
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # otherwise the Trainer splits each batch over all visible GPUs
    trainer = ClassifierTrainer(
        model,
        train_rows,
        validation_rows,
        args=arguments,
        data_collator=partial(pad_rows, pad_id=pad_id, batches=params.batches, max_length=params.tokenize.max_length),
        batches=params.batches,
        train=train,
        max_length=params.tokenize.max_length,
        pad_id=pad_id,
    )
    trainer.add_callback(History(trainer.step_losses, recorder))
    trainer.add_callback(LossSinceLog(trainer))
    trainer.add_callback(WholeCheckpoints())
    for printing in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printing)
    if distributed.is_main():
        progress = Progress()
        receivers = [progress.show, *([curves.log_steps] if curves else [])]
        live_losses = LiveLosses(trainer.step_losses, len(train_rows), train.batch_size, receivers)
        for callback in (live_losses, progress, *([curves] if curves else [])):
            trainer.add_callback(callback)
    trainer.add_callback(TimedCheckpoints(train.checkpoint_minutes))  # the last one: it may end the process
    return trainer
