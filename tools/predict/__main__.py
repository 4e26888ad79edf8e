"""Predict the class of a text, or of several texts that form a row, such as premise and hypothesis.

    python -m tools.predict "A man is sleeping." "A man is awake."       one text for each column of the template
    python -m tools.predict                        asks for one row after another
    python -m tools.predict < rows.jsonl           reads and writes JSON lines in UTF-8
    python -m tools.predict rows.csv --out answers.csv                   labels a file, a folder or a hub data set

Example: the demo's test rows are in a parquet file that calls the texts text_premise and text_hypothesis. In demo/,

    python -m tools.predict outs/tokenized/test.parquet --out answers.csv --all \\
        --column premise=text_premise --column hypothesis=text_hypothesis

writes all columns as they came, then `prediction`, `probability` (of that class), and with --all `p_CLASS` for each
class. If a row may have several labels, `prediction` is a list, and `probability` is that all of it is right: a product
over all classes, as if they were independent. In csv files the labels are joined by |, and a row without an answer has
-. OUT's ending is the format; the files of a folder keep theirs. If the command is killed, the same command continues
where it stopped.

It needs neither the pipeline's stages nor params.yaml: the adapter's folder has the template, the classes, all settings
and the name of the base model.
"""

# Functions import what imports PyTorch: --help and errors of options come in a fraction of a second.

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.classifier_settings import ClassifierSettings, read_settings
from stages.data.task import name_text_columns, parse_columns
from stages.runtime import errors
from stages.sources.fetch import use_folder
from stages.sources.manifest import find_extension
from tools.answer_rules import Answer, Rule, add_arguments, choose_rule, explain_missing
from tools.column_map import add_column_argument
from tools.lock_params import find_changed_params

if TYPE_CHECKING:
    from stages.model.classifier import Classifier

ADAPTER = Path("outs/adapter")
BATCH_SIZE = 64  # rows
MOST_SHOWN = 5  # classes in an answer for a terminal
MOST_KEYS = 5  # of parameters in a line
READ_SIZE = 1 << 20  # bytes; of a large file, all batches are full except the last one of each read


