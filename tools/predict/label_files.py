"""Label the rows of files: check them, predict the rows that are left, then write the new files.

Functions import what imports PyTorch: errors of files and options come before that.
"""

import argparse
import hashlib
import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.data.classifier_settings import ClassifierSettings
from stages.data.labels import Labels
from stages.data.task import Task, parse_columns
from stages.runtime import files
from stages.runtime.errors import UserError
from stages.runtime.progress import progress_bar
from stages.sources.hashes import cached_sha256
from stages.sources.manifest import TABLE_EXTENSIONS, find_extension
from tools.answer_rules import Rule
from tools.answers import Label, answer_type, decide, format_cell, list_cells, list_classes, name_answers
from tools.column_map import parse_column_map
from tools.predict.find_files import InputFile, find_files
from tools.predict.progress import ProgressFolder, open_progress
from tools.predict.read_tables import Reader, open_reader
from tools.predict.write_tables import check_target, write_table

if TYPE_CHECKING:
    from stages.model.classifier import Classifier

MOST_LISTED = 5  # classes in the line about a file


@dataclass(frozen=True)
class Target:
    """A table to be read, and the one to be written.

    Attributes:
        name: relative to the folder to be written; empty if it is a single file.
        extension: of the file to be written.
        rows: of the table.
        incomplete: rows with an empty text next to others.
    """

    reader: Reader
    name: str
    extension: str
    rows: int
    incomplete: int


def label_files(
    given: str,
    arguments: argparse.Namespace,
    settings: ClassifierSettings,
    rule: Rule | None,
    find_device: Callable[[], str],
    load: Callable[[], "Classifier"],
) -> None:
    """Write a copy of each table with the predictions.

    Args:
        given: a file, a folder, or a data set on the hub.
        find_device: returns "cuda" or "cpu": their logits differ.
        load: loads the classifier. It is called only if rows are left to be predicted.

    Raises:
        UserError: see the modules of this package. It is raised before the model is loaded, if the files are the cause.
    """
    out: Path = arguments.out
    check_out(out, Path(given), arguments.adapter, arguments.force)
    column_map = parse_column_map(arguments.columns, parse_columns(settings.template))
    found = find_files(given, arguments.subset)
    is_folder = not Path(given).is_file()
    if is_folder and (extension := find_extension(out.name)):
        raise UserError(f"--out: {out}: the files of {given} go to a folder; name it without .{extension}")
    targets = [check_file(file, arguments, is_folder, settings, list(column_map.values())) for file in found]

    from stages.model.adapter_files import read_adapter

    read_adapter(arguments.adapter, arguments.untuned, arguments.base)  # raises before a progress folder is made
    device = find_device()
    batch_size = arguments.batch_size or (256 if device == "cuda" else 64)
    progress = open_progress(out, compute_digest(found, arguments, column_map, batch_size, device))
    if progress.state.rows:
        print(f"{progress.state.rows:,} rows are predicted already; continuing")
    total = sum(target.rows for target in targets)
    if progress.state.rows < total:
        predict_missing(targets, list(column_map.values()), load(), settings, progress, batch_size, total)
    if is_folder:
        with files.atomic_folder(out) as folder:
            counts = [write_target(target, i, folder / target.name, progress, arguments, settings, rule)
                      for i, target in enumerate(targets)]  # fmt: skip
    else:
        with files.atomic_file(out) as path:
            counts = [write_target(targets[0], 0, path, progress, arguments, settings, rule)]
    incomplete = sum(target.incomplete for target in targets)
    print(describe(out, total, incomplete, counts, progress, settings.max_length, settings.labels))
    progress.remove()


def check_out(out: Path, given: Path, adapter: Path, force: bool) -> None:
    """Reject a target that would be lost, that is part of the input, or whose old content must stay."""
    source, target = given.resolve(), out.resolve()
    if source.exists() and (target.is_relative_to(source) or source.is_relative_to(target)):
        raise UserError(f"--out: {out} is the input, in it or around it; name another path")
    if out.exists() and not force:
        raise UserError(f"--out: {out} exists; name another path, or add --force to replace it")
    if out.exists() and out.is_dir() == given.is_file():
        kind = "folder" if out.is_dir() else "file"
        raise UserError(f"--out: {out} is a {kind}, unlike the input; name another path")
    if kept := [path for path in (Path.cwd(), adapter) if path.resolve().is_relative_to(target)]:
        raise UserError(f"--out: {out} has {kept[0]} in it, which would be lost; name another path")


def check_file(
    file: InputFile,
    arguments: argparse.Namespace,
    is_folder: bool,
    settings: ClassifierSettings,
    columns: Sequence[str],
) -> Target:
    """Read a table once, to find what is wrong with it before the model is loaded, and to count its rows."""
    reader = open_reader(file, arguments.sep, arguments.encoding, arguments.quotechar)
    extension = file.extension if is_folder else find_extension(arguments.out.name)
    if not extension:
        raise UserError(f"--out: {arguments.out}: allowed: a name that ends in .{', .'.join(TABLE_EXTENSIONS)}")
    rows = incomplete = 0
    for chunk in reader.read_texts(columns, name_new_columns(settings.classes, arguments.all)):
        rows += len(chunk)
        incomplete += sum(0 < sum(not text.strip() for text in texts) < len(texts) for texts in chunk)
    if not rows:
        raise UserError(f"{reader.place}: the file has no rows")
    name = file.name if is_folder else ""
    check_target(extension, f"--out: {arguments.out / name}", reader, list_cells(settings.labels))
    return Target(reader, name, extension, rows, incomplete)


def name_new_columns(classes: Sequence[str], with_all: bool) -> list[str]:
    """The columns that are added: the class, its probability, and with `--all` the probability of each class."""
    names = Task(tuple(classes), "", None).probability_columns if with_all else []
    return ["prediction", "probability", *names]


