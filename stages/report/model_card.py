"""Model cards in the format of the Hugging Face hub: of an adapter, and of an adapter merged into its base."""

import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from stages.analysis import metrics
from stages.analysis.nli import NliTask
from stages.data.task import Task
from stages.report.document import environment, results
from stages.sources.manifest import is_local, local_path


def build_adapter_card(details: dict[str, Any], about: dict[str, Any]) -> str:
    """Build the card of the adapter; details, about: as in `document.context`."""
    params = about["params"]
    metadata = build_metadata(
        about,
        details["tuned"],
        library="peft",
        tags=["lora", "qlora"],
        dataset={"dataset_config": params.data.subset, "dataset_split": params.data.splits.test},
    )
    return render_card(
        "model_card.md",
        metadata,
        about,
        model=about["model"],
        task=about["task"],
        example=example_texts(about["task"]),
        nf4=params.model.quantization == "nf4",
        **loading_dtypes(params.model.precision),
        on_hub=not is_local(about["model"]["name"]),
        **results(details, about | {"data": with_public_name(about["data"])}),
    )


def build_export_card(about: dict[str, Any]) -> str:
    """Build the card of an adapter that was merged into its base.

    Args:
        about: `task`; the manifests `model` and `data`; `settings`, the adapter's classifier.json; `example`, a filled
            template; `adapter`, its agreement with itself; `merges`, {name: agreement}; `chosen`, the name of the
            merge in the folder; `rows`, the number of test rows; `truncated`, how many of them were cut; `left_out`,
            how many more were not used; `special`, whether the template has special tokens; `dtype`, its name.
    """
    scores = {"accuracy": about["merges"][about["chosen"]].accuracy}
    return render_card(
        "exported_card.md",
        build_metadata(about, scores, library="transformers", tags=[]),
        about,
        **about | {"data": with_public_name(about["data"])},
        nf4=about["settings"].model.quantization == "nf4",
        texts=example_texts(about["task"]),
    )


def render_card(template: str, metadata: ModelCardData, about: dict[str, Any], **values: Any) -> str:
    """Metadata as YAML, then the template with these values."""
    nli = NliTask.from_task(about["task"])
    body = environment().get_template(template).render(title=make_title(about), nli=nli, **values)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def build_metadata(
    about: dict[str, Any],
    scores: Mapping[str, Any],
    *,
    library: str,
    tags: list[str],
    dataset: Mapping[str, Any] | None = None,
) -> ModelCardData:
    """What the hub reads from a card. It names no base and no data set that is a local folder.

    Args:
        about: with `task`, `model` and `data`.
        scores: values by the keys of `metrics.METRICS`.
        library: the library that loads the model.
        tags: besides those of the task.
        dataset: more arguments of `EvalResult` about the data.
    """
    model, data, is_nli = about["model"], about["data"], NliTask.from_task(about["task"]) is not None
    known = [
        (metric.title, metric.hub, scores[metric.key])
        for metric in metrics.METRICS
        if metric.hub and metric.key in scores and math.isfinite(scores[metric.key])
    ]
    evaluations = [
        EvalResult(
            task_type="text-classification",
            task_name="Natural language inference" if is_nli else "Text classification",
            dataset_type=public_name(data),
            dataset_name=public_name(data),
            dataset_revision=data["revision"],
            **(dataset or {}),
            metric_type=metric_type,
            metric_name=title[0].upper() + title[1:],
            metric_value=round(value, 6),
            metric_args=arguments,
        )
        for title, (metric_type, arguments), value in known
    ]
    return ModelCardData(
        model_name=make_title(about),
        base_model=None if is_local(model["name"]) else model["name"],
        datasets=None if is_local(data["name"]) else [data["name"]],
        library_name=library,
        pipeline_tag="text-classification",
        tags=[*tags, *(["natural-language-inference"] if is_nli else [])] or None,
        metrics=list(dict.fromkeys(metric_type for _, (metric_type, _), _ in known)),
        eval_results=evaluations,
    )


def with_public_name(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"name": public_name(data)}


def public_name(data: dict[str, Any]) -> str:
    """The name of a data set on the hub, or the last name of a local folder, whose path is private.

    The name cannot be omitted: the hub requires a type and a name of the data for each score (`EvalResult`).
    """
    return local_path(data["name"]).resolve().name if is_local(data["name"]) else data["name"]


def make_title(about: dict[str, Any]) -> str:
    """The model's name for readers, such as "phi-2 for snli"."""
    model, data = (about[key]["name"].rstrip("/").split("/")[-1] for key in ("model", "data"))
    return f"{model} for {data}"


def example_texts(task: Task) -> dict[str, str]:
    """Example texts for the code in a card: {column: text}."""
    if nli := NliTask.from_task(task):
        return {nli.premise: "Two dogs are running in the park.", nli.hypothesis: "Animals are outside."}
    return {column: f"The {column}." for column in task.columns}


def loading_dtypes(precision: str) -> dict[str, str]:
    """The torch dtypes in the code that loads the base, by the names that the template uses for them.

    `auto` becomes float32, since every machine supports it. The checkpoint's float16 is not used: phi-2's attention
    overflows in it.

    Args:
        precision: `model.precision` of params.yaml.
    """
    products = {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")
    return {"dtype": "bfloat16" if precision == "bf16" else "float32", "product_dtype": products}
