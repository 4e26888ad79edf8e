"""The task that is learnt: its classes, the columns that are read, what rows may share."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from stages.runtime.files import read_json, write_json

SPLITS = ("train", "validation", "test")
NO_LABEL = -1  # a row without a gold label


@dataclass(frozen=True)
class Task:
    """What a row is, and what is to be said of it.

    Attributes:
        classes: names, in the order of their numbers 0, 1, ….
        columns: of the data, those that the template reads, in its order.
        group: the column that rows may share and are then not independent; None where a row shares only with its
            equals.
    """

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    group: str | None

    @property
    def text_columns(self) -> list[str]:
        """What this project's tables call the columns: with a prefix, since a column may be called "label" or "row"."""
        return name_text_columns(self.columns)

    @property
    def probability_columns(self) -> list[str]:
        """What predictions.parquet calls the classes' probabilities."""
        return [f"p_{name}" for name in self.classes]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The task that `tokenize` wrote."""
        read = read_json(path)
        return cls(tuple(read["classes"]), tuple(read["columns"]), read["group"])

    def write(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_json(path, asdict(self))


def name_text_columns(columns: Sequence[str]) -> list[str]:
    """Names of the data's text columns in this project's tables."""
    return [f"text_{column}" for column in columns]
