"""What is said of the chosen rows before their scores."""

import copy

import pytest

from stages.data.data_warnings import find_warnings

SPLIT = {"kept": 20, "truncated": 0, "empty": {"text": 0}, "classes": {"no": 10, "yes": 10}}
NOTHING = {"rows": 0, "groups": 0}
CLEAN = {
    "train": SPLIT,
    "validation": SPLIT | {"in_train": NOTHING},
    "test": SPLIT | {"in_train": NOTHING, "in_validation": NOTHING},
}


def said(group=None, **splits):
    """The cautions of a summary in which nothing is wrong, changed at splits."""
    summary = copy.deepcopy(CLEAN)
    for split, changes in splits.items():
        summary[split] |= changes
    return find_warnings(summary, group)


def test_rows_in_which_nothing_is_wrong_need_no_caution():
    assert said() == said("author") == []


@pytest.mark.parametrize(
    "without, named",
    [(1, "the class c0: the model can't learn it"), (2, "one of the classes c0, c1: the model can't learn them"),
     (5, "one of the classes c0, c1, c2, c3, c4: the model can't learn them"),
     (6, "one of the classes c0, c1, c2, c3, c4 and 1 more: the model can't learn them")],
)  # fmt: skip
def test_classes_without_rows_are_named_up_to_five(without, named):
    classes = {f"c{number}": 0 if number < without else 3 for number in range(8)}
    assert said(train={"classes": classes}) == [f"No training row has {named}."]


@pytest.mark.parametrize("rows, stand", [(1, "1 stands"), (3, "3 stand")])
def test_rows_in_two_splits_are_counted_of_the_first(rows, stand):
    found = said(test={"kept": 2000, "in_train": {"rows": rows}})
    assert found == [f"Of 2,000 test rows, {stand} in the training rows too, word for word: scores may be too high."]


@pytest.mark.parametrize("groups, share", [(1, "1 shares its"), (4, "4 share their")])
def test_rows_that_share_a_group_are_counted_of_those_that_are_in_one_split(groups, share):
    found = said("author", validation={"in_train": {"rows": 3, "groups": groups}})
    assert found[1:] == [
        f"Of the other 17 validation rows, {share} author with a training row: validation scores may be too high."
    ]
    (alone,) = said("author", validation={"in_train": {"rows": 0, "groups": groups}})
    assert alone.startswith(f"Of 20 validation rows, {share} author ")
    assert said(validation={"in_train": {"rows": 0}}) == []


def test_rows_that_are_cut_or_empty_are_counted():
    assert said(train={"truncated": 5}, test={"empty": {"text": 1, "title": 2, "more": 0}}) == [
        "Of 20 training rows, 5 (25.0%) were longer than tokenize.max_length and were cut.",
        "Of 20 test rows, 1 has an empty text.",
        "Of 20 test rows, 2 have an empty title.",
    ]
