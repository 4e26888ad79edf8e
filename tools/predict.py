"""Ask a trained adapter for the class of a text, or of several that belong together, such as premise and hypothesis.

    python -m tools.predict "A man is sleeping." "A man is awake."       a text for each column of the template
    python -m tools.predict                        asks for one row after another
    python -m tools.predict < rows.jsonl           JSON lines in, JSON lines out, both UTF-8

No stage of the pipeline, and no params.yaml: the adapter's folder says what it reads, knows and answers, and names its
base.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import torch

from stages.data.batching import TokenizedRows
from stages.data.task import name_text_columns
from stages.data.tokenization import parse_columns, tokenize_rows
from stages.model.adapter_files import ClassifierSettings, read_adapter
from stages.model.classifier import Classifier
from stages.model.devices import pick_device
from stages.runtime import errors

BATCH = 64  # rows
SHOWN = 5  # classes of an answer for people
CHUNK = 1 << 20  # bytes; a bulk file arrives in whole batches but for the last of each chunk


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", nargs="*", help="one for each column that the adapter's template reads, in its order")
    parser.add_argument("--adapter", type=Path, default=Path("outs/adapter"), help="its folder (%(default)s)")
    parser.add_argument(
        "--base", type=Path, metavar="FOLDER", help="the base model's folder; default: the one in its base.json"
    )
    parser.add_argument(
        "--untuned", action="store_true", help="ask the untuned model, with the head that tuning began from"
    )
    arguments = parser.parse_args()
    reading, _ = read_adapter(arguments.adapter, arguments.untuned, arguments.base)
    columns = parse_columns(reading.tokenize.template)
    if arguments.text:
        if len(arguments.text) != len(columns):
            parser.error(f"this adapter reads {len(columns)}: {', '.join(columns)}; texts given: {len(arguments.text)}")
        check_row(dict(zip(columns, arguments.text, strict=True)))
    ask = load(arguments.adapter, arguments.untuned, arguments.base)
    if arguments.text:
        say(shown(ask([arguments.text])[0]))
    elif sys.stdin.isatty():
        converse(ask, columns)
    else:
        sys.stdout.reconfigure(encoding="utf-8")
        answer_lines(ask, columns, sys.stdin.buffer)


def load(adapter: Path, base_only: bool, base: Path | None = None) -> Callable[[list[list[str]]], list[dict]]:
    """The model behind a function: list of rows, a text for each column -> list of {"label", "probabilities"}.

    Args:
        adapter: folder that `train_qlora` wrote.
        base_only: leave the adapter off.
        base: folder of the base's files; None: where its base.json says.

    Raises:
        UserError: naming the file of the folder, and each key that is missing, unknown or of another type.
    """
    saved, manifest = read_adapter(adapter, base_only, base)
    device = pick_device("cuda" if torch.cuda.is_available() else "cpu", threads=None)
    classifier = Classifier.load(manifest, saved, saved.classes, device, None if base_only else adapter)
    return partial(answers, classifier, saved)


def answers(classifier: Classifier, saved: ClassifierSettings, rows: list[list[str]]) -> list[dict]:
    """Label and probabilities of each row, by the classes' names."""
    template = saved.tokenize.template
    table = pd.DataFrame(rows, columns=name_text_columns(parse_columns(template)))
    table = tokenize_rows(table, classifier.tokenizer, template, classifier.max_length)
    probabilities = classifier.predict(TokenizedRows.from_lists(table["input_ids"], [0] * len(table)), BATCH)
    return [
        {
            "label": saved.classes[row.argmax()],
            "probabilities": {name: round(float(value), 6) for name, value in zip(saved.classes, row, strict=True)},
        }
        for row in probabilities
    ]


def shown(answer: dict) -> str:
    """An answer for people; of many classes the likeliest."""
    shares = answer["probabilities"]
    if (more := len(shares) - SHOWN) > 0:
        shares = dict(sorted(shares.items(), key=lambda item: -item[1])[:SHOWN])
    lines = [answer["label"], *(f"  {share:6.1%} {name}" for name, share in shares.items())]
    return "\n".join(lines + ([f"         {more} less likely"] if more > 0 else []))


