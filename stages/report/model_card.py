"""The model card, in the hub's format: what the adapter is, how it was made, what it scores, where its limits are."""

import math
from dataclasses import replace
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from stages.analysis import metrics
from stages.analysis.metrics import Metric, ModelScores
from stages.analysis.nli import NliTask
from stages.analysis.results import Results
from stages.data.task import Task
from stages.report.document import data_section, environment, recipe_section, scores_section
from stages.report.run_description import RunDescription
from stages.sources.manifest import is_local, local_path


def build_adapter_card(results: Results, run: RunDescription) -> str:
    """The card: metadata as YAML, then Markdown."""
    shown = replace(run, data=replace(run.data, name=public_name(run.data.name)))
    body = (
        environment()
        .get_template("model_card.md")
        .render(
            model=run.model,
            task=run.task,
            rows=results.tuned.rows,
            nli=NliTask.from_task(run.task),
            example=example_texts(run.task),
            nf4=run.params.model.quantization == "nf4",
            **loading_dtypes(run.params.model.precision),
            title=make_title(run.model.name, run.data.name),
            on_hub=not is_local(run.model.name),
            **scores_section(results, shown),
            **data_section(results.data, run.task),
            **recipe_section(results.data, shown),
        )
    )
    return f"---\n{build_metadata(results.tuned, run).to_yaml()}\n---\n\n{body}"


def build_export_card(about: dict[str, Any]) -> str:
    """The card of an adapter that was merged into its base.

    Args:
        about: task, manifests `model` and `data`, `reading` as classifier.json has it, `example` (a text in the
            template), `own` (the adapter's agreement), `merges` ({name: agreement}), the `chosen` one, `rows`, how many
            of them were `truncated`, how many test rows were `left_out`, whether the template has `special` tokens, the
            `dtype`'s name.
    """
    model, data, nli = about["model"], about["data"], NliTask.from_task(about["task"])
    accuracy = EvalResult(
        task_type="text-classification",
        task_name="Natural language inference" if nli else "Text classification",
        dataset_type=public_name(data["name"]),
        dataset_name=public_name(data["name"]),
        dataset_revision=data["revision"],
        metric_type="accuracy",
        metric_name="Accuracy",
        metric_value=round(about["merges"][about["chosen"]].accuracy, 6),
    )
    of_hub = ModelCardData(
        model_name=make_title(model["name"], data["name"]),
        base_model=None if is_local(model["name"]) else model["name"],
        datasets=None if is_local(data["name"]) else [data["name"]],
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["natural-language-inference"] if nli else None,
        metrics=["accuracy"],
        eval_results=[accuracy],
    )
    nf4, texts = about["reading"].model.quantization == "nf4", example_texts(about["task"])
    template = environment().get_template("exported_card.md")
    shown = about | {"data": data | {"name": public_name(data["name"])}}
    body = template.render(**shown, title=make_title(model["name"], data["name"]), nli=nli, nf4=nf4, texts=texts)
    return f"---\n{of_hub.to_yaml()}\n---\n\n{body}"


def public_name(data: str) -> str:
    """A data set's name on the hub, or a local folder's own name: its path is private.

    It can't be left out: the hub's format requires a type and a name of the data for each score (`EvalResult`).
    """
    return local_path(data).resolve().name if is_local(data) else data


def make_title(model: str, data: str) -> str:
    """The adapter's name for readers."""
    return " for ".join(name.rstrip("/").split("/")[-1] for name in (model, data))


def example_texts(task: Task) -> dict[str, str]:
    """Texts for the lines that show how the adapter is asked."""
    if nli := NliTask.from_task(task):
        return {nli.premise: "Two dogs are running in the park.", nli.hypothesis: "Animals are outside."}
    return {column: f"The {column}." for column in task.columns}


def loading_dtypes(precision: str) -> dict[str, str]:
    """The torch dtypes of the lines that load the base anywhere, by the names that the template gives them.

    `auto` is float32 there: every machine has it. Not the checkpoint's float16, in which phi-2's attention overflows.

    Args:
        precision: `model.precision` of params.yaml.
    """
    products = {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")
    return {"dtype": "bfloat16" if precision == "bf16" else "float32", "product_dtype": products}


def build_metadata(scores: ModelScores, run: RunDescription) -> ModelCardData:
    """What the hub reads of a card; a base or a data set that is a local folder has no name there.

    Args:
        scores: of the tuned model.
    """
    model, data, nli = run.model, run.data, NliTask.from_task(run.task)
    known = [
        (metric, *metric.hub, scores.scores[metric.key].value)
        for metric in metrics.METRICS
        if isinstance(metric, Metric) and metric.hub and math.isfinite(scores.scores[metric.key].value)
    ]
    evaluated = [
        EvalResult(
            task_type="text-classification",
            task_name="Natural language inference" if nli else "Text classification",
            dataset_type=public_name(data.name),
            dataset_name=public_name(data.name),
            dataset_config=run.params.data.subset,
            dataset_split=run.params.data.splits.test,
            dataset_revision=data.revision,
            metric_type=hub_type,
            metric_name=metric.title[0].upper() + metric.title[1:],
            metric_value=round(value, 6),
            metric_args=hub_arguments,
        )
        for metric, hub_type, hub_arguments, value in known
    ]
    return ModelCardData(
        model_name=make_title(model.name, data.name),
        base_model=None if is_local(model.name) else model.name,
        datasets=None if is_local(data.name) else [data.name],
        library_name="peft",
        pipeline_tag="text-classification",
        tags=["lora", "qlora", *(["natural-language-inference"] if nli else [])],
        metrics=list(dict.fromkeys(hub_type for _, hub_type, _, _ in known)),
        eval_results=evaluated,
    )
