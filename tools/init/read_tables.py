"""Find out how a data set's files are written, read them, and choose the columns. `tools.init` uses it."""

import contextlib
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from stages.data.compression import open_file
from stages.data.dialect import Dialect, detect_dialect
from stages.data.label_column import UNLABELLED_MARKS, read_label_columns
from stages.data.row_places import list_columns
from stages.data.split_files import list_splits, read_splits
from stages.data.task import SPLITS
from stages.runtime.errors import UserError
from stages.sources.fetch import fetch
from tools.init.check_splits import check_chosen, check_given, describe_unlabelled, name_splits
from tools.init.columns import Columns, choose_columns
from tools.init.describe_data import describe_dialect
from tools.init.params_file import Draft

HOLDOUT_SIZES = ("10%", "20%", "30%")  # the first that leaves a validation and a test row is taken
# What the names of splits begin with
SPLIT_NAMES = {"train": ("train",), "validation": ("valid", "val", "dev"), "test": ("test", "eval")}


def read_tables(
    draft: Draft,
    label: Sequence[str] | None,
    texts: Sequence[str] | None,
    group: str | None,
    separator: str | None,
    ask_label: Callable[[Sequence[str | tuple[str, ...]]], str | tuple[str, ...] | None],
) -> tuple[dict[str, pa.Table], Columns]:
    """Read the data, and set the keys that say how: `data.read`, `data.split`, `data.splits` and `data.holdout`.

    Args:
        label, texts, group: columns that the user named.
        separator: of the labels in a text, if the user named it.
        ask_label: returns the user's choice among several candidates, or None.

    Returns:
        ({split: table}, for the splits that `data.splits` names, and the columns)
    """
    with contextlib.redirect_stdout(io.StringIO()):  # `fetch` prints the digest that would pin the data
        folder, manifest = fetch(draft.params().data, "data")
    names = list(manifest["files"])
    try:
        files, has_configs = list_splits(folder, names, draft.params().data.subset)
    except UserError as error:
        raise UserError(str(error).replace("params.yaml: data.subset:", "--subset:")) from error
    for key in ("split", "read.sep", "read.encoding", "read.quotechar", "read.names"):
        draft.set(f"data.{key}", None)
    set_splits(draft, choose_splits(list(files), manifest["name"]))
    if has_configs:
        print("README.md: its configs say which files belong to a split, and how they are read")
    elif texts_of := [name for split in files.values() for name in split if is_csv(name)]:
        dialect = find_dialect(folder, texts_of)
        print(describe_dialect(texts_of, dialect))
        set_dialect(draft, dialect, texts_of[0])
        if not dialect.has_header:
            numbers = range(1, count_columns(folder / texts_of[0], dialect) + 1)
            draft.set("data.read.names", [f"column_{number}" for number in numbers])
            with contextlib.redirect_stdout(io.StringIO()):
                column_names = name_columns(read(draft, folder, names)["train"], label, manifest["name"])
            draft.set("data.read.names", column_names)
            print(f"so the columns are called {', '.join(column_names)}")
    tables = read(draft, folder, names)

    place, specs = manifest["name"], draft.params().data.splits
    split_names = name_splits(tables, {split: files.get(getattr(specs, split), []) for split in tables})
    for option, given in (("--label", label), ("--text", texts), ("--group", group and [group])):
        check_given(tables, split_names, option, given or ())
    columns = choose_columns(tables["train"], label, texts, group, separator, place)
    if label is None and (answer := ask_label(columns.label_candidates)):
        columns = choose_columns(tables["train"], answer, texts, group, separator, place, "as you answered")
    if len(files) == 1 and columns.split and columns.split_values:
        draft.set("data.split", columns.split)
        set_splits(draft, columns.split_values)
        tables = read(draft, folder, names)
        split_names = name_splits(tables, {})
    for split in find_unlabelled_splits(tables, columns):
        print(describe_unlabelled(tables, split_names, split, columns, place))
        del tables[split]
    splits = draft.params().data.splits
    set_splits(draft, {split: getattr(splits, split) for split in tables})
    unused = check_chosen(tables, split_names, columns, bool(texts), group is not None, place)
    for name, where in unused.items():
        print(f"{where} has no column {name}, so it is not used")
    if unused:
        shared = [name for name in tables["train"].column_names if all(name in t.column_names for t in tables.values())]
        chosen = columns
        columns = choose_columns(tables["train"].select(shared), columns.label_columns, texts, group, separator, place)
        columns = replace(columns, reasons=columns.reasons | {"label": chosen.reasons["label"]})
    return tables, columns