def say(text: str) -> None:
    """Print at once. Ends quietly where the reader has closed the pipe, as `head -1` does.

    Raises:
        UserError: where standard output can't be written (a full disk).
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer Python writes at its end, and would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        raise errors.UserError(f"standard output: {error.strerror}") from error


def check_row(texts: dict[str, object], place: str = "") -> None:
    """Refuse what can't be asked: another type, bytes or escapes that are no characters, nothing but blanks in all.

    Args:
        texts: {column: text}.
        place: where they stand, for the error.
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
    if not any(text.strip() for text in texts.values()):
        raise errors.UserError(f"{place}{' and '.join(texts)}: must be text that is not empty")


def converse(ask: Callable, columns: tuple[str, ...]) -> None:
    """Ask for rows until an empty line or the end of input."""
    say("An empty line ends.")
    width = max(map(len, columns)) + 2
    try:
        while True:
            row = []
            for column in columns:
                if not (text := heard(column, width)):
                    return
                row.append(text)
            say(shown(ask([row])[0]))
    except EOFError:
        say("")


def heard(name: str, width: int) -> str:
    """What is typed for a column; empty at the end."""
    try:
        text = input(f"{name}:".ljust(width)).strip()
    except UnicodeDecodeError as error:
        raise errors.UserError(f"{name}: not valid text ({error})") from error
    if text:
        check_row({name: text})
    return text


def answer_lines(ask: Callable, columns: tuple[str, ...], stream: BinaryIO) -> None:
    """Read an object with the columns a line, write the same with `prediction` and `probabilities`.

    Args:
        stream: binary, with `read1`.

    Raises:
        UserError: naming the first line that is no such object; those before it are answered.
    """
    for batch in batches_of(stream, columns):
        asked = ask([[text_of(line, column) for column in columns] for line in batch])
        answered = [
            line | {"prediction": answer["label"], "probabilities": answer["probabilities"]}
            for line, answer in zip(batch, asked, strict=True)
        ]
        say("\n".join(json.dumps(line, ensure_ascii=False) for line in answered))


def text_of(line: dict, column: str) -> object:
    """A column of a line; null is the empty text, as in training."""
    return "" if line[column] is None else line[column]


def batches_of(stream: BinaryIO, columns: tuple[str, ...]) -> Iterator[list[dict]]:
    """Lists of at most BATCH lines as dicts. What has arrived is never held back to wait for more."""
    number, batch = 0, []
    for lines in arriving(stream):
        for line in lines:
            number += 1
            if not line.strip():
                continue
            try:
                batch.append(parsed(number, line, columns))
            except errors.UserError:
                if batch:
                    yield batch
                raise
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch
            batch = []


def arriving(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Lists of the whole lines that a stream has brought, as bytes; the last line needs no end."""
    started = []  # parts of a line, joined once: a long line comes in many
    while chunk := stream.read1(CHUNK):
        started.append(chunk)
        if b"\n" in chunk:
            *whole, rest = b"".join(started).split(b"\n")
            started = [rest]
            yield whole
    yield [b"".join(started)]


def parsed(number: int, line: bytes, columns: tuple[str, ...]) -> dict:
    """A line of input, UTF-8 bytes, as a dict, checked."""
    place = f"standard input, line {number}"
    try:
        value = json.loads(line.decode())
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # it goes out again with its answer
    except UnicodeDecodeError as error:
        raise errors.UserError(f"{place}: not UTF-8 (byte {error.start + 1}: {error.reason})") from error
    except UnicodeEncodeError as error:
        raise errors.UserError(f"{place}: not valid text (an escape that is half a character)") from error
    except ValueError as error:
        raise errors.UserError(f"{place}: not JSON ({error})") from error
    except RecursionError as error:
        raise errors.UserError(f"{place}: nested too deep") from error
    wanted = " and ".join(map(repr, columns))
    if not isinstance(value, dict):
        raise errors.UserError(f"{place}: must be an object with {wanted}")
    if missing := [column for column in columns if column not in value]:
        raise errors.UserError(f"{place}: no {' and no '.join(map(repr, missing))}; this adapter reads {wanted}")
    check_row({column: text_of(value, column) for column in columns}, f"{place}: ")
    for key in ("prediction", "probabilities"):
        if key in value:
            raise errors.UserError(f"{place}: has the key '{key}', which the answer takes; give it another name")
    return value


if __name__ == "__main__":
    errors.run(main)
