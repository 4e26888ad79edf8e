"""Predict the test rows and write the results: what the stages `eval_base` and `eval_lora` share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from stages.data.batching import TokenizedRows
from stages.data.task import Task
from stages.model.adapter import count_parameters
from stages.model.classifier import Classifier
from stages.model.devices import pick_device, report_out_of_memory
from stages.runtime import distributed, files, params
from stages.runtime.usage_recorder import Recorder, read_versions

TEST, TRAIN = "outs/tokenized/test.parquet", "outs/tokenized/train.parquet"


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
    test = TokenizedRows(files.read_columns(TEST, ["input_ids", "label"]))
    paths = [Path(TEST), adapter / "adapter_model.safetensors" if adapter else Path(TRAIN)]
    files.check_same_on_all_ranks(
        lambda: [p, manifest, read_versions(device), *(files.sha256(path) for path in paths)],
        "parameters, base, versions, kind of GPU, training and test rows, adapter",
    )
    with Recorder(device) as recorder:
        recorder.mark("before_loading")
        classifier = Classifier.load(manifest, p, p.tokenize.max_length, task.classes, device, adapter)
        parameters = count_parameters(classifier.model)
        recorder.mark("loaded")
        start = recorder.elapsed_seconds()
        with report_out_of_memory(
            f"params.yaml: eval.batch_size: {p.eval.batch_size} rows do not fit this GPU's memory; set a smaller one"
        ):
            predictions = predict(Inputs(p, manifest, task, test), classifier)
        seconds = recorder.elapsed_seconds() - start
        recorder.mark("after_evaluation")
    if not distributed.is_main():
        return
    with files.atomic_folder(f"outs/results/{name}") as folder:
        predictions.table.to_parquet(folder / "predictions.parquet", index=False)
        files.write_json(folder / "summary.json", {"parameters": parameters, **predictions.summary})
    recorder.save(f"outs/measurements/{name}", {"seconds": seconds, "rows_per_second": predictions.rows / seconds})
