"""What is said of the chosen rows before their scores."""

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


def test_rows_in_which_nothing_is_wrong_need_no_caution():
    assert warnings_for() == warnings_for("author") == []


@pytest.mark.parametrize(
    "without, named",
    [(1, "the class c0: the model can't learn it"), (2, "one of the classes c0, c1: the model can't learn them"),
     (5, "one of the classes c0, c1, c2, c3, c4: the model can't learn them"),
     (6, "one of the classes c0, c1, c2, c3, c4 and 1 more: the model can't learn them")],
)  # fmt: skip
def test_classes_without_rows_are_named_up_to_five(without, named):
    classes = {f"c{number}": 0 if number < without else 3 for number in range(8)}
    assert warnings_for(train={"classes": classes}) == [f"No training row has {named}."]


@pytest.mark.parametrize("rows, stand", [(1, "1 stands"), (3, "3 stand")])
def test_rows_in_two_splits_are_counted_of_the_first(rows, stand):
    found = warnings_for(test={"kept": 2000, "overlaps": CLEAN["test"].overlaps | {"train": Overlap(rows)}})
    assert found == [f"Of 2,000 test rows, {stand} in the training rows too, word for word: scores may be too high."]


@pytest.mark.parametrize("groups, share", [(1, "1 shares its"), (4, "4 share their")])
def test_rows_that_share_a_group_are_counted_of_those_that_are_in_one_split(groups, share):
    found = warnings_for("author", validation={"overlaps": {"train": Overlap(3, groups)}})
    assert found[1:] == [
        f"Of the other 17 validation rows, {share} author with a training row: validation scores may be too high."
    ]
    (alone,) = warnings_for("author", validation={"overlaps": {"train": Overlap(0, groups)}})
    assert alone.startswith(f"Of 20 validation rows, {share} author ")
    assert warnings_for(validation={"overlaps": {"train": Overlap(0)}}) == []


def test_rows_that_are_cut_or_empty_are_counted():
    assert warnings_for(train={"truncated": 5}, test={"empty": {"text": 1, "title": 2, "more": 0}}) == [
        "Of 20 training rows, 5 (25.0%) were longer than tokenize.max_length and were cut.",
        "Of 20 test rows, 1 has an empty text.",
        "Of 20 test rows, 2 have an empty title.",
    ]
