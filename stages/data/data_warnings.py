"""What the counts of the chosen rows give to think: sentences for the console and for the report."""

from collections.abc import Iterator

from stages.data.task import SPLITS

NAMED = 5  # classes; more are counted
WHY = {
    ("test", "train"): "scores may be too high",
    ("test", "validation"): "the epoch that is kept was chosen on them",
    ("validation", "train"): "the epoch that is kept may be one that has learnt them by heart",
}
WHY_BY_GROUP = {
    ("test", "train"): "rows of a new {group} may score lower",
    ("test", "validation"): "the epoch that is kept was chosen on rows like them",
    ("validation", "train"): "validation scores may be too high",
}
ROWS_OF = {"train": "training", "validation": "validation", "test": "test"}


def find_warnings(summary: dict, group: str | None) -> list[str]:
    """A sentence for each thing that a reader should know of the rows before the scores.

    Args:
        summary: outs/data_summary.json.
        group: `Task.group`.
    """
    return [*_without_rows(summary), *_in_two_splits(summary, group), *_in_part(summary)]


def _without_rows(summary: dict) -> Iterator[str]:
    means_of = {
        "train": "the model can't learn",
        "validation": "the epoch that is kept is chosen without",
        "test": "nothing is known of",
    }
    for split, means in means_of.items():
        missing = [name for name, rows in summary[split]["classes"].items() if not rows]
        if missing:
            more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
            pronoun = "it" if len(missing) == 1 else "them"
            which = "the class" if len(missing) == 1 else "one of the classes"
            yield f"No {ROWS_OF[split]} row has {which} {', '.join(missing[:NAMED])}{more}: {means} {pronoun}."


def _in_two_splits(summary: dict, group: str | None) -> Iterator[str]:
    for (split, other), why in WHY.items():
        kept, found = summary[split]["kept"], summary[split][f"in_{other}"]
        of = f"Of {kept:,}"
        if count := found["rows"]:
            stand = "stands" if count == 1 else "stand"
            yield (
                f"Of {kept:,} {ROWS_OF[split]} rows, {count:,} {stand} in the {ROWS_OF[other]} rows too, word for "
                f"word: {why}."
            )
            of = f"Of the other {kept - count:,}"
        if group is not None and (count := found["groups"]):
            share = "shares its" if count == 1 else "share their"
            yield (
                f"{of} {ROWS_OF[split]} rows, {count:,} {share} {group} with a {ROWS_OF[other]} row: "
                f"{WHY_BY_GROUP[split, other].format(group=group)}."
            )


def _in_part(summary: dict) -> Iterator[str]:
    for split in SPLITS:
        found, kept = summary[split], summary[split]["kept"]
        if found["truncated"]:
            share = found["truncated"] / kept
            yield (
                f"Of {kept:,} {ROWS_OF[split]} rows, {found['truncated']:,} ({share:.1%}) were longer than "
                "tokenize.max_length and were cut."
            )
        for column, count in found["empty"].items():
            if count:
                have = "has" if count == 1 else "have"
                yield f"Of {kept:,} {ROWS_OF[split]} rows, {count:,} {have} an empty {column}."
