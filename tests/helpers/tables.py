"""Small data sets, as arrow tables and as files for `datasets`."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa

from stages.data.labels import SingleLabel
from stages.runtime import params

CLASSES = ("entailment", "neutral", "contradiction")
LABELS = SingleLabel(CLASSES)
SPLITS = ("train", "validation", "test")


def data_params(**changes: object) -> params.Data:
    """The section `data` of params.yaml for a local folder, with some keys changed."""
    defaults = {
        "folder": "data", "name": None, "subset": None, "revision": None, "digest": None,
        "read": dict.fromkeys(("sep", "encoding", "quotechar", "names")), "split": None,
        "splits": {split: split for split in SPLITS},
        "holdout": {"validation": None, "test": None, "seed": 42, "columns": None}, "duplicates": "keep",
        "label": "label", "separator": None, "classes": list(CLASSES), "group": None, "train_rows": None,
        "validation_rows": None, "test_rows": None, "unlabelled": "drop",
    }  # fmt: skip
    return params.Data.model_validate(defaults | changes)


def template_of(columns: Sequence[str]) -> str:
    """A template that names these columns."""
    return "".join(f"{{{column}}}" for column in columns)


def arrow(features: datasets.Features | None = None, **columns: object) -> pa.Table:
    """A split of two NLI rows as `read_splits` returns it, with some columns changed (None leaves one out)."""
    defaults = {"premise": ["A man runs.", "A dog."], "hypothesis": ["He moves.", "A cat."], "label": [0, 2]}
    columns = {name: column for name, column in (defaults | columns).items() if column is not None}
    if features is None:
        return pa.table(columns)
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)


def three(table: pa.Table, **others: pa.Table) -> dict[str, pa.Table]:
    """Three splits with the same table, except for those that are passed by name."""
    return dict.fromkeys(SPLITS, table) | others


def parquet_folder(folder: Path, names: Sequence[str], label: Sequence[int] = (0, 1, 2, -1)) -> list[str]:
    """Write a data set with a ClassLabel column -> the names of its files."""
    features = datasets.Features(
        {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
         "label": datasets.ClassLabel(names=list(names))}
    )  # fmt: skip
    texts = [f"text {code}" for code in label]
    rows = datasets.Dataset.from_dict({"premise": texts, "hypothesis": texts, "label": list(label)}, features=features)
    for split in SPLITS:
        rows.to_parquet(folder / f"{split}.parquet")
    return sorted(path.name for path in folder.glob("*.parquet"))


def frame(*rows: tuple[str, str, int]) -> pd.DataFrame:
    """NLI rows with the column names of a data set: premise, hypothesis, label."""
    return pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])
