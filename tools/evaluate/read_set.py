"""Read a labelled file or data set, whose columns and labels may have other names than those of the run."""

import contextlib
import io
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import pandas as pd
import pyarrow as pa

from stages.data.dataset import check_texts, read_groups
from stages.data.label_column import LabelColumn, describe_type, read_label_columns
from stages.data.labels import Labels
from stages.data.row_places import list_columns, locate_rows, read_places
from stages.data.split_files import list_splits, read_splits
from stages.data.task import NO_LABEL, Task, name_text_columns
from stages.report.run_description import Source
from stages.runtime import params
from stages.runtime.errors import UserError
from stages.sources.fetch import fetch
from stages.sources.manifest import find_extension
from tools.evaluate.labels import check_class_columns, encode_set_labels
from tools.init.choose_classes import describe_spellings
from tools.init.choose_source import choose_source
from tools.init.describe_data import describe_dialect, describe_set_duplicates
from tools.init.params_file import Draft
from tools.init.read_tables import find_dialect, is_csv, set_dialect

SPLIT = "test"  # what the pipeline's modules call these rows
READ_FLAGS = ("sep", "encoding", "quotechar")
# Errors of the pipeline's modules name keys of params.yaml. Here the user has flags.
KEYS = {
    **{f"params.yaml: data.{key}": f"--{key}" for key in ("subset", "label", "separator")},
    **{f"params.yaml: data.read.{key}": f"--{key}" for key in READ_FLAGS},
    **{f"data.read.{key}": f"--{key}" for key in READ_FLAGS},
    "set data.read.names to the names of its": "add a line above it with the names of its",
    f"data: split '{SPLIT}': ": "",
    f" in split '{SPLIT}'": "",
    "params.yaml: data.folder: ": "",
    "params.yaml: data.name: ": "",
}


@dataclass(frozen=True)
class LabelForm:
    """Where the labels are.

    Attributes:
        columns: the label column; several: a column of 0 and 1 for each label.
        separator: between the labels of a row in a text, else None.
        is_asked: whether the user named the separator. If not, it is the run's, and a column of lists needs none.
    """

    columns: tuple[str, ...]
    separator: str | None
    is_asked: bool

    @property
    def title(self) -> str:
        return ", ".join(self.columns)

    def read(self, table: pa.Table, labels: Labels, place: str) -> LabelColumn:
        """Read the labels of a table with these columns.

        Raises:
            UserError: a row has several labels, but one in the run, or the other way round.
        """
        label = self.columns[0] if len(self.columns) == 1 else self.columns
        separator = self.separator
        if not self.is_asked and isinstance(label, str) and pa.types.is_nested(table.schema.field(label).type):
            separator = None
        with _name_flags(place), locate_rows({SPLIT: table}):
            (column,) = read_label_columns({SPLIT: table}, label, separator)
        if labels.multi_label and column.missing is None:
            raise UserError(
                f"{place}: column '{label}' has one label a row, but rows of the run may have several; if a text has "
                "several, name what is between them: --separator TEXT"
            )
        if not labels.multi_label and column.missing is not None:
            raise UserError(f"{place}: column '{label}' has several labels per row, but rows of the run have one")
        return column


def choose_form(arguments: Namespace, data: params.Data, task: Task) -> LabelForm:
    """The flags `label` and `separator`, or what params.yaml has."""
    own = (data.label,) if isinstance(data.label, str) else tuple(data.label)
    columns = tuple(arguments.label) or own
    if not task.multi_label and (len(columns) > 1 or arguments.separator is not None):
        flag = "--label: given several times" if len(columns) > 1 else f"--separator {arguments.separator}"
        raise UserError(f"{flag}: each row of the run has one label; allowed: one --label, without --separator")
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise UserError(f"--label {twice}: given twice; name each column once")
    if len(columns) > 1 and arguments.separator is not None:
        raise UserError("--separator: is for one label column; remove it, or name one column by --label")
    is_asked = arguments.separator is not None
    separator = arguments.separator if is_asked else data.separator if len(columns) == 1 else None
    return LabelForm(columns, separator, is_asked)


