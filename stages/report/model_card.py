"""The model card, in the hub's format: what the adapter is, how it was made, what it scores, where its limits are."""

import math
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from stages.analysis import metrics
from stages.analysis.nli import NliTask
from stages.data.task import Task
from stages.report.document import environment, results
from stages.sources.manifest import is_local, local_path


def build_adapter_card(details: dict[str, Any], about: dict[str, Any]) -> str:
    """The card: metadata as YAML, then Markdown; details, about: as `document.context` takes them."""
    shown = about | {"data": about["data"] | {"name": public_name(about["data"])}}
    body = (
        environment()
        .get_template("model_card.md")
        .render(
            model=about["model"],
            task=about["task"],
            nli=NliTask.from_task(about["task"]),
            example=example_texts(about["task"]),
            nf4=about["params"].model.quantization == "nf4",
            **loading_dtypes(about["params"].model.precision),
            title=make_title(about),
            on_hub=not is_local(about["model"]["name"]),
            **results(details, shown),
        )
    )
    return f"---\n{build_metadata(details['tuned'], about).to_yaml()}\n---\n\n{body}"


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
        dataset_type=public_name(data),
        dataset_name=public_name(data),
        dataset_revision=data["revision"],
        metric_type="accuracy",
        metric_name="Accuracy",
        metric_value=round(about["merges"][about["chosen"]].accuracy, 6),
    )
    of_hub = ModelCardData(
        model_name=make_title(about),
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
    shown = about | {"data": data | {"name": public_name(data)}}
    body = template.render(**shown, title=make_title(about), nli=nli, nf4=nf4, texts=texts)
    return f"---\n{of_hub.to_yaml()}\n---\n\n{body}"


def public_name(data: dict[str, Any]) -> str:
    """A data set's name on the hub, or a local folder's own name: its path is private.

    It can't be left out: the hub's format requires a type and a name of the data for each score (`EvalResult`).
    """
    return local_path(data["name"]).resolve().name if is_local(data["name"]) else data["name"]


def make_title(about: dict[str, Any]) -> str:
    """The adapter's name for readers."""
    model, data = (about[key]["name"].rstrip("/").split("/")[-1] for key in ("model", "data"))
    return f"{model} for {data}"


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


def build_metadata(scores: dict[str, Any], about: dict[str, Any]) -> ModelCardData:
    """What the hub reads of a card; a base or a data set that is a local folder has no name there.

    Args:
        scores: of the tuned model, from `metrics.scores`.
    """
    model, data, nli = about["model"], about["data"], NliTask.from_task(about["task"])
    on_hub = {"model": not is_local(model["name"]), "data": not is_local(data["name"])}
    known = [metric for metric in metrics.METRICS if metric.hub and math.isfinite(scores[metric.key])]
    evaluated = [
        EvalResult(
            task_type="text-classification",
            task_name="Natural language inference" if nli else "Text classification",
            dataset_type=public_name(data),
            dataset_name=public_name(data),
            dataset_config=about["params"].data.subset,
            dataset_split=about["params"].data.splits.test,
            dataset_revision=data["revision"],
            metric_type=metric.hub[0],
            metric_name=metric.title[0].upper() + metric.title[1:],
            metric_value=round(scores[metric.key], 6),
            metric_args=metric.hub[1],
        )
        for metric in known
    ]
    return ModelCardData(
        model_name=make_title(about),
        base_model=model["name"] if on_hub["model"] else None,
        datasets=[data["name"]] if on_hub["data"] else None,
        library_name="peft",
        pipeline_tag="text-classification",
        tags=["lora", "qlora", *(["natural-language-inference"] if nli else [])],
        metrics=list(dict.fromkeys(metric.hub[0] for metric in known)),
        eval_results=evaluated,
    )