def read(draft: Draft, folder: Path, names: Sequence[str]) -> dict[str, pa.Table]:
    return read_splits(folder, names, draft.params().data, with_places=True)


def choose_splits(names: Sequence[str], place: str) -> dict[str, str]:
    """{split: name} for the splits that a data set has.

    Args:
        names: of the data set's own splits.
        place: what errors call the data.
    """
    if len(names) == 1:
        return {"train": names[0]}
    found = {}
    for split, beginnings in SPLIT_NAMES.items():
        if candidates := [name for name in names if name.lower().startswith(beginnings)]:
            found[split] = min(candidates, key=len)
    if "train" not in found:
        raise UserError(f"{place}: has the splits {', '.join(names)}; allowed: a single one, or one called train")
    return found


def set_splits(draft: Draft, splits: Mapping[str, str]) -> None:
    """Set `data.splits`, and `data.holdout` for those that are missing."""
    for split in SPLITS:
        draft.set(f"data.splits.{split}", splits.get(split))
        if split != "train":
            draft.set(f"data.holdout.{split}", None if split in splits else HOLDOUT_SIZES[0])


def is_csv(name: str) -> bool:
    return any(f".{kind}" in Path(name).name.lower() for kind in ("csv", "tsv"))


def find_dialect(folder: Path, names: Sequence[str]) -> Dialect:
    """How the csv and tsv files are written, which must be the same for all: params.yaml has one `data.read`."""
    dialects = {name: detect_dialect(folder / name) for name in names}
    encodings = {name: dialect.encoding for name, dialect in dialects.items()}
    if len(others := {*encodings.values()} - {"utf-8"}) == 1:
        for name, encoding in encodings.items():
            if encoding == "utf-8" and is_ascii(folder / name):  # such a file is readable in both
                dialects[name] = replace(dialects[name], encoding=min(others))
    first, *rest = dialects.items()
    for name, dialect in rest:
        if dialect != first[1]:
            raise UserError(
                f"{describe_dialect([first[0]], first[1])}. {describe_dialect([name], dialect)}. Allowed: files that "
                "are all written in the same way; export them again"
            )
    return first[1]


def is_ascii(path: Path) -> bool:
    with open_file(path, str(path)) as file:
        return file.read().isascii()


def set_dialect(draft: Draft, dialect: Dialect, name: str) -> None:
    """Set `data.read` to what differs from the usual way for a file's extension."""
    usual = Dialect(sep="\t" if ".tsv" in name.lower() else ",", encoding="utf-8", quotechar='"', has_header=True)
    for key, value in asdict(dialect).items():
        if key != "has_header" and value != getattr(usual, key):
            draft.set(f"data.read.{key}", value)


def count_columns(path: Path, dialect: Dialect) -> int:
    """Cells of the first row of a csv or tsv file."""
    with open_file(path, str(path)) as file, io.TextIOWrapper(file, encoding=dialect.encoding, newline="") as lines:
        rows = csv.reader(lines, delimiter=dialect.sep, quotechar=dialect.quotechar)
        return len(next((row for row in rows if row), []))


def name_columns(table: pa.Table, label: Sequence[str] | None, place: str) -> list[str]:
    """Names for the columns of files without a header: label, text, and the names that they have for the others.

    Label columns that the user named keep their names.
    """
    given = label if label and {*label} <= {*table.column_names} else None
    columns = choose_columns(table, given, place=place)
    texts = ["text"] if len(columns.texts) == 1 else [f"text_{number}" for number in range(1, len(columns.texts) + 1)]
    names = dict(zip(columns.texts, texts, strict=True))
    if given is None and isinstance(columns.label, str):
        names[columns.label] = "label"
    return [names.get(name, name) for name in list_columns(table)]


def find_unlabelled_splits(tables: Mapping[str, pa.Table], columns: Columns) -> list[str]:
    """Validation or test splits without any label, as in a competition."""

    def has_label(split: str) -> bool:
        if not {*columns.label_columns} <= {*tables[split].column_names}:
            return False
        (column,) = read_label_columns({split: tables[split]}, columns.label, columns.separator)
        return not set(column.values.dropna()) <= UNLABELLED_MARKS

    return [split for split in tables if split != "train" and not has_label(split)]
