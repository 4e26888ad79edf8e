"""NLI rows: read, checked, chosen, counted."""

from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa

from stages.runtime.errors import UserError
from stages.runtime.files import scratch_folder
from stages.sources.manifest import TABLES
from stages.task.labels import LABELS, SPLITS


def load_splits(folder: Path, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Read the three splits of a folder by `datasets`.

    Only the named files are read, those that the manifest pins, and never out of the cache of `datasets`: it takes a
    file of the same path and time for the same rows.

    Args:
        names: files, relative to `folder`.

    Returns:
        {split: data frame with the columns premise, hypothesis, label}, checked.
    """
    if not set(names) - {"README.md"}:
        raise UserError(f"data.name: {folder}: no table here; allowed: *.{', *.'.join(TABLES)}")
    with scratch_folder("data/source") as scratch:
        for name in names:
            (scratch / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / "files" / name).symlink_to((Path(folder) / name).resolve())
        datasets.disable_progress_bars()  # seconds even for SNLI, and they would stay in every log
        try:
            loaded = datasets.load_dataset(str(scratch / "files"), cache_dir=str(scratch / "cache"))
        except Exception as error:  # `datasets` raises a dozen kinds here, plain Exception among them
            reason = str(error.__cause__ or error).strip().splitlines()[0].replace(f"{scratch}/files", str(folder))
            raise UserError(f"data.name: {folder}: not readable as a data set ({reason})") from error
        for split in SPLITS:
            if split not in loaded:
                raise UserError(
                    f"data.name: {folder}: no split '{split}' (has {', '.join(loaded)}); needed: {', '.join(SPLITS)}"
                )
        names_of = {split: getattr(loaded[split].features.get("label"), "names", None) for split in SPLITS}
        return {split: check_split(loaded[split].data.table, split, names_of[split]) for split in SPLITS}


def check_split(table: pa.Table, split: str, names: list[str] | None = None) -> pd.DataFrame:
    """Check one split, an arrow table, and return it as a data frame.

    Args:
        names: the classes that the data set itself says its codes 0, 1, … mean, or None where it says nothing and
            they are SNLI's.

    Raises:
        UserError: naming the split and the column: missing, of another type, empty; no rows.
    """
    for column in ("premise", "hypothesis", "label"):
        if column not in table.column_names:
            raise UserError(f"data: split '{split}' has no column '{column}' (has {', '.join(table.column_names)})")
    if table.num_rows == 0:
        raise UserError(f"data: split '{split}' has no rows")
    if not pa.types.is_integer(table.schema.field("label").type):
        raise UserError(
            f"data: split '{split}': column 'label' holds {table.schema.field('label').type}; "
            "allowed: integers 0 (entailment), 1 (neutral), 2 (contradiction), -1 (no gold label)"
        )
    rows = table.select(["premise", "hypothesis", "label"]).to_pandas()
    for column in rows.columns[rows.isna().any()]:
        raise UserError(f"data: split '{split}': column '{column}' has nulls (row {rows[column].isna().idxmax()})")
    wrong = ~rows["label"].isin([-1, 0, 1, 2])
    if wrong.any():
        row = wrong.idxmax()
        raise UserError(
            f"data: split '{split}': column 'label' has {rows['label'][row]} in row {row}; allowed: -1, 0, 1, 2"
        )
    for column in ("premise", "hypothesis"):
        if not rows[column].map(lambda text: isinstance(text, str)).all():
            raise UserError(
                f"data: split '{split}': column '{column}' holds {table.schema.field(column).type}; allowed: text"
            )
    if names is not None:
        rows["label"] = rows["label"].map(own_codes(names, split))
    labelled = rows[rows["label"] >= 0]
    for column in ("premise", "hypothesis"):
        empty = labelled[column].str.strip() == ""
        if empty.any():
            raise UserError(f"data: split '{split}': column '{column}' is empty in row {empty.idxmax()}")
    return rows.astype({"label": "int64"})


def own_codes(names: list[str], split: str) -> dict[int, int]:
    """{code of a data set: our code of the class of that name}; -1 stays.

    Args:
        names: the data set's classes in the order of its codes.
    """
    places = {name.strip().casefold(): code for code, name in enumerate(names)}
    if places.keys() != set(LABELS):
        raise UserError(
            f"data: split '{split}': column 'label' has the classes {', '.join(names)}; needed: {', '.join(LABELS)}"
        )
    return {-1: -1} | {places[name]: code for code, name in enumerate(LABELS)}


def choose(rows: pd.DataFrame, samples: int | None) -> pd.DataFrame:
    """Rows at equal distances over a whole split, in order, without chance.

    Where a whole number of rows apart reaches the split's end, that is every (rows // samples)-th row, as the
    published notebook chose: 550 and 100 apart on SNLI. Else the distance is a fraction, so that the end is not left
    out.

    Args:
        rows: data frame of a whole split.
        samples: how many, or None for all.
    """
    if samples is None:
        return rows
    if samples > len(rows):
        raise UserError(f"the split has {len(rows)} rows; allowed: 1 to {len(rows)}, or null for all")
    step = len(rows) // samples
    if len(rows) - step * samples < step:
        return rows.iloc[: step * samples : step]
    return rows.iloc[np.arange(samples) * len(rows) // samples]


def resolve_unlabelled(rows: pd.DataFrame, unlabelled: str) -> pd.DataFrame:
    """Drop the rows without a gold label (SNLI's authors: "should not be used"), or call them neutral as published."""
    if unlabelled == "neutral":
        return rows.assign(label=rows["label"].replace(-1, LABELS.index("neutral")))
    return rows[rows["label"] != -1]


def summarize(rows: pd.DataFrame, chosen: pd.DataFrame, kept: pd.DataFrame) -> dict:
    """Counts of one split: rows in it, chosen, without gold label, kept, truncated, tokens; rows of each class."""
    lengths = kept["input_ids"].map(len)
    return {
        "rows": len(rows),
        "chosen": len(chosen),
        "unlabelled": int((chosen["label"] == -1).sum()),
        "dropped": len(chosen) - len(kept),
        "kept": len(kept),
        "truncated": int(kept["truncated"].sum()),
        "tokens": int(lengths.sum()),
        "tokens_mean": round(float(lengths.mean()), 2),
        "tokens_max": int(lengths.max()),
        "classes": {name: int((kept["label"] == i).sum()) for i, name in enumerate(LABELS)},
    }


def in_train(rows: pd.DataFrame, train: pd.DataFrame) -> dict[str, int]:
    """How many rows stand in the training split too, word for word: premise and hypothesis, and the premise alone."""
    pairs, premises = set(zip(train["premise"], train["hypothesis"], strict=True)), set(train["premise"])
    both = zip(rows["premise"], rows["hypothesis"], strict=True)
    return {"rows": sum(pair in pairs for pair in both), "premises": int(rows["premise"].isin(premises).sum())}


def to_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Data frame with a plain 0..n-1 index, the row's place in its split kept as `row`."""
    return pd.DataFrame(frame).rename_axis("row").reset_index()