Predictor = Callable[[list[list[str]]], list[Answer]]  # takes rows, a text for each column


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "text",
        nargs="*",
        help="one for each column of the adapter's template, in its order; with --out: a table (csv, tsv, json, jsonl, "
        "parquet, arrow, xlsx), a folder of tables, or OWNER/NAME of a data set on the hub",
    )
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="the adapter's folder (%(default)s)")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="the base model's folder; default: the one in the adapter's base.json",
    )
    parser.add_argument(
        "--untuned", action="store_true", help="use the untuned model, with the head before the first training step"
    )
    add_arguments(parser)
    add_file_arguments(parser)
    arguments = parser.parse_args()
    check_arguments(parser, arguments)
    if not arguments.adapter.is_dir():
        raise errors.UserError(
            f"--adapter: {arguments.adapter}: no such folder; run this in the folder of a pipeline (demo/, or the "
            "root), where `dvc repro` writes outs/adapter, and `dvc checkout` restores it after a failed run"
        )
    if arguments.adapter == ADAPTER:
        warn_of_other_params()
    settings = read_settings(arguments.adapter)
    if arguments.base:
        use_folder({}, arguments.base)  # raises if it does not exist
    columns = parse_columns(settings.template)
    if arguments.text and not arguments.out:
        if len(arguments.text) != len(columns):
            parser.error(f"this adapter reads {len(columns)}: {', '.join(columns)}; texts given: {len(arguments.text)}")
        check_texts(dict(zip(columns, arguments.text, strict=True)))
        if not has_text(arguments.text):
            raise errors.UserError(f"{' and '.join(columns)}: must be text that is not empty")
    rule = choose_rule(arguments, settings)
    if arguments.out:
        from tools.predict.label_files import label_files

        load = partial(load_classifier, arguments.adapter, arguments.untuned, arguments.base)
        label_files(arguments.text[0], arguments, settings, rule, find_device, lambda: load()[0])
        return
    predict = load_predictor(arguments.adapter, arguments.untuned, arguments.base, rule)
    if arguments.text:
        print_now(format_answer(predict([arguments.text])[0]))
    elif sys.stdin.isatty():
        answer_interactively(predict, columns)
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        answer_lines(predict, columns, sys.stdin.buffer)  # type: ignore[arg-type]  # typeshed: a BinaryIO, without read1


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that are only for `--out`."""
    group = parser.add_argument_group("options for files")
    group.add_argument(
        "--out",
        type=Path,
        metavar="OUT",
        help="the file to write; its ending is the format. For a folder or a data set, the folder to write",
    )
    group.add_argument("--all", action="store_true", help="add the probability of each class, p_CLASS")
    add_column_argument(group)
    group.add_argument(
        "--sep", metavar="CHARACTER", help=r"the separator of csv files, \t for a tab (default: detected)"
    )
    group.add_argument("--encoding", help="of csv or json files, such as cp1252 (default: detected; json: utf-8)")
    group.add_argument("--quotechar", metavar="CHARACTER", help="the quote character of csv files (default: detected)")
    group.add_argument("--subset", metavar="NAME", help="the configuration, if the data set on the hub has several")
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="ROWS",
        help="rows that are predicted together (default: 256 on a GPU, 64 on a CPU)",
    )
    group.add_argument("--force", action="store_true", help="replace OUT if it exists")


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Exit with code 2 if options contradict each other."""
    options = ("all", "columns", "sep", "encoding", "quotechar", "subset", "batch_size", "force")
    if arguments.out:
        if len(arguments.text) != 1:
            parser.error(f"--out needs one file, folder or data set; given: {len(arguments.text)}")
    elif used := [option for option in options if getattr(arguments, option)]:
        parser.error(f"--{used[0].replace('columns', 'column').replace('_', '-')} is only for --out OUT")
    elif len(arguments.text) == 1 and find_extension(arguments.text[0]) and len(arguments.text[0].split()) == 1:
        what = "is a file" if Path(arguments.text[0]).is_file() else "is named like a file, but there is none"
        parser.error(f"{arguments.text[0]} {what}; to label a file's rows, name it and add --out OUT")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        parser.error(f"--batch-size: must be at least 1, not {arguments.batch_size}")
    arguments.sep = "\t" if arguments.sep == "\\t" else arguments.sep
    for option in ("sep", "quotechar"):
        if (value := getattr(arguments, option)) is not None and len(value) != 1:
            parser.error(f"--{option}: must be one character, not {value!r}")


def warn_of_other_params() -> None:
    """Say so if params.yaml has changed since the training, as after `tools.init`."""
    if changed := find_changed_params(Path()):
        listed = ", ".join(changed[:MOST_KEYS]) + (f" and {len(changed) - MOST_KEYS} more" * (len(changed) > MOST_KEYS))
        print(
            f"{ADAPTER} was not trained as params.yaml says now ({listed}); `dvc repro` trains anew",
            file=sys.stderr,
        )


