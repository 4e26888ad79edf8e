"""Stage `train_qlora`: train LoRA and the head on the quantised base, save the adapter of the best or last epoch."""

import gc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.data.batching import TokenizedRows, list_tokens
from stages.data.predictions import FEW_ROWS, prediction_table
from stages.data.task import Task
from stages.data.tokenization import load_configured_tokenizer
from stages.model.adapter import adapts_embedding, add_lora, count_parameters, save_adapter
from stages.model.adapter_files import make_settings
from stages.model.base import load_base
from stages.model.base_cache import cache_base, is_caching
from stages.model.devices import pick_device, report_out_of_memory
from stages.model.head import freeze_head, scale_head
from stages.model.validation_summary import ValidationSummary
from stages.model.verify_saved import AdapterSnapshot, verify_saved_adapter
from stages.runtime import distributed, errors, files, params, shutdown
from stages.runtime.usage_recorder import Recorder, read_versions
from stages.training import checkpoints, history, live_curves
from stages.training.calibration import Temperature, fit_temperature
from stages.training.loss import set_loss
from stages.training.trainer import ClassifierTrainer, make_trainer

if TYPE_CHECKING:
    from peft import PeftModel  # at run time `stages.model` imports bitsandbytes first, without its compiler

ROW_FILES = {split: f"outs/tokenized/{split}.parquet" for split in ("train", "validation")}


def main() -> None:
    with shutdown.graceful("train_qlora", lambda: "`dvc repro` continues at the last checkpoint, if there is one"):
        p = params.load()
        device = pick_device(p.device, p.threads)
        distributed.init_process_group(device)
        curves = live_curves.prepare(p)
        inputs = load_inputs(p)
        folder = checkpoints.ROOT / digest_run(p, inputs, device)
        shutdown.describe_next_run_by(lambda: checkpoints.describe_next_run(folder))
        files.check_same_on_all_ranks(lambda: folder, "parameters, base, rows, versions, kind of GPU")
        train_and_save(p, inputs, device, folder, curves)


def train_and_save(
    p: params.Params, inputs: "Inputs", device: torch.device, folder: Path, curves: live_curves.LiveCurves | None
) -> None:
    """Train from the newest checkpoint below `folder`, or from the start, and write the outs."""
    in_sweep = is_caching()
    with Recorder(device) as recorder, cache_base() as cache:
        recorder.mark("before_loading")
        base = load_training_base(p, inputs, device, in_sweep)
        recorder.mark("loaded")
        classifier = build_classifier(base, p, inputs)
        pad_id = inputs.tokenizer.pad_token_id
        trainer = make_trainer(
            classifier, inputs.train_rows, inputs.validation_rows, p, pad_id, folder, recorder, curves
        )
        checkpoint = find_checkpoint(folder)
        if curves:
            curves.start(folder, checkpoint)
        recorder.mark("before_training")
        seconds = train(trainer, checkpoint, p, recorder)
        figures = {"seconds": seconds, "resumed": checkpoint is not None, "memory_plan": trainer.memory_plan}
        logits = trainer.compute_validation_logits()  # of the epoch to save, as a resumed run does
        recorder.mark("after_training")
        if curves:
            curves.end()
    if not distributed.is_main():
        return

    steps, epochs = history.read_curves(trainer.state)
    saved_epoch = choose_epoch(epochs, p, folder)
    labels = inputs.task.labels
    rows = labels.from_lists(files.read_table(ROW_FILES["validation"], ["row", "label", "group"]))
    gold = inputs.validation_rows.labels
    temperature = calibrate(classifier, logits, gold, rows["group"]) if p.train.calibrate else None
    probabilities = labels.to_probabilities(logits.astype(np.float64) / (temperature.value if temperature else 1))
    parameters, snapshot = count_parameters(classifier), AdapterSnapshot.take(classifier, inputs.validation_rows)
    with files.atomic_folder("outs/adapter") as adapter:
        save_adapter(classifier, inputs.tokenizer, inputs.manifest, make_settings(p, inputs.task), adapter)
        ValidationSummary.measure(gold, probabilities, labels).write(adapter)
        del base, classifier, trainer  # the memory may not suffice for two bases
        gc.collect()
        verify_saved_adapter(adapter, snapshot, inputs.manifest, p.model, device, cache)
    fitted = asdict(temperature) if temperature else None
    summary = {"best_epoch": saved_epoch, "parameters": parameters, "temperature": fitted}
    predictions = labels.to_lists(prediction_table(rows, probabilities, inputs.task), ["label", "prediction"])
    write_results(steps, epochs, predictions, summary)
    recorder.save("outs/measurements/train", figures)
    checkpoints.remove_checkpoints(folder)


@dataclass(frozen=True)
class Inputs:
    """What earlier stages wrote, and the tokenizer."""

    manifest: dict
    task: Task
    train_rows: TokenizedRows
    validation_rows: TokenizedRows
    tokenizer: PreTrainedTokenizerBase


def load_inputs(p: params.Params) -> Inputs:
    manifest, task = files.read_json("outs/base_model.json"), Task.read("outs/task.json")
    rows = {
        split: TokenizedRows.from_table(files.read_columns(path, ["input_ids", "label"]), task.labels)
        for split, path in ROW_FILES.items()
    }
    return Inputs(manifest, task, rows["train"], rows["validation"], load_configured_tokenizer(manifest, task.template))


