"""The report: as one web page that needs no network, and as Markdown.

Each section is a function that returns what the templates show of it.
"""

import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from stages.analysis.case_table import OUTCOMES
from stages.analysis.comparison import Comparison
from stages.analysis.leading_metric import TITLES
from stages.analysis.nli import NliTask
from stages.analysis.results import Results
from stages.analysis.usage import RunUsage, Usage
from stages.data.data_summary import DataSummary
from stages.data.data_warnings import DataWarning, find_warnings
from stages.data.labels import SEPARATOR
from stages.data.task import Task
from stages.report import cases as page_rows
from stages.report import published, tables, verdict, wording
from stages.report.alarms import find_alarms
from stages.report.captions import captions
from stages.report.formatting import confidence_level, percent, percent_interval
from stages.report.label_words import list_gold, words_of
from stages.report.published_claims import describe_claims
from stages.report.recipe import key_facts, recipe
from stages.report.render import SHOWN
from stages.report.run_description import RunDescription

Context = dict[str, Any]  # {name in a template: value}
TEMPLATES = Path(__file__).parent / "templates"
VERDICT_COLOURS = {"worth it": "good", "too close to tell": "open", "not worth it": "bad"}
MAX_UNBROKEN = 24  # characters of a name in a Markdown table without a place to break
MAX_COLUMNS = 7  # of a table that fits in half of the page's width
SET_BREAK = f"{SEPARATOR}\u200b"  # between the labels of a row on the page: a place to break the line
OUTCOME_NAMES = {
    "fixed": "only tuned is right",
    "broken": "only the reference is right",
    "both_right": "both are right",
    "both_wrong": "both are wrong",
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
    templates.filters.update(
        percent=percent, interval=percent_interval, text=escape_markdown, cell=escape_cell, breakable=breakable
    )
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return templates


def escape_markdown(value: str) -> str:
    """Text of the data inside Markdown: markup is escaped, and line breaks become spaces."""
    return re.sub(r"[\\`*|\[\]~&$]|<(?=[\w/!?])|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(value.split()))


def escape_cell(name: str) -> str:
    """`escape_markdown` for a name in a table. A long name may break after each underscore, or it widens the table."""
    long = any(len(word) > MAX_UNBROKEN for word in name.split())
    return escape_markdown(name).replace("_", "_<wbr>") if long else escape_markdown(name)


def breakable(name: str) -> Markup:
    """A name or a sentence in HTML. It may break after each underscore or slash, and after each | of a set."""
    return Markup(re.sub("[_/|]", r"\g<0><wbr>", str(escape(name))))


def build_context(
    results: Results,
    usage: Usage,
    cases: pd.DataFrame,
    label_errors: pd.DataFrame,
    plot_tables: dict[str, pd.DataFrame],
    pictures: dict[str, tuple[bytes, str]],
    run: RunDescription,
) -> Context:
    """Everything that the templates show, section by section.

    Args:
        cases: from `build_case_table`, after `hide_texts`.
        label_errors: from `likely_label_errors`, after `hide_texts`.
        plot_tables: from `build_plot_tables`.
        pictures: {name: (PNG bytes, SVG text)}.
    """
    return {
        "model": run.model.short_name,
        "data": (run.tested.source if run.tested else run.data).short_name,
        "tested": wording.explain_tested(results, run),
        **verdict_section(results, run),
        **alarms_section(results, cases, run),
        **scores_section(results, run),
        **classes_section(results, plot_tables, run.task),
        **calibration_section(results, run.task),
        **coverage_section(results, run.task),
        **data_section(results.data, run),
        **recipe_section(results.data, run),
        **errors_section(cases, results.comparison.best, run.task),
        **label_errors_section(label_errors, cases, run.task),
        **confusions_section(cases, run.task),
        **pictures_section(pictures, results.comparison, usage, run),
        "memory_plan": shown_usage(usage, run).record.get("memory_plan"),
        **published_section(results, usage, plot_tables["epochs"], run),
        **rows_section(cases, results.comparison, run),
    }


def verdict_section(results: Results, run: RunDescription) -> Context:
    """What tuning was worth; the model card has this section too."""
    comparison, level, labels = results.comparison, confidence_level(run.confidence), run.task.labels
    return {
        "level": level,
        "metric": TITLES[comparison.metric],
        "tuned_score": results.tuned.scores[comparison.metric],
        "best_score": comparison.best_reference.lead(comparison.metric),
        "reference_name": verdict.name_reference(comparison.best, labels),
        "verdict": comparison.verdict,
        "verdict_colour": VERDICT_COLOURS[comparison.verdict],
        "verdict_reason": verdict.explain_verdict(comparison, run.confidence, labels),
        "details": [
            sentence
            for sentence in (
                words_of(labels).right,
                verdict.explain_gains(comparison, labels),
                verdict.explain_missing(run.params.analysis.references, labels),
                verdict.explain_outcomes(comparison, labels),
                verdict.explain_metric(results),
                verdict.explain_duplicates(comparison, level),
            )
            if sentence
        ],
    }


def alarms_section(results: Results, cases: pd.DataFrame, run: RunDescription) -> Context:
    """What makes the scores mean less than they seem to; the model card has this section too."""
    of_data = [warning.text for warning in list_warnings(results.data, run) if warning.level == "alarm"]
    of_answers = find_alarms(cases, results.comparison, run.task, is_own_test=run.tested is None)
    return {"alarms": [*of_answers, *of_data]}


def list_warnings(data: DataSummary, run: RunDescription) -> list[DataWarning]:
    return find_warnings(data, run.task, is_own_test=run.tested is None)


def scores_section(results: Results, run: RunDescription) -> Context:
    """The references and all scores, with notes on their intervals; the model card has this section too."""
    group, classes = run.task.group, results.data.splits["test"].classes
    return {
        "references": tables.reference_table(verdict.list_scores(results, run), run.confidence),
        "left_out": verdict.list_left_out(run.references),
        "numbers": tables.score_table(results, run.task.labels),
        "intervals": wording.explain_intervals(results, group, run.confidence),
        "interval_warnings": [
            *wording.interval_warnings(classes, results.tuned.rows, results.tuned.groups, group, type(run.task.labels)),
            *wording.average_precision_warnings(results),
        ],
    }


def classes_section(results: Results, plot_tables: dict[str, pd.DataFrame], task: Task) -> Context:
    slices = (plot_tables[f"slices_{model}"].itertuples() for model in ("tuned", "reference"))
    by_class = tables.class_table(results, task.labels)
    return {
        "noun": task.labels.noun,
        "nouns": task.labels.nouns,
        "accuracy": words_of(task.labels).accuracy,
        "by_class": by_class,
        "wide": len(by_class[0]) > MAX_COLUMNS,
        "slices": list(zip(*slices, strict=True)),
    }


def calibration_section(results: Results, task: Task) -> Context:
    calibration = results.calibration
    return {
        "calibrated": calibration is not None,
        "calibration": tables.calibration_table(
            results.tuned, calibration.without if calibration else None, task.labels
        ),
        "calibration_explained": wording.explain_calibration(
            calibration, results.tuned.scores["loss"].value, task.labels
        ),
        "calibration_warnings": wording.calibration_warnings(calibration),
    }


def coverage_section(results: Results, task: Task) -> Context:
    return {
        "threshold_title": words_of(task.labels).threshold,
        "coverage": tables.coverage_table(results.coverage),
        "coverage_sentences": wording.explain_coverage(results.coverage),
        "threshold_effect": wording.explain_threshold(results.best_threshold, results.tuned.scores),
    }


def data_section(data: DataSummary, run: RunDescription) -> Context:
    """The rows of each split, and what is wrong with them; the model card has this section too."""
    return {
        "by_split": tables.split_table(data, run.task),
        "warnings": [warning.text for warning in list_warnings(data, run) if warning.level == "warning"],
        "overlap": wording.no_overlap(data.splits["test"], run.task.group),
    }


def recipe_section(data: DataSummary, run: RunDescription) -> Context:
    """What was run; the model card has this section too."""
    return {"facts": key_facts(data, run), "recipe": recipe(data, run)}


def errors_section(cases: pd.DataFrame, reference: str, task: Task) -> Context:
    return {
        "errors": page_rows.confident_errors(cases, reference, task),
        "columns": [name for name, _ in page_rows.text_columns(cases, task)],
        "places": page_rows.explain_places(cases),
    }


def label_errors_section(label_errors: pd.DataFrame, cases: pd.DataFrame, task: Task) -> Context:
    """Rows whose gold label may be wrong, with the columns of the other tables; label_errors.csv has all of them."""
    columns = [column for _, column in page_rows.text_columns(cases, task)]
    return {
        "label_errors": page_rows.label_error_table(label_errors, cases, columns),
        "label_error_count": len(label_errors),
    }


def confusions_section(cases: pd.DataFrame, task: Task) -> Context:
    """With few classes, the confusion matrix shows all confusions."""
    few = len(task.classes) <= tables.FEW_CLASSES
    return {"few_classes": few, "confusions": [] if few else tables.confusion_table(cases, task)}


def pictures_section(
    pictures: dict[str, tuple[bytes, str]], comparison: Comparison, usage: Usage, run: RunDescription
) -> Context:
    titles = captions(comparison, run, shown_usage(usage, run))
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
    }


def shown_usage(usage: Usage, run: RunDescription) -> RunUsage:
    """The usage that describes the picture of memory and load: with other data, its own; else the training's."""
    return usage.tuned if run.tested else usage.train


def published_section(results: Results, usage: Usage, epochs: pd.DataFrame, run: RunDescription) -> Context:
    """The published report's claims and figures, if the run has its base model and its data."""
    if results.claims is None:
        return {"published": None}
    claims, level = describe_claims(results.claims), confidence_level(run.confidence)
    section = {
        "explained": published.explain_published(run.published, results.tuned.rows),
        "claims": claims,
        "claims_note": f"Each of these {len(claims)} claims is tested at {level} by itself, not all of them at once.",
        "figures_note": published.explain_figures(run.published),
        "figures": published.compare_figures(run.published, results, usage),
        "epochs": published.compare_epochs(run.published, epochs),
    }
    return {"published": section}


def rows_section(cases: pd.DataFrame, comparison: Comparison, run: RunDescription) -> Context:
    """The table of test rows with its filters."""
    task, texts = run.task, run.params.analysis.texts
    filters = page_rows.filters(cases, NliTask.from_task(task))
    names = page_rows.list_names(cases, comparison.best, task)
    return {
        "outcomes": {key: (OUTCOME_NAMES[key], getattr(comparison.outcomes, key)) for key in OUTCOMES},
        "filters": {name: int(rows.sum()) for name, rows in filters.items()},
        "classes": task.classes,
        "all_gold": words_of(task.labels).all_gold,
        "gold_options": list_gold(cases["gold"], names, task.labels),
        "columns_json": page_rows.names_as_json([name for name, _ in page_rows.text_columns(cases, task)]),
        "classes_json": page_rows.names_as_json([SET_BREAK.join(task.labels.split(name)) for name in names]),
        "rows_json": page_rows.rows_as_json(cases, filters, comparison.best, task, names),
        "all_rows": len(cases),
        "shows_all": page_rows.count_page_rows(cases, task) == len(cases),
        "legend": page_rows.legend(cases, task, texts),
    }


def label_svg(svg: str, title: str) -> Markup:
    """Give an SVG a name for screen readers."""
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
