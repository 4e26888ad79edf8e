"""Model cards in the format of the Hugging Face hub: of an adapter, and of an adapter merged into its base."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2.utils import htmlsafe_json_dumps

from stages.analysis import metrics
from stages.analysis.leading_metric import TITLES, LeadingMetric
from stages.analysis.metrics import Metric
from stages.analysis.nli import NliTask
from stages.analysis.results import Results
from stages.data.labels import Labels
from stages.data.task import Task
from stages.report.document import (
    alarms_section,
    data_section,
    environment,
    recipe_section,
    scores_section,
    verdict_section,
)
from stages.report.label_words import words_of
from stages.report.recipe import describe_source
from stages.report.run_description import RunDescription, Source
from stages.runtime.errors import UserError


def build_adapter_card(results: Results, cases: pd.DataFrame, run: RunDescription) -> str:
    """Build the card of the adapter; cases: from `build_case_table`."""
    metadata = build_metadata(
        run.task,
        run.model,
        run.data,
        {key: score.value for key, score in results.tuned.scores.items()},
        library="peft",
        tags=["lora", "qlora"],
        dataset={"dataset_config": run.params.data.subset, "dataset_split": run.params.data.splits.test},
    )
    public_run = replace(run, data=replace(run.data, name=public_name(run.data)))
    return render_card(
        "model_card.md",
        metadata,
        run.task,
        model=run.model,
        rows=results.tuned.rows,
        example=example_texts(run.task),
        nf4=run.params.model.quantization == "nf4",
        **loading_dtypes(run.params.model.precision),
        on_hub=not run.model.is_local,
        **verdict_section(results, run),
        **alarms_section(results, cases, run),
        **scores_section(results, public_run),
        **data_section(results.data, run),
        **recipe_section(results.data, public_run),
    )


def rename_base(text: str, local: Source, public: Source) -> str:
    """Name a base that was in a local folder by its name on the hub, in the recipe and the code of an adapter's card.

    Raises:
        UserError: the card does not have these two lines exactly once.
    """

    def lines(source: Source) -> list[str]:
        revision = f"\n    revision={quote(source.revision)}," if source.revision else ""
        return [f"\n- base model: `{describe_source(source)}`\n", f"\n    {quote(source.name)},{revision}\n"]

    def quote(value: str) -> str:
        return htmlsafe_json_dumps(value, ensure_ascii=False)

    for before, after in zip(lines(local), lines(public), strict=True):
        if text.count(before) != 1:
            raise UserError(f"metrics/model_card.md: must have the line {before.strip()} exactly once; run `dvc repro`")
        text = text.replace(before, after)
    return text


def complete_card(text: str, model: Source, license_fields: Mapping[str, str]) -> str:
    """Add to an adapter's card what the hub reads about its base and its licence."""
    card = ModelCard(text)
    for key, value in {"base_model": model.name, **license_fields}.items():
        card.data[key] = value
    return str(card)


def build_export_card(about: dict[str, Any]) -> str:
    """Build the card of an adapter that was merged into its base.

    Args:
        about: what the template shows: `task`; `model` and `data`, the manifests; `settings`, the adapter's
            classifier.json; `example`, a filled template; `adapter`, the adapter's `Agreement` with itself, for its
            scores; `merges`, {name of a merge: its `Agreement` with the adapter}; `chosen`, the name of the merge in
            the folder; `rows`, the number of test rows; `truncated`, how many of them were truncated; `left_out`, how
            many more were not used; `special`, whether the template has special tokens; `dtype`, the weights' dtype;
            `license`, the hub's identifier or None; `base_model`, the name on the hub of a base that was in a local
            folder, or None.
    """
    model, data = (Source.from_manifest(about[key]) for key in ("model", "data"))
    scores = about["merges"][about["chosen"]].scores
    metadata = build_metadata(about["task"], model, data, scores, library="transformers", tags=[])
    metadata.base_model, metadata.license = about["base_model"] or metadata.base_model, about["license"]
    public_model = replace(model, name=about["base_model"] or public_name(model))
    return render_card(
        "exported_card.md",
        metadata,
        **about | {"data": {"name": public_name(data)}, "model": public_model},
        nf4=about["settings"].model.quantization == "nf4",
        texts=example_texts(about["task"]),
        score_titles=name_scores(scores, about["task"].labels),
    )


def name_scores(scores: Iterable[LeadingMetric], labels: Labels) -> dict[LeadingMetric, str]:
    """Titles of an export's scores, by their keys, in the same order."""
    return {key: words_of(labels).titles.get(key, TITLES[key]) for key in scores}


def render_card(template: str, metadata: ModelCardData, task: Task, **values: Any) -> str:
    """Metadata as YAML, then the template with these values."""
    body = (
        environment()
        .get_template(template)
        .render(
            title=metadata.model_name, task=task, words=words_of(task.labels), nli=NliTask.from_task(task), **values
        )
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def build_metadata(
    task: Task,
    model: Source,
    data: Source,
    scores: Mapping[str, float],
    *,
    library: str,
    tags: list[str],
    dataset: Mapping[str, Any] | None = None,
) -> ModelCardData:
    """What the hub reads from a card. A local folder is not listed as base model or data set.

    Args:
        scores: values by the keys of `metrics.METRICS`.
        library: the library that loads the model.
        tags: the card's tags besides those of the task.
        dataset: more arguments of `EvalResult` about the data.
    """
    is_nli = NliTask.from_task(task) is not None
    hub_metrics = [
        (words_of(task.labels).titles.get(metric.key, metric.title), metric.hub, scores[metric.key])
        for metric in metrics.METRICS
        if isinstance(metric, Metric) and metric.hub and metric.key in scores and math.isfinite(scores[metric.key])
    ]
    evaluations = [
        EvalResult(
            task_type="text-classification",
            task_name="Natural language inference" if is_nli else "Text classification",
            dataset_type=dataset_id(data),
            dataset_name=public_name(data),
            dataset_revision=data.revision,
            **(dataset or {}),
            metric_type=metric_type,
            metric_name=title[0].upper() + title[1:],
            metric_value=round(value, 6),
            metric_args=arguments,
        )
        for title, (metric_type, arguments), value in hub_metrics
    ]
    return ModelCardData(
        model_name=make_title(model.name, data.name),
        base_model=None if model.is_local else model.name,
        datasets=None if data.is_local else [data.name],
        library_name=library,
        pipeline_tag="text-classification",
        tags=[*tags, *(["natural-language-inference"] if is_nli else [])] or None,
        metrics=list(dict.fromkeys(metric_type for _, (metric_type, _), _ in hub_metrics)),
        eval_results=evaluations,
    )


def public_name(source: Source) -> str:
    """The name of a model or data set on the hub, or the last name of a local folder, whose path is private.

    The name cannot be omitted: the hub requires a type and a name of the data for each score (`EvalResult`).
    """
    return Path(source.name).resolve().name if source.is_local else source.name


def dataset_id(data: Source) -> str:
    """The data's name on the hub, or the last name of a local folder in the characters that such a name may have."""
    identifier = re.sub(r"[^A-Za-z0-9_]+", "-", public_name(data)).strip("-")[:96]
    return (identifier or "local") if data.is_local else data.name


def make_title(model: str, data: str) -> str:
    """The model's name for readers, such as "phi-2 for snli"."""
    return " for ".join(name.rstrip("/").split("/")[-1] for name in (model, data))


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
