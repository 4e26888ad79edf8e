"""The published figures beside this run's, as text."""

from typing import Any

import pandas as pd

from stages.report.formatting import found, percent

LOSSES = ("train_loss", "validation_loss")
FIGURES = (
    ("test rows", "{:,}", "tuned.rows"),
    ("accuracy, base", percent, "base.accuracy"),
    ("accuracy, tuned", percent, "tuned.accuracy"),
    ("weighted F1, base", percent, "base.f1_weighted"),
    ("weighted F1, tuned", percent, "tuned.f1_weighted"),
    ("stored parameters, base", "{:,}", "base.parameters.stored"),
    ("stored parameters, with LoRA", "{:,}", "train.parameters.stored"),
    ("trained parameters", "{:,}", "train.parameters.trainable"),
    ("training, seconds", "{:,.0f}", "usage.train.seconds"),
    ("GPU memory with the base loaded, GB", "{:.2f}", "usage.base.gpu.loaded"),
    ("GPU memory before training, GB", "{:.2f}", "usage.train.gpu.before_training"),
    ("GPU memory after training, GB", "{:.2f}", "usage.train.gpu.after_training"),
    ("epoch kept", "{}", "train.best_epoch"),
    ("validation loss of that epoch", "{:.3f}", "train.validation_loss"),
)


def differing(published: dict[str, Any], model: str, data: str) -> list[tuple[str, str, str]]:
    """What makes the published figures and this run's another matter: (what, the published one, this run's) each."""
    pairs = [("base model", published["model"], model), ("data", published["data"], data)]
    return [pair for pair in pairs if pair[1] != pair[2]]


def beside(
    published: dict[str, Any], details: dict[str, Any], usage: dict[str, dict[str, Any]]
) -> list[tuple[str, str, str]]:
    """The published figures beside this run's, as text: (name, published, measured) each.

    Args:
        published: published.json.
        details, usage: as `document.context` takes them.
    """
    ours = details | {"usage": usage}
    return [(name, found(published, key, show), found(ours, key, show)) for name, show, key in FIGURES]


def epochs_beside(published: dict[str, Any], epochs: pd.DataFrame) -> list[tuple[int, str, str, str, str]]:
    """Losses by epoch: (epoch, published training, published validation, this run's training, and validation)."""
    theirs = {line["epoch"]: line for line in published["train"]["epochs"]}
    ours = epochs.set_index("epoch").to_dict("index")
    return [
        (epoch, *(found(run.get(epoch, {}), key, "{:.3f}") for run in (theirs, ours) for key in LOSSES))
        for epoch in sorted({*theirs, *ours})
    ]
