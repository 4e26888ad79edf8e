"""What `tools.evaluate` does: it predicts the data sets, writes a report for each, and compares them.

`score` imports what imports PyTorch, which takes 10 s: errors of columns and labels come first.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages import analyze
from stages.data.classifier_settings import read_settings
from stages.data.task import parse_columns
from stages.report.document import escape_markdown
from stages.runtime import files
from stages.runtime.errors import UserError
from tools.column_map import parse_column_map
from tools.evaluate import ADAPTER
from tools.evaluate.finished_run import FinishedRun
from tools.evaluate.labels import parse_class_map
from tools.evaluate.read_set import LabelledSet, choose_form, read_set
from tools.evaluate.tables import TestRows, render_adapters, render_sets

if TYPE_CHECKING:
    from tools.evaluate.predict_sets import Adapter, SetPredictions

RECORD = "evaluation.json"  # marks a folder that this command has written


def score(arguments: argparse.Namespace) -> None:
    """Score the run on the data sets, and write their reports."""
    run, folders = FinishedRun.read(), [ADAPTER, *arguments.adapter]
    sets = read_sets(arguments, run, folders)
    check_targets(arguments.out, sets)

    from tools.evaluate.predict_sets import predict_sets, read_adapters
    from tools.evaluate.set_report import build_reports

    adapters = read_adapters(folders)
    predictions = predict_sets(sets, adapters, run.params, run.task)
    reports = build_reports(run, sets, predictions)
    comparisons = compare_adapters(adapters, predictions, reports)
    tables = render_tables(run, sets, reports, comparisons)

    for rows, report in zip(sets, reports, strict=True):
        write_set(arguments.out / rows.name, rows, report, adapters)
    files.write_text(
        arguments.out / "sets.md",
        f"# {run.description.model.short_name}, tuned on {run.description.data.short_name}, on other data\n\n{tables}",
    )
    show(tables, sets, reports, arguments.out)


def read_sets(arguments: argparse.Namespace, run: FinishedRun, adapters: Sequence[Path]) -> list[LabelledSet]:
    """Read all data sets, with the columns that the templates of the adapters name, and print what was read."""
    templates = [parse_columns(read_settings(folder).template) for folder in adapters]
    columns = parse_column_map(arguments.columns, list(dict.fromkeys(name for names in templates for name in names)))
    class_map = parse_class_map(arguments.classes, run.task)
    form, sets = choose_form(arguments, run.params.data, run.task), []
    for given in arguments.data:
        rows = read_set(given, arguments, run.task, form, columns, class_map)
        print("\n".join(rows.describe()), flush=True)
        sets.append(rows)
    used = {label for rows in sets for label in rows.record["classes"]}
    if unused := class_map.keys() - used:
        raise UserError(f"--class {min(unused)}=…: no row has this label; correct it, or leave the flag out")
    return sets


def check_targets(out: Path, sets: Sequence[LabelledSet]) -> None:
    """Reject folders that would be lost, and two data sets for one folder."""
    if file := next((path for path in (out, *out.parents) if path.is_file()), None):
        raise UserError(f"--out: {file} is a file; name a folder")
    for number, rows in enumerate(sets):
        folder = out / rows.name
        if twin := next((other for other in sets[:number] if other.name == rows.name), None):
            raise UserError(
                f"{twin.source.name} and {rows.source.name} would both be written to {folder}; rename one, or score "
                "them one at a time with another --out"
            )
        if folder.exists() and not (folder / RECORD).is_file():
            raise UserError(f"{folder}: exists, and this command has not written it; move it, or set another --out")
        earlier, name = read_name(folder), rows.record["data"]["name"]
        if earlier and not is_same_data(earlier, name):
            raise UserError(f"{folder}: has the report of {earlier}; move it, or set another --out")


def read_name(folder: Path) -> str | None:
    """The data whose report a folder has, as the user named it; None: there is no such folder."""
    return files.read_json(folder / RECORD).get("data", {}).get("name") if folder.exists() else None


def is_same_data(name: str, other: str) -> bool:
    """Whether two names are equal, or paths to the same file or folder."""
    return name == other or Path(name).resolve() == Path(other).resolve()


def compare_adapters(
    adapters: "Sequence[Adapter]", predictions: "SetPredictions", reports: Sequence[analyze.Report]
) -> list[str]:
    """A table of the adapters on each data set; none if there is one adapter."""
    if len(adapters) == 1:
        return []
    names = [str(adapter.folder) for adapter in adapters]
    return [
        render_adapters(
            names,
            [of_sets.predicted[number] for of_sets in predictions.tuned],
            report.cases,
            report.run.task,
            report.run.confidence,
        )
        for number, report in enumerate(reports)
    ]


def render_tables(
    run: FinishedRun, sets: Sequence[LabelledSet], reports: Sequence[analyze.Report], comparisons: Sequence[str]
) -> str:
    """The table of the data sets, and below it those of the adapters."""
    own = TestRows(f"{run.description.data.short_name} (own test set)", None, run.build_cases(), run.task)
    others = [
        TestRows(rows.name, f"{rows.name}/report.md", report.cases, rows.task, note_shared_rows(report))
        for rows, report in zip(sets, reports, strict=True)
    ]
    tables = render_sets(own, others, run.description.confidence)
    for rows, comparison in zip(sets, comparisons, strict=bool(comparisons)):
        tables += f"\n## Adapters on {escape_markdown(rows.name)}\n\n{comparison}"
    return tables


def note_shared_rows(report: analyze.Report) -> str:
    """The sentence that a data set shares rows with the own test set; empty if it shares none."""
    tested = report.run.tested
    if tested is None or not tested.sharing:
        return ""
    return (
        f"{tested.source.name}: {tested.sharing:,} of its {report.results.tuned.rows:,} rows are also in the own test "
        "set. So the samples are not independent, and the interval of their difference is too wide."
    )


def write_set(folder: Path, rows: LabelledSet, report: analyze.Report, adapters: "Sequence[Adapter]") -> None:
    """Write the report of a data set, and how it was made."""
    with files.atomic_folder(folder) as temporary:
        analyze.write_report(report, temporary)
        used = {str(adapter.folder): adapter.sha256 for adapter in adapters}
        files.write_json(temporary / RECORD, rows.record | {"adapters": used})


def show(tables: str, sets: Sequence[LabelledSet], reports: Sequence[analyze.Report], out: Path) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print()
    for rows, report in zip(sets, reports, strict=True):
        for alarm in report.context["alarms"]:
            print(f"WARNING: {rows.name}: {alarm}\n")
    print(tables)
    print(f"{out / 'sets.md'} has this table; the reports: {', '.join(str(out / rows.name) for rows in sets)}")
