"""Predict the test rows and write the results: what the stages `eval_base` and `eval_lora` share."""

from pathlib import Path

import numpy as np

from stages.data.batching import TokenizedRows
from stages.data.predictions import prediction_table
from stages.data.task import Task
from stages.model.adapter import count_parameters
from stages.model.classifier import Classifier
from stages.model.devices import pick_device, report_out_of_memory
from stages.runtime import distributed, files, params
from stages.runtime.usage_recorder import Recorder, read_versions

TEST = "outs/tokenized/test.parquet"


def evaluate(name: str, adapter: Path | None) -> None:
    """Predict the test rows. Write predictions to outs/results/, the run's time and memory to outs/measurements/.

    Args:
        name: the folder's name in each of the two.
        adapter: folder of a trained adapter, or None for the base with an untrained head.
    """
    p = params.load()
    device = pick_device(p.device, p.threads)
    distributed.init_process_group(device)
    manifest, task = files.read_json("outs/base_model.json"), Task.read("outs/task.json")
    test = TokenizedRows(files.read_columns(TEST, ["input_ids", "label"]))
    paths = [Path(TEST), *([adapter / "adapter_model.safetensors"] if adapter else [])]
    files.check_same_on_all_ranks(
        lambda: [p, manifest, read_versions(device), *(files.sha256(path) for path in paths)],
        "parameters, base, versions, kind of GPU, test rows, adapter",
    )
    with Recorder(device) as recorder:
        recorder.mark("before_loading")
        classifier = Classifier.load(manifest, p, task.classes, device, adapter)
        recorder.mark("loaded")
        start = recorder.elapsed_seconds()
        with report_out_of_memory(
            f"params.yaml: eval.batch_size: {p.eval.batch_size} rows do not fit this GPU's memory; set a smaller one"
        ):
            probabilities = classifier.predict(test, p.eval.batch_size, title=f"predict, {name}")
        seconds = recorder.elapsed_seconds() - start
        recorder.mark("after_evaluation")
    if not distributed.is_main():
        return
    write_results(f"outs/results/{name}", probabilities, task, count_parameters(classifier.model))
    recorder.save(f"outs/measurements/{name}", {"seconds": seconds, "rows_per_second": len(test) / seconds})


def write_results(path: str, probabilities: np.ndarray, task: Task, parameters: dict[str, int]) -> None:
    """Write the prediction table and the model's parameter counts into the folder `path`."""
    with files.atomic_folder(path) as folder:
        rows = files.read_table(TEST, ["row", *task.text_columns, "group", "label"])
        prediction_table(rows, probabilities, task).to_parquet(folder / "predictions.parquet", index=False)
        files.write_json(folder / "summary.json", {"parameters": parameters})
