"""Warnings about the rows, as sentences that say how much they matter.

The report shows these sentences, and `tokenize` prints them. That is why they are not in stages/report: if `tokenize`
imported it, every change to the report would run the stage again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.data.data_summary import DataSummary
from stages.data.labels import Labels
from stages.data.task import SPLITS, Task

MOST_NAMED = 5  # classes in a sentence; further ones are counted
ADJECTIVES = {"train": "training", "validation": "validation", "test": "test"}
WITHOUT_CLASS = {
    "train": "the model can't learn",
    "validation": "the best epoch is chosen without",
    "test": "nothing is known about",
}
# {split whose classes differ from those of training: what it means}
UNEVENLY_SHARED = {
    "test": "The scores hold only for data whose {nouns} are distributed as in the test rows.",
    "validation": "The best epoch and the temperature are chosen on rows unlike those of training.",
}
# Total variation distance beyond what chance makes. A classifier that finds 95% of the rows of one class and 70% of
# another's moves by 2.5 points of accuracy at 0.1. That is as much as seeds move it, so less is not worth an alarm.
# If rows may have several labels, each label and its absence are two such classes.
MAX_DISTANCE = 0.1
# Two splits are compared with training, so at most 1 in 500 random splits raises an alarm.
MAX_P_VALUE = 0.001
MIN_EXPECTED = 5  # rows of a class in each split, below which the chi-square test is not accurate (Cochran 1954)
MOSTLY_DIFFERENT = 0.5  # distance at which a sorted file is the likely cause: half of the rows have no counterpart
# Truncated rows that raise an alarm. If the model only guessed between two classes in a fifth of the rows, accuracy
# would lose 10 points: more than most recipes differ by.
MAX_TRUNCATED = 0.2
# (split, earlier split): what the overlap means for the scores
DUPLICATES = {
    ("test", "train"): "scores may be too high",
    ("test", "validation"): "the best epoch was chosen on them",
    ("validation", "train"): "the best epoch may be one that has memorized them",
}
SHARED_GROUPS = {
    ("test", "train"): "rows of a new {group} may score lower",
    ("test", "validation"): "the best epoch was chosen on similar rows",
    ("validation", "train"): "validation scores may be too high",
}


Level = Literal["alarm", "warning"]


@dataclass(frozen=True)
class DataWarning:
    """A sentence about the rows. An alarm says that the scores may mean something else than they seem to."""

    level: Level
    text: str


def find_warnings(summary: DataSummary, task: Task, is_own_test: bool = True) -> list[DataWarning]:
    """Each fact about the rows that a reader should know before the scores, alarms first.

    Args:
        is_own_test: the test rows are of the same data as the training rows, so the user can split it otherwise.
    """
    alarms = [DataWarning("alarm", text) for text in _unevenly_shared_classes(summary, task.labels, is_own_test)]
    texts = *_overlaps(summary, task.group), *_empty_texts(summary), *_rows_without_labels(summary)
    warnings = [DataWarning("warning", text) for text in texts]
    return sorted(
        [*_missing_classes(summary, task.labels), *alarms, *_truncated_texts(summary), *warnings],
        key=lambda warning: warning.level != "alarm",
    )


def _missing_classes(summary: DataSummary, labels: Labels) -> Iterator[DataWarning]:
    """An alarm, but a warning if a random sample of so few rows often lacks these classes."""
    train = summary.splits["train"]
    for split, meaning in WITHOUT_CLASS.items():
        counts = summary.splits[split]
        missing = [name for name, rows in counts.classes.items() if not rows]
        if missing:
            expected = max(train.classes[name] for name in missing) / train.kept * counts.kept
            level: Level = "alarm" if split == "train" or expected >= MIN_EXPECTED else "warning"
            more = f" and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""
            which, pronoun = (
                (f"the {labels.noun}", "it") if len(missing) == 1 else (f"one of the {labels.nouns}", "them")
            )
            names = f"{which} {', '.join(missing[:MOST_NAMED])}{more}"
            yield DataWarning(level, f"No {ADJECTIVES[split]} row has {names}: {meaning} {pronoun}.")


def _unevenly_shared_classes(summary: DataSummary, labels: Labels, is_own_test: bool) -> Iterator[str]:
    """A sentence about the test rows, or else about the validation rows, if their classes are not those of training."""
    rows = {split: np.array(list(summary.splits[split].classes.values())) for split in SPLITS}
    outcomes = {split: labels.count_outcomes(counts, summary.splits[split].kept) for split, counts in rows.items()}
    sizes = {split: counts.sum(axis=1) for split, counts in outcomes.items()}
    shares = {split: counts / sizes[split] for split, counts in rows.items()}
    for split, meaning in UNEVENLY_SHARED.items():
        train, other = outcomes["train"], outcomes[split]
        differ = [differ_in_classes(*pair, tests=len(train)) for pair in zip(train, other, strict=True)]
        if not any(differ):
            continue
        gaps = np.abs(other / sizes[split][:, None] - train / sizes["train"][:, None])
        distance = (gaps.sum(axis=1) / 2)[differ].max()
        widest = int((np.abs(shares[split] - shares["train"]) * differ).argmax())
        listed = [f"{shares[name][widest]:.1%} of the {ADJECTIVES[name]} rows" for name in SPLITS]
        name = list(summary.splits[split].classes)[widest]
        sentence = f"{name} {labels.verb} {listed[0]}, {listed[1]} and {listed[2]}"
        alarm = f"The {labels.nouns} are shared out differently: {sentence}. {meaning.format(nouns=labels.nouns)}"
        if split == "test" and not is_own_test:
            yield alarm
        elif distance > MOSTLY_DIFFERENT:
            yield (
                f"Training and {ADJECTIVES[split]} rows have mostly different {labels.nouns}: {sentence}. A sorted "
                "file gives such splits if it is sliced in file order: hold rows out by data.holdout instead."
            )
        else:
            yield (
                f"{alarm} If you do not want this, hold rows out by data.holdout, which gives each split the same "
                "shares."
            )
        return


def differ_in_classes(rows: np.ndarray, others: np.ndarray, tests: int = 1) -> bool:
    """Whether two splits differ in their shares of classes, by more than chance and by more than `MAX_DISTANCE`.

    Args:
        rows, others: rows of each class in a split, int [classes].
        tests: how many such tests are made of the same two splits (Bonferroni).
    """
    counts = np.array([rows, others])
    sizes = counts.sum(axis=1)
    distance = np.abs(rows / sizes[0] - others / sizes[1]).sum() / 2
    pooled = counts.sum(axis=0) / sizes.sum()
    # The mean distance of two random samples: half the mean absolute value of a normal variable for each class.
    by_chance = np.sqrt(2 / np.pi * pooled * (1 - pooled) * (1 / sizes).sum()).sum() / 2
    if distance - by_chance <= MAX_DISTANCE:
        return False
    from scipy.stats import chi2_contingency  # takes 0.4 s to import, and few runs come here

    table = pool_rare_classes(counts)
    return table.shape[1] > 1 and bool(chi2_contingency(table).pvalue < MAX_P_VALUE / tests)


def pool_rare_classes(counts: np.ndarray) -> np.ndarray:
    """Add up classes, the rarest first, until `MIN_EXPECTED` rows of each pool are expected in each split.

    Args:
        counts: int [splits, classes].

    Returns:
        int [splits, pools], each class in one pool.
    """
    least = MIN_EXPECTED * counts.sum() / counts.sum(axis=1).min()  # rows of a pool in all splits together
    pools = [np.zeros(len(counts), dtype=int)]
    for column in counts.T[np.argsort(counts.sum(axis=0), kind="stable")]:
        if pools[-1].sum() >= least:
            pools.append(np.zeros(len(counts), dtype=int))
        pools[-1] = pools[-1] + column
    if len(pools) > 1 and pools[-1].sum() < least:
        pools[-2:] = [pools[-2] + pools[-1]]
    return np.stack(pools, axis=1)


def _truncated_texts(summary: DataSummary) -> Iterator[DataWarning]:
    """One sentence about all splits: the user sets one length for all."""
    splits = {split: counts for split, counts in summary.splits.items() if counts.truncated}
    if not splits:
        return
    *first, last = [
        f"{counts.truncated:,} of {counts.kept:,} {ADJECTIVES[split]} rows ({counts.truncated / counts.kept:.1%})"
        for split, counts in splits.items()
    ]
    one = sum(counts.truncated for counts in splits.values()) == 1
    text = (
        f"{', '.join(first)}{' and ' if first else ''}{last} {'was' if one else 'were'} longer than "
        f"tokenize.max_length: {summary.max_length}, the longest has "
        f"{max(counts.tokens_longest for counts in splits.values()):,} tokens; the end of "
        f"{'its' if one else 'their'} longest text was cut."
    )
    if any(counts.truncated > MAX_TRUNCATED * counts.kept for counts in splits.values()):
        yield DataWarning("alarm", f"{text} Set a larger tokenize.max_length, or take a model with a longer input.")
    else:
        yield DataWarning("warning", text)


def _overlaps(summary: DataSummary, group: str | None) -> Iterator[str]:
    for (split, earlier), meaning in DUPLICATES.items():
        rows, overlap = summary.splits[split].kept, summary.splits[split].overlaps[earlier]
        duplicates, sharing = overlap.rows, overlap.groups
        if duplicates:
            verb = "is a duplicate of a {} row" if duplicates == 1 else "are duplicates of {} rows"
            yield (
                f"{duplicates:,} of {rows:,} {ADJECTIVES[split]} rows ({duplicates / rows:.1%}) "
                f"{verb.format(ADJECTIVES[earlier])}: {meaning}."
            )
        if group is not None and sharing:
            others = f"the other {rows - duplicates:,}" if duplicates else f"{rows:,}"
            share = "shares its" if sharing == 1 else "share their"
            yield (
                f"{sharing:,} of {others} {ADJECTIVES[split]} rows {share} {group} with a {ADJECTIVES[earlier]} row: "
                f"{SHARED_GROUPS[split, earlier].format(group=group)}."
            )


def _empty_texts(summary: DataSummary) -> Iterator[str]:
    for split, counts in summary.splits.items():
        for column, empty in counts.empty.items():
            if empty:
                yield (
                    f"{empty:,} of {counts.kept:,} {ADJECTIVES[split]} rows ({empty / counts.kept:.1%}) "
                    f"{'has' if empty == 1 else 'have'} an empty {column}."
                )


def _rows_without_labels(summary: DataSummary) -> Iterator[str]:
    """A sentence if rows may have several labels and some have none."""
    counts = {split: summary.splits[split].without_labels or 0 for split in SPLITS}
    if any(counts.values()):
        train, validation, test = (count / summary.splits[split].kept for split, count in counts.items())
        yield (
            f"{train:.1%} of the training, {validation:.1%} of the validation and {test:.1%} of the test rows have "
            "none of the labels. They are kept: for such a row, none is the right answer."
        )
