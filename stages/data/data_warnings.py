"""Warnings about the rows, as sentences: classes without rows, duplicates across splits, truncated and empty texts.

The report shows these sentences, and `tokenize` prints them. That is why they are not in stages/report: if `tokenize`
imported it, every change to the report would run the stage again.
"""

from collections.abc import Iterator

from stages.data.data_summary import DataSummary

MOST_NAMED = 5  # classes in a sentence; further ones are counted
ADJECTIVES = {"train": "training", "validation": "validation", "test": "test"}
WITHOUT_CLASS = {
    "train": "the model can't learn",
    "validation": "the best epoch is chosen without",
    "test": "nothing is known about",
}
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


def find_warnings(summary: DataSummary, group: str | None) -> list[str]:
    """A sentence for each fact about the rows that a reader should know before the scores.

    Args:
        group: `Task.group`.
    """
    return [*_missing_classes(summary), *_overlaps(summary, group), *_truncated_and_empty_texts(summary)]


def _missing_classes(summary: DataSummary) -> Iterator[str]:
    for split, meaning in WITHOUT_CLASS.items():
        missing = [name for name, rows in summary.splits[split].classes.items() if not rows]
        if missing:
            more = f" and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""
            noun, pronoun = ("the class", "it") if len(missing) == 1 else ("one of the classes", "them")
            yield (
                f"No {ADJECTIVES[split]} row has {noun} {', '.join(missing[:MOST_NAMED])}{more}: {meaning} {pronoun}."
            )


def _overlaps(summary: DataSummary, group: str | None) -> Iterator[str]:
    for (split, earlier), meaning in DUPLICATES.items():
        rows, overlap = summary.splits[split].kept, summary.splits[split].overlaps[earlier]
        duplicates, sharing = overlap.rows, overlap.groups
        if duplicates:
            verb = "is a duplicate of a {} row" if duplicates == 1 else "are duplicates of {} rows"
            yield f"{duplicates:,} of {rows:,} {ADJECTIVES[split]} rows {verb.format(ADJECTIVES[earlier])}: {meaning}."
        if group is not None and sharing:
            others = f"the other {rows - duplicates:,}" if duplicates else f"{rows:,}"
            share = "shares its" if sharing == 1 else "share their"
            yield (
                f"{sharing:,} of {others} {ADJECTIVES[split]} rows {share} {group} with a {ADJECTIVES[earlier]} row: "
                f"{SHARED_GROUPS[split, earlier].format(group=group)}."
            )


def _truncated_and_empty_texts(summary: DataSummary) -> Iterator[str]:
    for split, counts in summary.splits.items():
        of_rows = f"of {counts.kept:,} {ADJECTIVES[split]} rows"
        if counts.truncated:
            share, were = counts.truncated / counts.kept, "was" if counts.truncated == 1 else "were"
            yield (
                f"{counts.truncated:,} {of_rows} ({share:.1%}) {were} longer than tokenize.max_length and {were} "
                "truncated."
            )
        for column, empty in counts.empty.items():
            if empty:
                yield f"{empty:,} {of_rows} {'has' if empty == 1 else 'have'} an empty {column}."