def compute_digest(
    found: Sequence[InputFile], arguments: argparse.Namespace, column_map: dict[str, str], batch_size: int, device: str
) -> str:
    """A digest of all that decides the logits: the bytes of input and adapter, and some options."""
    from stages.data.batching import EVALUATION_TOKENS

    adapter = sorted(path for path in arguments.adapter.iterdir() if path.is_file())
    content = {
        "input": [[file.extension, file.sha256] for file in found],
        "adapter": {path.name: cached_sha256(path) for path in adapter},
        "untuned": arguments.untuned,
        "columns": column_map,
        "read": [arguments.sep, arguments.encoding, arguments.quotechar],
        "batches": [batch_size, EVALUATION_TOKENS],
        "device": device,
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def predict_missing(
    targets: Sequence[Target],
    columns: Sequence[str],
    classifier: "Classifier",
    settings: ClassifierSettings,
    progress: ProgressFolder,
    batch_size: int,
    total: int,
) -> None:
    """Predict the rows that have no logits in the progress folder."""
    from tools.predict.predict_rows import PartPredictor, prefetch, read_parts

    done, start = progress.state.rows, time.monotonic()
    parts = read_parts([target.reader for target in targets], columns, classifier, settings, progress)
    with progress_bar(total, "predict", "row", initial=done) as bar:
        PartPredictor(classifier, len(settings.classes), progress, batch_size, bar).predict(prefetch(parts))
    rows, seconds = total - done, time.monotonic() - start
    print(f"{rows:,} rows in {seconds:,.1f} s: {rows / seconds:,.1f} rows/s", file=sys.stderr)


@dataclass
class AnswerColumns:
    """The new columns of a table, for one chunk of rows after the other.

    Attributes:
        as_cells: whether answers are cells of a csv file.
        counts: rows of each class.
        unlabelled: rows whose answer is no class.
        unanswered: rows that the rule leaves out.
        blank: rows without a text.
    """

    progress: ProgressFolder
    file: int
    labels: Labels
    as_cells: bool
    with_all: bool
    rule: Rule | None
    row: int = 0
    counts: Counter = field(default_factory=Counter)
    unlabelled: int = 0
    unanswered: int = 0
    blank: int = 0

    def next_columns(self, rows: int) -> dict[str, list]:
        """{name: values} for the next rows. A row without a text has none; without an answer, it has the probability
        of the answer that was left out."""
        logits = self.progress.read_logits(self.file, self.row, rows, len(self.labels.classes))
        self.row += rows
        blank = np.isnan(logits).all(axis=1)
        probabilities = self.labels.to_probabilities(logits.astype(np.float64))
        decided, certainty = decide(self.labels, probabilities, self.rule)
        answered = ~blank & (certainty >= (self.rule.at_least if self.rule else 0))
        named = zip(name_answers(self.labels, decided), answered, strict=True)
        answers: list[Label | None] = [answer if has_answer else None for answer, has_answer in named]
        classes = [list_classes(answer) for answer in answers if answer is not None]
        self.counts.update(itertools.chain.from_iterable(classes))
        self.unlabelled += classes.count([])
        self.unanswered += int((~blank & ~answered).sum())
        self.blank += int(blank.sum())
        if self.as_cells:
            answers = [format_cell(answer, self.labels) for answer in answers]
        columns = [certainty, *(probabilities.round(6).T if self.with_all else [])]
        values = [[None if math.isnan(value) else value for value in column.tolist()] for column in columns]
        return dict(zip(name_new_columns(self.labels.classes, self.with_all), [answers, *values], strict=True))


def write_target(
    target: Target,
    file: int,
    path: Path,
    progress: ProgressFolder,
    arguments: argparse.Namespace,
    settings: ClassifierSettings,
    rule: Rule | None,
) -> AnswerColumns:
    """Read a table once more, and write it with the new columns."""
    as_cells = target.extension.startswith(("csv", "tsv"))
    answers = AnswerColumns(progress, file, settings.labels, as_cells, arguments.all, rule)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, target.extension, target.reader, answers.next_columns, answer_type(settings.labels, as_cells))
    return answers


def describe(
    out: Path,
    total: int,
    incomplete: int,
    written: Sequence[AnswerColumns],
    progress: ProgressFolder,
    max_length: int,
    labels: Labels,
) -> str:
    """Lines about what was written: `total` rows, `incomplete` of them with an empty text next to others."""
    counts: Counter = sum((answers.counts for answers in written), Counter())
    listed = [f"{rows:,} {name}" for name, rows in counts.most_common(MOST_LISTED)]
    if others := sum(counts.values()) - sum(rows for _, rows in counts.most_common(MOST_LISTED)):
        listed.append(f"{others:,} of other {labels.nouns}")
    if unlabelled := sum(answers.unlabelled for answers in written):
        listed.append(f"{unlabelled:,} with none of the labels")
    if unanswered := sum(answers.unanswered for answers in written):
        listed.append(f"{unanswered:,} without an answer")
    lines = [f"{out}: {total:,} rows: {', '.join(listed)}"]
    if blank := sum(answers.blank for answers in written):
        are = "1 row has no text, so it has" if blank == 1 else f"{blank:,} rows have no text, so they have"
        lines.append(f"{are} no prediction")
    if incomplete:
        lines.append(f"rows with an empty text next to others, which are predicted as in training: {incomplete:,}")
    if truncated := progress.state.truncated:
        lines.append(
            f"{truncated:,} of {total:,} rows have more than {max_length} tokens (the longest has "
            f"{progress.state.longest:,}); the end of their longest text is not read"
        )
    return "\n".join(lines)
