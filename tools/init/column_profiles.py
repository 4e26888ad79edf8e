"""What the columns of a data set hold: how many different values, how often each, and what they look like."""

import re
from dataclasses import dataclass, replace
from typing import Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.analysis.text_terms import words
from stages.data.label_column import NUMBER, describe_type, format_number
from stages.data.label_lists import is_list
from stages.data.row_places import list_columns
from stages.runtime.params import MAX_CLASSES

SAMPLE = 500  # different values that decide what a column looks like
MOST = 0.9  # share of them that must look alike

Kind = Literal[
    "classes", "text", "words", "identifiers", "booleans", "whole numbers", "numbers", "dates", "URLs",
    "e-mail addresses", "file paths", "brackets", "lists", "nothing", "other",
]  # fmt: skip

DATE = r"\d{4}[-/.年]\d{1,2}([-/.月]\d{1,2}.{0,25})?|\d{1,2}[-/.]\d{1,2}[-/.](\d{2}|\d{4})\b.{0,20}"
TIME = r"\d{1,2}:\d{2}(:\d{2})?( ?[ap]\.?m\.?)?"
MONTH = r"(?=.*\d)([a-z]{3,9},? )?(\d{1,2}[ -])?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b.{0,25}"
FILE = r"[^\s\\/]+\.(txt|pdf|jpe?g|png|wav|mp3|html?|json|csv)"
LOOKS: dict[Kind, re.Pattern] = {  # of text
    "whole numbers": re.compile(r"[-+]?\d+(\.0+)?"),  # 01 too
    "dates": re.compile(rf"{DATE}|{TIME}|{MONTH}", re.IGNORECASE),
    "numbers": re.compile(rf"[$€£]?{NUMBER.pattern}([eE][-+]?\d+)?%?|[$€£]?-?\d{{1,3}}(,\d{{3}})+(\.\d+)?"),
    "URLs": re.compile(r"(?i)(https?|ftp)://\S+|www\.\S+"),
    "e-mail addresses": re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+"),
    "file paths": re.compile(rf"([a-z]:)?[\\/]?([^\\/:\s]+[\\/])+[^\\/:\s]*|{FILE}", re.IGNORECASE),
    "brackets": re.compile(r"(?s)\[.*\]|\{.*\}|\(.*\)"),
}


@dataclass(frozen=True)
class ColumnProfile:
    """One column of a table.

    Attributes:
        kind: what most of its values look like.
        rows: rows of the table.
        counts: rows of each different value, the most frequent first; int64 [values]. Blank cells do not count. Of
            lists, the values are those in them.
        values: the values as text, in the order of `counts`; not all if there are more than `MAX_CLASSES`.
        sample: up to `SAMPLE` different values from all over the table.
        word_count: median number of words of the sample. Two characters count as a word if no spaces separate words.
    """

    name: str
    kind: Kind
    type: str
    rows: int
    counts: np.ndarray
    values: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    word_count: float = 0

    @property
    def filled(self) -> int:
        """Rows with a value."""
        return int(self.counts.sum())

    @property
    def distinct(self) -> int:
        """Number of different values."""
        return len(self.counts)

    @property
    def is_text(self) -> bool:
        """Whether a template may name the column."""
        return self.type in ("string", "large_string")

    @property
    def shared(self) -> float:
        """Share of the rows with a value whose value another row has too."""
        return float(self.counts[self.counts > 1].sum() / max(self.filled, 1))

    @property
    def group_size(self) -> float:
        """Rows that have the value of a random row, in the mean."""
        return float((self.counts.astype(float) ** 2).sum() / max(self.filled, 1))

    def describe(self) -> str:
        """What the column holds, in a few words."""
        if self.kind == "other":
            return self.type
        if not self.distinct:
            return "no values"
        if self.distinct == 1:
            return f"one value, {self.values[0]:.30}"
        if self.distinct == self.filled and self.kind not in ("text", "lists"):
            return f"{self.kind}, each row another"
        return f"{'text' if self.kind == 'words' else self.kind}, {self.distinct:,} values"


def profile_columns(table: pa.Table) -> dict[str, ColumnProfile]:
    """Look at each column of a table.

    Args:
        table: with the features of `datasets` in its schema, which name the classes of a ClassLabel.
    """
    features = datasets.Features.from_arrow_schema(table.schema)
    profiles = {}
    for name in list_columns(table):
        column, feature = table[name], features[name]
        if is_list(column.type) and is_label(column.type.value_type):
            feature = getattr(feature, "feature", feature)
            profile = _profile(name, pa.chunked_array([pc.list_flatten(column.combine_chunks())]), _names(feature))
            profiles[name] = replace(profile, kind="lists", type=describe_type(column.type), rows=len(table))
        else:
            profiles[name] = _profile(name, column, _names(feature))
    return profiles


