"""Look at a data set and write the keys of params.yaml that describe it. Then `dvc repro` runs on it.

    python -m tools.init /home/you/reviews.csv
    python -m tools.init reviews/ --label stars --text title --text body
    python -m tools.init comments.csv --label toxic --label obscene --label threat
    python -m tools.init films.csv --label genres --separator " / "

PATH is a file, a folder, or the name of a data set on the Hugging Face hub (OWNER/NAME). Run the command in the folder
with params.yaml and dvc.yaml, such as demo/. It prints what it found and the keys that it changes, and keeps the file's
other lines. On a terminal it asks before it writes. Without one it takes the likeliest label column and says which.

Example: a file with the columns `date;text;mood` in Windows-1252, sorted by `mood`, is one command. It sets
data.folder, data.read, data.label and tokenize.template, and holds 10% of each class out for validation and 10% for
test.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import pandas as pd

from stages.data.label_column import read_label_columns
from stages.data.row_places import list_columns, locate_rows
from stages.data.sampling import choose_evenly
from stages.data.tokenization import encode_rows, load_tokenizer
from stages.download import warn_without_gpu
from stages.runtime import errors, files, params
from stages.runtime.errors import UserError
from tools.git import repository_problem, run_git, stderr_line
from tools.init import choose_params, describe_data
from tools.init.choose_classes import choose_classes
from tools.init.choose_source import choose_source
from tools.init.params_file import Draft
from tools.init.read_tables import read_tables

PARAMS = Path("params.yaml")
MOST_TOKENIZED = 10_000  # rows: tokenizing 100 tokens of each takes 1 s


def main() -> None:
    arguments = parse_arguments()
    try:
        choose_and_write(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`. At exit, Python would write the rest of its buffer, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def choose_and_write(arguments: argparse.Namespace) -> None:
    for path in (PARAMS, Path("dvc.yaml")):
        if not path.is_file():
            raise UserError(f"{path}: not in this folder; run the command in the folder of the pipeline, such as demo/")
    target = arguments.out or PARAMS
    if not (arguments.check or arguments.force):
        check_target(target)
    draft = Draft(PARAMS)
    try:
        choose_keys(draft, arguments)
    finally:
        with contextlib.suppress(OSError):  # reading the data made outs/, which stays if it has something in it
            Path("outs").rmdir()
    show_and_write(draft, target, arguments.check)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.init", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="PATH", help="a file, a folder, or OWNER/NAME on the hub")
    parser.add_argument(
        "--label", metavar="COLUMN", action="append", help="the label column; repeat it for columns of 0 and 1"
    )
    parser.add_argument(
        "--separator", metavar="TEXT", help="what is between the labels of a row in a text, such as ','"
    )
    parser.add_argument("--text", metavar="COLUMN", action="append", help="a text column; repeat it for several")
    parser.add_argument("--group", metavar="COLUMN", help="a column whose equal values belong together, or none")
    parser.add_argument("--subset", metavar="NAME", help="the configuration, if the data set has several")
    parser.add_argument("--model", metavar="MODEL", help="another base model: a folder, or OWNER/NAME on the hub")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write this file; params.yaml stays as it is")
    parser.add_argument("--check", action="store_true", help="look at the data, and write nothing")
    parser.add_argument("--force", action="store_true", help="replace uncommitted changes, or an existing --out")
    return parser.parse_args()


def check_target(target: Path) -> None:
    """Reject a file that would be lost: an existing one, or a params.yaml that Git could not restore."""
    if target.resolve() != PARAMS.resolve():
        if target.exists():
            raise UserError(f"--out: {target} exists; name another file, or add --force to replace it")
        return
    status = run_git("status", "--porcelain", "--ignored", "--", str(PARAMS))
    if problem := repository_problem() or (stderr_line(status) if status.returncode else None):
        raise UserError(f"{PARAMS}: Git can't restore it ({problem}); write another file with --out, or add --force")
    # `status` trusts a file that is marked as unchanged, and does not look at what a link points to.
    contents = [
        run_git(*command).stdout for command in (["hash-object", str(PARAMS)], ["rev-parse", f"HEAD:./{PARAMS}"])
    ]
    if status.stdout or contents[0] != contents[1]:
        raise UserError(
            f"{PARAMS}: has uncommitted changes; commit them, undo them (git checkout {PARAMS}), or add --force: it "
            "keeps them, except for the keys that this command sets"
        )


def choose_keys(draft: Draft, arguments: argparse.Namespace) -> None:
    """Look at the data and the model, choose all keys, and print what was found."""
    choose_source(draft, "data", arguments.path)
    draft.set("data.subset", arguments.subset)
    tables, columns = read_tables(
        draft, arguments.label, arguments.text, arguments.group, arguments.separator, ask_label
    )
    draft.set_head(
        f"{', '.join(columns.label_columns)} of {Path(arguments.path).name}: keys set by `python -m tools.init`"
    )
    for what in ("label", "texts", "group"):
        print(f"{what}: {columns.reasons[what]}")
    used = {*columns.label_columns, *columns.texts, columns.group, columns.split}
    if others := [name for name in list_columns(tables["train"]) if name not in used]:
        print(f"columns that are not used: {', '.join(others)}")
    if draft.params().data.split or columns.reasons["split"].startswith("WARNING"):
        print(f"split: {columns.reasons['split']}")

    choose_params.set_columns(draft, columns)
    with locate_rows(tables):
        label_columns = read_label_columns(tables, columns.label, columns.separator)
        classes, notes = choose_classes(label_columns, columns.separator)
    draft.set("data.classes", classes)

    if arguments.model:
        choose_source(draft, "model", arguments.model)
    manifest = choose_params.read_model(draft.params().model)
    tokenizer = load_tokenizer(manifest)
    if arguments.model:
        choose_params.choose_activation(draft, manifest, tokenizer)
    template = choose_params.choose_template(draft, columns, tokenizer, manifest["name"])

    task, splits = choose_params.assign(draft, tables, template)
    print("\n".join([f"{len(task.classes)} {task.labels.nouns}:", *describe_data.describe_classes(splits, task)]))
    for note in notes:
        print(f"  {note}")
    print(describe_data.describe_rows(splits))
    everything = pd.concat(splits.values())
    sample = everything.iloc[choose_evenly(len(everything), min(len(everything), MOST_TOKENIZED))]
    lengths = choose_params.count_tokens(sample, tokenizer, task)
    limit = choose_params.find_longest_input(manifest)
    max_length = choose_params.choose_max_length(draft, lengths, limit)
    encode_rows(sample.iloc[[lengths.argmax()]], tokenizer, template, max_length)  # raises if the template is too long
    print(describe_data.describe_tokens(lengths, len(everything), max_length, limit))
    confidence = draft.present.analysis.confidence
    for line in (
        *describe_data.describe_duplicates(splits, task),
        *describe_data.describe_warnings(splits, task, max_length),
        *choose_params.describe_group_cause(draft, tables, template, splits, task),
        *describe_data.describe_rare_classes(splits, task, columns.advice),
        *describe_data.describe_test_rows(splits["test"], task, confidence),
    ):
        print(line)


def show_and_write(draft: Draft, target: Path, check: bool) -> None:
    """Print the keys that change, ask on a terminal, and write the file."""
    changes, text = draft.render_changes(), draft.render()
    params.parse(text, PARAMS)
    print(f"\n{changes or 'no key changes'}")
    if check:
        print("nothing was written (--check)")
        return
    if is_terminal() and ask(f"Write {target}? [Y/n] ").lower() not in ("", "y", "yes"):
        print("nothing was written")
        return
    files.write_text(target, text)
    warn_without_gpu(draft.present.device)
    copy = "" if target == PARAMS else f"cp {quote(str(target))} {PARAMS} && "
    print(f"{target} is written. Next: {copy}dvc repro, which writes metrics/report.html")


def ask_label(candidates: Sequence[str | tuple[str, ...]]) -> str | tuple[str, ...] | None:
    """Ask which column is the label; None without a terminal, or if there is only one candidate."""
    if not is_terminal() or len(candidates) < 2:
        return None
    print("Which column is the label?")
    for number, name in enumerate(candidates, 1):
        print(f"  {number}  {name if isinstance(name, str) else ', '.join(name)}")
    while True:
        answer = ask(f"1 to {len(candidates)} [1]: ") or "1"
        if answer in candidates:
            return answer
        if answer.isdecimal() and 1 <= int(answer) <= len(candidates):
            return candidates[int(answer) - 1]


def ask(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError as error:
        raise UserError("no answer, so nothing was written") from error


def is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


if __name__ == "__main__":
    errors.run(main)
