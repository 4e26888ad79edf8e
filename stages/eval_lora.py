"""Stage `eval_lora`: a new process loads base, adapter and head from disk, and predicts the test rows."""

from pathlib import Path

from stages.data.predictions import prediction_table
from stages.data.row_places import FILE, FILE_ROW
from stages.evaluation import TEST, Inputs, Predictions, evaluate
from stages.model.adapter_files import digest_adapter
from stages.model.classifier import Classifier
from stages.runtime import errors, files

ADAPTER = Path("outs/adapter")


def main() -> None:
    evaluate("tuned", ADAPTER, predict)


def predict(inputs: Inputs, classifier: Classifier) -> Predictions:
    probabilities = classifier.predict(inputs.test, inputs.p.eval.batch_size, title="predict, tuned")
    labels = inputs.task.labels
    columns = ["row", FILE, FILE_ROW, *inputs.task.text_columns, "group", "label"]
    rows = labels.from_lists(files.read_table(TEST, columns))
    table = labels.to_lists(prediction_table(rows, probabilities, inputs.task), ["label", "prediction"])
    return Predictions(table, len(rows), {"adapter": digest_adapter(ADAPTER)})


if __name__ == "__main__":
    errors.run(main)
