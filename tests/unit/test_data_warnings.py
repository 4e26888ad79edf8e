"""The sentences that warn about the rows."""

from dataclasses import replace

import numpy as np
import pytest

from stages.data.data_summary import DataSummary, Overlap, PaddingShares, SplitSummary
from stages.data.data_warnings import differ_in_classes, find_warnings, pool_rare_classes
from stages.data.task import Task

TRAIN = SplitSummary(
    rows=20, chosen=20, unlabelled=0, dropped=0, kept=20, empty={"text": 0}, truncated=0, tokens=100, tokens_mean=5.0,
    tokens_max=9, tokens_longest=9, classes={"no": 10, "yes": 10}, contradicting=0, overlaps={},
)  # fmt: skip
CLEAN = {
    "train": TRAIN,
    "validation": replace(TRAIN, overlaps={"train": Overlap(0, 0)}),
    "test": replace(TRAIN, overlaps={"train": Overlap(0, 0), "validation": Overlap(0, 0)}),
}


def warnings_for(group=None, multi_label=False, **changes):
    """The warnings about a summary in which nothing is wrong, except for the changed attributes of each split."""
    splits = {name: replace(split, **changes.get(name, {})) for name, split in CLEAN.items()}
    found = find_warnings(
        DataSummary(splits, PaddingShares(0.1, 0.2, 0.8), 128), Task(("a", "b"), "{text}", group, multi_label)
    )
    return [(warning.level, warning.text) for warning in found]


def test_rows_in_which_nothing_is_wrong_need_no_warning():
    assert warnings_for() == warnings_for("author") == []


@pytest.mark.parametrize(
    "missing, sentence",
    [(1, "the class c0: the model can't learn it"), (2, "one of the classes c0, c1: the model can't learn them"),
     (5, "one of the classes c0, c1, c2, c3, c4: the model can't learn them"),
     (6, "one of the classes c0, c1, c2, c3, c4 and 1 more: the model can't learn them")],
)  # fmt: skip
def test_up_to_five_classes_without_rows_are_named(missing, sentence):
    lacking = {f"c{number}": 0 if number < missing else 3 for number in range(8)}
    whole = {"classes": dict.fromkeys(lacking, 1)}
    warnings = warnings_for(train={"classes": lacking}, validation=whole, test=whole)
    assert warnings == [("alarm", f"No training row has {sentence}.")]


@pytest.mark.parametrize("rows, level", [(100, "warning"), (10, "alarm")])
def test_a_validation_split_that_lacks_a_class_by_chance_is_a_warning(rows, level):
    """A class with one in `rows` training rows; 60 validation rows have 0.6 or 6 of it on average."""
    train = {"classes": {"a": rows - 1, "b": 1}, "kept": rows}
    warnings = warnings_for(train=train, validation={"classes": {"a": 60, "b": 0}, "kept": 60}, test=train)
    assert [warning for warning, text in warnings if "No validation row has the class b" in text] == [level]


def uneven(train, validation, test):
    splits = {"train": train, "validation": validation, "test": test}
    rows = {name: {"classes": dict(zip(("ham", "spam"), counts, strict=True))} for name, counts in splits.items()}
    return warnings_for(**rows)


def test_classes_in_other_shares_than_in_training_are_an_alarm():
    ((level, text),) = uneven((866, 134), (87, 13), (249, 251))
    assert level == "alarm"
    assert text.startswith(
        "The classes are shared out differently: ham is 86.6% of the training rows, 87.0% of the validation rows and "
        "49.8% of the test rows. The scores hold only for "
    )
    ((level, text),) = uneven((866, 134), (50, 50), (430, 70))
    assert level == "alarm" and "The best epoch and the temperature are chosen on rows unlike those" in text


def test_a_sorted_file_sliced_in_file_order_is_named_as_the_cause():
    texts = [text for _, text in uneven((500, 300), (0, 100), (0, 100))]
    assert any(text.startswith("Training and test rows have mostly different classes: ham is 62.5% ") for text in texts)
    assert any("A sorted file gives such splits" in text for text in texts)


@pytest.mark.parametrize("classes, rows, others", [(2, 1000, 100), (3, 1000, 100), (3, 200, 20), (77, 1000, 100),
                                                   (77, 9000, 3080), (1000, 5000, 500)])  # fmt: skip
@pytest.mark.parametrize("skewed", [False, True])
def test_fewer_than_one_in_a_hundred_random_splits_raise_an_alarm(classes, rows, others, skewed):
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, classes + 1) if skewed else np.ones(classes)
    pairs = [[rng.multinomial(n, shares / shares.sum()) for n in (rows, others)] for _ in range(1000)]
    assert sum(differ_in_classes(*pair) for pair in pairs) < 5  # two pairs for each run


def test_a_sorted_file_of_many_classes_differs_and_a_small_shift_does_not():
    sorted_rows, rest = np.repeat([13, 0], [70, 7]), np.repeat([0, 14], [70, 7])
    assert differ_in_classes(sorted_rows, rest)
    assert not differ_in_classes(np.array([500_000, 500_000]), np.array([45_000, 55_000])), "significant, but 5 points"
    assert not differ_in_classes(np.array([5, 5]), np.array([2, 8])), "30 points, but not significant"
    rng, shift = np.random.default_rng(0), np.tile([0.8, 1.2], 150)  # 10 points; chance alone makes 18
    few_rows = rng.multinomial(3000, np.full(300, 1 / 300)), rng.multinomial(3000, shift / 300)
    assert np.abs(few_rows[0] - few_rows[1]).sum() / 2 / 3000 > 0.18 and not differ_in_classes(*few_rows)


