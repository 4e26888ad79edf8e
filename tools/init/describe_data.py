"""Sentences about a data set, for a user who has not seen it in this pipeline yet. `tools.init` prints them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from stages.analysis.design_effects import effective_groups
from stages.analysis.intervals import wilson
from stages.analysis.leading_metric import TITLES, LeadingMetric
from stages.analysis.measures import choose_leading_metric
from stages.analysis.multi_seed.power import TARGET_POWER
from stages.data.assign_splits import find_dropped
from stages.data.data_summary import DataSummary, PaddingShares, find_duplicates, summarize_split
from stages.data.data_warnings import find_warnings
from stages.data.dialect import NO_QUOTES, SEPARATORS, Dialect
from stages.data.row_places import FILE, FILE_ROW, describe_counting, describe_places, list_places
from stages.data.task import NO_LABEL, SPLITS, Task
from stages.report.label_words import words_of

MOST_CLASSES = 20  # that are listed
MANY_CLASSES = 10  # of fewer classes, some are missing if there are few test rows
MANY_MISSING = 1 / 3
MOST_TEXTS = 3  # with contradicting labels, whose rows are listed
WHY: dict[LeadingMetric, str] = {
    "accuracy": "no class of the test rows has over three times the rows of another",
    "f1_macro": "one class of the test rows has over three times the rows of another",
    "f1_micro": "a row may have several labels",
}
ACCURACY, DISAGREEMENT = 0.9, 0.1  # assumed, to say what the test rows can show


def describe_dialect(names: Sequence[str], dialect: Dialect) -> str:
    """How csv and tsv files are written."""
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    header = "the first line names the columns" if dialect.has_header else "no line names the columns"
    separator = SEPARATORS.get(dialect.sep, repr(dialect.sep))
    quotes = "not quoted" if dialect.quotechar == NO_QUOTES else f"quoted by {dialect.quotechar}"
    return f"{listed}: {dialect.encoding}; cells are separated by {separator} and {quotes}; {header}"


def describe_classes(splits: Mapping[str, pd.DataFrame], task: Task) -> Iterator[str]:
    """The classes with their rows in all splits together, the most frequent first, and the metric that leads."""
    everything = pd.concat(splits.values())
    labels = everything["label"]
    counts, rows = task.labels.count(labels), int((labels != NO_LABEL).sum())
    order = np.argsort(-counts, kind="stable")
    for number in order[:MOST_CLASSES]:
        yield f"  {counts[number] / rows:6.1%} {task.classes[number]} ({counts[number]:,})"
    if len(order) > MOST_CLASSES:
        rest = counts[order[MOST_CLASSES:]]
        share = words_of(task.labels).share_of_rest.format(rest.sum() / rows)
        yield f"  {share} {len(rest):,} more {task.labels.nouns} of {rest.min():,} to {rest.max():,} rows each"
    unlabelled = everything[labels == NO_LABEL]
    if len(unlabelled):
        are = "row is" if len(unlabelled) == 1 else "rows are"
        yield f"  {len(unlabelled):,} {are} not labelled and left out{_say_where(unlabelled)}"
    test = splits["test"]["label"]
    gold = task.labels.from_codes(test[test != NO_LABEL])
    metric = choose_leading_metric(gold, len(task.classes))
    yield f"  {WHY[metric]}, so the report leads with {TITLES[metric]}"


def _say_where(rows: pd.DataFrame) -> str:
    """The places of the first rows, behind a colon."""
    return f": {describe_places(rows)}" if FILE in rows else ""


def describe_rows(splits: Mapping[str, pd.DataFrame]) -> str:
    """How many labelled rows each split has, and all together if some rows are not labelled."""
    labelled = {split: int((splits[split]["label"] != NO_LABEL).sum()) for split in SPLITS}
    total, used = sum(map(len, splits.values())), sum(labelled.values())
    some = f"{used:,} of {total:,} are labelled: " if used < total else ""
    return f"rows: {some}" + ", ".join(f"{labelled[split]:,} {split}" for split in SPLITS)


def describe_rare_classes(splits: Mapping[str, pd.DataFrame], task: Task, advice: str) -> Iterator[str]:
    """An alarm if many classes have no test row. Then the label is often another column, or several labels.

    Args:
        advice: what to do if a cell holds several labels; empty if the label column is no text.
    """
    missing, classes = int((task.labels.count(splits["test"]["label"]) == 0).sum()), len(task.classes)
    if missing > MANY_MISSING * classes and classes >= MANY_CLASSES:
        yield (
            f"WARNING: {missing:,} of {classes:,} {task.labels.nouns} have no test row. Is this the label column? "
            f"If not, name it by --label{f'; {advice}' if advice else ''}"
        )


def describe_tokens(lengths: np.ndarray, rows: int, max_length: int, limit: int) -> str:
    """Percentiles of the rows' lengths, how many rows are truncated, and which share of all tokens that is.

    Args:
        lengths: of a sample of the rows, [rows].
        rows: of the whole data set.
        limit: the highest `max_length` for this model.
    """
    half, most = (int(np.quantile(lengths, q, method="inverted_cdf")) for q in (0.5, 0.99))
    sample = f", in {len(lengths):,} rows at equal distances" if len(lengths) < rows else ""
    cut, lost = "none of them", np.maximum(lengths - max_length, 0)
    if truncated := int((lost > 0).sum()):
        share = lost.sum() / lengths.sum()
        cut = f"{truncated:,} of them ({truncated / len(lengths):.1%}), which loses {share:.1%} of all tokens"
    highest = ", the most with this model," if truncated and max_length == limit else ""
    return (
        f"tokens: 50% of the rows have at most {half:,}, 99% at most {most:,}, the longest {lengths.max():,}{sample}; "
        f"max_length {max_length}{highest} truncates {cut}"
    )


def describe_duplicates(splits: Mapping[str, pd.DataFrame], task: Task) -> Iterator[str]:
    """Training rows with the same texts as others, and texts with several classes."""
    splits = {split: rows[rows["label"] != NO_LABEL] for split, rows in splits.items()}
    train, everything = splits["train"], pd.concat(splits.values())
    if duplicates := int(find_dropped(splits, task).sum()):
        counts = {
            "an earlier training": train.duplicated(task.text_columns),
            "a validation": find_duplicates(train, splits["validation"], task),
            "a test": find_duplicates(train, splits["test"], task),
        }
        listed = [f"{rows.sum():,} of {which} row" for which, rows in counts.items() if rows.any()]
        have = _count_duplicates(duplicates, f"{len(train):,} training rows")
        yield f"{have}: {', '.join(listed)}; data.duplicates: drop leaves them out"
    yield from _describe_contradictions(everything, task)


def describe_set_duplicates(rows: pd.DataFrame, task: Task) -> Iterator[str]:
    """Rows of one data set with the same texts as earlier ones, and texts with several classes."""
    labelled = rows[rows["label"] != NO_LABEL]
    if duplicates := int(labelled.duplicated(task.text_columns).sum()):
        yield _count_duplicates(duplicates, f"{len(labelled):,} rows")
    yield from _describe_contradictions(labelled, task)


def _count_duplicates(duplicates: int, rows: str) -> str:
    return f"duplicates: {duplicates:,} of {rows} {'has' if duplicates == 1 else 'have'} the texts of another row"


def _describe_contradictions(rows: pd.DataFrame, task: Task) -> Iterator[str]:
    texts = rows[~rows.duplicated([*task.text_columns, "label"])]
    several = texts[texts.duplicated(task.text_columns)].drop_duplicates(task.text_columns)
    if len(several):
        have = "text has" if len(several) == 1 else "texts have"
        where = _list_duplicates(rows, several, task) if FILE in rows else ""
        yield f"duplicates: {len(several):,} {have} rows {words_of(task.labels).contradiction}{where}"


def _list_duplicates(rows: pd.DataFrame, several: pd.DataFrame, task: Task) -> str:
    """The places of the rows of the first texts; several: a row of each text."""
    found = rows.merge(several[task.text_columns], on=task.text_columns).sort_values([FILE, FILE_ROW])
    groups = [group for _, group in found.groupby(task.text_columns, sort=False)]
    more = f" and {len(groups) - MOST_TEXTS:,} more" if len(groups) > MOST_TEXTS else ""
    listed = "; ".join(map(list_places, groups[:MOST_TEXTS]))
    return f": {listed}{more}, {describe_counting(found[FILE])}"


def describe_warnings(splits: Mapping[str, pd.DataFrame], task: Task, max_length: int) -> Iterator[str]:
    """What `tokenize` will warn about, except truncated rows, which `describe_tokens` counts."""
    labelled = {split: rows[rows["label"] != NO_LABEL] for split, rows in splits.items()}
    summaries = {}
    for number, split in enumerate(SPLITS):
        rows = labelled[split]
        untokenized = rows.assign(input_ids=[[]] * len(rows), truncated=False, full_length=0)
        earlier = {other: labelled[other] for other in SPLITS[:number]}
        summaries[split] = summarize_split(splits[split], splits[split], untokenized, task, earlier)
    for warning in find_warnings(DataSummary(summaries, PaddingShares(0, 0, 0), max_length), task):
        yield f"WARNING: {warning.text}" if warning.level == "alarm" else warning.text


def describe_test_rows(test: pd.DataFrame, task: Task, confidence: float) -> Iterator[str]:
    """What the test rows can show: the interval of an accuracy, and the smallest difference of accuracy between two.

    The difference is that of McNemar's test with normal quantiles, (z_confidence + z_power) sqrt(d / n). Two models
    differ by at most d, the share of rows on which they disagree; if n is too small for that, d is the difference.

    Args:
        confidence: level of intervals, such as 0.95.
    """
    labelled = test[test["label"] != NO_LABEL]
    rows = effective_groups(labelled["group"].to_numpy()) if task.group else len(labelled)
    interval = wilson(ACCURACY * rows, rows, confidence)
    quantiles = norm.ppf((1 + confidence) / 2) + norm.ppf(TARGET_POWER)
    difference = max(quantiles * np.sqrt(DISAGREEMENT / rows), quantiles**2 / rows)
    yield f"test rows: {len(labelled):,}" + (
        f", which count as {rows:,.0f} if rows with the same {task.group} are right or wrong together"
        if task.group
        else ""
    )
    words, margin = words_of(task.labels), 50 * (interval.high - interval.low)
    yield f"  {words.an_accuracy} of {ACCURACY:.0%} is known to ±{margin:.1f} points"
    disagree = f" that disagree on {DISAGREEMENT:.0%} of the rows" if difference < DISAGREEMENT else ""
    points = f"{100 * difference:.1f} points of {words.accuracy}"
    yield (
        f"  two models{disagree} must differ by {points} to be told apart (power {TARGET_POWER:.0%})"
        if difference < 1
        else "  these are too few to tell two models apart"
    )
