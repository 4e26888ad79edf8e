"""The classification task: its classes, the template of what the model reads, the column that groups rows."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from stages.runtime.files import read_json, write_json
from stages.runtime.params import PLACEHOLDER

if TYPE_CHECKING:  # it imports pandas and SciPy, for which the help of a command does not wait
    from stages.data.labels import Labels

SPLITS = ("train", "validation", "test")
NO_LABEL = -1  # class number of a row without a gold label


@dataclass(frozen=True)
class Task:
    """What the model reads of a row, and what it predicts.

    Attributes:
        classes: names, in the order of their numbers 0, 1, ….
        template: what the model reads. Each {column} is filled from the row. A chat template is included.
        group: the column that groups rows which are not independent. If it is None, a group is rows with equal texts.
        multi_label: whether a row may have several classes, or none.
    """

    classes: tuple[str, ...]
    template: str
    group: str | None
    multi_label: bool = False

    @property
    def labels(self) -> "Labels":
        """The classes, and how many of them a row may have."""
        from stages.data.labels import make_labels

        return make_labels(self.classes, self.multi_label)

    @property
    def columns(self) -> tuple[str, ...]:
        """The data set's columns that the template names, in its order."""
        return parse_columns(self.template)

    @property
    def text_columns(self) -> list[str]:
        """Names of `columns` in this project's tables."""
        return name_text_columns(self.columns)

    @property
    def probability_columns(self) -> list[str]:
        """Names of the classes' probabilities in predictions.parquet."""
        return [f"p_{name}" for name in self.classes]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the JSON file that `tokenize` wrote."""
        task = read_json(path)
        return cls(tuple(task["classes"]), task["template"], task["group"], task.get("multi_label", False))

    def write(self, path: str | Path) -> None:
        """Write a JSON file; it has `multi_label` only if this is true."""
        write_json(path, {key: value for key, value in asdict(self).items() if value is not False})


def parse_columns(template: str) -> tuple[str, ...]:
    """The columns that a template names, in its order, without duplicates."""
    return tuple(dict.fromkeys(re.findall(PLACEHOLDER, template)))


def name_text_columns(columns: Sequence[str]) -> list[str]:
    """Names of the data set's text columns in this project's tables. The prefix avoids a second "label" or "row"."""
    return [f"text_{column}" for column in columns]


def fill_template(template: str, texts: dict[str, str]) -> str:
    """Replace the template's placeholders by texts. `str.format` would also replace braces in the texts."""
    return re.sub(PLACEHOLDER, lambda placeholder: texts[placeholder[1]], template)
