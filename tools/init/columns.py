"""Choose the columns of a data set: the label, the texts, a group and a given split. `tools.init` uses it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from stages.data.label_column import UNLABELLED_MARKS, WHOLE
from stages.data.row_places import list_columns
from stages.data.split_column import MOST_VALUES
from stages.data.task import SPLITS
from stages.runtime import params
from stages.runtime.errors import UserError
from stages.runtime.params import MAX_CLASSES
from tools.init.column_names import (
    CLOSE_ENTITIES,
    COUNT_WORDS,
    DERIVED,
    ENTITIES,
    KEY_WORDS,
    LABEL_WORDS,
    METADATA_WORDS,
    NAME_WORDS,
    NOT_TEXT_WORDS,
    SPLIT_NAMES,
    SPLIT_WORDS,
    TEXT_WORDS,
    is_nameless,
    split_name,
)
from tools.init.column_profiles import ColumnProfile, profile_columns
from tools.init.label_forms import (
    check_flags,
    describe_labels,
    explain_guess,
    find_flags,
    find_unreadable,
    guess_separator,
    split_profiles,
)

FEW_GROUPS = 30  # fewer groups can't be held out by whole groups with classes as in train
NO_GROUP = "none"  # for --group, if no column is called so
SHARED = 0.3  # of the rows share their value of a group with another row
CHANCE = 0.05  # if fewer rows share their value, that may be chance
FEW_VALUES = 20  # a column of names with fewer values is a category, even if it is called title
LISTED = 12  # columns, classes or spellings in one line
LABEL_PARTS = ("gold", "is", "id", "text", "name", "names")  # of a label's name, not in the template
LABEL_LENGTH = 120  # characters
SURE = 6  # points of a name in `LABEL_WORDS` that says: only this column is the label


@dataclass(frozen=True)
class Columns:
    """The columns of a data set.

    Attributes:
        label: the column to be predicted, or several columns of 0 and 1.
        separator: of the labels in a text; None if a row has one, or the column holds lists.
        advice: what to do if a cell of the label column holds other labels than were read; empty if it is no text.
        texts: what the model reads, in the table's order.
        group: a column; rows with the same value are not independent.
        split: a column that says which split a row belongs to.
        split_values: {"train": its value, …} for the splits that `split` has.
        reasons: a sentence for each of label, texts, group, split.
        label_candidates: columns that may be the label, the likeliest first.
    """

    label: str | tuple[str, ...]
    separator: str | None
    advice: str
    texts: tuple[str, ...]
    group: str | None
    split: str | None
    split_values: dict[str, str] | None
    reasons: dict[str, str]
    label_candidates: tuple[str | tuple[str, ...], ...]

    @property
    def label_columns(self) -> tuple[str, ...]:
        return (self.label,) if isinstance(self.label, str) else self.label


def choose_columns(
    table: pa.Table,
    label: str | Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    group: str | None = None,
    separator: str | None = None,
    place: str = "data",
    label_reason: str = "as --label says",
) -> Columns:
    """Choose the label, the texts, a group and a given split by what the columns hold and by their names.

    Args:
        table: all rows, with the features of `datasets` in its schema.
        label: the label column, or several columns of 0 and 1, if the user says it.
        texts: the text columns, if the user says them.
        group: the column of groups, if the user says it, or `NO_GROUP`.
        separator: of the labels in a text, if the user says it.
        place: what errors call the data, such as its path.
        label_reason: who said the label, if it is given.

    Raises:
        UserError: no column looks like a label or like text, or a given column does not exist or is of another kind.
    """
    profiles = profile_columns(table)
    if not profiles or not len(table):
        raise UserError(f"{place}: no {'rows' if profiles else 'columns'}; allowed: a table with a label and a text")
    given = (label,) if isinstance(label, str) else tuple(dict.fromkeys(label or ()))
    lists = {name for name, p in profiles.items() if p.kind == "lists"}
    split, split_values, split_reason = _choose_split(profiles, {*given, *(texts or ()), *lists})
    if missing := next((name for name in given if name not in profiles), None):
        raise UserError(f"--label: {missing}: no such column; allowed: {', '.join(list_columns(table))}")
    label_profiles, separators = split_profiles(profiles, table, separator, given)
    problems = find_unreadable(profiles, table)
    if texts and not given:
        _check_label_is_no_text([p for p in label_profiles.values() if p.name not in {split, *problems}], texts, table)
    taken = {split, *(texts or ()), *problems}
    allowed = [name for name in (separators if separator else profiles) if name not in taken]
    candidates = rank_labels([label_profiles[name] for name in allowed])
    candidates = _prefer_names(candidates, table)
    guesses = {name: guess for name in allowed if (guess := guess_separator(label_profiles[name]))}
    names = tuple(p.name for p in candidates)
    if given:
        _check_label(label_profiles, given, texts, table, problems, guesses)
    problems |= {name: f"{name}: {explain_guess(guess)}" for name, guess in guesses.items() if name not in names}
    if not given and not candidates:
        raise UserError(
            f"{place}: no column looks like a label: 2 to {MAX_CLASSES:,} values that rows share; "
            + (next(iter(problems.values()), "") or f"name it with --label ({_list_columns(profiles)})")
        )
    labels = given or _choose_flags(profiles, candidates[0], {split, *(texts or ())}, table) or (candidates[0].name,)
    chosen = label_profiles[labels[0]]
    others = [p for p in candidates if p.name not in labels]
    several = len(labels) > 1 or chosen.kind == "lists"
    same = set(labels) if several else _find_same(profiles, chosen, table)
    if texts is None:
        text_columns, text_reason = _choose_texts(profiles, labels, same, split, table, place)
    else:
        text_columns, text_reason = _check_texts(profiles, texts), f"{list_some(texts)}; as --text says"
    if group is None:
        group, group_reason = _choose_group(profiles, labels, same, text_columns, split)
    elif group in profiles and group not in labels:
        group_reason = f"{group}, {profiles[group].distinct:,} values; as --group says"
        if not profiles[group].shared:
            group_reason += ". No two rows share one, so it has no effect"
    elif group == NO_GROUP:
        group, group_reason = None, "none; as --group says"
    else:
        rest = ", ".join(name for name in profiles if name not in labels)
        raise UserError(f"--group: {group}: no such column next to the label; allowed: {rest}, or {NO_GROUP}")
    return Columns(
        label=labels if len(labels) > 1 else labels[0],
        separator=separators.get(labels[0]) if len(labels) == 1 else None,
        advice=explain_guess(guesses.get(labels[0])) if len(labels) == 1 and profiles[labels[0]].is_text else "",
        texts=text_columns,
        group=group,
        split=split,
        split_values=split_values,
        reasons={
            "label": _describe_label(
                [label_profiles[name] for name in labels],
                separators.get(labels[0]),
                guesses.get(labels[0]),
                others,
                label_reason if given else None,
            )
            + ("" if given else "".join(f"; but {problem}" for problem in problems.values())),
            "texts": text_reason,
            "group": group_reason,
            "split": split_reason,
        },
        label_candidates=(labels, *names) if len(labels) > 1 and not given else names,
    )


def _list_columns(profiles: Mapping[str, ColumnProfile]) -> str:
    return list_some([f"{name}: {profile.describe()}" for name, profile in profiles.items()], "; ")


def list_some(texts: Sequence[str], separator: str = ", ") -> str:
    """The first texts, and how many more there are."""
    more = f" and {len(texts) - LISTED:,} more" if len(texts) > LISTED else ""
    return separator.join(texts[:LISTED]) + more


# --- label ---


def rank_labels(profiles: Sequence[ColumnProfile]) -> list[ColumnProfile]:
    """Columns that may be the label, the likeliest first; of equally likely ones the first in the table."""
    edges = {profiles[0].name, profiles[-1].name} if profiles else set()
    points = {p.name: _rate_label(p, p.name in edges) for p in profiles if _may_be_label(p)}
    likely = [p for p in profiles if points.get(p.name, -9) > -3]
    return sorted(likely, key=lambda p: -points[p.name])


def _may_be_label(profile: ColumnProfile) -> bool:
    most = min(MAX_CLASSES, max(20, profile.filled / 2))  # as `stages.data.label_column` allows
    kinds = ("classes", "text", "words", "identifiers", "booleans", "whole numbers", "lists")
    return (
        profile.kind in kinds
        and 2 <= profile.distinct <= most
        and profile.filled >= 2 * profile.distinct
        and np.median([len(value) for value in profile.values]) <= LABEL_LENGTH
    )


def _rate_label(profile: ColumnProfile, at_edge: bool) -> float:
    """How likely a column is the label. Names count most, then the type, then the values."""
    name = split_name(profile.name)
    points = max([LABEL_WORDS.get(word, 0) for word in name] or [0])
    if len([word for word in name if not word.isdigit()]) > 1 and points < 6:
        points *= 0.6
    if points < 4 or profile.kind == "lists":  # annotator_labels next to gold_label
        points -= 3 * bool(METADATA_WORDS & set(name))
    if points < 4 and ENTITIES & set(name):
        points -= 3 if profile.distinct > 50 else 2
    points += 4 * (profile.kind == "classes") + 0.5 * at_edge - 0.5 * np.log10(profile.distinct)
    if profile.kind == "whole numbers":
        points -= 3 * bool(COUNT_WORDS & set(name))
        numbers = sorted(float(value) for value in profile.values if WHOLE.fullmatch(value) and value != "-1")
        if len(numbers) > 10 and numbers[-1] - numbers[0] >= len(numbers):
            points -= 3  # 18, 21, 22, … are not the numbers of classes
    points -= 3 * (profile.word_count > 10) + (profile.word_count > 5)
    points -= 2 * (profile.counts[0] > 0.99 * profile.filled)
    points -= 5 * (profile.filled < profile.rows / 5) + (profile.filled < profile.rows / 2)
    return points - (profile.filled < 5 * profile.distinct)


def _prefer_names(candidates: list[ColumnProfile], table: pa.Table) -> list[ColumnProfile]:
    """Put a column of names before a column of numbers that says the same."""
    first = candidates[0] if candidates else None
    if first is None or first.kind != "whole numbers":
        return candidates
    for other in candidates[1:]:
        if other.kind in ("text", "words", "identifiers") and other.distinct == first.distinct:
            both = [first.name, other.name]
            pairs = table.select(both).drop_null().group_by(both).aggregate([])
            if len(pairs) == first.distinct:
                return [other, *(p for p in candidates if p is not other)]
    return candidates


def _choose_flags(
    profiles: Mapping[str, ColumnProfile], candidate: ColumnProfile, taken: set[str | None], table: pa.Table
) -> tuple[str, ...]:
    """The columns of 0 and 1 that are labels together with the likeliest one; none next to a column called `label`."""
    name = split_name(candidate.name)
    if len(name) == 1 and LABEL_WORDS.get(name[0], 0) >= SURE:
        return ()
    return find_flags({name: profile for name, profile in profiles.items() if name not in taken}, candidate.name, table)


def _check_label_is_no_text(profiles: Sequence[ColumnProfile], texts: Sequence[str], table: pa.Table) -> None:
    """Reject texts with the likeliest label: another column, or none, would silently be the label."""
    candidates = _prefer_names(rank_labels(profiles), table)
    if candidates and (name := candidates[0].name) in texts:
        raise UserError(
            f"--text: {name}: is the likeliest label, {candidates[0].distinct:,} values in {candidates[0].filled:,} "
            "rows; name another column, or the label with --label"
        )


def _check_label(
    profiles: Mapping[str, ColumnProfile],
    labels: Sequence[str],
    texts: Sequence[str] | None,
    table: pa.Table,
    problems: Mapping[str, str],
    guesses: Mapping[str, str],
) -> None:
    for label in labels:
        if texts and label in texts:
            raise UserError(f"--text: {label}: is --label, the class to be predicted; name another column")
    if len(labels) > 1:
        if problem := check_flags(table, labels):
            raise UserError(f"--label: {problem}")
        return
    if problem := problems.get(labels[0]):
        raise UserError(problem)
    profile = profiles[labels[0]]
    no_classes = profile.kind in ("other", "nothing") or (profile.kind == "dates" and not profile.is_text)
    if no_classes or not 2 <= profile.distinct <= MAX_CLASSES:
        raise UserError(
            f"--label: {profile.name}: {profile.describe()}; "
            f"allowed: a column with 2 to {MAX_CLASSES:,} values that rows share"
            + (f"; {explain_guess(guess)}" if (guess := guesses.get(profile.name)) else "")
        )


def _describe_label(
    labels: Sequence[ColumnProfile],
    separator: str | None,
    guess: str | None,
    others: Sequence[ColumnProfile],
    reason: str | None,
) -> str:
    chosen = labels[0]
    if len(labels) > 1 or chosen.kind == "lists":
        name = describe_labels(labels, separator)
    else:
        name = f"{chosen.name}, {chosen.distinct:,} values in {chosen.filled:,} rows"
        if chosen.filled < chosen.rows:
            empty = chosen.rows - chosen.filled
            name += f" ({empty:,} {'row has' if empty == 1 else 'rows have'} none)"
    odd = []
    if guess and len(labels) == 1:
        odd.append(explain_guess(guess))
    if marks := sorted(UNLABELLED_MARKS & set(chosen.values)):
        odd.append(f"{marks[0]} may mean a row that is not labelled")
    if chosen.kind == "numbers":
        odd.append("numbers with fractions, which may be classes or numbers to be predicted")
    if (singles := _count_singles(chosen)) > 0:
        odd.append(f"{singles:,} {'value occurs' if singles == 1 else 'values occur'} in one row only")
    if chosen.word_count > 5:
        odd.append(f"the values have {chosen.word_count:.0f} words")
    alike = [p.name for p in others if chosen.distinct == 2 and set(p.values) == set(chosen.values)]
    if len(labels) == 1 and len(alike) > 1:
        odd.append(f"{list_some(alike)} have the same two values; if they are labels too, repeat --label for each")
    if odd:
        name += f"; odd: {', '.join(odd)}"
    if reason:
        return f"{name}; {reason}"
    return name + (f"; other candidates: {list_some([p.name for p in others])}" if others else "; no other candidate")


def _count_singles(label: ColumnProfile) -> int:
    """How many values occur in one row only. Values that differ only in case are one."""
    rows: Counter[str] = Counter()
    for value, count in zip(label.values, label.counts, strict=False):
        rows[value.casefold()] += int(count)
    return sum(count == 1 for count in rows.values())


def _find_same(profiles: Mapping[str, ColumnProfile], label: ColumnProfile, table: pa.Table) -> set[str]:
    """Columns that say the label in other words, such as a description of each class: no value has two labels."""
    few = [
        p.name for p in profiles.values()
        if p is not label and p.kind not in ("other", "lists")
        and 2 <= p.distinct <= min(2 * label.distinct, p.filled / 2)
    ]  # fmt: skip
    pairs = {name: table.select([name, label.name]).drop_null().group_by([name, label.name]) for name in few}
    return {name for name, pair in pairs.items() if len(pair.aggregate([])) <= profiles[name].distinct}


# --- texts ---


def _choose_texts(
    profiles: Mapping[str, ColumnProfile],
    labels: Sequence[str],
    same: set[str],
    split: str | None,
    table: pa.Table,
    place: str,
) -> tuple[tuple[str, ...], str]:
    rest = [p for p in profiles.values() if p.is_text and p.distinct > 0 and p.name not in (*labels, split)]
    left_out = {p.name: reason for p in rest if (reason := "says the label" if p.name in same else _exclude_text(p))}
    texts = [p for p in rest if p.name not in left_out] or [p for p in rest if left_out[p.name] == DERIVED]
    left_out |= _find_derived(texts, table)
    texts = [p for p in texts if left_out.get(p.name, DERIVED) == DERIVED]
    if not texts:
        return _choose_short_text([p for p in rest if p.name not in same], labels[0], profiles, place)
    chosen = ", ".join(f"{p.name} ({p.word_count:.0f} words)" for p in texts)
    names = {p.name for p in texts}
    others = [
        f"{p.name} ({left_out[p.name]})"
        for p in rest
        if p.name not in names and p.kind in ("text", "words", "brackets")
    ]
    return tuple(p.name for p in texts), chosen + (f"; left out: {list_some(others)}" if others else "")


def _choose_short_text(
    columns: Sequence[ColumnProfile], label: str, profiles: Mapping[str, ColumnProfile], place: str
) -> tuple[tuple[str, ...], str]:
    """The column with the most different words, if no column has sentences."""
    kinds = ("text", "words", "identifiers", "URLs", "e-mail addresses", "file paths")
    short = [p for p in columns if p.kind in kinds and p.distinct > FEW_VALUES and p.filled > p.rows / 2]
    if not short:
        raise UserError(f"{place}: no column of text next to the label {label} ({_list_columns(profiles)})")
    best = max(short, key=lambda p: (bool(TEXT_WORDS & set(split_name(p.name))), p.kind != "identifiers", p.distinct))
    _check_name(best.name)
    return (best.name,), f"{best.name}, though short: no other column has more text ({best.describe()})"


def _exclude_text(profile: ColumnProfile) -> str | None:
    """Why a column is no input for the model; None: it is one."""
    name = split_name(profile.name)
    if not _can_be_named(profile.name):
        return "a template can't name it; rename it"
    if profile.distinct == 1:
        return f"always {profile.values[0]:.30}"
    if profile.filled < profile.rows / 5:
        return f"filled in {profile.filled:,} rows"
    if profile.kind not in ("text", "words"):
        return profile.kind
    if reason := next((NOT_TEXT_WORDS[word] for word in name if word in NOT_TEXT_WORDS), None):
        return reason
    is_named = bool(TEXT_WORDS & set(name))
    differ = profile.distinct / profile.filled
    few = f"{profile.distinct:,} values"
    if profile.word_count > 5:
        return few if differ < 0.1 and (profile.distinct <= FEW_VALUES or not is_named) else None
    if profile.word_count >= (1.5 if is_named else 3):
        if set(name) & NAME_WORDS and not is_named:
            return "names"
        return None if differ >= 0.3 or (is_named and profile.distinct > FEW_VALUES) else few
    return f"{profile.word_count:.0f} words" if differ >= 0.3 else few


def _find_derived(texts: Sequence[ColumnProfile], table: pa.Table) -> dict[str, str]:
    """Columns whose words are all in another column in the same order, such as a cleaned text -> {column: why}."""
    rows = np.unique(np.linspace(0, len(table) - 1, 200).astype(int))
    sample = {p.name: table[p.name].take(pa.array(rows)).to_pylist() for p in texts}
    words = {
        name: [re.findall(r"\w+", (value or "").lower()[:5000]) for value in values] for name, values in sample.items()
    }
    derived: dict[str, str] = {}
    for name in reversed(words):
        for other in words:
            if other == name or other in derived:
                continue
            pairs = [(part, whole) for part, whole in zip(words[name], words[other], strict=True) if part and whole]
            if pairs and np.mean([_is_subsequence(part, whole) for part, whole in pairs]) >= 0.9:
                derived[name] = f"part of {other}"
                break
    return derived


def _is_subsequence(part: Sequence[str], whole: Sequence[str]) -> bool:
    words = iter(whole)
    return all(word in words for word in part)


def _check_texts(profiles: Mapping[str, ColumnProfile], texts: Sequence[str]) -> tuple[str, ...]:
    for name in texts:
        if name not in profiles:
            raise UserError(f"--text: {name}: no such column; allowed: {', '.join(profiles)}")
        if not profiles[name].is_text or not profiles[name].distinct:
            problem = profiles[name].describe() if profiles[name].is_text else profiles[name].type
            raise UserError(f"--text: {name}: holds {problem}; allowed: text")
        _check_name(name)
    return tuple(dict.fromkeys(texts))


# --- group ---


def _choose_group(
    profiles: Mapping[str, ColumnProfile],
    labels: Sequence[str],
    same: set[str],
    texts: Sequence[str],
    split: str | None,
) -> tuple[str | None, str]:
    ranks = {}
    for name, profile in profiles.items():
        if name not in (*labels, split, *same, *(texts if len(texts) == 1 else ())):
            ranks[name] = _rate_group(profile, name in texts)
    found = [profiles[name] for name, rank in ranks.items() if rank]
    if not found:
        near = [p for p in profiles.values() if p.name in ranks and _names_group(p) and p.shared >= CHANCE]
        listed = [f"{p.name} ({p.distinct:,} values, {p.shared:.0%} of the rows share one)" for p in near]
        return None, f"none: {list_some(listed) or 'no column names the author, document or other source of rows'}"
    best, *others = sorted(found, key=lambda p: (-ranks[p.name], -p.group_size))
    reason = (
        f"{best.name}, {best.distinct:,} values in {best.filled:,} rows, {best.filled / best.distinct:.1f} rows each"
    )
    return best.name, reason + (f"; other candidates: {', '.join(p.name for p in others)}" if others else "")


def _rate_group(profile: ColumnProfile, is_input: bool) -> int:
    """0: no group; 3: one person's or one text's rows, 2: one thing's, 1: an identifier that rows share."""
    if profile.kind in ("dates", "numbers", "booleans", "classes", "lists", "nothing", "other"):
        return 0
    if profile.distinct < FEW_GROUPS or profile.counts[0] > profile.rows / 4 or profile.filled < profile.rows / 2:
        return 0
    name = set(split_name(profile.name))
    if profile.kind == "whole numbers" and COUNT_WORDS & name:
        return 0
    if _names_group(profile) and profile.shared >= SHARED:
        if is_input and profile.word_count <= 5:
            return 0
        return 2 if name & (ENTITIES - CLOSE_ENTITIES) else 3
    often = profile.shared >= 0.8 and float(np.median(profile.counts)) >= 2
    if is_input:
        return 3 * (often and profile.word_count > 5)
    nameless = is_nameless(profile.name) and profile.kind in ("identifiers", "words")
    if (nameless or name & KEY_WORDS) and profile.distinct > MAX_CLASSES:
        return int(profile.shared >= 0.6 and profile.filled >= 2 * profile.distinct)
    return 0


