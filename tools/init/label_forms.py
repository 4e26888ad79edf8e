"""Find the labels of rows that may have several: the three forms that `stages.data.label_lists` reads.

The forms are a column of lists, a text with a separator, and neighbouring columns of 0 and 1.
"""

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from shlex import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.data.label_column import read_label_columns
from stages.data.label_lists import FLAGS, UNLABELLED_MARKS, is_list
from stages.data.row_places import locate_rows
from stages.runtime.errors import UserError
from stages.runtime.params import MAX_CLASSES
from tools.init.column_names import COUNT_WORDS, ENTITIES, METADATA_WORDS, split_name
from tools.init.column_profiles import MOST, ColumnProfile

SEPARATORS = ("|", ";", ",")  # in this order: a name may have a comma
FEWEST_FLAGS = 3  # two neighbouring columns of 0 and 1 are often no labels of one task
PAIRS = (("0", "1"), ("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t"))  # values of columns with a label each
CROSSES = ("1", "1.0", "true", "yes", "x")  # what marks a label in a table whose other cells are empty
MOST_WORDS = 10  # of a cell that may hold several labels
JOINERS = " _-"  # they separate labels, or the words of one label
MANY = 20  # values, from which a joiner is rather a separator
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


def guess_separator(profile: ColumnProfile) -> str | None:
    """What may separate labels in a column of text, other than `SEPARATORS`: the user must say it by `--separator`."""
    if not profile.is_text or profile.word_count > MOST_WORDS or find_separator(profile):
        return None
    found = Counter(character for cell in profile.sample for character in {*cell} if not character.isalnum())
    likely = sorted(found, key=lambda character: (character in JOINERS, -found[character], character))
    return next(
        (
            character
            for character in likely
            if (character not in JOINERS or profile.distinct > MANY) and _separates(character, profile)
        ),
        None,
    )


def explain_guess(guess: str | None) -> str:
    """What to do if a cell holds several labels that were not found."""
    return f"if a cell holds several labels, name what is between them: --separator {repr(guess) if guess else 'TEXT'}"


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
    profiles: Mapping[str, ColumnProfile], table: pa.Table, separator: str | None, labels: Sequence[str]
) -> tuple[dict[str, ColumnProfile], dict[str, str]]:
    """The profiles, those of texts with separated labels as of their labels; and {column: its separator}.

    Args:
        separator: `--separator`; None: it is guessed for each column.
        labels: `--label`; empty: `--separator` is that of all columns of text that have it.

    Raises:
        UserError: `--separator` is of no use for these columns.
    """
    if separator is None:
        separators = {name: found for name, p in profiles.items() if (found := find_separator(p))}
    else:
        _check_separator(profiles, separator, labels)
        names = [name for name in labels or profiles if profiles[name].is_text]
        has_it = {name: pc.any(pc.match_substring(table[name], separator)).as_py() for name in names}
        separators = {name: separator for name in names if has_it[name]}
        if not separators:
            where = f"column '{labels[0]}'" if labels else "a column of text"
            raise UserError(f"--separator {separator!r}: no cell of {where} has it; name what is between two labels")
    split = {name: split_profile(profiles[name], table[name], found) for name, found in separators.items()}
    return {**profiles, **split}, separators


def _check_separator(profiles: Mapping[str, ColumnProfile], separator: str, labels: Sequence[str]) -> None:
    if not separator:
        raise UserError("--separator: is empty; name what is between two labels, such as '|'")
    if len(labels) > 1:
        raise UserError("--separator: is for one label column; remove it, or name one column by --label")
    for label in labels:
        if label in profiles and not profiles[label].is_text:
            what = "lists" if profiles[label].kind == "lists" else profiles[label].type
            raise UserError(f"--separator {separator!r}: column '{label}' holds {what}; allowed: text")


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
    names, line = SEPARATORS[0].join(_parse_list(cell) or []), " ".join(cell.split())
    return (
        f"{name} has lists that are written as text, such as {line:.60}; for labels, convert it to lists in a json or "
        f"parquet file, or to texts with a separator, such as {names:.60}"
    )


def find_unreadable(profiles: Mapping[str, ColumnProfile], table: pa.Table) -> dict[str, str]:
    """{column: why it can't be read as labels of which a row may have several, and what to do}, if it looks like it."""
    problems = {}
    for name, profile in profiles.items():
        if cell := find_list_texts(profile):
            problems[name] = explain_list_texts(name, cell)
        elif is_list(kind := table.schema.field(name).type) and pa.types.is_struct(kind.value_type):
            fields = [field.name for field in kind.value_type]
            problems[name] = (
                f"{name} has lists of objects with {', '.join(fields):.60}; for labels, keep one value of each object, "
                f"such as [item[{fields[0]!r}] for item in row[{name!r}]]"
            )
        elif is_list(kind) and (pa.types.is_boolean(kind.value_type) or {*profile.values} <= {"0", "1"}):
            try:  # a vector of 0 and 1 is no list of labels
                read_label_columns({"train": table.select([name])}, name)
            except UserError as error:
                problems[name] = str(error)
    if sparse := _find_sparse(profiles):
        value, flags = profiles[sparse[0]].values[0], " ".join(f"--label {quote(name)}" for name in sparse)
        problems[sparse[0]] = (
            f"{', '.join(sparse)} have {value} or nothing; for labels, write 1 and 0 in their cells, and name them: "
            f"{flags}"
        )
    return problems