def find_device() -> str:
    """ "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_classifier(
    adapter: Path, base_only: bool, base: Path | None = None
) -> "tuple[Classifier, ClassifierSettings]":
    """Load a model, with the arguments of `load_predictor`."""
    from stages.model.adapter_files import read_adapter
    from stages.model.classifier import Classifier
    from stages.model.devices import pick_device

    settings, manifest = read_adapter(adapter, base_only, base)
    classifier = Classifier.load(
        manifest, settings, settings.max_length, settings.labels, pick_device(find_device(), threads=None),
        None if base_only else adapter,
    )  # fmt: skip
    return classifier, settings


def load_predictor(adapter: Path, base_only: bool, base: Path | None = None, rule: Rule | None = None) -> Predictor:
    """Load a model -> a function that predicts rows.

    Args:
        adapter: folder that `train_qlora` wrote.
        base_only: do not load the adapter.
        base: folder of the base model's files. If it is None, base.json names the folder.
        rule: None: the most probable class, or the classes above 0.5.

    Raises:
        UserError: a key in a file of the folder is missing, unknown or of the wrong type.
    """
    return partial(predict_rows, *load_classifier(adapter, base_only, base), rule=rule)


def predict_rows(
    classifier: "Classifier", settings: ClassifierSettings, rows: list[list[str]], rule: Rule | None = None
) -> list[Answer]:
    """Predict the label and the classes' probabilities of each row."""
    import pandas as pd

    from stages.data.batching import TokenizedRows
    from stages.data.tokenization import tokenize_rows
    from tools.answers import decide, name_answers

    template = settings.template
    table = pd.DataFrame(rows, columns=name_text_columns(parse_columns(template)))
    table = tokenize_rows(table, classifier.tokenizer, template, classifier.max_length)
    if truncated := int(table["truncated"].sum()):
        print(
            f"{truncated:,} of {len(table):,} rows have more than {classifier.max_length} tokens (the longest has "
            f"{table['full_length'].max():,}); the end of their longest text is not read",
            file=sys.stderr,
        )
    tokenized = TokenizedRows.from_lists(table["input_ids"], [0] * len(table))
    probabilities = classifier.predict(tokenized, BATCH_SIZE)
    decided, certainty = decide(settings.labels, probabilities, rule)
    predicted: list[Answer] = []
    for label, row in zip(name_answers(settings.labels, decided), probabilities, strict=True):
        of_classes = {name: round(float(p), 6) for name, p in zip(settings.classes, row, strict=True)}
        predicted.append({"label": label, "probabilities": of_classes})
    if rule:
        for answer, probability in zip(predicted, certainty, strict=True):
            if probability < rule.at_least:
                answer.update({"label": None, "reason": explain_missing(probability, rule.at_least)})
    return predicted


def format_answer(answer: Answer) -> str:
    """An answer as text for a terminal: the label, or why there is none, and at most MOST_SHOWN probabilities."""
    probabilities = answer["probabilities"]
    if (more := len(probabilities) - MOST_SHOWN) > 0:
        probabilities = dict(sorted(probabilities.items(), key=lambda item: -item[1])[:MOST_SHOWN])
    label = answer["label"]
    if isinstance(label, list):
        from stages.data.labels import SEPARATOR

        label = SEPARATOR.join(label) or "none of the labels"
    lines = [answer["reason"] if label is None else label, *(f"  {p:6.1%} {name}" for name, p in probabilities.items())]
    return "\n".join(lines + ([f"         {more} less likely"] if more > 0 else []))