@dataclass(frozen=True)
class LabelledSet:
    """A labelled data set.

    Attributes:
        name: of its folder in evaluations/.
        source: the data, as the user named it.
        split: None if the data has only one.
        task: the run's, but with the column that groups these rows.
        shares_groups: whether the groups' values can be compared with those of the training rows.
        rows: text columns, `label` (code, `NO_LABEL` for none), `group` (text), and the columns of `row_places`.
        record: how it was read, for evaluation.json.
        notes: sentences about the labels, such as `Yes (2 rows) is read as yes`.
    """

    name: str
    source: Source
    split: str | None
    task: Task
    shares_groups: bool
    rows: pd.DataFrame
    record: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def reading(self) -> str:
        """Where columns, labels and group differ from the run's."""
        columns = [f"{column} from {source}" for column, source in self.record["columns"].items() if column != source]
        labels = [f"label {label} as {name}" for label, name in self.record["classes"].items()]
        return ", ".join([*columns, f"labels from {self.record['label']}", *labels])

    def describe(self) -> Iterator[str]:
        """Lines for the user: what was read, and how."""
        labels = self.rows["label"]
        counts = pd.Series(self.task.labels.count(labels), self.task.classes).sort_values(
            ascending=False, kind="stable"
        )
        counts = counts[counts > 0]
        listed = ", ".join(f"{rows:,} {name}" for name, rows in counts.head(10).items())
        more = f" and {len(counts) - 10:,} more {self.task.labels.nouns}" if len(counts) > 10 else ""
        if empty := self.task.labels.count_without(labels):
            more += f", {empty:,} with none of the labels"
        dropped = int((labels == NO_LABEL).sum())
        split = f", split {self.split}" if self.split else ""
        yield f"{self.source.name}{split}: {len(labels) - dropped:,} labelled rows: {listed}{more}"
        if self.source.revision:
            yield f"  commit {self.source.revision}"
        if dropped:
            yield f"  {dropped:,} {'row is' if dropped == 1 else 'rows are'} not labelled and left out"
        yield f"  {self.reading}"
        if self.task.group:
            yield f"  rows with the same {self.task.group} form a group; the intervals allow for that"
        yield from (f"  {note}" for note in (*self.notes, *describe_set_duplicates(self.rows, self.task)))


def read_set(
    given: str,
    arguments: Namespace,
    task: Task,
    form: LabelForm,
    columns: Mapping[str, str],
    class_map: Mapping[str, str],
) -> LabelledSet:
    """Read one data set.

    Args:
        given: a path, or OWNER/NAME on the hub.
        arguments: the flags `split`, `subset`, `group`, `sep`, `encoding` and `quotechar`.
        task: of the run.
        form: where the labels are.
        columns: {column of a template: column of the file}, from `parse_column_map`.
        class_map: from `parse_class_map`.

    Raises:
        UserError: one line that names the file or the flag.
    """
    with _name_flags():
        source, split, table = read_table(given, arguments)
    place = f"{given}, split '{split}'" if split else given
    check_columns(table, columns, form.columns, place)
    group = choose_group(table, columns, arguments.group, task.group, place)
    label_column = form.read(table, task.labels, place)
    if len(form.columns) > 1:
        check_class_columns(form.columns, label_column, task, class_map, place)
    texts = pd.DataFrame({
        name: table[column].to_pandas().fillna("")
        for name, column in zip(name_text_columns(tuple(columns)), columns.values(), strict=True)
    })  # fmt: skip
    with locate_rows({SPLIT: table}):
        codes = encode_set_labels(label_column, task, class_map, place)
    groups = read_groups(table, replace(task, group=group), texts[task.text_columns], SPLIT)
    rows = texts.assign(label=codes, group=groups, **read_places(table))
    with _name_flags(place), locate_rows({SPLIT: table}):
        check_texts(rows, SPLIT, task)
    own_group = columns.get(task.group or "", task.group)  # the file's column for the run's group
    shares_groups = group is not None and group == own_group
    occurring = [*label_column.values.dropna().unique(), *(form.columns if len(form.columns) > 1 else ())]
    spelled = label_column.values[~label_column.values.isin(class_map.keys())]
    used = {*occurring, *(value.removesuffix(".0") for value in occurring)} & class_map.keys()
    return LabelledSet(
        name="-".join(filter(None, [name_folder(given), arguments.subset, arguments.split])),
        source=source,
        split=split,
        task=replace(task, group=task.group if shares_groups else group),
        shares_groups=shares_groups,
        rows=rows,
        record={
            "data": {"name": given, "revision": source.revision, "digest": source.digest, "split": split},
            "columns": dict(columns),
            "label": form.title,
            **({"separator": form.separator} if form.separator else {}),
            "classes": {value: class_map[value] for value in sorted(used)},
            "group": group,
        },
        notes=tuple(describe_spellings(spelled, task.classes)),
    )


