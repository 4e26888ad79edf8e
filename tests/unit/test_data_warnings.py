"""The sentences that warn about the rows."""

from dataclasses import replace

import pytest

from stages.data.data_summary import DataSummary, Overlap, PaddingShares, SplitSummary
from stages.data.data_warnings import find_warnings

TRAIN = SplitSummary(
    rows=20, chosen=20, unlabelled=0, dropped=0, kept=20, empty={"text": 0}, truncated=0, tokens=100, tokens_mean=5.0,
    tokens_max=9, classes={"no": 10, "yes": 10}, overlaps={},
)  # fmt: skip
CLEAN = {
    "train": TRAIN,
    "validation": replace(TRAIN, overlaps={"train": Overlap(0, 0)}),
    "test": replace(TRAIN, overlaps={"train": Overlap(0, 0), "validation": Overlap(0, 0)}),
}


def warnings_for(group=None, **changes):
    """The warnings about a summary in which nothing is wrong, except for the changed attributes of each split."""
    splits = {name: replace(split, **changes.get(name, {})) for name, split in CLEAN.items()}
    return find_warnings(DataSummary(splits, PaddingShares(0.1, 0.2, 0.8)), group)


def test_rows_in_which_nothing_is_wrong_need_no_warning():
    assert warnings_for() == warnings_for("author") == []


@pytest.mark.parametrize(
    "missing, sentence",
    [(1, "the class c0: the model can't learn it"), (2, "one of the classes c0, c1: the model can't learn them"),
     (5, "one of the classes c0, c1, c2, c3, c4: the model can't learn them"),
     (6, "one of the classes c0, c1, c2, c3, c4 and 1 more: the model can't learn them")],
)  # fmt: skip
def test_up_to_five_classes_without_rows_are_named(missing, sentence):
    classes = {f"c{number}": 0 if number < missing else 3 for number in range(8)}
    assert warnings_for(train={"classes": classes}) == [f"No training row has {sentence}."]


@pytest.mark.parametrize(
    "rows, sentence",
    [(1, "1 of 2,000 test rows is a duplicate of a training row"),
     (3, "3 of 2,000 test rows are duplicates of training rows")],
)  # fmt: skip
def test_duplicates_across_splits_are_counted(rows, sentence):
    overlaps = CLEAN["test"].overlaps | {"train": Overlap(rows)}
    assert warnings_for(test={"kept": 2000, "overlaps": overlaps}) == [f"{sentence}: scores may be too high."]


@pytest.mark.parametrize("groups, of, share", [(1, "1 of", "shares its"), (4, "4 of", "share their")])
def test_rows_that_share_a_group_are_counted_among_those_without_a_duplicate(groups, of, share):
    warnings = warnings_for("author", validation={"overlaps": {"train": Overlap(3, groups)}})
    assert warnings[1:] == [
        f"{of} the other 17 validation rows {share} author with a training row: validation scores may be too high."
    ]
    (warning,) = warnings_for("author", validation={"overlaps": {"train": Overlap(0, groups)}})
    assert warning.startswith(f"{of} 20 validation rows {share} author ")
    assert warnings_for(validation={"overlaps": {"train": Overlap(0)}}) == []


def test_truncated_and_empty_texts_are_counted():
    assert warnings_for(train={"truncated": 5}, test={"empty": {"text": 1, "title": 2, "more": 0}}) == [
        "5 of 20 training rows (25.0%) were longer than tokenize.max_length and were truncated.",
        "1 of 20 test rows has an empty text.",
        "2 of 20 test rows have an empty title.",
    ]
    (warning,) = warnings_for(test={"truncated": 1})
    assert warning == "1 of 20 test rows (5.0%) was longer than tokenize.max_length and was truncated."
