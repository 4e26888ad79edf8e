"""Stage `analyze`: compute the results from predictions and histories. Only this stage writes to metrics/.

`tools.evaluate` makes the same report for test rows of other data.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.analysis import nli
from stages.analysis.best_threshold import measure_best_threshold
from stages.analysis.calibration import measure_calibration
from stages.analysis.case_table import build_case_table, find_outcomes
from stages.analysis.comparison import compare_models
from stages.analysis.coverage import (
    GOALS,
    CoverageOfGoal,
    Selection,
    choose_threshold,
    coverage_at,
    coverage_curve,
    measure_threshold,
)
from stages.analysis.label_errors import likely_label_errors
from stages.analysis.metrics import Predictions, score_model
from stages.analysis.plot_tables import build_plot_tables
from stages.analysis.results import ParameterCounts, Results, Training
from stages.analysis.usage import RunUsage, Usage, join_samples
from stages.data.data_summary import DataSummary
from stages.data.task import Task
from stages.report import cases as page_rows
from stages.report import document, figures, model_card, published
from stages.report.run_description import RunDescription, Source
from stages.report.verdict import summarize_verdict
from stages.runtime import errors, files, params
from stages.runtime.stage_table import GPU_STAGES

PUBLISHED = Path(__file__).parent / "report" / "published.json"


@dataclass(frozen=True)
class Inputs:
    """What the earlier stages wrote.

    Attributes:
        base: the predictions of the references that need the language model.
        tuned: the tuned model's predictions of the same rows in the same order.
        validation: its predictions of the validation rows.
        tokenized: {"train", "test"}: some columns of the rows.
        epochs, steps: the training's history.
        summaries: summary.json of "base", "train" and "tuned".
    """

    data: DataSummary
    base: pd.DataFrame
    tuned: pd.DataFrame
    validation: pd.DataFrame
    tokenized: dict[str, pd.DataFrame]
    epochs: pd.DataFrame
    steps: pd.DataFrame
    summaries: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """Everything that `write_report` writes.

    Attributes:
        cases: from `build_case_table`, with `outcome`.
        label_errors: from `likely_label_errors`, after `hide_texts`.
        plot_tables: from `build_plot_tables`.
        pictures: {name: (PNG bytes, SVG text)}.
        context: what the templates show.
    """

    run: RunDescription
    usage: Usage
    samples: pd.DataFrame
    results: Results
    cases: pd.DataFrame
    label_errors: pd.DataFrame
    plot_tables: dict[str, pd.DataFrame]
    pictures: dict[str, tuple[bytes, str]]
    context: document.Context


def main() -> None:
    p, task = params.load(), Task.read("outs/task.json")
    usage = load_usage()
    samples = join_samples({stage: load_samples(name) for stage, name in GPU_STAGES.items()})
    report = build_report(load_inputs(task), usage, samples, describe_run(p, task, usage))
    write_report(report, Path("metrics"))
    files.write_text("metrics/model_card.md", model_card.build_adapter_card(report.results, report.cases, report.run))
    print(f"{summarize_verdict(report.results, len(report.context['alarms']))}: metrics/report.html")


def build_report(inputs: Inputs, usage: Usage, samples: pd.DataFrame, run: RunDescription) -> Report:
    """Compute the results, and render the pictures. Writes nothing.

    Args:
        samples: of memory and load, from `join_samples`.
    """
    p, task = run.params, run.task
    cases = build_case_table(inputs.base, inputs.tuned, inputs.tokenized, task, p.analysis.references)
    results = compute_results(inputs, cases, run)
    best = results.comparison.best
    cases["outcome"] = find_outcomes(cases["gold"], cases[best], cases["tuned"])
    temperature = results.calibration.temperature if results.calibration else None
    plot_tables = build_plot_tables(cases, inputs.epochs, inputs.steps, best, temperature, task, p.analysis.confidence)
    label_errors = page_rows.hide_texts(likely_label_errors(inputs.tuned, task), p.analysis.texts, task)
    on_gpu = document.shown_usage(usage, run).on_gpu
    pictures = figures.render_all(results, plot_tables, cases, run, samples, on_gpu)
    shown_cases = page_rows.hide_texts(cases, p.analysis.texts, task)
    context = document.build_context(results, usage, shown_cases, label_errors, plot_tables, pictures, run)
    return Report(run, usage, samples, results, cases, label_errors, plot_tables, pictures, context)


def write_report(report: Report, folder: Path) -> None:
    """Write the report and its files to a folder."""
    shown_cases = page_rows.hide_texts(report.cases, report.run.params.analysis.texts, report.run.task)
    spreadsheet = page_rows.to_spreadsheet(shown_cases, report.run.task)

    # Results: equal inputs give equal bytes.
    files.write_json(folder / "details.json", report.results.to_json() | {"alarms": report.context["alarms"]})
    files.write_csv(folder / "cases.csv", spreadsheet, quoting=csv.QUOTE_NONNUMERIC)
    escaped = page_rows.escape_formulas(report.label_errors)
    files.write_csv(folder / "label_errors.csv", escaped, quoting=csv.QUOTE_NONNUMERIC)
    write_plots(report.plot_tables, folder / "plots")
    write_figures(report.pictures, folder / "figures")
    files.write_text(folder / "report.md", document.markdown(report.context))

    # Measurements of this run, and files that include measurements.
    files.write_json(folder / "summary.json", report.results.summarize() | report.usage.summarize())
    write_measurements(report, folder / "measurements")
    files.write_text(folder / "report.html", document.html(report.context))


def load_inputs(task: Task) -> Inputs:
    def read(path: str, columns: list[str] | None = None) -> pd.DataFrame:
        return task.labels.from_lists(files.read_table(path, columns))

    base, tuned = (read(f"outs/results/{model}/predictions.parquet") for model in ("base", "tuned"))
    if list(base["row"]) != list(tuned["row"]):
        raise errors.UserError(
            "outs/results: base and tuned have predictions of different rows. They must have the same rows. "
            "Run `dvc repro`."
        )
    columns = {"train": [*task.text_columns, "label"], "test": ["truncated"]}  # without the tokens, most of a file
    return Inputs(
        data=DataSummary.read("outs/data_summary.json"),
        base=base,
        tuned=tuned,
        validation=read("outs/results/train/validation.parquet"),
        tokenized={split: read(f"outs/tokenized/{split}.parquet", columns[split]) for split in columns},
        epochs=load_history("epochs"),
        steps=load_history("steps"),
        summaries={name: files.read_json(f"outs/results/{name}/summary.json") for name in GPU_STAGES.values()},
    )


def load_history(name: str) -> pd.DataFrame:
    """A table of the training's history. Infinite losses become NaN, which JSON and plots leave out."""
    return pd.read_csv(f"outs/results/train/{name}.csv").replace([np.inf, -np.inf], np.nan)


