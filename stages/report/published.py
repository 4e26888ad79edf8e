"""The figures of the published report next to those of this run, as text."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from stages.analysis.results import Results
from stages.analysis.usage import Usage
from stages.report.formatting import percent
from stages.report.run_description import RunDescription

LOSSES = ("train_loss", "validation_loss")
Format = str | Callable[[float], str]
# (name, format, key): of details.json, `usage` of measurements/stages.json. published.json has the same keys.
FIGURES: tuple[tuple[str, Format, str], ...] = (
    ("test rows", "{:,}", "tuned.rows"),
    ("accuracy, untrained head", percent, "comparison.references.untrained_head.accuracy"),
    ("accuracy, tuned", percent, "tuned.accuracy"),
    ("weighted F1, untrained head", percent, "comparison.references.untrained_head.f1_weighted"),
    ("weighted F1, tuned", percent, "tuned.f1_weighted"),
    ("stored parameters, base", "{:,}", "base.parameters.stored"),
    ("stored parameters, with LoRA", "{:,}", "train.parameters.stored"),
    ("trained parameters", "{:,}", "train.parameters.trainable"),
    ("training, seconds", "{:,.0f}", "usage.train.seconds"),
    ("GPU memory after loading the base, GB", "{:.2f}", "usage.base.gpu.loaded"),
    ("GPU memory before training, GB", "{:.2f}", "usage.train.gpu.before_training"),
    ("GPU memory after training, GB", "{:.2f}", "usage.train.gpu.after_training"),
    ("best epoch", "{}", "train.best_epoch"),
    ("validation loss of that epoch", "{:.3f}", "train.validation_loss"),
)


def is_published_task(run: RunDescription) -> bool:
    """Whether a run has the base model and the data of the published report, from the hub or from a local copy."""
    pairs = ((run.model, run.published["model"]), (run.data, run.published["data"]))
    return run.tested is None and all(
        source.short_name.casefold() == Path(name).name.casefold() for source, name in pairs
    )


def explain_published(published: dict[str, Any], rows: int) -> str:
    """What the published report is; rows: test rows of this run."""
    return (
        f"The published report is a student's, on {published['model']} tuned on {published['data']} "
        f"({published['source']}). This pipeline's recipe comes from its notebook. Its claims are based on ten test "
        f"rows; here they are tested on all {rows:,} rows of this run."
    )


def explain_figures(published: dict[str, Any]) -> str:
    """What a reader has to know to compare the figures."""
    device = published["device"]
    return (
        f"Accuracies on {published['tuned']['rows']} rows are accurate to 6 to 10 points. Seconds and memory depend on "
        f"the device; the published ones are of {device}. The published run kept the last epoch. In both columns, a "
        "stored 4-bit weight counts half."
    )


def compare_figures(published: dict[str, Any], results: Results, usage: Usage) -> list[tuple[str, str, str]]:
    """(name, published, this run) of each figure."""
    this_run = results.to_json() | {"usage": usage.to_json()}
    return [
        (name, _text(_look_up(published, key), form), _text(_look_up(this_run, key), form))
        for name, form, key in FIGURES
    ]


def compare_epochs(published: dict[str, Any], epochs: pd.DataFrame) -> list[tuple[int, str, str, str, str]]:
    """(epoch, published training loss, published validation loss, this run's training loss, validation loss)."""
    published_lines = {line["epoch"]: line for line in published["train"]["epochs"]}
    lines = epochs.set_index("epoch").to_dict("index")
    return [
        (
            epoch,
            *(
                _text(by_epoch.get(epoch, {}).get(key), "{:.3f}")
                for by_epoch in (published_lines, lines)
                for key in LOSSES
            ),
        )
        for epoch in sorted({*published_lines, *lines})
    ]


def _look_up(values: Any, key: str) -> float | None:
    """A nested value; None if it is not there. The key has dots, such as "train.best_epoch"."""
    for part in key.split("."):
        if part not in values:
            return None
        values = values[part]
    return values


def _text(value: float | None, form: Format) -> str:
    """A figure as text; a dash if it is unknown or not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return form.format(value) if isinstance(form, str) else form(value)
