"""The model card, in the hub's format: what the adapter is, how it was made, what it scores, where its limits are."""

from huggingface_hub import EvalResult, ModelCardData

from stages.report.report import environment, in_train, intervals, level_of, recipe
from stages.sources.manifest import is_folder


def text(metrics, about):
    """The card: metadata as YAML, then Markdown.

    Args:
        metrics, about: as `report.context` takes them.
    """
    body = (
        environment()
        .get_template("model_card.md")
        .render(
            model=about["model"],
            nf4=about["params"].model.quantization == "nf4",
            **dtypes(about["params"].model.precision),
            on_hub=not is_folder(about["model"]["name"]),
            base=metrics["eval_base"],
            tuned=metrics["eval_lora"],
            gained=metrics["analysis"],
            intervals=intervals(metrics, level_of(about)),
            in_train=in_train(metrics["data"]["test"]),
            recipe=recipe(metrics, about),
        )
    )
    return f"---\n{metadata(metrics, about).to_yaml()}\n---\n\n{body}"


def dtypes(precision):
    """The torch dtypes of the lines that load the base anywhere, by the names that the template gives them.

    `auto` is float32 there: every machine has it. Not the checkpoint's float16, in which phi-2's attention overflows.

    Args:
        precision: `model.precision` of params.yaml.
    """
    products = {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")
    return {"dtype": "bfloat16" if precision == "bf16" else "float32", "product_dtype": products}


def metadata(metrics, about):
    """What the hub reads of a card; a base or a data set that is a local folder has no name there."""
    model, data = about["model"], about["data"]
    tuned = metrics["eval_lora"]
    on_hub = {"model": not is_folder(model["name"]), "data": not is_folder(data["name"])}
    results = [
        EvalResult(
            task_type="text-classification",
            task_name="Natural language inference",
            dataset_type=data["name"],
            dataset_name=data["name"],
            dataset_split="test",
            dataset_revision=data["revision"],
            metric_type=kind,
            metric_name=name,
            metric_value=round(tuned[key], 4),
            metric_args={"average": average} if average else None,
        )
        for kind, name, key, average in (
            ("accuracy", "Accuracy", "accuracy", None),
            ("f1", "Weighted F1", "f1_weighted", "weighted"),
            ("f1", "Macro F1", "f1_macro", "macro"),
        )
    ]
    return ModelCardData(
        model_name=f"{model['name'].split('/')[-1]} for NLI",
        base_model=model["name"] if on_hub["model"] else None,
        datasets=[data["name"]] if on_hub["data"] else None,
        library_name="peft",
        pipeline_tag="text-classification",
        tags=["lora", "qlora", "natural-language-inference"],
        language="en",
        metrics=["accuracy", "f1"],
        eval_results=results,
    )