def _names_group(profile: ColumnProfile) -> bool:
    """Whether a column's name says that its rows have one source: user, premise, sentence_id."""
    name = set(split_name(profile.name))
    return bool(name & ENTITIES or (name & KEY_WORDS and name & TEXT_WORDS))


# --- split ---


def _choose_split(
    profiles: Mapping[str, ColumnProfile], taken: set[str | None]
) -> tuple[str | None, dict[str, str] | None, str]:
    for name, profile in profiles.items():
        if name not in taken and (values := _read_split_values(profile)):
            return name, values, f"{name}, whose values are {', '.join(values.values())}"
    for name, profile in profiles.items():
        splits = {SPLIT_WORDS.get(value.lower()) for value in profile.values} - {None}
        if name not in taken and profile.distinct <= MOST_VALUES and "train" in splits and len(splits) > 1:
            empty = f", empty in {count:,} rows" if (count := profile.rows - profile.filled) else ""
            return None, None, (
                f"WARNING: {name} is not used, although it has the values {list_some(profile.values)}{empty}; to use "
                "it, make it one value for each split, or set data.split and data.splits"
            )  # fmt: skip
    return None, None, "none: no column says which split a row belongs to"


def _read_split_values(profile: ColumnProfile) -> dict[str, str] | None:
    """{split: value} if a column says which split a row belongs to."""
    if not 2 <= profile.distinct <= 5 or profile.filled < profile.rows:
        return None
    name = split_name(profile.name)
    values: dict[str, str | None] = {value: SPLIT_WORDS.get(value.lower()) for value in profile.values}
    if name[:1] == ["is"] and SPLIT_WORDS.get(name[-1], "train") != "train" and len(values) == 2:
        flags = {value.lower(): value for value in values}
        no, yes = (flags.get(first, flags.get(second, "")) for first, second in (("false", "0"), ("true", "1")))
        values = {no: "train", yes: SPLIT_WORDS[name[-1]]} if no and yes else {}
    elif SPLIT_NAMES & set(name):
        if sorted(values) in (["0", "1"], ["0", "1", "2"]):
            if profile.values[0] != "0" or profile.counts[0] <= profile.rows / 2:
                return None  # folds of cross-validation are equally large
            values = {"0": "train", "1": "test"} if len(values) == 2 else dict(zip("012", SPLITS, strict=True))
    elif None in values.values():
        return None
    splits = [split for split in values.values() if split is not None]
    if "train" not in splits or len(splits) < 2 or len(set(splits)) < len(splits):
        return None
    return {split: value for split in SPLITS for value in values if values[value] == split}


