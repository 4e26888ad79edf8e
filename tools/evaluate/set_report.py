"""The report of a data set: the inputs of `analyze`, with the rows of the data set as test rows."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from stages import analyze
from stages.analysis.usage import RunUsage, Usage, join_samples
from stages.data.data_summary import DataSummary, Overlap, find_duplicates, summarize_split
from stages.data.dataset import number_rows
from stages.data.predictions import prediction_table
from stages.data.row_places import place_columns
from stages.evaluation import Measured
from stages.report.run_description import TestedData
from stages.runtime.usage_samples import FIELDS
from tools.evaluate.finished_run import FinishedRun
from tools.evaluate.predict_sets import SetPredictions
from tools.evaluate.read_set import LabelledSet


def build_reports(run: FinishedRun, sets: Sequence[LabelledSet], predictions: SetPredictions) -> list[analyze.Report]:
    """The report of each data set, on the run's own adapter."""
    usage, samples = measure_usage(predictions)
    reports = []
    for number, rows in enumerate(sets):
        tested = TestedData(rows.source, rows.split, rows.reading, count_shared(rows, run))
        references = predictions.base.predicted.descriptions
        description = replace(run.description, task=rows.task, references=references, tested=tested)
        reports.append(analyze.build_report(build_inputs(run, rows, predictions, number), usage, samples, description))
    return reports


def build_inputs(run: FinishedRun, rows: LabelledSet, predictions: SetPredictions, number: int) -> analyze.Inputs:
    """The inputs of `analyze`: the run's training and validation rows, and a data set as test rows.

    Args:
        number: of the data set.
    """
    tokenized, task = predictions.tables[number], rows.task
    base, tuned = predictions.base, predictions.tuned[0]
    table = number_rows(tokenized)
    columns = ["row", *place_columns(table), *task.text_columns, "group", "label"]
    of_test = {"base": {"parameters": base.parameters}, "tuned": {"parameters": tuned.parameters}}
    return replace(
        run.inputs,
        data=summarize(run, rows, tokenized),
        base=table[["row", "label", "group"]].assign(**base.predicted.answers[number]),
        tuned=prediction_table(table[columns], tuned.predicted[number], task),
        tokenized=run.inputs.tokenized | {"test": table[["truncated"]]},
        summaries=run.inputs.summaries | of_test,
    )


def summarize(run: FinishedRun, rows: LabelledSet, tokenized: pd.DataFrame) -> DataSummary:
    """The run's summary of its data, with the counts of a data set in place of the test rows."""
    task = rows.task if rows.shares_groups else replace(rows.task, group=None)
    splits = run.inputs.data.splits
    if not rows.shares_groups:  # the report must not count groups of one column under the name of another
        splits = {
            name: replace(split, overlaps={other: Overlap(overlap.rows) for other, overlap in split.overlaps.items()})
            for name, split in splits.items()
        }
    test = summarize_split(rows.rows, rows.rows, tokenized, task, run.earlier)
    return replace(run.inputs.data, splits=splits | {"test": test})


def count_shared(rows: LabelledSet, run: FinishedRun) -> int:
    """Number of labelled rows with the same texts as one of the run's own test rows."""
    labelled = rows.rows[rows.rows["label"] >= 0]
    return int(find_duplicates(labelled, run.inputs.tuned, run.task).sum())


def measure_usage(predictions: SetPredictions) -> tuple[Usage, pd.DataFrame]:
    """Seconds, memory and load of this command, and the samples. The training's are those of the run."""
    base, tuned = predictions.base, predictions.tuned[0]
    rows = sum(map(len, predictions.tables))
    usage = Usage(
        base=read_usage(base, base.predicted.rows_read), train=analyze.load_usage().train, tuned=read_usage(tuned, rows)
    )
    numbers = [field for field in FIELDS if field != "phase"]
    samples = {name: run.recorder.merge_ranks() for name, run in (("base", base), ("tuned", tuned))}
    return usage, join_samples({
        name: table.astype(dict.fromkeys(numbers, float)) for name, table in samples.items()  # what is unknown is None
    })  # fmt: skip


def read_usage(measured: Measured, rows: int) -> RunUsage:
    return RunUsage.from_run(measured.recorder.describe(measured.figures(rows)))