def _names(feature: object) -> list[str] | None:
    """The classes of a ClassLabel."""
    return getattr(feature, "names", None)


def is_label(kind: pa.DataType) -> bool:
    """Whether the values of a list may be labels: not if they are numbers with fractions, as of an embedding."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _profile(name: str, column: pa.ChunkedArray, class_names: list[str] | None) -> ColumnProfile:
    kind, rows = column.type, len(column)
    if pa.types.is_null(kind):
        return ColumnProfile(name, "nothing", str(kind), rows, np.zeros(0, dtype="int64"))
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    is_date = pa.types.is_temporal(kind)
    if not (is_text or is_number or is_date or pa.types.is_boolean(kind)):
        return ColumnProfile(name, "other", describe_type(kind), rows, np.zeros(0, dtype="int64"))
    table = column.value_counts()
    values, counts = table.field("values"), table.field("counts").to_numpy()
    missing = pc.fill_null(pc.is_null(values, nan_is_null=True), True)
    if is_text:
        missing = pc.or_(missing, pc.fill_null(pc.or_(pc.utf8_is_space(values), pc.equal(values, "")), True))
    if class_names is not None:
        missing = pc.or_(missing, pc.fill_null(pc.less(values, 0), True))
    keep = pc.invert(missing)
    values, counts = values.filter(keep), counts[keep.to_numpy(zero_copy_only=False)]
    if is_text and len(values) <= 10 * MAX_CLASSES:  # "a" and "a " are one class
        values, counts = _strip(values, counts)
    order = np.argsort(-counts, kind="stable")
    frequent = _to_text(values.take(pa.array(order[: MAX_CLASSES + 1])), class_names)
    sample = (
        _to_text(values.take(pa.array(np.unique(np.linspace(0, len(values) - 1, SAMPLE).astype(int)))), class_names)
        if len(values)
        else ()
    )
    if not len(values):
        look: Kind = "nothing"
    elif class_names is not None:
        look = "classes"
    elif is_date:
        look = "dates"
    elif pa.types.is_boolean(kind):
        look = "booleans"
    elif pa.types.is_integer(kind):
        look = "whole numbers"
    elif pa.types.is_floating(kind):
        look = "whole numbers" if pc.all(pc.equal(values, pc.floor(values))).as_py() else "numbers"
    else:
        look = _look(sample)
    word_counts = [_count_words(value) for value in sample]
    return ColumnProfile(
        name, look, str(kind), rows, counts[order], frequent, sample, float(np.median(word_counts)) if sample else 0
    )


def _strip(values: pa.Array, counts: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    """Add up the rows of values that differ only in the spaces around them."""
    stripped: dict[str, int] = {}
    for value, count in zip(pc.utf8_trim_whitespace(values).to_pylist(), counts, strict=True):
        stripped[value] = stripped.get(value, 0) + int(count)
    return pa.array(stripped, pa.large_string()), np.array(list(stripped.values()), dtype="int64")


def _to_text(values: pa.Array, class_names: list[str] | None) -> tuple[str, ...]:
    if class_names is not None:
        return tuple(class_names[code] if code < len(class_names) else str(code) for code in values.to_pylist())
    if pa.types.is_floating(values.type):
        return tuple(format_number(value) for value in values.to_pylist())
    return tuple(map(str, values.to_pylist()))


def _look(sample: tuple[str, ...]) -> Kind:
    """What most of a text column's values look like."""
    values = [value[:300].strip() for value in sample]
    for kind, pattern in LOOKS.items():
        if _share(pattern.fullmatch(value) for value in values) >= MOST:
            return kind
    if _share(_count_words(value) <= 1 for value in values) >= MOST:
        return "identifiers" if _share(re.search(r"\d", value) for value in values) >= 0.5 else "words"
    letters = sum(char.isalpha() for value in values for char in value)
    return "text" if letters >= 0.5 * sum(map(len, "".join(values).split())) else "identifiers"


def _share(matches: object) -> float:
    return float(np.mean([bool(match) for match in matches]))  # type: ignore[attr-defined]


def _count_words(text: str) -> float:
    """Words between spaces. In a script without spaces, two characters are a word."""
    unspaced = sum(len(word) == 1 and word >= "\u0e00" for word in words(text[:300]))
    return max(len(text.split()), unspaced / 2 * max(1, len(text) / 300))
