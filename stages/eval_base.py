"""Stage `eval_base`: predict the test rows by the references that need the language model, without tuning it.

Each is a linear function of the frozen base's last state of the classified token. So the test rows go through the base
once, with one head that has the outputs of all references.
"""

import numpy as np

from stages.data.batching import TokenizedRows
from stages.data.sampling import choose_evenly
from stages.data.task import Task
from stages.evaluation import TEST, TRAIN, Inputs, Predictions, evaluate
from stages.model.adapter import get_base
from stages.model.classifier import Classifier
from stages.model.head import check_head, remove_head, replace_head
from stages.model.linear_reference import LinearReference, classify_all, stack_heads
from stages.model.zero_shot import LanguageModelHead, Unavailable
from stages.runtime import distributed, errors, files, params

PROBE_ROWS = 4000  # training rows: phi-2 reads them in seconds on a GPU, and all of SNLI in minutes


def main() -> None:
    evaluate("base", None, predict)


def predict(inputs: Inputs, classifier: Classifier) -> Predictions:
    """Predict the test rows by each reference of `analysis.references` that needs the language model."""
    references, descriptions, rows_read = prepare_references(inputs.p, inputs.manifest, inputs.task, classifier)
    labels = inputs.task.labels
    table = labels.from_lists(files.read_table(TEST, ["row", "label", "group"]))
    if references:
        answers = answer(references, inputs.test, classifier, inputs.p.eval.batch_size)
        table = table.assign(**{name: labels.to_codes(answers[name]) for name in references})
        rows_read += len(table)
    return Predictions(labels.to_lists(table, ["label", *references]), rows_read, {"references": descriptions})


def answer(
    references: dict[str, LinearReference], rows: TokenizedRows, classifier: Classifier, batch_size: int
) -> dict[str, np.ndarray]:
    """Predict rows by references, one or more -> {name: label array}. Replaces the head."""
    replace_head(get_base(classifier.model), *stack_heads(references.values()))
    return classify_all(references, classifier.compute_logits(rows, batch_size, title="predict, base"))


def prepare_references(
    p: params.Params, manifest: dict, task: Task, classifier: Classifier
) -> tuple[dict[str, LinearReference], dict[str, dict], int]:
    """Build the references -> ({name: reference}, {name: description for summary.json}, rows that the base has read).

    The base reads training rows only if a reference needs them.
    """
    asked, base = p.analysis.references, get_base(classifier.model)
    references: dict[str, LinearReference] = {}
    descriptions: dict[str, dict] = {}
    language_model_head = None
    if "zero_shot" in asked:
        try:
            language_model_head = LanguageModelHead.read(
                base, manifest, classifier.tokenizer, task.template, task.labels
            )
            descriptions["zero_shot"] = {"tokens": language_model_head.tokens}
        except Unavailable as reason:
            if set(asked) == {"zero_shot"}:
                raise errors.UserError(
                    f"params.yaml: analysis.references: zero_shot is left out: {reason}; add another one, such as "
                    "majority_class"
                ) from reason
            print(f"analysis.references: zero_shot is left out: {reason}")
            descriptions["zero_shot"] = {"left_out": str(reason)}
    if "untrained_head" in asked:
        references["untrained_head"] = LinearReference.from_head(check_head(base), task.labels)
    if not language_model_head and "probe" not in asked:
        return references, descriptions, 0

    rows, labels, groups = read_training_rows(task)
    remove_head(base)
    states = classifier.compute_logits(rows, p.eval.batch_size, title="training rows, base")
    if not np.isfinite(states).all():
        raise errors.UserError(
            f"params.yaml: model.precision: {p.model.precision}: the base's states are not all finite; set bf16 or fp32"
        )
    if language_model_head:
        references["zero_shot"] = language_model_head.calibrate(states)
    if "probe" in asked:
        from stages.model.linear_probe import fit_probe  # imports scikit-learn, which takes 0.6 s

        # Rank 0 fits it. The others get the same bytes.
        probe, strength = distributed.broadcast(fit_probe(states, labels, groups) if distributed.is_main() else None)
        references["probe"], descriptions["probe"] = probe, {"rows": len(rows), "C": strength}
    return references, descriptions, len(rows)


def read_training_rows(task: Task) -> tuple[TokenizedRows, np.ndarray, np.ndarray]:
    """At most `PROBE_ROWS` training rows, evenly spaced -> (rows, their label array, their groups)."""
    table = files.read_columns(TRAIN, ["input_ids", "label", "group"])
    table = table.take(choose_evenly(len(table), min(PROBE_ROWS, len(table))))
    rows = TokenizedRows.from_table(table, task.labels)
    return rows, rows.labels, table["group"].to_numpy()


if __name__ == "__main__":
    errors.run(main)
