"""The report: as one web page that needs no network, and as Markdown.

Each section is a function that returns what the templates show of it.
"""

import itertools
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from stages.analysis.case_table import OUTCOMES
from stages.analysis.comparison import Comparison
from stages.analysis.nli import NliTask
from stages.analysis.results import Results
from stages.analysis.usage import Usage
from stages.data.data_summary import DataSummary
from stages.data.data_warnings import find_warnings
from stages.data.task import Task
from stages.report import cases as page_rows
from stages.report import published, tables, wording
from stages.report.alarms import find_alarms
from stages.report.captions import captions
from stages.report.formatting import percent, percent_interval
from stages.report.published_claims import describe_claims
from stages.report.recipe import key_facts, recipe
from stages.report.render import SHOWN, tallness
from stages.report.run_description import RunDescription
from stages.report.wording import REFERENCE_NAMES

Context = dict[str, Any]  # {name in a template: value}
TEMPLATES = Path(__file__).parent / "templates"
MAX_REFERENCE_CONFUSIONS = 5
CAPTION_HEIGHT = 0.25  # of a picture's title, caption and frame, in widths of a column
OUTCOME_NAMES = {
    "fixed": "corrected by tuning",
    "broken": "broken by tuning",
    "both_right": "right both times",
    "both_wrong": "wrong both times",
}


def html(context: Context) -> str:
    """The page. Everything that comes from the data is escaped."""
    return environment().get_template("report.html").render(context)


def markdown(context: Context) -> str:
    """The short report. Its pictures are files."""
    return environment().get_template("report.md").render(context)


def environment() -> jinja2.Environment:
    """Templates that escape in HTML, and that fail if a name is missing."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters.update(percent=percent, interval=percent_interval, text=escape_markdown)
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return templates


def escape_markdown(value: str) -> str:
    """Text of the data inside Markdown: markup is escaped, and line breaks become spaces."""
    return re.sub(r"[\\`*<|\[\]~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(value.split()))


def build_context(
    results: Results,
    usage: Usage,
    cases: pd.DataFrame,
    plot_tables: dict[str, pd.DataFrame],
    pictures: dict[str, tuple[bytes, str]],
    run: RunDescription,
) -> Context:
    """Everything that the templates show, section by section.

    Args:
        cases: from `build_case_table`.
        plot_tables: from `build_plot_tables`.
        pictures: {name: (PNG bytes, SVG text)}.
    """
    return {
        **headline_section(results, cases, run),
        **scores_section(results, run),
        **classes_section(results, plot_tables),
        **data_section(results.data, run.task),
        **recipe_section(results.data, run),
        **errors_section(cases, results.comparison.best, run.task),
        **confusions_section(cases, results.comparison.best, run.task),
        **pictures_section(pictures, usage, run),
        **published_section(results, usage, plot_tables["epochs"], run),
        **rows_section(cases, results.comparison, run.task),
    }


def headline_section(results: Results, cases: pd.DataFrame, run: RunDescription) -> Context:
    return {
        "model": run.model.short_name,
        "data": run.data.short_name,
        "level": wording.confidence_level(run.confidence),
        "headline": wording.headline(results.comparison, run.confidence),
        "alarms": find_alarms(cases, results.comparison, REFERENCE_NAMES[results.comparison.best], run.task),
    }


def scores_section(results: Results, run: RunDescription) -> Context:
    """The scores of both models with notes on their intervals; the model card has this section too."""
    group, classes = run.task.group, results.data.splits["test"].classes
    return {
        "lead": wording.choose_lead(results),
        "numbers": tables.score_table(results),
        "guessed": wording.list_references(results.comparison),
        "intervals": wording.explain_intervals(results, group, run.confidence),
        "interval_warnings": wording.interval_warnings(classes, results.tuned.groups, group),
    }


def classes_section(results: Results, plot_tables: dict[str, pd.DataFrame]) -> Context:
    slices = (plot_tables[f"slices_{model}"].itertuples() for model in ("reference", "tuned"))
    return {"by_class": tables.class_table(results), "slices": list(zip(*slices, strict=True))}


def data_section(data: DataSummary, task: Task) -> Context:
    """The rows of each split, and what is wrong with them; the model card has this section too."""
    return {
        "by_split": tables.split_table(data, task),
        "warnings": [warning.text for warning in find_warnings(data, task.group)],
        "overlap": wording.no_overlap(data.splits["test"], task.group),
    }


def recipe_section(data: DataSummary, run: RunDescription) -> Context:
    """What was run; the model card has this section too."""
    return {"facts": key_facts(data, run), "recipe": recipe(data, run)}


def errors_section(cases: pd.DataFrame, reference: str, task: Task) -> Context:
    return {"errors": page_rows.confident_errors(cases, reference, task), "columns": task.columns}


def confusions_section(cases: pd.DataFrame, reference: str, task: Task) -> Context:
    """With few classes, the confusion matrices show all confusions."""
    if len(task.classes) <= tables.FEW_CLASSES:
        return {"few_classes": True, "confusions": None}
    confusions = {
        "tuned": tables.confusion_table(cases, task, "tuned"),
        "reference": tables.confusion_table(cases, task, reference)[:MAX_REFERENCE_CONFUSIONS],
    }
    return {"few_classes": False, "confusions": confusions}


def pictures_section(pictures: dict[str, tuple[bytes, str]], usage: Usage, run: RunDescription) -> Context:
    """With many classes, the confusion matrices are in a section of their own."""
    few = len(run.task.classes) <= tables.FEW_CLASSES
    titles = captions(run.task, run.params, usage.train)
    heights = {name: tallness(pictures[name][1]) for name in titles if few or name != "confusion"}
    return {
        "pictures": {
            name: {
                "title": title,
                "caption": caption,
                "svg": label_svg(pictures[name][1], title),
                "file": f"{'measurements' if name == 'usage' else 'figures'}/{name}.png",
            }
            for name, (title, caption) in titles.items()
        },
        "picture_width": SHOWN,
        "picture_columns": in_two_columns(heights),
    }


def published_section(results: Results, usage: Usage, epochs: pd.DataFrame, run: RunDescription) -> Context:
    """The published report's claims and figures, for NLI only."""
    if results.claims is None:
        return {"nli": None}
    claims, level = describe_claims(results.claims), wording.confidence_level(run.confidence)
    section = {
        "published": run.published,
        "explained": published.explain_published(run.published, results.tuned.rows),
        "claims": claims,
        "claims_note": f"Each of these {len(claims)} claims is tested at {level} by itself, not all of them at once.",
        "differences": published.find_differences(run),
        "figures": published.compare_figures(run.published, results, usage),
        "epochs": published.compare_epochs(run.published, epochs),
    }
    return {"nli": section}


