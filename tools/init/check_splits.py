"""Compare the columns of the validation and test rows with those of the training rows. `tools.init` uses it.

In all functions `tables` is {split: table}, and `names` is {split: what messages call it}, from `name_splits`.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from stages.data.label_column import UNLABELLED_MARKS, read_label_columns
from stages.data.row_places import list_columns
from stages.runtime.errors import UserError
from tools.init.columns import Columns, list_some

Tables = Mapping[str, pa.Table]
Names = Mapping[str, str]


def name_splits(tables: Tables, files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """{split: the name of its file, or `the test split` if it has several or none of its own}.

    Args:
        files: {split: names of its files}.
    """
    return {split: files[split][0] if len(files.get(split, ())) == 1 else f"the {split} split" for split in tables}


def check_given(tables: Tables, names: Names, option: str, columns: Sequence[str]) -> None:
    """Reject columns of an option that another split has and the training rows lack."""
    for column in columns:
        having = [split for split, table in tables.items() if column in table.column_names]
        if having and "train" not in having:
            raise UserError(
                f"{option}: {column}: {names[having[0]]} has this column, but {names['train']} has not; allowed: "
                f"{list_some(list_columns(tables['train']))}. If one of these is the same, give both the same name"
            )


def describe_unlabelled(tables: Tables, names: Names, split: str, columns: Columns, place: str) -> str:
    """Say that the rows of a split are not used, because they have no label.

    Raises:
        UserError: a column that the training rows lack has their labels, so it is a renamed one.
    """
    line = f"the {split} split is not labelled, so its rows are not used"
    missing, others = _find_missing(tables, split, columns.label_columns), _find_others(tables, split)
    if not missing or not others:
        return line
    problem = f"{names[split]} has no column {', '.join(missing)}, the label in {names['train']}"
    if renamed := next((name for name in others if _has_labels(tables, split, name, columns)), None):
        raise UserError(
            f"{place}: {problem}. It has {renamed} instead, with the same values: give both the same name, or remove "
            f"{renamed} if it is not the label"
        )
    return f"WARNING: {line}: {problem}. It has {list_some(others)} instead: if this is the label, rename it"


def check_chosen(
    tables: Tables, names: Names, columns: Columns, texts_given: bool, group_given: bool, place: str
) -> dict[str, str]:
    """Reject a split without a column that was chosen, if another of its columns may be the same.

    A split without such another column may lack a group, or some of several texts, unless the user named them.

    Returns:
        {column: what the split that lacks it is called}, for the texts and the group that can't be used
    """
    unused: dict[str, str] = {}
    for split in tables:
        others = _find_others(tables, split)
        for what, chosen, needed, otherwise in (
            ("text", columns.texts, texts_given, "name the texts with --text"),
            ("group", (columns.group,), group_given, "add --group none"),
        ):
            missing = _find_missing(tables, split, chosen)
            is_needed = needed or (what == "text" and len(missing) == len(chosen))
            if missing and (others or is_needed):
                other = f"It has {list_some(others)} instead: if this is the same, give both the same name; if not"
                column, a_text = ("column", f"a {what}") if len(missing) == 1 else ("columns", f"{what}s")
                raise UserError(
                    f"{place}: {names[split]} has no {column} {', '.join(missing)}, {a_text} in {names['train']}. "
                    f"{other + ',' if others else 'Add it, or'} {otherwise}"
                )
            unused |= dict.fromkeys(missing, names[split])
    return unused


def _find_missing(tables: Tables, split: str, columns: Sequence[str | None]) -> list[str]:
    return [name for name in columns if name is not None and name not in tables[split].column_names]


def _find_others(tables: Tables, split: str) -> list[str]:
    """The columns of a split that the training rows lack."""
    return [name for name in list_columns(tables[split]) if name not in tables["train"].column_names]


def _has_labels(tables: Tables, split: str, name: str, columns: Columns) -> bool:
    """Whether a column of a split has several of the labels of the training rows, and nothing else."""
    if not isinstance(columns.label, str):
        return False
    renamed = tables[split].select([name]).rename_columns([columns.label])
    try:
        both = read_label_columns({"train": tables["train"], split: renamed}, columns.label, columns.separator)
    except UserError:  # it has no labels of this form
        return False
    known, values = ({*column.values.dropna()} - UNLABELLED_MARKS for column in both)
    return len(values) > 1 and values <= known
