"""Find out how a data set's files are written, read them, and choose the columns. `tools.init` uses it."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from stages.data.dialect import Dialect, detect_dialect
from stages.data.label_column import UNLABELLED_MARKS, read_label_columns
from stages.data.split_files import list_splits, read_splits
from stages.data.task import SPLITS
from stages.runtime.errors import UserError
from stages.sources.fetch import fetch
from tools.columns import Columns, choose_columns
from tools.describe_data import describe_dialect
from tools.params_file import Draft

HOLDOUT_SIZES = ("10%", "20%", "30%")  # the first that leaves a validation and a test row is taken
# What the names of splits begin with
SPLIT_NAMES = {"train": ("train",), "validation": ("valid", "val", "dev"), "test": ("test", "eval")}

Ask = Callable[[tuple[str, ...]], str | None]


def read_tables(
    draft: Draft, label: str | None, texts: Sequence[str] | None, ask_label: Ask
) -> tuple[dict[str, pa.Table], Columns]:
    """Read the data, and set the keys that say how: `data.read`, `data.split`, `data.splits` and `data.holdout`.

    Args:
        label, texts: columns that the user named.
        ask_label: returns the user's choice among several candidates, or None.

    Returns:
        ({split: table}, for the splits that `data.splits` names, and the columns)
    """
    with contextlib.redirect_stdout(io.StringIO()):  # the digest that would pin the data
        folder, manifest = fetch(draft.params().data, "data")
    names = list(manifest["files"])
    files, has_card = list_splits(folder, names, draft.params().data.subset)
    place = draft.params().data.name or draft.params().data.folder
    draft.set("data.split", None)
    choose_splits(draft, list(files))
    for key in ("sep", "encoding", "quotechar", "names"):
        draft.set(f"data.read.{key}", None)
    if has_card:
        print("README.md: its configs name the files of each split and say how they are read")
    else:
        has_header = choose_dialect(draft, folder, [name for split in files.values() for name in split])
        if not has_header:
            name_columns(draft, read(draft, folder, names)["train"])
    tables = read(draft, folder, names)
    columns = choose_columns(tables["train"], label, texts, place)
    if label is None and (answer := ask_label(columns.label_candidates)):
        label = answer
        columns = choose_columns(tables["train"], label, texts, place)
    if len(files) == 1 and columns.split and columns.split_values:
        draft.set("data.split", columns.split)
        set_splits(draft, {split: columns.split_values.get(split) for split in SPLITS})
        tables = read(draft, folder, names)
    return drop_unlabelled(draft, tables, columns, label, texts)


def choose_splits(draft: Draft, names: Sequence[str]) -> None:
    """Set `data.splits` to the data set's splits. The rows of those that it lacks are held out of train.

    Args:
        names: of the data set's splits.
    """
    found = {
        split: min((name for name in names if name.lower().startswith(beginnings)), key=len, default=None)
        for split, beginnings in SPLIT_NAMES.items()
    }
    if len(names) == 1:
        found = {"train": names[0], "validation": None, "test": None}
    if found["train"] is None:
        raise UserError(
            f"{draft.params().data.folder}: its splits are {', '.join(names)}, and none is called train; "
            "rename one, or set data.splits in params.yaml by hand"
        )
    set_splits(draft, found)


def set_splits(draft: Draft, splits: Mapping[str, str | None]) -> None:
    """Set `data.splits`, and `data.holdout` for the splits without a name."""
    for split in SPLITS:
        draft.set(f"data.splits.{split}", splits[split])
        if split != "train":
            draft.set(f"data.holdout.{split}", HOLDOUT_SIZES[0] if splits[split] is None else None)


def choose_dialect(draft: Draft, folder: Path, names: Sequence[str]) -> bool:
    """Set `data.read` to what differs from the usual way, and print it -> whether the files have a header."""
    texts = [name for name in names if ".csv" in name.lower() or ".tsv" in name.lower()]
    if not texts:
        return True
    dialects = {name: detect_dialect(folder / name) for name in texts}
    encodings = {dialect.encoding for dialect in dialects.values()}
    first = dialects[texts[0]]
    for name, dialect in dialects.items():
        if dialect != first:
            raise UserError(
                f"{folder}: {texts[0]} and {name} are written differently ({describe_dialect([texts[0]], first)}; "
                f"{describe_dialect([name], dialect)}); data.read is one for all files: export them in the same way"
            )
    usual = Dialect(sep="\t" if ".tsv" in texts[0].lower() else ",", encoding="utf-8", quotechar='"', has_header=True)
    for key, value in asdict(first).items():
        if key != "has_header" and value != getattr(usual, key):
            draft.set(f"data.read.{key}", value)
    print(describe_dialect(texts, first))
    return first.has_header


def name_columns(draft: Draft, table: pa.Table, place: str) -> None:
    """Set `data.read.names` for files without a header: label, text, and numbers for the others.

    Args:
        table: whose columns are named by the first row.
    """
    numbered = table.rename_columns([f"column_{number}" for number in range(1, table.num_columns + 1)])
    columns = choose_columns(numbered, place=place)
    texts = ["text"] if len(columns.texts) == 1 else [f"text_{number}" for number in range(1, len(columns.texts) + 1)]
    roles = {columns.label: "label", **dict(zip(columns.texts, texts, strict=True))}
    names = [roles.get(name, name) for name in numbered.column_names]
    draft.set("data.read.names", names)
    print(f"the columns are called {', '.join(names)} (data.read.names)")


def read(draft: Draft, folder: Path, names: Sequence[str]) -> dict[str, pa.Table]:
    return read_splits(folder, names, draft.params().data)


def drop_unlabelled(
    draft: Draft, tables: dict[str, pa.Table], label: str
) -> dict[str, pa.Table]:
    """Leave out validation or test splits without any label, as a competition has them. Rows are held out of train."""
    for split in find_unlabelled_splits(tables, label):
        print(f"the {split} split has no labels and is not used")
        del tables[split]
    set_splits(draft, )


def find_unlabelled_splits(tables: Mapping[str, pa.Table], label: str) -> list[str]:
    """Validation or test splits without any label, as in a competition."""

    def has_label(table: pa.Table) -> bool:
        if label not in table.column_names:
            return False
        (column,) = read_label_columns({"": table}, label)
        return not set(column.values.dropna()) <= UNLABELLED_MARKS

    return [split for split, table in tables.items() if split != "train" and not has_label(table)]