def rows_section(cases: pd.DataFrame, comparison: Comparison, task: Task) -> Context:
    """The table of test rows with its filters."""
    filters = page_rows.filters(cases, NliTask.from_task(task))
    return {
        "outcomes": {key: (OUTCOME_NAMES[key], getattr(comparison.outcomes, key)) for key in OUTCOMES},
        "filters": {name: int(rows.sum()) for name, rows in filters.items()},
        "classes": task.classes,
        "columns_json": page_rows.names_as_json(task.columns),
        "classes_json": page_rows.names_as_json(task.classes),
        "rows_json": page_rows.rows_as_json(cases, filters, comparison.best, task),
        "all_rows": len(cases),
        "shows_all": page_rows.count_page_rows(cases, task) == len(cases),
        "legend": page_rows.legend(len(task.classes)),
    }


def in_two_columns(heights: dict[str, float]) -> list[list[str]]:
    """Distribute pictures over two columns as evenly as possible. The first picture is in the first column.

    Args:
        heights: of the pictures in the order of the page, in widths of a column.
    """
    first, *others = heights
    total = sum(heights.values()) + CAPTION_HEIGHT * len(heights)

    def unevenness(names: tuple[str, ...]) -> float:
        return abs(total - 2 * sum(heights[name] + CAPTION_HEIGHT for name in (first, *names)))

    subsets = itertools.chain.from_iterable(itertools.combinations(others, n) for n in range(len(others) + 1))
    left = {first, *min(subsets, key=unevenness)}
    return [[name for name in heights if name in left], [name for name in heights if name not in left]]


def label_svg(svg: str, title: str) -> Markup:
    """Give an SVG a name for screen readers."""
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