def read_table(given: str, arguments: Namespace) -> tuple[Source, str | None, pa.Table]:
    """Find a data set, choose its split and read it -> (the data, the split's name if it has several, its rows).

    The csv dialect is detected as in `tools.init`; the flags replace what was detected.
    """
    draft = Draft(Path("params.yaml"))  # it is changed in memory only
    choose_source(draft, "data", given)
    for key in ("split", *(f"read.{name}" for name in (*READ_FLAGS, "names"))):
        draft.set(f"data.{key}", None)
    draft.set("data.subset", arguments.subset)
    with contextlib.redirect_stdout(io.StringIO()):  # `fetch` prints the digest that would pin the data
        folder, manifest = fetch(draft.params().data, "data")
    names = list(manifest["files"])
    files, has_configs = list_splits(folder, names, arguments.subset)
    split = choose_split(list(files), arguments.split, given)
    if not has_configs and (csv_files := [name for name in files[split] if is_csv(name)]):
        dialect = find_dialect(folder, csv_files)
        flags = {key: value for key in READ_FLAGS if (value := getattr(arguments, key)) is not None}
        set_dialect(draft, dialect, csv_files[0])
        print(describe_dialect(csv_files, replace(dialect, **flags)))
    for key in READ_FLAGS:
        if (value := getattr(arguments, key)) is not None:
            draft.set(f"data.read.{key}", value)
    for key, value in (("train", split), ("validation", None), ("test", None)):
        draft.set(f"data.splits.{key}", value)
        if value is None:
            draft.set(f"data.holdout.{key}", "10%")  # params.yaml must say where each split is from
    with contextlib.redirect_stdout(io.StringIO()):
        table = read_splits(folder, names, draft.params().data, with_places=True)["train"]
    return Source(given, manifest["revision"], manifest["digest"]), split if len(files) > 1 else None, table


def choose_split(names: Sequence[str], asked: str | None, given: str) -> str:
    """The split that the user asked for; else the one called test, or the only one."""
    listed = ", ".join(names)
    if asked is not None:
        if asked not in names:
            raise UserError(f"--split {asked}: {given} has no such split; it has {listed}")
        return asked
    if "test" in names or len(names) == 1:
        return "test" if "test" in names else names[0]
    raise UserError(f"{given}: has the splits {listed}, and none is called test; name one by --split")


def check_columns(table: pa.Table, columns: Mapping[str, str], labels: Sequence[str], place: str) -> None:
    """Reject a table without the columns of a template or the label columns, or whose texts are not text."""
    has = f"it has {', '.join(list_columns(table))}"
    for column, source in columns.items():
        if source not in table.column_names:
            raise UserError(
                f"{place}: no column '{source}'; {has}. Name the one for {column}: --column {quote(column)}=COLUMN"
            )
        kind = table.schema.field(source).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{place}: column '{source}' holds {describe_type(kind)}; allowed for {column}: text")
    for label in labels:
        if label not in table.column_names:
            raise UserError(f"{place}: no label column '{label}'; {has}. Name it: --label COLUMN")
        if label in columns.values():
            raise UserError(
                f"{place}: column '{label}' can't be both a text and the label; correct --label or --column"
            )


def choose_group(
    table: pa.Table, columns: Mapping[str, str], asked: str | None, own: str | None, place: str
) -> str | None:
    """The file's column that groups rows; None: rows with equal texts are a group.

    Args:
        asked: the flag `--group`.
        own: the run's group column.
    """
    if asked is not None:
        if asked not in table.column_names:
            raise UserError(f"--group {asked}: {place} has no such column; it has {', '.join(list_columns(table))}")
        return asked
    if own is None:
        return None
    source = columns.get(own, own)
    if source in table.column_names:
        return source
    print(f"{place}: no column '{own}', which groups the run's rows: rows with equal texts are a group; or set --group")
    return None


def name_folder(given: str) -> str:
    """The name of a data set's folder in evaluations/: that of its folder, or of its file without .csv.gz."""
    path = Path(given)
    name = Path(path.resolve() if path.exists() else path).name
    extension = find_extension(name) if path.is_file() else ""
    return name.removesuffix(name[-len(extension) - 1 :]) if extension else name  # .CSV too


@contextlib.contextmanager
def _name_flags(place: str = "") -> Iterator[None]:
    """Let errors about keys of params.yaml name the flags of this command."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for key, flag in KEYS.items():
            message = message.replace(key, flag)
        raise UserError(f"{place}: {message}" if place else message) from error
