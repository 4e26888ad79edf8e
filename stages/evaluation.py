"""What `eval_base` and `eval_lora` share: predict the test rows, write predictions and measurements."""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.data.batching import TokenizedRows
from stages.data.task import Task
from stages.model.adapter import count_parameters
from stages.model.classifier import Classifier
from stages.model.devices import pick_device, report_out_of_memory
from stages.runtime import distributed, files, params
from stages.runtime.usage_recorder import Recorder, read_versions

TEST = "outs/tokenized/test.parquet"


def evaluate(name: str, adapter: Path | None) -> None:
    """Predict the test rows; write predictions to outs/results/, the run's time and memory to outs/measurements/.

    Args:
        name: of the folder below each of the two.
        adapter: folder of a trained adapter, or None for the base alone.
    """
    p = params.load()
    device = pick_device(p.device, p.threads)
    distributed.init_process_group(device)
    manifest, task = files.read_json("outs/base_model.json"), Task.read("outs/task.json")
    test = TokenizedRows(files.read_columns(TEST, ["input_ids", "label"]))
    read = [TEST, *([adapter / "adapter_model.safetensors"] if adapter else [])]
    files.check_same_on_all_ranks(
        lambda: [p, manifest, read_versions(device), *map(files.sha256, read)],
        "parameters, base, versions, kind of GPU, test rows, adapter",
    )
    with Recorder(device) as recorder:
        recorder.mark("before_loading")
        classifier = Classifier.load(manifest, p, task.classes, device, adapter)
        recorder.mark("loaded")
        start = recorder.elapsed_seconds()
        with report_out_of_memory(
            f"params.yaml: eval.batch_size: {p.eval.batch_size} rows do not fit this GPU's memory"
        ):
            probabilities = classifier.predict(test, p.eval.batch_size, title=f"predict, {name}")
        seconds = recorder.elapsed_seconds() - start
        recorder.mark("after_evaluation")
    if not distributed.is_main():
        return
    with files.atomic_folder(f"outs/results/{name}") as folder:
        rows = files.read_table(TEST, ["row", *task.text_columns, "group", "label"])
        table = prediction_table(rows, probabilities, task)
        table.to_parquet(folder / "predictions.parquet", index=False)
        files.write_json(folder / "summary.json", {"parameters": count_parameters(classifier.model)})
    recorder.save(f"outs/measurements/{name}", {"seconds": seconds, "rows_per_second": len(test) / seconds})


def prediction_table(rows: pd.DataFrame, probabilities: np.ndarray, task: Task) -> pd.DataFrame:
    """One line a test row: its texts, group, gold label, prediction and class probabilities (rounded to 1e-6)."""
    columns = pd.DataFrame(probabilities.round(6), columns=task.probability_columns)
    return pd.concat([rows, columns.assign(prediction=probabilities.argmax(axis=1))], axis=1)
