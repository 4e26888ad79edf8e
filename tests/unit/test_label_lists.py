"""Several labels a row: three forms of the same labels are read alike, or rejected with an error of one line."""

import datasets
import pyarrow as pa
import pytest

from stages.data.label_column import encode_labels, read_label_columns, resolve_classes
from stages.runtime.errors import UserError

NAMES = ("awe", "fear", "joy")
ROWS = [["joy"], [], ["fear", "awe"], ["awe"]]
CODES = [4, 0, 3, 1]  # sums of 2**class


TEXT_LISTS = pa.list_(pa.string())


def lists(rows, kind=TEXT_LISTS):
    return pa.table({"tags": pa.array(rows, kind)})


def texts(rows, separator="|"):
    return pa.table({"tags": [separator.join(row) for row in rows]})


def flags(rows=ROWS, names=NAMES, **columns):
    return pa.table({name: [int(name in row) for row in rows] for name in names} | columns)


def yes_or_no():
    """Columns of a ClassLabel whose codes 0 and 1 mean yes and no."""
    features = datasets.Features(dict.fromkeys(NAMES, datasets.ClassLabel(names=["yes", "no"])))
    return datasets.Dataset.from_dict({name: [1, 0] for name in NAMES}, features=features).data.table


def codes(table, label="tags", separator=None, classes=None):
    columns = read_label_columns({"train": table}, label, separator)
    return encode_labels(columns[0], resolve_classes(columns, classes)).tolist()


def error_of(table, label="tags", separator=None, classes=None):
    with pytest.raises(UserError) as caught:
        codes(table, label, separator, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def declared(rows):
    features = datasets.Features({"tags": datasets.List(datasets.ClassLabel(names=list(NAMES)))})
    rows = datasets.Dataset.from_dict(
        {"tags": [[NAMES.index(name) for name in row] for row in rows]}, features=features
    )
    return rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)


@pytest.mark.parametrize(
    ("table", "label", "separator"),
    [
        (lists(ROWS), "tags", None),
        (lists(ROWS, pa.large_list(pa.large_string())), "tags", None),
        (declared(ROWS), "tags", None),
        (texts(ROWS), "tags", "|"),
        (texts([[" joy"], [" "], ["fear ", "awe", ""], ["awe"]]), "tags", "|"),
        (texts(ROWS, ", "), "tags", ","),
        (texts(ROWS, ";"), "tags", "; "),
        (texts(ROWS, " "), "tags", " "),
        (lists([["joy", ""], [""], [" ", "fear", "awe"], ["awe"]]), "tags", None),
        (flags(), list(NAMES), None),
        (flags(joy=["1", "0", "0", "0"], awe=[False, False, True, True], fear=[0.0, 0.0, 1.0, 0.0]), list(NAMES), None),
    ],
)
def test_all_forms_give_the_same_codes(table, label, separator):
    assert codes(table, label, separator) == CODES


def test_the_classes_are_in_the_order_of_data_classes():
    assert codes(lists(ROWS), classes=["joy", "fear", "awe"]) == [1, 0, 6, 4]
    assert codes(flags(), list(NAMES), classes=["joy", "fear", "awe"]) == [1, 0, 6, 4]


def test_integers_are_the_positions_of_the_classes():
    assert codes(pa.table({"tags": [[2], [], [1, 0]]}), classes=NAMES) == [4, 0, 3]
    assert codes(pa.table({"tags": ["2", "", "1|0"]}), separator="|", classes=NAMES) == [4, 0, 3]


@pytest.mark.parametrize(
    ("table", "label", "separator"),
    [
        (lists([["joy"], None, ["awe"]]), "tags", None),
        (lists([["joy"], ["-"], ["awe"]]), "tags", None),
        (texts([["joy"], ["-1"], ["awe"]]), "tags", "|"),
        (pa.table({"awe": [0, None, 1], "joy": [1, None, 0], "fear": [0, None, 0]}), list(NAMES), None),
        (pa.table({"awe": [0, -1, 1], "joy": [1, -1, 0], "fear": [0, -1, 0]}), list(NAMES), None),
        (pa.table({"awe": ["0", "-", "1"], "joy": ["1", "", "0"], "fear": ["0", "-1", "0"]}), list(NAMES), None),
    ],
)
def test_a_row_without_a_gold_label_is_not_a_row_without_labels(table, label, separator):
    assert codes(table, label, separator, NAMES) == [4, -1, 1]


