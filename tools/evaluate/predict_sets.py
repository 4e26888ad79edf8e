"""Predict data sets by the base's references, by the run's adapter and by those of other runs."""

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from stages.data.batching import TokenizedRows
from stages.data.classifier_settings import ClassifierSettings
from stages.data.dataset import resolve_unlabelled
from stages.data.task import Task
from stages.data.tokenization import load_tokenizer, tokenize_rows
from stages.eval_base import answer, prepare_references
from stages.evaluation import Measured, load_and_predict
from stages.model.adapter_files import read_adapter
from stages.model.classifier import Classifier
from stages.model.devices import pick_device
from stages.runtime import files, params
from stages.runtime.errors import UserError
from tools.evaluate.read_set import LabelledSet

Predicted = TypeVar("Predicted")


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, its classifier.json, its base.json, and the SHA-256 of its weights."""

    folder: Path
    settings: ClassifierSettings
    manifest: dict[str, Any]
    sha256: str

    @classmethod
    def read(cls, folder: Path) -> "Adapter":
        settings, manifest = read_adapter(folder)
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise UserError(f"{weights}: missing; an adapter's folder has it: give one that `train_qlora` has written")
        return cls(folder, settings, manifest, files.sha256(weights))


@dataclass(frozen=True)
class References:
    """The answers of the references that need the language model.

    Attributes:
        answers: of each data set: {reference: codes of the rows' answers [rows]}.
        descriptions: {reference: what summary.json says of it}.
        rows_read: rows that the base has read.
    """

    answers: list[dict[str, np.ndarray]]
    descriptions: dict[str, dict]
    rows_read: int


@dataclass(frozen=True)
class SetPredictions:
    """What the models predict.

    Attributes:
        tables: the labelled rows of each data set, with the tokens that the first adapter reads.
        base: the references.
        tuned: of each adapter: of each data set, the probabilities, float [rows, classes]. Their classes have the order
            of the first adapter.
    """

    tables: list[pd.DataFrame]
    base: Measured[References]
    tuned: list[Measured[list[np.ndarray]]]


def read_adapters(folders: Sequence[Path]) -> list[Adapter]:
    """Read adapters, the run's first. A folder with the weights of an earlier one is left out.

    Raises:
        UserError: a folder has no adapter, or one with other classes than the first.
    """
    adapters: list[Adapter] = []
    for folder in dict.fromkeys(Path(os.path.normpath(folder)) for folder in folders):
        adapter = Adapter.read(folder)
        first = adapters[0] if adapters else adapter
        if type(adapter.settings.labels) is not type(first.settings.labels):
            raise UserError(
                f"--adapter {folder}: its task is {adapter.settings.labels.problem_type}, but that of {first.folder} "
                f"is {first.settings.labels.problem_type}; compare adapters of the same task"
            )
        if set(adapter.settings.classes) != set(first.settings.classes):
            nouns = first.settings.labels.nouns
            raise UserError(
                f"--adapter {folder}: its {nouns} are {', '.join(adapter.settings.classes)}, but those of "
                f"{first.folder} are {', '.join(first.settings.classes)}; compare adapters of the same task"
            )
        if twin := next((earlier for earlier in adapters if earlier.sha256 == adapter.sha256), None):
            print(f"{folder}: has the weights of {twin.folder}, so it is counted once")
        else:
            adapters.append(adapter)
    return adapters


def predict_sets(
    sets: Sequence[LabelledSet], adapters: Sequence[Adapter], p: params.Params, task: Task
) -> SetPredictions:
    """Predict all data sets by the references, as `eval_base` does, and by each adapter, as `eval_lora` does.

    Args:
        task: of the run.
    """
    device = pick_device(p.device, p.threads)
    tables = [[tokenize_set(rows, adapter) for rows in sets] for adapter in adapters]
    predict_base = partial(predict_references, adapters[0], tables[0], p, task)
    base = _run(adapters[0], None, device, p, predict_base)
    tuned = [
        _run(adapter, adapter.folder, device, p, partial(predict_adapter, adapter, of_sets, p, task))
        for adapter, of_sets in zip(adapters, tables, strict=True)
    ]
    return SetPredictions(tables[0], base, tuned)


def tokenize_set(rows: LabelledSet, adapter: Adapter) -> pd.DataFrame:
    """The labelled rows, with the tokens that an adapter reads."""
    labelled = resolve_unlabelled(rows.rows, "drop", rows.task)
    tokenizer, settings = load_tokenizer(adapter.manifest), adapter.settings
    return tokenize_rows(labelled, tokenizer, settings.template, settings.max_length)


def predict_references(
    adapter: Adapter, tables: Sequence[pd.DataFrame], p: params.Params, task: Task, classifier: Classifier
) -> References:
    """Predict each table by the references of `analysis.references` that need the language model."""
    references, descriptions, rows_read = prepare_references(p, adapter.manifest, task, classifier)
    if not references:
        return References([{} for _ in tables], descriptions, rows_read)
    answers = [answer(references, as_rows(table, task), classifier, p.eval.batch_size) for table in tables]
    codes = [{name: task.labels.to_codes(labels) for name, labels in of_table.items()} for of_table in answers]
    return References(codes, descriptions, rows_read + sum(map(len, tables)))


def predict_adapter(
    adapter: Adapter, tables: Sequence[pd.DataFrame], p: params.Params, task: Task, classifier: Classifier
) -> list[np.ndarray]:
    """Predict the probabilities of each table's rows, float [rows, classes], in the order of the task's classes."""
    order = [adapter.settings.classes.index(name) for name in task.classes]
    title = f"predict, {adapter.folder}"
    return [classifier.predict(as_rows(table, task), p.eval.batch_size, title)[:, order] for table in tables]


def as_rows(table: pd.DataFrame, task: Task) -> TokenizedRows:
    return TokenizedRows.from_lists(table["input_ids"], task.labels.from_codes(table["label"]))


def _run(
    adapter: Adapter,
    weights: Path | None,
    device: torch.device,
    p: params.Params,
    predict: Callable[[Classifier], Predicted],
) -> Measured[Predicted]:
    """Load the base anew, as each stage does, and predict."""
    if device.type == "cuda":  # as in a new process: what fits the memory decides which kernels are used
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    settings = adapter.settings
    return load_and_predict(adapter.manifest, settings, settings.max_length, settings.labels, device, weights, predict)
