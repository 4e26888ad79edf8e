"""The report: numbers, sentences and pictures as one web page that needs no network, and as Markdown."""

import itertools
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from stages.analysis.comparison import FATES
from stages.analysis.nli import NliTask
from stages.data.data_summary import DataSummary
from stages.data.data_warnings import find_warnings
from stages.report import cases as rows
from stages.report import published, wording
from stages.report import tables as report_tables
from stages.report.captions import captions
from stages.report.formatting import numbers, percent, percent_interval
from stages.report.recipe import key_facts, recipe
from stages.report.render import SHOWN, tallness

TEMPLATES = Path(__file__).parent / "templates"


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
    made.filters.update(
        percent=percent, interval=lambda ends: percent_interval((ends["low"], ends["high"])), text=escape_markdown
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return made


def escape_markdown(value: str) -> str:
    """Text of the data inside Markdown: what would be markup is escaped, and all is in one line."""
    return re.sub(r"[\\`*<|\[\]~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(value.split()))


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
        findings: from `nli.claims`; empty for another task.
        cases: from `comparison.build_case_table`.
        tables: from `plot_tables.plot_tables`.
        pictures: {name: (PNG bytes, SVG text)}.
        about: {"model": manifest, "data": source, "task": `Task`, "params": all of params.yaml, "device": name,
            "versions": {library: version}, "published": published.json}.
    """
    gained, task = details["comparison"], about["task"]
    nli, few = NliTask.from_task(task), len(task.classes) <= report_tables.FEW_CLASSES
    inside, titled = rows.groups(cases, nli), captions(task, about["params"], usage["train"])
    shown = {
        "model": Path(about["model"]["name"]).name,
        "data": Path(about["data"]["name"]).name,
        "level": wording.confidence_level(about["params"].analysis.confidence),
        **results(details, about),
        "headline": wording.headline(gained, about["params"].analysis.confidence),
        "errors": rows.confident_errors(cases, task),
        "facts": key_facts(details["data"], about),
        "pictures": {
            name: {"title": title, "caption": caption, "svg": labelled(pictures[name][1], title), "file": file(name)}
            for name, (title, caption) in titled.items()
        },
        "picture_width": SHOWN,
        "picture_columns": in_two_columns(
            {name: tallness(pictures[name][1]) for name in titled if few or name != "confusion"}
        ),
        "confusions": None
        if few
        else {
            "tuned": report_tables.confusions(cases, task, "tuned"),
            "base": report_tables.confusions(cases, task, "base")[: report_tables.OF_BASE],
        },
        "slices": list(zip(tables["slices_base"].itertuples(), tables["slices_tuned"].itertuples(), strict=True)),
        "by_split": report_tables.by_split(details["data"], task),
        "by_class": report_tables.by_class(details),
        "few_classes": few,
        "fates": {fate: (wording.FATES[fate], gained[fate]) for fate in FATES},
        "groups": {name: int(member.sum()) for name, member in inside.items()},
        "columns": task.columns,
        "classes": task.classes,
        "columns_json": rows.page_json(task.columns),
        "classes_json": rows.page_json(task.classes),
        "rows_json": rows.as_json(cases, inside, task),
        "all_rows": len(cases),
        "shows_all": rows.rows_on_the_page(cases, task) == len(cases),
        "legend": wording.legend(min(rows.LIKELIEST, len(task.classes))),
    }
    return shown | {"nli": beside_the_published(details, usage, findings, tables, about) if nli else None}


def beside_the_published(
    details: dict[str, Any],
    usage: dict[str, dict[str, Any]],
    findings: dict[str, dict[str, Any]],
    tables: dict[str, pd.DataFrame],
    about: dict[str, Any],
) -> dict[str, Any]:
    """What an NLI task's report has more: the published report's claims and figures; arguments: as of `context`."""
    theirs, level = about["published"], wording.confidence_level(about["params"].analysis.confidence)
    return {
        "published": theirs,
        "explained": wording.published(theirs, details["tuned"]["rows"]),
        "findings": wording.claims(findings),
        "claims_note": f"Each of these {len(findings)} claims is tested at {level} by itself, not all of them at once.",
        "differing": published.differing(theirs, about["model"]["name"], about["data"]["name"]),
        "beside": published.beside(theirs, details, usage),
        "epochs": published.epochs_beside(theirs, tables["epochs"]),
    }


def results(details: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What the reports and the model card both show."""
    effects, group = (details[name]["design_effect"] for name in ("base", "tuned", "comparison")), about["task"].group
    return {
        "base": details["base"],
        "tuned": details["tuned"],
        "gained": details["comparison"],
        "lead": wording.lead(details),
        "guessed": wording.guessed(details["comparison"]),
        "numbers": numbers(details),
        "intervals": wording.intervals(*effects, group, about["params"].analysis.confidence),
        "cautions": find_warnings(DataSummary.from_json(details["data"]), group),
        "interval_cautions": wording.interval_cautions(
            details["data"]["test"]["classes"], details["tuned"]["groups"], group
        ),
        "overlap": wording.overlap(details["data"]["test"], group),
        "recipe": recipe(details["data"], about),
    }


def file(picture: str) -> str:
    """Where a picture lies beside the report: what a run measured of itself is not among what it found."""
    return f"{'measurements' if picture == 'usage' else 'figures'}/{picture}.png"


def in_two_columns(heights: dict[str, float]) -> list[list[str]]:
    """Pictures in two columns as even as they can be, the first picture in the first column.

    Args:
        heights: of the pictures in the order of the page, in widths of a column.
    """
    first, *others = heights
    words = 0.25  # what title, caption and frame of a picture take
    whole = sum(heights.values()) + words * len(heights)

    def unevenness(beside):
        return abs(whole - 2 * sum(heights[name] + words for name in (first, *beside)))

    subsets = itertools.chain.from_iterable(itertools.combinations(others, n) for n in range(len(others) + 1))
    chosen = {first, *min(subsets, key=unevenness)}
    return [[name for name in heights if name in chosen], [name for name in heights if name not in chosen]]


def labelled(svg: str, title: str) -> Markup:
    """An SVG that a screen reader names."""
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