def _find_sparse(profiles: Mapping[str, ColumnProfile]) -> list[str]:
    """The first neighbouring columns that have 1, or an x, or nothing; empty if there are fewer than three."""
    names: list[str] = []
    for profile in profiles.values():
        if profile.distinct == 1 and profile.filled < profile.rows and profile.values[0].lower() in CROSSES:
            names.append(profile.name)
        elif len(names) >= FEWEST_FLAGS:
            break
        else:
            names = []
    return names if len(names) >= FEWEST_FLAGS else []


def split_profile(profile: ColumnProfile, column: pa.ChunkedArray, separator: str) -> ColumnProfile:
    """The profile of the labels in a column of text."""
    parts = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(column.combine_chunks().drop_null(), separator)))
    counted = parts.filter(pc.not_equal(parts, "")).value_counts()
    counts = counted.field("counts").to_numpy()
    order = np.argsort(-counts, kind="stable")
    values = tuple(map(str, counted.field("values").take(pa.array(order[: MAX_CLASSES + 1])).to_pylist()))
    return replace(profile, kind="lists", counts=counts[order], values=values, sample=values, word_count=1)


def find_flags(profiles: Mapping[str, ColumnProfile], column: str, table: pa.Table) -> tuple[str, ...]:
    """The columns of 0 and 1 around one of them, in the table's order; empty if there are fewer than three.

    They have the two values of this column, except for a few cells. Their names say no other meaning, such as a number
    of something. A label that no row has is among them if it is between two others.

    Raises:
        UserError: the values are yes and no, or a cell has another value. If this column were left out, the rows would
            silently have fewer labels.
    """
    pairs = {name: _find_pair(profile) for name, profile in profiles.items()}
    pair, graded = pairs[column]
    if pair is None or not _has_both(profiles[column]):
        return ()
    names = list(profiles)

    def is_alike(name: str) -> bool:
        return pairs[name][0] == pair and graded / 2 <= pairs[name][1] <= 2 * graded

    first = last = names.index(column)
    while first > 0 and is_alike(names[first - 1]):
        first -= 1
    while last + 1 < len(names) and is_alike(names[last + 1]):
        last += 1
    while not _has_both(profiles[names[first]]):
        first += 1
    while not _has_both(profiles[names[last]]):
        last -= 1
    flags = names[first : last + 1]
    if len(flags) < FEWEST_FLAGS:
        return ()
    place, listed = f"columns {', '.join(flags)}", " ".join(f"--label {quote(name)}" for name in flags)
    if pair[0] not in FLAGS:
        raise UserError(
            f"{place}: have {pair[1]} and {pair[0]}; allowed if they are labels of which a row may have several: 1 and "
            f"0, or true and false. Convert them; or if only one of them is the label, name it: --label {quote(column)}"
        )
    if problem := check_flags(table, flags):
        raise UserError(
            f"{place}: have 0 and 1, as labels of which a row may have several. But {problem}. Correct the data, or "
            f"name the columns that are labels: {listed}"
        )
    return tuple(flags)


def _find_pair(profile: ColumnProfile) -> tuple[tuple[str, str] | None, int]:
    """Which of `PAIRS` nearly all cells of a column have, and how many rows have a value that is no mark."""
    rows = _count_flags(profile)
    graded = sum(rows.values())
    if graded and not set(split_name(profile.name)) & (METADATA_WORDS | COUNT_WORDS | ENTITIES):
        for pair in PAIRS:
            if rows[pair[0]] and rows[pair[0]] + rows[pair[1]] >= MOST * graded:
                return pair, graded
    return None, graded


def _count_flags(profile: ColumnProfile) -> Counter[str]:
    """Rows of each value that is no mark of a row without a gold label. 1.0 is 1, and True is true."""
    rows: Counter[str] = Counter()
    for value, count in zip(profile.values, profile.counts, strict=False):
        if value not in UNLABELLED_MARKS:
            rows[value.lower().removesuffix(".0")] += int(count)
    return rows


def _has_both(profile: ColumnProfile) -> bool:
    return any(set(pair) <= set(_count_flags(profile)) for pair in PAIRS)


def check_flags(table: pa.Table, columns: Sequence[str]) -> str | None:
    """Why columns are not labels of 0 and 1, with the first row where they are not; None: they are."""
    tables = {"train": table}
    try:
        with locate_rows(tables):
            read_label_columns(tables, columns)
    except UserError as error:
        return str(error).removeprefix("data: split 'train': ")
    return None


def describe_labels(profiles: Sequence[ColumnProfile], separator: str | None) -> str:
    """What the label column holds, or the columns of 0 and 1, for a reader."""
    if len(profiles) > 1:
        names = [profile.name for profile in profiles]
        return f"{len(names)} columns of 0 and 1, of which a row may have several: {', '.join(names)}"
    (profile,) = profiles
    form = "lists" if separator is None else f"texts separated by {separator if separator.strip() else repr(separator)}"
    return f"{profile.name}, {form} of {profile.distinct:,} values, of which a row may have several"
