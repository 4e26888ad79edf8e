"""The report: numbers, sentences and pictures as one web page that needs no network, and as Markdown."""

from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from stages.analysis.comparison import FATES
from stages.report import cases as rows
from stages.report import published, sentences
from stages.report.formatting import bounds, numbers, percent
from stages.report.recipe import recipe
from stages.task.labels import LABELS

TEMPLATES = Path(__file__).parent / "templates"
PICTURES = {
    "accuracy": ("Accuracy", "On the test rows, with intervals: base, tuned, and two guesses that read no premise."),
    "confusion": ("Confusion", "Test rows by gold label and prediction; darker is a greater share of the gold class."),
    "loss": ("Loss", "Training and validation by epoch; behind them the loss of each step."),
    "validation": ("Validation", "Accuracy and weighted F1 on the validation rows after each epoch."),
    "slices": ("Slices", "Accuracy with intervals; in brackets a slice's rows (base / tuned where they differ)."),
    "reliability": (
        "Calibration",
        "On the dotted line a model is as often right as it is sure. Larger dots, more rows.",
    ),
    "usage": ("Memory and load", "Over the three stages that run the model, laid end to end."),
}


def html(context: dict[str, Any]) -> str:
    """The page; whatever stands in the data is escaped."""
    return environment().get_template("report.html").render(context)


def markdown(context: dict[str, Any]) -> str:
    """The short report, with its pictures in folders beside it."""
    return environment().get_template("report.md").render(context)


def environment() -> jinja2.Environment:
    """Templates that escape in HTML, and that stop at a name they are not given."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(percent=percent, interval=lambda ends: bounds((ends["low"], ends["high"])))
    return made


def context(
    details: dict[str, Any],
    usage: dict[str, dict[str, Any]],
    findings: dict[str, dict[str, Any]],
    cases: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    pictures: dict[str, tuple[bytes, str]],
    about: dict[str, Any],
) -> dict[str, Any]:
    """What the templates show.

    Args:
        details: metrics/details.json.
        usage: {"base", "train", "tuned"}: what each run measured of itself, from `usage.figures`.
        findings: from `claims.claims`.
        cases: from `comparison.case_table`.
        tables: from `tables.plot_tables`.
        pictures: {name: (PNG bytes, SVG text)}.
        about: {"model": manifest, "data": source, "params": all of params.yaml, "device": name,
            "published": published.json}.
    """
    theirs, gained = about["published"], details["comparison"]
    level = sentences.level(about["params"].analysis.confidence)
    return {
        "model": Path(about["model"]["name"]).name,
        "data": Path(about["data"]["name"]).name,
        "level": level,
        **results(details, about),
        "numbers_by_class": numbers(details, by_class=True),
        "headline": sentences.headline(gained),
        "claims_note": f"Each of these {len(findings)} claims is tested at {level} by itself, not all of them at once.",
        "findings": sentences.claims(findings),
        "pictures": {
            name: {"title": title, "caption": caption, "svg": labelled(pictures[name][1], title), "file": file(name)}
            for name, (title, caption) in PICTURES.items()
        },
        "slices": list(zip(tables["slices_base"].itertuples(), tables["slices_tuned"].itertuples(), strict=True)),
        "published": theirs,
        "differing": published.differing(theirs, about["model"]["name"], about["data"]["name"]),
        "beside": published.beside(theirs, details, usage),
        "epochs": published.epochs_beside(theirs, tables["epochs"]),
        "fates": {fate: (sentences.FATES[fate], gained[fate]) for fate in FATES},
        "classes": LABELS,
        "groups": {name: int(inside.sum()) for name, inside in rows.groups(cases).items()},
        "rows_json": rows.as_json(cases),
    }


def results(details: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What the reports and the model card both show."""
    groups = ("base", "tuned", "comparison")
    return {
        "base": details["base"],
        "tuned": details["tuned"],
        "gained": details["comparison"],
        "numbers": numbers(details),
        "intervals": sentences.intervals(
            *(details[group]["design_effect"] for group in groups), about["params"].analysis.confidence
        ),
        "in_train": sentences.in_train(details["data"]["test"]),
        "recipe": recipe(details["data"], about),
    }


def file(picture: str) -> str:
    """Where a picture lies beside the report: what a run measured of itself is not among what it found."""
    return f"{'measurements' if picture == 'usage' else 'figures'}/{picture}.png"


def labelled(svg: str, title: str) -> Markup:
    """An SVG that a screen reader names."""
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
