"""The training, validation and test rows: named by `data.splits`, or held out. Duplicates are dropped if asked."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from stages.data.data_summary import find_duplicates
from stages.data.holdout import hold_out
from stages.data.task import NO_LABEL, SPLITS, Task
from stages.runtime.errors import UserError
from stages.runtime.params import Data, Splits

MOST_NAMED = 5  # classes in an error; further ones are counted


def assign_splits(rows: Mapping[str, pd.DataFrame], data: Data, task: Task) -> dict[str, pd.DataFrame]:
    """The rows of the three splits, before `data.train_rows`, … choose some of them.

    Args:
        rows: {split: rows}, from `prepare_rows`, of the splits that `data.splits` names.

    Returns:
        {split: rows}, in the order of `SPLITS`. The index of held-out rows is that in `rows["train"]`.

    Raises:
        UserError: a slice leaves a class out of training, no rows can be held out, or no training row is left.
    """
    check_slice(rows, data.splits, task)
    splits = {**rows, **hold_out(rows["train"], data.holdout, task, data.unlabelled != "drop")}
    if data.duplicates == "drop":
        splits["train"] = splits["train"][~find_dropped(splits, task)]
        if splits["train"].empty:
            raise UserError(
                "params.yaml: data.duplicates: drop: each training row has the same texts as a validation or test row, "
                "so none is left; allowed: keep, or other splits"
            )
    return {split: splits[split] for split in SPLITS}


def check_slice(rows: Mapping[str, pd.DataFrame], splits: Splits, task: Task) -> None:
    """Reject a slice without training rows of a class that validation or test rows have: the file is sorted."""
    if "[" not in splits.train:
        return
    classes = {split: {*np.flatnonzero(task.labels.count(table["label"]))} for split, table in rows.items()}
    for split in SPLITS[1:]:
        if missing := sorted(classes.get(split, set()) - classes["train"]):
            names = [task.classes[number] for number in missing]
            more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
            raise UserError(
                f"params.yaml: data.splits.train: {splits.train} has no row of {len(missing)} of the "
                f"{len(classes[split])} {task.labels.nouns} of data.splits.{split} "
                f"({', '.join(names[:MOST_NAMED])}{more}), as in a sorted file; {suggest_holdout(rows, splits)}"
            )


def suggest_holdout(rows: Mapping[str, pd.DataFrame], splits: Splits) -> str:
    """What to write in place of slices of a sorted file. Splits of their own can stay as they are."""
    source = remove_slices(splits.train)
    sliced = [split for split in SPLITS[1:] if split in rows and remove_slices(getattr(splits, split)) == source]
    if not sliced:
        return (
            f"set data.splits.train to {source} and data.train_rows to {len(rows['train'])}, "
            "which takes rows from the whole file"
        )
    keys = [" and ".join(f"data.{section}.{split}" for split in sliced) for section in ("splits", "holdout")]
    return f"set data.splits.train to {source}, {keys[0]} to null, and {keys[1]} to 10%"


def remove_slices(spec: str) -> str:
    """The names of splits without their slices: `train` for `train[:80%](pct1_dropremainder)`."""
    return re.sub(r"\[[^\]]*\](\([^)]*\))?", "", spec)


def find_dropped(splits: Mapping[str, pd.DataFrame], task: Task) -> np.ndarray:
    """Whether each training row has the same texts as a validation, a test or an earlier training row, bool [rows].

    Of equal training rows, the first that has a label is kept.
    """
    train = splits["train"]
    labelled_first = train.assign(place=np.arange(len(train)), unlabelled=train["label"] == NO_LABEL)
    labelled_first = labelled_first.sort_values("unlabelled", kind="stable")
    dropped = np.zeros(len(train), dtype=bool)
    dropped[labelled_first["place"]] = labelled_first.duplicated(task.text_columns)
    return dropped | find_duplicates(train, splits["validation"], task) | find_duplicates(train, splits["test"], task)
