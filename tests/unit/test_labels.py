"""The forms of a label: array, code, list in a file, and text."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data.labels import MultiLabel, SingleLabel, equal_rows
from stages.data.task import NO_LABEL, Task

MANY = tuple(f"c{number}" for number in range(100))


def draw(rows, classes, seed=0):
    """Random sets of classes; the first row has none, and the second has all."""
    labels = np.random.default_rng(seed).random((rows, classes)) < 0.2
    labels[0], labels[1] = False, True
    return labels


@pytest.mark.parametrize("classes", [2, 8, 62, 63, 100])
def test_codes_hold_any_set_of_any_number_of_classes(classes):
    labels, array = MultiLabel(MANY[:classes]), draw(50, classes)
    codes = labels.to_codes(array)
    assert (labels.from_codes(codes) == array).all()
    assert codes[0] == 0 and codes[1] == 2**classes - 1


def test_the_codes_of_up_to_62_classes_are_as_fast_as_class_numbers():
    assert MultiLabel(MANY[:62]).to_codes(draw(3, 62)).dtype == np.int64


@pytest.mark.parametrize("classes", [5, 100])
def test_rows_without_a_gold_label_don_t_count(classes):
    labels, array = MultiLabel(MANY[:classes]), draw(50, classes)
    codes = pd.Series([*labels.to_codes(array), NO_LABEL])
    assert labels.count(codes).tolist() == array.sum(axis=0).tolist()
    assert SingleLabel(("a", "b", "c")).count(pd.Series([0, 2, 2, NO_LABEL])).tolist() == [1, 0, 2]


@pytest.mark.parametrize("classes", [5, 100])
def test_a_parquet_file_has_lists_of_class_numbers_and_is_read_back(classes, tmp_path):
    labels, array = MultiLabel(MANY[:classes]), draw(50, classes)
    table = pd.DataFrame({"row": range(50), "label": labels.to_codes(array), "text": "x"})
    arrow = pa.Table.from_pandas(labels.to_lists(table, ["label"]), preserve_index=False).replace_schema_metadata()
    pq.write_table(arrow, tmp_path / "rows.parquet")
    assert pq.read_schema(tmp_path / "rows.parquet").field("label").type == pa.list_(pa.int32())
    assert pq.read_table(tmp_path / "rows.parquet")["label"][0].as_py() == []
    assert labels.from_lists(pd.read_parquet(tmp_path / "rows.parquet")).equals(table)
    assert (labels.from_column(pq.read_table(tmp_path / "rows.parquet")["label"]) == array).all()


def test_lists_are_read_from_a_part_of_a_table():
    labels, lists = MultiLabel(("a", "b", "c")), pa.chunked_array([[[0], [1, 2]], [[], [2]]])
    assert labels.from_column(lists.slice(1)).tolist() == [[False, True, True], [False] * 3, [False, False, True]]


def test_text_has_the_names_of_the_classes_and_nothing_for_none():
    labels = MultiLabel(("joy", "fear", "awe"))
    assert labels.names(pd.Series([0, 5, 5, 2])).tolist() == ["", "joy|awe", "joy|awe", "fear"]


def test_text_is_split_into_the_classes_that_it_names():
    labels = MultiLabel(("joy", "fear", "awe"))
    assert [labels.split(labels.name(code)) for code in (0, labels.code(1), 5)] == [[], ["fear"], ["joy", "awe"]]
    assert SingleLabel(("joy|awe", "fear")).split("joy|awe") == ["joy|awe"], "the name of one class"


def test_the_probability_of_a_set_is_that_of_all_its_decisions_together():
    probabilities = np.array([[0.9, 0.2], [0.5, 0.6]])
    labels = MultiLabel(("a", "b"))
    answers = labels.decide(probabilities)
    assert answers.tolist() == [[True, False], [False, True]]
    assert labels.answer_probability(probabilities, answers) == pytest.approx([0.9 * 0.8, 0.5 * 0.6])
    assert labels.decide(probabilities, [0.95, 0.1]).tolist() == [[False, True], [False, True]]


def test_a_threshold_replaces_the_most_probable_of_two_classes():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6]])
    labels = SingleLabel(("a", "b"))
    assert [labels.decide(probabilities, edge).tolist() for edge in (None, 0.05, 0.1)] == [[0, 1], [1, 1], [0, 1]]


@pytest.mark.parametrize("kind", [SingleLabel, MultiLabel])
def test_logits_and_their_probabilities_give_the_same_answers(kind):
    labels, logits = kind(MANY[:4]), np.random.default_rng(1).normal(size=(40, 4))
    assert (labels.decide(labels.to_probabilities(logits)) == labels.decide_by_logits(logits)).all()


def test_rows_are_equal_if_all_their_classes_are():
    first = np.array([[True, False], [False, False]])
    assert equal_rows(first, np.array([[True, False], [False, True]])).tolist() == [True, False]
    assert equal_rows(np.array([0, 1]), np.array([0, 2])).tolist() == [True, False]


def test_task_json_names_several_labels_a_row_only_if_they_are_allowed(tmp_path):
    for multi_label in (False, True):
        task = Task(("a", "b"), "{text}", None, multi_label)
        task.write(tmp_path / "task.json")
        assert ("multi_label" in (tmp_path / "task.json").read_text()) is multi_label
        assert Task.read(tmp_path / "task.json") == task
        assert task.labels.multi_label is multi_label