def load_usage() -> Usage:
    runs = {name: files.read_json(f"outs/measurements/{name}/run.json") for name in GPU_STAGES.values()}
    return Usage(**{name: RunUsage.from_run(run) for name, run in runs.items()})


def load_samples(name: str) -> pd.DataFrame:
    return pd.read_csv(f"outs/measurements/{name}/usage.csv")


def describe_run(p: params.Params, task: Task, usage: Usage) -> RunDescription:
    return RunDescription(
        task=task,
        model=Source.from_manifest(files.read_json("outs/base_model.json")),
        data=Source.from_manifest(files.read_json("outs/data_source.json")),
        params=p,
        device=usage.train.device,
        versions=usage.train.versions,
        adapter=files.read_json("outs/results/tuned/summary.json")["adapter"],
        references=files.read_json("outs/results/base/summary.json")["references"],
        published=files.read_json(PUBLISHED),
    )


def compute_results(inputs: Inputs, cases: pd.DataFrame, run: RunDescription) -> Results:
    task, confidence, summaries = run.task, run.confidence, inputs.summaries
    tuned, validation = (Predictions.from_table(table, task, confidence) for table in (inputs.tuned, inputs.validation))
    temperature = summaries["train"].get("temperature")
    nli_task = nli.NliTask.from_task(task) if published.is_published_task(run) else None
    return Results(
        data=inputs.data,
        base_parameters=ParameterCounts(**summaries["base"]["parameters"]),
        training=Training.from_history(summaries["train"], inputs.epochs),
        tuned=score_model(tuned),
        tuned_parameters=ParameterCounts(**summaries["tuned"]["parameters"]),
        comparison=compare_models(cases, task, confidence),
        calibration=measure_calibration(tuned.gold, tuned.predicted, tuned.probabilities, tuned.labels, temperature),
        coverage=measure_coverage(tuned, validation),
        best_threshold=measure_best_threshold(tuned, validation),
        claims=nli.check_claims(cases, nli_task, confidence) if nli_task else None,
    )


def measure_coverage(test: Predictions, validation: Predictions) -> dict[str, CoverageOfGoal]:
    """Which share of the test rows can be answered with each accuracy of `GOALS`."""
    rows = (test.right, test.answer_probability, test.groups)
    curve = coverage_curve(*rows, test.confidence)

    def select(goal: float) -> Selection | None:
        threshold = choose_threshold(validation.right, validation.answer_probability, goal)
        return None if threshold is None else measure_threshold(*rows, goal, threshold, test.confidence)

    return {f"{goal:.0%}": CoverageOfGoal(coverage_at(curve, goal), select(goal)) for goal in GOALS}


def write_plots(plot_tables: dict[str, pd.DataFrame], path: Path) -> None:
    with files.atomic_folder(path) as folder:
        for name, table in plot_tables.items():
            files.write_csv(folder / f"{name}.csv", page_rows.escape_formulas(table))


def write_figures(pictures: dict[str, tuple[bytes, str]], path: Path) -> None:
    with files.atomic_folder(path) as folder:
        for name in pictures.keys() - {"usage"}:  # a picture of measurements
            (folder / f"{name}.png").write_bytes(pictures[name][0])


def write_measurements(report: Report, path: Path) -> None:
    with files.atomic_folder(path) as folder:
        files.write_json(folder / "stages.json", report.usage.to_json())
        files.write_csv(folder / "usage.csv", report.samples)
        (folder / "usage.png").write_bytes(report.pictures["usage"][0])


if __name__ == "__main__":
    errors.run(main)
