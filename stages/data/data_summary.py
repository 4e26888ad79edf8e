"""Count the rows of each split. outs/data_summary.json has the counts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stages.data.task import NO_LABEL, SPLITS, Task
from stages.runtime.files import read_json, write_json


@dataclass(frozen=True)
class Overlap:
    """How many rows of a split are related to rows of an earlier split.

    Attributes:
        rows: duplicates, which have the same texts as a row of the earlier split.
        groups: other rows that share their group with a row of the earlier split; None without `data.group`.
    """

    rows: int
    groups: int | None = None


@dataclass(frozen=True)
class DroppedDuplicates:
    """The training rows that `data.duplicates: drop` removed.

    Attributes:
        rows: all of them.
        in_validation, in_test: those that have the same texts as a validation or a test row.
        other_label: those that have the same texts as a training row with another label, which stays.
    """

    rows: int
    in_validation: int
    in_test: int
    other_label: int


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split. The JSON file has the attributes as keys, but `in_train`, … instead of `overlaps`.

    Attributes:
        rows: in the whole split, after `data.duplicates: drop`.
        chosen: rows that `data.train_rows`, `data.validation_rows` or `data.test_rows` asks for.
        unlabelled: chosen rows without a gold label.
        dropped: chosen rows that `data.unlabelled: drop` removes.
        kept: chosen rows that are not dropped; the counts below are of these rows.
        empty: {column: rows whose text is empty or blank}.
        truncated: rows longer than `tokenize.max_length`.
        tokens: in all rows together, after truncation.
        tokens_mean, tokens_max: per row, after truncation.
        tokens_longest: of the longest row, before truncation.
        classes: {class: rows}.
        contradicting: rows that have the same texts as another one of the split, but another label.
        overlaps: {earlier split: rows that are related to its rows}.
        without_labels: rows that belong to no class. None, and no key in the file, if each row has one class.
    """

    rows: int
    chosen: int
    unlabelled: int
    dropped: int
    kept: int
    empty: dict[str, int]
    truncated: int
    tokens: int
    tokens_mean: float
    tokens_max: int
    tokens_longest: int
    classes: dict[str, int]
    contradicting: int
    overlaps: dict[str, Overlap]
    without_labels: int | None = None

    @classmethod
    def from_json(cls, counts: Mapping[str, Any]) -> Self:
        overlaps = {key[3:]: Overlap(**value) for key, value in counts.items() if key.startswith("in_")}
        return cls(**{f.name: counts[f.name] for f in fields(cls) if f.name in counts}, overlaps=overlaps)

    def to_json(self) -> dict[str, Any]:
        counts = asdict(self)
        if self.without_labels is None:
            del counts["without_labels"]
        for split, overlap in counts.pop("overlaps").items():
            counts[f"in_{split}"] = {key: value for key, value in overlap.items() if value is not None}
        return counts


@dataclass(frozen=True)
class PaddingShares:
    """Share of padding in the tokens of training batches, 0 to 1.

    Attributes:
        as_set: with `batches` as in params.yaml. With `batches.padding: none`, it is the share for model families whose
            rows are padded; for the others, which take packed rows, there is no padding.
        random_order: rows in random order, padded to the longest row of their batch.
        to_max_length: padded to `tokenize.max_length`.
    """

    as_set: float
    random_order: float
    to_max_length: float


@dataclass(frozen=True)
class DataSummary:
    """Counts of all splits.

    Attributes:
        splits: {split: counts}, in the order of `SPLITS`.
        padding: of the training rows.
        max_length: `tokenize.max_length`.
        dropped_duplicates: None with `data.duplicates: keep`.
    """

    splits: dict[str, SplitSummary]
    padding: PaddingShares
    max_length: int
    dropped_duplicates: DroppedDuplicates | None = None

    @classmethod
    def from_json(cls, summary: Mapping[str, Any]) -> Self:
        splits = {split: SplitSummary.from_json(summary[split]) for split in SPLITS}
        dropped = summary.get("dropped_duplicates")
        return cls(
            splits, PaddingShares(**summary["padding"]), summary["max_length"], dropped and DroppedDuplicates(**dropped)
        )

    def to_json(self) -> dict[str, Any]:
        splits = {name: split.to_json() for name, split in self.splits.items()}
        counts = {"train": splits.pop("train"), "padding": asdict(self.padding), "max_length": self.max_length} | splits
        return counts | ({"dropped_duplicates": asdict(self.dropped_duplicates)} if self.dropped_duplicates else {})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        return cls.from_json(read_json(path))

    def write(self, path: str | Path) -> None:
        write_json(path, self.to_json())