def test_classes_are_pooled_until_enough_rows_are_expected_in_each_split():
    counts = np.array([[100, 1, 30, 2, 40], [10, 0, 3, 0, 4]])
    pools = pool_rare_classes(counts)
    assert pools.sum(axis=1).tolist() == counts.sum(axis=1).tolist() and pools.tolist() == [[73, 100], [7, 10]]
    assert pool_rare_classes(np.array([[9, 9], [1, 1]])).shape == (2, 1)
    assert pool_rare_classes(np.array([[4, 4, 4], [3, 3, 3]])).tolist() == [[12], [9]], "no pool is too small"


@pytest.mark.parametrize(
    "rows, sentence",
    [(1, "1 of 2,000 test rows (0.1%) is a duplicate of a training row"),
     (3, "3 of 2,000 test rows (0.1%) are duplicates of training rows")],
)  # fmt: skip
def test_duplicates_across_splits_are_counted(rows, sentence):
    overlaps = CLEAN["test"].overlaps | {"train": Overlap(rows)}
    warnings = warnings_for(test={"kept": 2000, "overlaps": overlaps})
    assert warnings == [("warning", f"{sentence}: scores may be too high.")]


@pytest.mark.parametrize("groups, of, share", [(1, "1 of", "shares its"), (4, "4 of", "share their")])
def test_rows_that_share_a_group_are_counted_among_those_without_a_duplicate(groups, of, share):
    warnings = warnings_for("author", validation={"overlaps": {"train": Overlap(3, groups)}})
    sentence = f"the other 17 validation rows {share} author with a training row: validation scores may be too high."
    assert warnings[1:] == [("warning", f"{of} {sentence}")]
    ((_, warning),) = warnings_for("author", validation={"overlaps": {"train": Overlap(0, groups)}})
    assert warning.startswith(f"{of} 20 validation rows {share} author ")
    assert warnings_for(validation={"overlaps": {"train": Overlap(0)}}) == []


def test_empty_texts_are_counted():
    assert warnings_for(test={"empty": {"text": 1, "title": 2, "more": 0}}) == [
        ("warning", "1 of 20 test rows (5.0%) has an empty text."),
        ("warning", "2 of 20 test rows (10.0%) have an empty title."),
    ]


def test_truncated_rows_of_all_splits_are_one_sentence_and_alarms_come_first():
    """More than a fifth of a split is an alarm."""
    split = {"truncated": 4, "tokens_longest": 150}
    rest = (
        "were longer than tokenize.max_length: 128, the longest has {} tokens; the end of their longest text was cut."
    )
    assert warnings_for(train=split) == [("warning", f"4 of 20 training rows (20.0%) {rest.format(150)}")]
    others = {"validation": {"truncated": 1, "tokens_longest": 129}, "test": {"truncated": 5, "tokens_longest": 1312}}
    assert warnings_for(train=split | {"empty": {"text": 1}}, **others) == [
        ("alarm", "4 of 20 training rows (20.0%), 1 of 20 validation rows (5.0%) and 5 of 20 test rows (25.0%) "
         f"{rest.format('1,312')} Set a larger tokenize.max_length, or take a model with a longer input."),
        ("warning", "1 of 20 training rows (5.0%) has an empty text."),
    ]  # fmt: skip
    ((_, one),) = warnings_for(validation=others["validation"])
    assert one == (
        "1 of 20 validation rows (5.0%) was longer than tokenize.max_length: 128, the longest has 129 tokens; the end "
        "of its longest text was cut."
    )


def several(train, test, rows=1000, **changes):
    """Warnings about the labels a, b, … of rows that may have several; the numbers are of 1,000 rows each."""
    counts = {"train": train, "validation": train, "test": test}
    labels = {split: dict(zip("abcdef", of_split, strict=False)) for split, of_split in counts.items()}
    of_rows = {"kept": rows, "without_labels": 0} | changes
    return warnings_for(multi_label=True, **{split: {"classes": labels[split], **of_rows} for split in counts})


def test_shares_of_labels_are_of_the_rows_and_each_label_is_compared_by_itself():
    assert several((500, 300, 100), (480, 320, 100)) == []
    ((level, text),) = several((500, 300, 100), (500, 300, 300))
    assert level == "alarm"
    assert text.startswith(
        "The labels are shared out differently: c is a label of 10.0% of the training rows, 10.0% of the validation "
        "rows and 30.0% of the test rows. The scores hold only for data whose labels are distributed as in the test "
    )
    ((_, text),) = several((900, 300), (100, 300))
    assert text.startswith("Training and test rows have mostly different labels: a is a label of 90.0% of ")


@pytest.mark.parametrize("labels", [6, 50])
def test_fewer_than_one_in_a_hundred_random_splits_of_labels_raise_an_alarm(labels):
    rng, shares = np.random.default_rng(0), np.geomspace(0.5, 0.02, labels)
    rows = {"train": 400, "validation": 40, "test": 40}
    alarms = 0
    for _ in range(200):
        counts = {
            split: dict(zip(map(str, range(labels)), rng.binomial(n, shares), strict=True)) for split, n in rows.items()
        }
        changes = {split: {"classes": counts[split], "kept": n, "without_labels": 0} for split, n in rows.items()}
        alarms += any("shared out" in text for _, text in warnings_for(multi_label=True, **changes))
    assert alarms < 2


def test_rows_without_labels_are_counted_and_a_missing_one_is_called_a_label():
    assert several((500, 300), (500, 300), without_labels=100) == [
        ("warning", "10.0% of the training, 10.0% of the validation and 10.0% of the test rows have none of the "
         "labels. They are kept: for such a row, none is the right answer.")
    ]  # fmt: skip
    assert ("alarm", "No test row has the label b: nothing is known about it.") in several((500, 300), (500, 0))
    assert any("has one of the labels b, c" in text for _, text in several((500, 300, 300), (500, 0, 0)))
