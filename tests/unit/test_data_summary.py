"""The counts of each split's rows, and the JSON file that holds them."""

import json

import pandas as pd
from helpers.memory import traced_peak
from helpers.tables import template_of

from stages.data.data_summary import (
    DataSummary,
    Overlap,
    PaddingShares,
    SplitSummary,
    count_contradicting,
    count_overlap,
    summarize_split,
)
from stages.data.task import Task

CLASSES, COLUMNS = ("entailment", "neutral", "contradiction"), ("premise", "hypothesis")
TASK = Task(CLASSES, template_of(COLUMNS), "premise")


def frame(*rows):
    """Rows as `prepare_rows` returns them."""
    table = pd.DataFrame(rows, columns=["text_premise", "text_hypothesis", "label"])
    return table.assign(group=table["text_premise"])


def test_the_summary_counts_chosen_dropped_empty_and_truncated_rows():
    chosen = frame(("a", "b", 0), ("c", "d", -1), ("a", "b", 2), ("e", " ", 2), ("g", "h", -1))
    tokenized = chosen.iloc[[0, 2, 3]].assign(
        input_ids=[[1, 2, 3], [1], [1, 2]], truncated=[True, False, False], full_length=[7, 1, 2]
    )
    train = frame(("a", "b", 0))
    summary = summarize_split(pd.concat([chosen] * 3), chosen, tokenized, TASK, {"train": train})
    assert summary == SplitSummary(
        rows=15,
        chosen=5,
        unlabelled=2,
        dropped=2,
        kept=3,
        empty={"premise": 0, "hypothesis": 1},
        truncated=1,
        tokens=6,
        tokens_mean=2.0,
        tokens_max=3,
        tokens_longest=7,
        classes={"entailment": 1, "neutral": 0, "contradiction": 2},
        contradicting=2,
        overlaps={"train": Overlap(rows=2, groups=0)},
    )
    assert summarize_split(chosen, chosen[:3], tokenized, TASK, {}).unlabelled == 1


def test_the_json_file_has_the_same_keys_in_the_same_order_after_reading_and_writing(tmp_path):
    split = {
        "rows": 12, "chosen": 4, "unlabelled": 2, "dropped": 2, "kept": 2, "empty": {"in_train": 1}, "truncated": 1,
        "tokens": 4, "tokens_mean": 2.0, "tokens_max": 3, "tokens_longest": 7,
        "classes": {"no": 1, "yes": 1}, "contradicting": 2,
    }  # fmt: skip
    summary = {
        "train": split,
        "padding": {"as_set": 0.1, "random_order": 0.2, "to_max_length": 0.8},
        "max_length": 128,
        "validation": split | {"in_train": {"rows": 1, "groups": 0}},
        "test": split | {"in_train": {"rows": 0}, "in_validation": {"rows": 2}},
    }
    read = DataSummary.from_json(summary)
    assert read.padding == PaddingShares(0.1, 0.2, 0.8)
    assert read.splits["validation"].overlaps == {"train": Overlap(1, 0)}
    assert read.splits["test"].overlaps == {"train": Overlap(0), "validation": Overlap(2)}
    read.write(tmp_path / "summary.json")
    assert (tmp_path / "summary.json").read_text() == json.dumps(summary, indent=2) + "\n"
    assert DataSummary.read(tmp_path / "summary.json") == read


def test_duplicates_and_shared_groups_are_counted():
    train = frame(("a", "b", 0), ("c", "d", 1), ("e", "f", 2))
    rows = frame(("a", "b", 0), ("a", "b", 2), ("c", "x", 1), ("y", "f", 2), ("a", "d", 0))
    assert count_overlap(rows, train, TASK) == Overlap(rows=2, groups=2), "a row is counted once"
    assert count_overlap(rows.iloc[3:4], train, TASK) == Overlap(rows=0, groups=0)
    assert count_overlap(rows.iloc[4:], train, TASK) == Overlap(0, 1), "each text is in train, but in different rows"
    assert count_overlap(rows, train, Task(CLASSES, template_of(COLUMNS), None)) == Overlap(rows=2, groups=None)


def test_rows_with_equal_texts_contradict_one_another_if_their_labels_differ():
    """a b has two labels in three rows, c d one in two; e shares only one of its texts."""
    rows = frame(("a", "b", 0), ("c", "d", 1), ("a", "b", 2), ("e", "b", 2), ("c", "d", 1), ("a", "b", 0))
    assert count_contradicting(rows, TASK) == 3
    assert count_contradicting(rows[1:2], TASK) == 0


def test_duplicates_are_found_whatever_their_row_numbers():
    """The rows of a split have their numbers in the whole split as index, and some numbers are missing."""
    train = frame(("c", "d", 1), ("a", "b", 0))
    rows = frame(("x", "y", 0), ("a", "z", 0), ("a", "b", 0), ("c", "q", 0))[1:]
    assert count_overlap(rows, train, TASK) == Overlap(rows=1, groups=2)


def test_counting_duplicates_makes_no_python_object_of_each_text():
    train = frame(*((f"premise {row}", f"hypothesis {row}", 0) for row in range(20_000)))
    overlaps = []
    peak = traced_peak(lambda: overlaps.append(count_overlap(train[:100], train, TASK)))
    assert overlaps == [Overlap(rows=100, groups=0)]
    assert peak / 20_000 < 30


def test_rows_without_labels_are_counted_only_where_rows_may_have_several():
    task = Task(CLASSES, template_of(COLUMNS), "premise", multi_label=True)
    rows = frame(("a", "b", 5), ("c", "d", 0), ("e", "f", 4), ("g", "h", -1))  # codes: sums of 2**class
    tokenized = rows[:3].assign(input_ids=[[1]] * 3, truncated=False, full_length=1)
    summary = summarize_split(rows, rows, tokenized, task, {})
    assert (summary.without_labels, summary.unlabelled) == (1, 1)
    assert summary.classes == {"entailment": 1, "neutral": 0, "contradiction": 2}
    assert SplitSummary.from_json(summary.to_json()) == summary
    single = summarize_split(rows, rows, tokenized.assign(label=[0, 0, 1]), TASK, {})
    assert "without_labels" not in single.to_json()