def count_tokens(table: pd.DataFrame) -> np.ndarray:
    """Number of tokens of each row, int [rows]."""
    return pc.list_value_length(pa.array(table["input_ids"])).to_numpy()


def summarize_split(
    rows: pd.DataFrame, chosen: pd.DataFrame, tokenized: pd.DataFrame, task: Task, earlier: Mapping[str, pd.DataFrame]
) -> SplitSummary:
    """Count the rows of one split.

    Args:
        rows: all rows of the split.
        chosen: the rows that params.yaml asks for.
        tokenized: the chosen rows that are not dropped, with the columns of `tokenize_rows`.
        earlier: {earlier split: its rows}, to find duplicates and shared groups.
    """
    tokens = count_tokens(tokenized)
    return SplitSummary(
        rows=len(rows),
        chosen=len(chosen),
        unlabelled=int((chosen["label"] == NO_LABEL).sum()),
        dropped=len(chosen) - len(tokenized),
        kept=len(tokenized),
        empty={
            column: int((tokenized[text].str.strip() == "").sum())
            for column, text in zip(task.columns, task.text_columns, strict=True)
        },
        truncated=int(tokenized["truncated"].sum()),
        tokens=int(tokens.sum()),
        tokens_mean=round(float(tokens.mean()), 2),
        tokens_max=int(tokens.max()),
        tokens_longest=int(tokenized["full_length"].max()),
        classes=dict(zip(task.classes, task.labels.count(tokenized["label"]).tolist(), strict=True)),
        contradicting=count_contradicting(tokenized, task),
        overlaps={split: count_overlap(tokenized, others, task) for split, others in earlier.items()},
        without_labels=task.labels.count_without(tokenized["label"]),
    )


def count_contradicting(rows: pd.DataFrame, task: Task) -> int:
    """Count the rows that have the same texts as another one, but another label."""
    repeated = rows.loc[rows.duplicated(task.text_columns, keep=False), [*task.text_columns, "label"]]
    labels = repeated.groupby(task.text_columns, sort=False)["label"].transform("nunique")
    return int((labels > 1).sum())


def count_overlap(rows: pd.DataFrame, others: pd.DataFrame, task: Task) -> Overlap:
    """Count the rows that have a duplicate in another split, and of the rest those that share a group with it."""
    duplicate = find_duplicates(rows, others, task)
    if task.group is None:
        return Overlap(int(duplicate.sum()))
    return Overlap(int(duplicate.sum()), int((_is_in(rows["group"], others["group"]) & ~duplicate).sum()))


def count_dropped(
    before: Mapping[str, pd.DataFrame], splits: Mapping[str, pd.DataFrame], task: Task
) -> DroppedDuplicates:
    """Count the training rows that `assign_splits` dropped.

    Args:
        before: {split: rows} that it was given.
        splits: {split: rows} that it returned.
    """
    not_dropped = [splits[split].index for split in SPLITS if split == "train" or split not in before]
    dropped = before["train"].drop(index=np.concatenate(not_dropped))
    labels = [table[[*task.text_columns, "label"]][table["label"] != NO_LABEL] for table in (dropped, splits["train"])]
    pairs = labels[0].merge(labels[1], on=task.text_columns, suffixes=("", "_kept"))
    return DroppedDuplicates(
        rows=len(dropped),
        in_validation=int(find_duplicates(dropped, splits["validation"], task).sum()),
        in_test=int(find_duplicates(dropped, splits["test"], task).sum()),
        other_label=int((pairs["label"] != pairs["label_kept"]).sum()),
    )


def find_duplicates(rows: pd.DataFrame, others: pd.DataFrame, task: Task) -> np.ndarray:
    """Whether each row has the same texts as a row of another split, bool [rows]."""
    numbered = rows.assign(place=np.arange(len(rows)))
    candidates, other_candidates = numbered, others
    # Rows without an equal in one column are removed first: an index of all of SNLI's texts takes 0.4 GB.
    for text in task.text_columns:
        candidates, other_candidates = (
            candidates[_is_in(candidates[text], other_candidates[text])],
            other_candidates[_is_in(other_candidates[text], candidates[text])],
        )
    texts, other_texts = (
        pd.MultiIndex.from_frame(table[task.text_columns]) for table in (candidates, other_candidates)
    )
    duplicate = np.zeros(len(rows), dtype=bool)
    duplicate[candidates["place"][texts.isin(other_texts)]] = True
    return duplicate


def _is_in(values: pd.Series, others: pd.Series) -> np.ndarray:
    """Whether each text is among others, bool [rows]. pandas would make a Python string of each; Arrow does not."""
    values, others = pa.array(values, pa.large_string()), pa.array(others, pa.large_string())
    return pc.is_in(values, others).to_numpy(zero_copy_only=False)