def digest_run(p: params.Params, inputs: Inputs, device: torch.device) -> str:
    """Digest of everything that determines the training. A run resumes only from checkpoints with the same digest."""
    sections = {name: getattr(p, name).model_dump() for name in ("batches", "lora")}
    sections |= {"model": p.model.settings.model_dump(), "train": p.train.recipe()}
    return checkpoints.compute_run_digest(
        sections, inputs.task.classes, inputs.task.labels.problem_type, p.tokenize.max_length, p.seed, p.device,
        p.threads, inputs.manifest["digest"], [files.sha256(path) for path in ROW_FILES.values()],
        checkpoints.hash_code(__file__), read_versions(device),
    )  # fmt: skip


def load_training_base(p: params.Params, inputs: Inputs, device: torch.device, whole: bool) -> PreTrainedModel:
    """Load the base with the embeddings of the rows' tokens; with all of them if LoRA adapts the embedding.

    Args:
        whole: keep all of them. A sweep loads one base for training and evaluation, which reads other tokens.
    """
    arguments = inputs.manifest, p.model, inputs.task.labels, device, p.seed, inputs.tokenizer
    if whole:
        return load_base(*arguments)
    tokens = list_tokens(inputs.tokenizer.pad_token_id, inputs.train_rows, inputs.validation_rows)
    base = load_base(*arguments, tokens)
    if adapts_embedding(base, p.lora.target_modules):
        del base
        base = load_base(*arguments)
    return base


def build_classifier(base: PreTrainedModel, p: params.Params, inputs: Inputs) -> "PeftModel":
    """Add LoRA to the base, and set the class weights and the head as params.yaml says."""
    classifier = add_lora(base, p.lora, p.seed)
    set_loss(base, inputs.task.labels, inputs.train_rows.labels, p.train.class_weights == "balanced")
    if p.train.freeze_head:
        freeze_head(classifier)
    return classifier


def find_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to resume from, the same on all ranks, or None."""
    checkpoint = distributed.broadcast(checkpoints.checkpoint_to_resume(folder) if distributed.is_main() else None)
    files.check_same_on_all_ranks(
        lambda: checkpoint is None or checkpoint.exists(), f"{checkpoints.ROOT}/, one folder for all machines,"
    )
    if checkpoint:
        state = checkpoints.read_state(checkpoint)
        print(f"resuming from {checkpoint}: step {state.global_step} of {state.max_steps}")
    return checkpoint


def train(trainer: ClassifierTrainer, checkpoint: Path | None, p: params.Params, recorder: Recorder) -> float:
    """Train, and return the seconds of all epochs. Those before a resume count, without the steps that were lost."""
    before = history.sum_seconds(checkpoints.read_state(checkpoint)) if checkpoint else 0.0
    start = recorder.elapsed_seconds()
    with report_out_of_memory(
        f"params.yaml: tokenize.max_length: {p.tokenize.max_length}: the smallest part of a batch that the parameters "
        "allow does not fit this GPU's memory; set a smaller one. If you have set train.micro_batch, "
        "train.dequantize_once or train.gradient_checkpointing, or train without CUDA graphs, first set them to 1, "
        "false and true"
    ):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return before + recorder.elapsed_seconds() - start


def choose_epoch(epochs: list[dict], p: params.Params, folder: Path) -> int:
    """Number of the epoch that `train.keep` selects.

    Raises:
        UserError: training diverged, and no epoch can be kept. Its checkpoints are removed.
    """
    best, last = history.best_epoch(epochs if p.train.keep == "best" else epochs[-1:]), epochs[-1]["epoch"]
    if best is None:
        checkpoints.remove_checkpoints(folder)
        raise errors.UserError(
            f"params.yaml: train.learning_rate: {p.train.learning_rate}: training diverged: the loss of epoch {last} "
            "is NaN or infinite; set a smaller learning rate"
        )
    if not history.is_finite(epochs[-1]):
        print(f"training diverged in epoch {last}: train.keep: best keeps epoch {best}")
    return best


def calibrate(classifier: "PeftModel", logits: np.ndarray, gold: np.ndarray, groups: pd.Series) -> Temperature:
    """Fit a temperature to the validation rows, and divide the head by it, so that every loader is calibrated.

    Args:
        logits: [rows, classes].
        gold: label array.
        groups: [rows].
    """
    temperature = fit_temperature(logits, gold, groups.to_numpy())
    scale_head(classifier, temperature.value)
    print(
        f"temperature {temperature.value:.3g}, 95% interval {temperature.low:.3g} to {temperature.high:.3g}, "
        f"fitted to {temperature.rows:,} validation rows; the saved head is divided by it"
    )
    if temperature.rows < FEW_ROWS:
        print(f"fewer than {FEW_ROWS} validation rows: the temperature, and so the probabilities, are a rough guess")
    return temperature


def write_results(steps: list[dict], epochs: list[dict], validation: pd.DataFrame, summary: dict) -> None:
    with files.atomic_folder("outs/results/train") as folder:
        files.write_csv(folder / "steps.csv", pd.DataFrame(steps))
        files.write_csv(folder / "epochs.csv", pd.DataFrame(epochs))
        validation.to_parquet(folder / "validation.parquet", index=False)
        files.write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    errors.run(main)
