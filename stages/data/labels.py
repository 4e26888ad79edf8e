"""What a row's label is: one class (single-label), or any number of classes (multi-label).

A label has three forms, and this module is the only one that knows them:

| form | single-label | multi-label |
| --- | --- | --- |
| array | class numbers, int64 [rows] | whether the row has the class, bool [rows, classes] |
| code, in a column of a data frame | class number | the sum of 2**class, 0 for no class |
| column of a parquet file | class number | list of class numbers |

Codes can be compared, counted and merged like class numbers, and two rows with equal labels have equal codes. A row
without a gold label has the code -1 (`task.NO_LABEL`). It has no other form.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa

SEPARATOR = "|"  # between the classes of a row, in text; no name of a class may contain it
LEAST_PROBABILITY = 5e-7  # a stored 0 is any value below; its logarithm would be infinite
INT64_CLASSES = 62  # codes of more classes are Python's integers

Thresholds = float | list[float]  # of the second of two classes; or [classes], if a row may have several


@dataclass(frozen=True)
class Labels(ABC):
    """The classes, and how many of them a row may have.

    Attributes:
        classes: names, in the order of their numbers.
        multi_label: whether a row may have several classes or none.
        problem_type: transformers' name for it, in the model's config.
        noun, nouns: what one and several of the classes are called, for readers.
        note: what follows the number of classes.
        verb: between a class and the rows that have it.
    """

    classes: tuple[str, ...]
    multi_label: ClassVar[bool]
    problem_type: ClassVar[str]
    noun: ClassVar[str]
    nouns: ClassVar[str]
    note: ClassVar[str]
    verb: ClassVar[str]

    @abstractmethod
    def to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probability of each class, from the model's outputs: [rows, classes]."""

    @abstractmethod
    def to_logits(self, probabilities: np.ndarray) -> np.ndarray:
        """Outputs that have these probabilities: [rows, classes]. A stored 0 counts as `LEAST_PROBABILITY`."""

    @abstractmethod
    def decide(self, probabilities: np.ndarray, thresholds: Thresholds | None = None) -> np.ndarray:
        """The answers to rows with these probabilities [rows, classes], as a label array.

        Args:
            thresholds: above it, a row has the second of two classes; or the class, if it may have several. None: the
                most probable class, or 0.5.
        """

    @staticmethod
    @abstractmethod
    def decide_by_logits(logits: np.ndarray) -> np.ndarray:
        """The answers to rows with these outputs [rows, classes], as a label array."""

    @abstractmethod
    def answer_probability(self, probabilities: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Probability that an answer is right, [rows].

        Args:
            probabilities: [rows, classes].
            answers: label array.
        """

    @abstractmethod
    def code(self, number: int) -> int:
        """The code of a row that has only this class."""

    @abstractmethod
    def to_codes(self, labels: np.ndarray) -> np.ndarray:
        """Codes of a label array, [rows]."""

    @abstractmethod
    def from_codes(self, codes: Any) -> np.ndarray:
        """The label array of codes, [rows]; all rows have a label."""

    @abstractmethod
    def from_column(self, column: pa.ChunkedArray) -> np.ndarray:
        """The label array of a parquet file's column."""

    @abstractmethod
    def to_lists(self, table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
        """A data frame with these columns as parquet files have them."""

    @abstractmethod
    def from_lists(self, table: pd.DataFrame) -> pd.DataFrame:
        """A data frame with codes, from one that was read from a parquet file."""

    @abstractmethod
    def name(self, code: Any) -> str:
        """The label that a code means, for readers."""

    @staticmethod
    @abstractmethod
    def split(name: str) -> list[str]:
        """The classes in the `name` of a code."""

    def names(self, codes: pd.Series) -> pd.Series:
        """`name` of each code."""
        return codes.map({code: self.name(code) for code in codes.unique()})

    @abstractmethod
    def count(self, codes: pd.Series) -> np.ndarray:
        """Number of rows that have each class, int [classes]. Rows without a gold label don't count."""

    @abstractmethod
    def count_without(self, codes: pd.Series) -> int | None:
        """Number of rows that have no class; None if each row has one."""

    @abstractmethod
    def count_outcomes(self, counts: np.ndarray, rows: int) -> np.ndarray:
        """Rows with each outcome of each decision: which class, or whether each class. int [decisions, outcomes].

        Args:
            counts: rows that have each class, int [classes].
            rows: of which each has a label.
        """


@dataclass(frozen=True)
class SingleLabel(Labels):
    """A row has exactly one class."""

    multi_label = False
    problem_type = "single_label_classification"
    noun, nouns, note, verb = "class", "classes", "", "is"

    def to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        from scipy.special import softmax  # `tokenize` needs no scipy, which takes 0.2 s to import

        return softmax(logits, axis=1)

    def to_logits(self, probabilities: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(probabilities, LEAST_PROBABILITY))

    def decide(self, probabilities: np.ndarray, thresholds: Thresholds | None = None) -> np.ndarray:
        return probabilities.argmax(axis=1) if thresholds is None else (probabilities[:, 1] > thresholds).astype(int)

    @staticmethod
    def decide_by_logits(logits: np.ndarray) -> np.ndarray:
        return logits.argmax(axis=1)

    def answer_probability(self, probabilities: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return probabilities[np.arange(len(answers)), answers]

    def code(self, number: int) -> int:
        return number

    def to_codes(self, labels: np.ndarray) -> np.ndarray:
        return labels

    def from_codes(self, codes: Any) -> np.ndarray:
        return np.asarray(codes)

    def from_column(self, column: pa.ChunkedArray) -> np.ndarray:
        return column.to_numpy().astype(np.int64)

    def to_lists(self, table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
        return table

    def from_lists(self, table: pd.DataFrame) -> pd.DataFrame:
        return table

    def name(self, code: Any) -> str:
        return self.classes[code]

    @staticmethod
    def split(name: str) -> list[str]:
        return [name]

    def count(self, codes: pd.Series) -> np.ndarray:
        return np.bincount(codes[codes >= 0], minlength=len(self.classes))

    def count_without(self, codes: pd.Series) -> None:
        return None

    def count_outcomes(self, counts: np.ndarray, rows: int) -> np.ndarray:
        return counts[None]


@dataclass(frozen=True)
class MultiLabel(Labels):
    """A row has any number of classes."""

    multi_label = True
    problem_type = "multi_label_classification"
    noun, nouns, note, verb = "label", "labels", ", of which a row may have several", "is a label of"

    def to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(logits)

    def to_logits(self, probabilities: np.ndarray) -> np.ndarray:
        from scipy.special import logit

        return logit(probabilities.clip(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY))

    def decide(self, probabilities: np.ndarray, thresholds: Thresholds | None = None) -> np.ndarray:
        return probabilities > (0.5 if thresholds is None else thresholds)

    @staticmethod
    def decide_by_logits(logits: np.ndarray) -> np.ndarray:
        return logits > 0

    def answer_probability(self, probabilities: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """As if the classes were independent: the product of p for a class of the answer, and 1 - p for the others."""
        return np.where(answers, probabilities, 1 - probabilities).prod(axis=1)

    def code(self, number: int) -> int:
        return 1 << number

    def to_codes(self, labels: np.ndarray) -> np.ndarray:
        bits = np.packbits(labels, axis=1, bitorder="little")
        return self._to_array([int.from_bytes(row.tobytes(), "little") for row in bits])

    def from_codes(self, codes: Any) -> np.ndarray:
        size = -(-len(self.classes) // 8)  # bytes
        bits = np.frombuffer(b"".join(int(code).to_bytes(size, "little") for code in codes), dtype=np.uint8)
        return np.unpackbits(bits.reshape(-1, size), axis=1, count=len(self.classes), bitorder="little").astype(bool)

    def from_column(self, column: pa.ChunkedArray) -> np.ndarray:
        lists = column.combine_chunks()
        labels = np.zeros((len(lists), len(self.classes)), dtype=bool)
        labels[np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy())), lists.flatten().to_numpy()] = True
        return labels

    def to_lists(self, table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
        lists = {}
        for column in columns:
            numbers = [np.flatnonzero(row).astype(np.int32) for row in self.from_codes(table[column])]
            lists[column] = pd.Series(numbers, index=table.index, dtype=object)
        return table.assign(**lists)

    def from_lists(self, table: pd.DataFrame) -> pd.DataFrame:
        columns = [name for name in table if isinstance(table[name].iloc[0], np.ndarray)]
        return table.assign(**{
            name: self._to_array([sum(1 << int(number) for number in row) for row in table[name]]) for name in columns
        })  # fmt: skip

    def name(self, code: Any) -> str:
        return SEPARATOR.join(name for number, name in enumerate(self.classes) if code >> number & 1)

    @staticmethod
    def split(name: str) -> list[str]:
        return name.split(SEPARATOR) if name else []

    def count(self, codes: pd.Series) -> np.ndarray:
        rows = codes[codes >= 0].value_counts()
        return rows.to_numpy() @ self.from_codes(rows.index)

    def count_without(self, codes: pd.Series) -> int:
        return int((codes == 0).sum())

    def count_outcomes(self, counts: np.ndarray, rows: int) -> np.ndarray:
        return np.stack([counts, rows - counts], axis=1)

    def _to_array(self, codes: list[int]) -> np.ndarray:
        return np.array(codes, dtype=np.int64 if len(self.classes) <= INT64_CLASSES else object)


def decide_like(gold: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The answers to rows with these outputs [rows, classes], in the form of `gold`, a label array."""
    return kind_of(gold.ndim == 2).decide_by_logits(logits)


def equal_rows(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether the rows of two label arrays have equal labels, bool [rows]."""
    return (labels == others).reshape(len(labels), -1).all(axis=1)


def kind_of(multi_label: bool) -> type[Labels]:
    return MultiLabel if multi_label else SingleLabel


def make_labels(classes: Sequence[str], multi_label: bool) -> Labels:
    return kind_of(multi_label)(tuple(classes))