# --- template ---


def make_template(texts: Sequence[str], label: str | Sequence[str]) -> str:
    """A template for `tokenize.template`, which ends with the label's name as a word; `Labels` for several columns.

    Raises:
        UserError: a column's name can't be written in a template.
    """
    for name in texts:
        _check_name(name)
    label = label if isinstance(label, str) else "labels"
    answer = _title([word for word in split_name(label) if word not in LABEL_PARTS])
    if is_nameless(label) or answer in ("", "Y", "Target"):
        answer = "Label"
    if len(texts) == 1:
        return f"{{{texts[0]}}}\n{answer}:"
    names = [f"Text {i}" if is_nameless(name) else _title(split_name(name)) for i, name in enumerate(texts, 1)]
    return "".join(f"{name}: {{{text}}}\n" for name, text in zip(names, texts, strict=True)) + f"{answer}:"


def _title(words: Sequence[str]) -> str:
    return " ".join(words).capitalize()


def _can_be_named(column: str) -> bool:
    """Whether a template can name a column: not if its name has braces, or a backslash and an n."""
    try:
        TypeAdapter(params.Template).validate_python(f"{{{column}}}")
    except ValidationError:
        return False
    return not set("{}") & set(column)


def _check_name(column: str) -> None:
    if not _can_be_named(column):
        raise UserError(f"--text: {column!r}: a template can't name this column; allowed: no braces; rename it")