def test_one_column_in_lists_of_one_is_still_several_labels_a_row():
    assert read_label_columns({"train": lists([["a"], ["b"]])}, "tags")[0].missing is not None
    assert read_label_columns({"train": pa.table({"tags": ["a", "b"]})}, "tags")[0].missing is None


@pytest.mark.parametrize(
    ("table", "label", "separator", "expected"),
    [
        (lists([["joy"], ["awe", "joy", "awe"]]), "tags", None, "has 'awe' twice in row 1, counted from 0"),
        (texts([["joy"], ["awe", "Awe"]]), "tags", "|", "has 'Awe' twice in row 1, counted from 0"),
        (lists([["joy"], ["awe", "anger"]]), "tags", None, "has 'anger' in row 1, counted from 0; data.classes: awe"),
        (lists([["joy", "-"]]), "tags", None, "has - next to labels in row 0, counted from 0"),
        (lists([["joy", None]]), "tags", None, "has an empty value next to labels in row 0, counted from 0"),
        (lists([[0, 1], [1, 0]], None), "tags", None, "'tags' holds vectors of 0 and 1, such as [0, 1]; allowed"),
        (lists([[1.0, 1.0, 0.0]], None), "tags", None, "holds vectors of 0 and 1, such as [1.0, 1.0, 0.0]"),
        (lists([[True], [False]], None), "tags", None, "holds vectors of 0 and 1, such as [True]"),
        (lists([["0", "1"], ["1", "1"]]), "tags", None, "holds vectors of 0 and 1, such as ['0', '1']"),
        (yes_or_no(), list(NAMES), None, "column 'awe' has no in row 0, counted from 0; allowed in each column"),
        (flags(joy=[0, 2, 0, 0]), list(NAMES), None, "column 'joy' has 2 in row 1, counted from 0; allowed in each"),
        (flags(joy=["no", "0", "0", "0"]), list(NAMES), None, "column 'joy' has no in row 0, counted from 0"),
        (flags(joy=[0, None, 0, 0]), list(NAMES), None, "column 'joy' is empty in row 1, counted from 0, but other"),
        (flags(joy=[0, 0, -1, 0]), list(NAMES), None, "column 'joy' has -1 in row 2, counted from 0, but other"),
        (flags(joy=[0, -2, 0, 0]), list(NAMES), None, "column 'joy' has -2 in row 1, counted from 0; allowed in each"),
        (lists(ROWS), "tags", "|", "params.yaml: data.separator: |: column 'tags' holds lists in split 'train'"),
        (pa.table({"tags": [1, 2]}), "tags", "|", "holds int64 in split 'train'; allowed with data.separator: |: text"),
        (pa.table({"tags": [[[1]], [[2]]]}), "tags", None, "in split 'train'; text, integers"),
        (pa.table({"tags": [[0.5], [0.25]]}), "tags", None, "not numbers to be predicted"),
    ],
)  # fmt: skip
def test_a_label_that_could_be_read_wrongly_is_one_line(table, label, separator, expected):
    assert expected in error_of(table, label, separator, NAMES)


def test_a_name_may_not_have_the_character_that_joins_names():
    assert "the class 'a|b' has a |" in error_of(lists([["a|b"], ["c"]]))


def test_lists_in_one_split_only_are_one_line():
    with pytest.raises(UserError, match="holds lists in split 'train', but string in split 'test'; allowed: lists in"):
        read_label_columns({"train": lists(ROWS), "test": pa.table({"tags": ["joy"]})}, "tags")
