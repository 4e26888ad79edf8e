"""Predict rows and measure what it takes. The stages `eval_base` and `eval_lora` share it with `tools.evaluate`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd
import torch

from stages.data.batching import TokenizedRows
from stages.data.labels import Labels
from stages.data.task import Task
from stages.model.adapter import count_parameters
from stages.model.classifier import Classifier, ClassifierParams
from stages.model.devices import pick_device, report_out_of_memory
from stages.runtime import distributed, files, params
from stages.runtime.usage_recorder import Recorder, read_versions

TEST, TRAIN = "outs/tokenized/test.parquet", "outs/tokenized/train.parquet"

Predicted = TypeVar("Predicted")


@dataclass(frozen=True)
class Inputs:
    """What both stages read: parameters, the base's manifest, the task, the test rows."""

    p: params.Params
    manifest: dict
    task: Task
    test: TokenizedRows


@dataclass(frozen=True)
class Predictions:
    """What a stage predicts.

    Attributes:
        table: a line for each test row.
        rows: number of rows that the model has read.
        summary: further content of summary.json.
    """

    table: pd.DataFrame
    rows: int
    summary: dict[str, Any] = field(default_factory=dict)


def evaluate(name: str, adapter: Path | None, predict: Callable[[Inputs, Classifier], Predictions]) -> None:
    """Load a model and predict. Write predictions to outs/results/, the run's time and memory to outs/measurements/.

    Args:
        name: the folder's name in each of the two.
        adapter: folder of a trained adapter, or None for the base with an untrained head.
        predict: is called on every rank; rank 0's result is written.
    """
    p = params.load()
    device = pick_device(p.device, p.threads)
    distributed.init_process_group(device)
    manifest, task = files.read_json("outs/base_model.json"), Task.read("outs/task.json")
    test = TokenizedRows.from_table(files.read_columns(TEST, ["input_ids", "label"]), task.labels)
    paths = [Path(TEST), adapter / "adapter_model.safetensors" if adapter else Path(TRAIN)]
    files.check_same_on_all_ranks(
        lambda: [p, manifest, read_versions(device), *(files.sha256(path) for path in paths)],
        "parameters, base, versions, kind of GPU, training and test rows, adapter",
    )
    measured = load_and_predict(
        manifest,
        p,
        p.tokenize.max_length,
        task.labels,
        device,
        adapter,
        lambda classifier: predict(Inputs(p, manifest, task, test), classifier),
    )
    if not distributed.is_main():
        return
    predictions = measured.predicted
    with files.atomic_folder(f"outs/results/{name}") as folder:
        predictions.table.to_parquet(folder / "predictions.parquet", index=False)
        files.write_json(folder / "summary.json", {"parameters": measured.parameters, **predictions.summary})
    measured.recorder.save(f"outs/measurements/{name}", measured.figures(predictions.rows))


@dataclass(frozen=True)
class Measured(Generic[Predicted]):
    """What a loaded model has predicted, and what it took.

    Attributes:
        predicted: what `predict` returned.
        parameters: from `count_parameters`.
        seconds: of the prediction, without loading.
        recorder: of loading and prediction.
    """

    predicted: Predicted
    parameters: dict[str, int]
    seconds: float
    recorder: Recorder

    def figures(self, rows: int) -> dict[str, float]:
        """The figures of run.json; rows: number of rows that the model has read."""
        return {"seconds": self.seconds, "rows_per_second": rows / self.seconds}


def load_and_predict(
    manifest: dict,
    settings: ClassifierParams,
    max_length: int,
    labels: Labels,
    device: torch.device,
    adapter: Path | None,
    predict: Callable[[Classifier], Predicted],
) -> Measured[Predicted]:
    """Load a model and predict with it, and record time and memory.

    Args:
        manifest, settings, max_length, labels, device, adapter: as for `Classifier.load`.
        predict: is called on every rank.
    """
    with Recorder(device) as recorder:
        recorder.mark("before_loading")
        classifier = Classifier.load(manifest, settings, max_length, labels, device, adapter)
        parameters = count_parameters(classifier.model)
        recorder.mark("loaded")
        start = recorder.elapsed_seconds()
        with report_out_of_memory(
            f"params.yaml: tokenize.max_length: {max_length}: a batch of one row does not fit this GPU's memory; "
            "set a smaller one"
        ):
            predicted = predict(classifier)
        seconds = recorder.elapsed_seconds() - start
        recorder.mark("after_evaluation")
    return Measured(predicted, parameters, seconds, recorder)