def print_now(text: str) -> None:
    """Print without delay. Exit quietly if the reader has closed the pipe, as `head -1` does.

    Raises:
        UserError: standard output can't be written, for example because the disk is full.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # At exit, Python would write the rest of its buffer, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        raise errors.UserError(f"standard output: {error.strerror}") from error


def check_texts(texts: Mapping[str, object], place: str = "") -> None:
    """Reject a row if a value is not text or not valid Unicode.

    Args:
        texts: {column: text}.
        place: of the row, for the error.
    """
    for name, text in texts.items():
        if not isinstance(text, str):
            raise errors.UserError(f"{place}{name}: must be text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise errors.UserError(
                f"{place}{name}: not valid text (character {error.start + 1}: {error.reason})"
            ) from error


def has_text(texts: Sequence[str]) -> bool:
    """Whether a row can be predicted: one of its texts is not blank."""
    return any(text.strip() for text in texts)


def answer_interactively(predict: Predictor, columns: tuple[str, ...]) -> None:
    """Ask for rows until an empty line or the end of input."""
    print_now("An empty line ends.")
    width = max(map(len, columns)) + 2
    try:
        while True:
            row = []
            for column in columns:
                if not (text := ask_for_text(column, width)):
                    return
                row.append(text)
            print_now(format_answer(predict([row])[0]))
    except EOFError:
        print_now("")


def ask_for_text(column: str, width: int) -> str:
    """Read the text of a column from the terminal; empty if the user ends."""
    try:
        text = input(f"{column}:".ljust(width)).strip()
    except UnicodeDecodeError as error:
        raise errors.UserError(f"{column}: not valid text ({error})") from error
    if text:
        check_texts({column: text})
    return text


def answer_lines(predict: Predictor, columns: tuple[str, ...], stream: io.BufferedIOBase) -> None:
    """Read JSON lines with the columns; write each with `prediction` and `probabilities` added. An empty one stays so.

    A row without a text has null for both.

    Args:
        stream: binary, with `read1`.

    Raises:
        UserError: a line is not such an object. The lines before it are answered.
    """
    for batch in read_batches(stream, columns):
        texts = [[get_text(row, column) for column in columns] if row else [] for row in batch]
        asked = [row for row in texts if has_text(row)]
        answers = iter(predict(asked) if asked else [])
        print_now(
            "\n".join(
                add_answer(row, next(answers) if has_text(row_texts) else None) if row else ""
                for row, row_texts in zip(batch, texts, strict=True)
            )
        )


def add_answer(row: dict[str, Any], answer: Answer | None) -> str:
    """A row with its answer, as a line of JSON."""
    label, probabilities = (answer["label"], answer["probabilities"]) if answer else (None, None)
    return json.dumps(row | {"prediction": label, "probabilities": probabilities}, ensure_ascii=False)


def get_text(row: dict[str, Any], column: str) -> Any:
    """A column of a row; null is the empty text, as in training."""
    return "" if row[column] is None else row[column]


def read_batches(stream: io.BufferedIOBase, columns: tuple[str, ...]) -> Iterator[list[dict[str, Any] | None]]:
    """Yield lists of at most BATCH_SIZE rows, None for an empty line. No list is held back to wait for more input."""
    number = 0
    batch: list[dict[str, Any] | None] = []
    for lines in read_whole_lines(stream):
        for line in lines:
            number += 1
            try:
                batch.append(parse_line(number, line, columns) if line.strip() else None)
            except errors.UserError:
                if batch:
                    yield batch
                raise
            if len(batch) == BATCH_SIZE:
                yield batch
                batch = []
        if batch:
            yield batch
            batch = []


def read_whole_lines(stream: io.BufferedIOBase) -> Iterator[list[bytes]]:
    """Yield the complete lines of each read, as bytes. The last line needs no line break."""
    parts = []  # of an incomplete line; they are joined once, because a long line arrives in many parts
    while chunk := stream.read1(READ_SIZE):
        parts.append(chunk)
        if b"\n" in chunk:
            *lines, rest = b"".join(parts).split(b"\n")
            parts = [rest]
            yield lines
    if last := b"".join(parts):
        yield [last]


def parse_line(number: int, line: bytes, columns: tuple[str, ...]) -> dict[str, Any]:
    """Parse and check a line of input."""
    place = f"standard input, line {number}"
    try:
        row = json.loads(line.decode())
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # the row is printed again with its answer
    except UnicodeDecodeError as error:
        raise errors.UserError(f"{place}: not UTF-8 (byte {error.start + 1}: {error.reason})") from error
    except UnicodeEncodeError as error:
        raise errors.UserError(f"{place}: not valid text (an escape that is half a character)") from error
    except ValueError as error:
        raise errors.UserError(f"{place}: not JSON ({error})") from error
    except RecursionError as error:
        raise errors.UserError(f"{place}: nested too deep") from error
    needed = " and ".join(map(repr, columns))
    if not isinstance(row, dict):
        raise errors.UserError(f"{place}: must be an object with {needed}")
    if missing := [column for column in columns if column not in row]:
        raise errors.UserError(f"{place}: no {' and no '.join(map(repr, missing))}; this adapter reads {needed}")
    check_texts({column: get_text(row, column) for column in columns}, f"{place}: ")
    for key in ("prediction", "probabilities"):
        if key in row:
            raise errors.UserError(f"{place}: has the key '{key}', which the answer uses; give it another name")
    return row


if __name__ == "__main__":
    errors.run(main)
