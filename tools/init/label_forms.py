"""Labels of which a row may have several, in the three forms that `stages.data.label_lists` reads.

They are a column of lists, a text whose parts are labels, or neighbouring columns of 0 and 1 with a label each.
"""

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.data.label_lists import FLAGS, UNLABELLED_MARKS
from stages.runtime.params import MAX_CLASSES
from tools.init.column_names import COUNT_WORDS, ENTITIES, METADATA_WORDS, split_name
from tools.init.column_profiles import MOST, ColumnProfile

SEPARATORS = ("|", ";", ",")  # in this order: a name may have a comma
FEWEST_FLAGS = 3  # two neighbouring columns of 0 and 1 are often no labels of one task
OFTEN = 0.5  # share of the parts that are in several different cells, from which the parts are labels


def find_separator(profile: ColumnProfile) -> str | None:
    """What separates the labels of a column of text; None if its cells are no lists of few repeated parts.

    The cells have different numbers of parts, else they are the two halves of one name, such as `US;NY`. A part is in
    several different cells, and there are fewer different parts than different cells. In most rows no part is there
    twice: `encode_labels` rejects the others.
    """
    if not profile.is_text or profile.kind in ("dates", "URLs", "e-mail addresses", "file paths", "brackets"):
        return None
    return next((separator for separator in SEPARATORS if _separates(separator, profile)), None)


def _separates(separator: str, profile: ColumnProfile) -> bool:
    cells = [split_cell(cell, separator) for cell in profile.sample]
    sizes = {len(cell) for cell in cells}
    counts = Counter(part for cell in cells for part in cell)
    if not min(sizes, default=2) < 2 <= max(sizes, default=0) or not 2 <= len(counts) < min(len(cells), MAX_CLASSES):
        return False
    rows = profile.counts[: len(profile.values)]
    clean = [len(set(cell)) == len(cell) for cell in (split_cell(value, separator) for value in profile.values)]
    return bool(rows[clean].sum() >= MOST * rows.sum() and np.mean([count > 1 for count in counts.values()]) >= OFTEN)


def split_cell(cell: str, separator: str) -> list[str]:
    return [part for part in map(str.strip, cell.split(separator)) if part]


def split_profiles(
    profiles: Mapping[str, ColumnProfile], table: pa.Table
) -> tuple[dict[str, ColumnProfile], dict[str, str]]:
    """The profiles, those of texts with separated labels as of their labels; and {column: its separator}."""
    separators = {name: separator for name, p in profiles.items() if (separator := find_separator(p))}
    split = {name: split_profile(profiles[name], table[name], separator) for name, separator in separators.items()}
    return {**profiles, **split}, separators


def find_list_texts(profile: ColumnProfile) -> str | None:
    """A cell of a column of text whose cells are lists as Python or JSON writes them; None if they are not.

    Only lists of few names or whole numbers, which can be labels. pandas writes such cells for a column of lists.
    """
    if not profile.is_text or profile.kind != "brackets":
        return None
    cells = {cell: _parse_list(cell) for cell in profile.sample}
    lists = {cell: names for cell, names in cells.items() if names is not None}
    names = {name for row in lists.values() for name in row}
    if len(lists) < MOST * len(cells) or not 2 <= len(names) <= min(MAX_CLASSES, profile.filled / 2):
        return None
    return max(lists, key=lambda cell: len(lists[cell]))


def _parse_list(text: str) -> list[str] | None:
    """The names in a list that is written as text."""
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    is_list = isinstance(values, list) and all(isinstance(value, str | int) for value in values)
    return list(map(str, values)) if is_list else None


def explain_list_texts(name: str, cell: str) -> str:
    """What a column of lists that are written as text is, and what to do with it."""
    names = SEPARATORS[0].join(_parse_list(cell) or [])
    return (
        f"{name} has lists that are written as text, such as {cell:.60}; for labels, convert it to lists in a json or "
        f"parquet file, or to texts with a separator, such as {names:.60}"
    )


def split_profile(profile: ColumnProfile, column: pa.ChunkedArray, separator: str) -> ColumnProfile:
    """The profile of the labels in a column of text."""
    parts = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(column.combine_chunks().drop_null(), separator)))
    counted = parts.filter(pc.not_equal(parts, "")).value_counts()
    counts = counted.field("counts").to_numpy()
    order = np.argsort(-counts, kind="stable")
    values = tuple(map(str, counted.field("values").take(pa.array(order[: MAX_CLASSES + 1])).to_pylist()))
    return replace(profile, kind="lists", counts=counts[order], values=values, sample=values, word_count=1)


def find_flags(profiles: Mapping[str, ColumnProfile], column: str) -> tuple[str, ...]:
    """The columns of 0 and 1 around one of them, in the table's order; empty if there are fewer than three.

    They have the same two values as the column, in the same rows or in as many. Their names say no other meaning, such
    as a number of something.
    """
    chosen = profiles[column]
    if not _is_flag(chosen, chosen):
        return ()
    names = list(profiles)
    first = last = names.index(column)
    while first > 0 and _is_flag(profiles[names[first - 1]], chosen):
        first -= 1
    while last + 1 < len(names) and _is_flag(profiles[names[last + 1]], chosen):
        last += 1
    flags = tuple(names[first : last + 1])
    return flags if len(flags) >= FEWEST_FLAGS else ()


def _is_flag(profile: ColumnProfile, chosen: ColumnProfile) -> bool:
    values = {value.lower() for value in profile.values} - UNLABELLED_MARKS
    words = set(split_name(profile.name))
    return (
        len(values) == 2
        and {FLAGS.get(value) for value in values} == {False, True}
        and set(profile.values) == set(chosen.values)
        and profile.filled == chosen.filled
        and not words & (METADATA_WORDS | COUNT_WORDS | ENTITIES)
    )


def check_flags(profiles: Mapping[str, ColumnProfile], columns: Sequence[str]) -> str | None:
    """Why columns that the user names are not labels of 0 and 1; None: they are."""
    for name in columns:
        values = set(profiles[name].values) - UNLABELLED_MARKS
        if not values or any(value.lower() not in FLAGS for value in values):
            return (
                f"{name}: {profiles[name].describe()}; allowed in each of several label columns: 0 or 1, and -1 in all "
                "of them for a row without a label"
            )
    return None


def describe_labels(profiles: Sequence[ColumnProfile], separator: str | None) -> str:
    """What the label column holds, or the columns of 0 and 1, for a reader."""
    if len(profiles) > 1:
        names = [profile.name for profile in profiles]
        return f"{len(names)} columns of 0 and 1, of which a row may have several: {', '.join(names)}"
    (profile,) = profiles
    form = "lists" if separator is None else f"texts separated by {separator}"
    return f"{profile.name}, {form} of {profile.distinct:,} values, of which a row may have several"
