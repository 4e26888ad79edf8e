"""The label column: labels of every type are matched with classes by name, or rejected with an error of one line."""

import datasets
import pyarrow as pa
import pytest
from helpers.tables import SPLITS, arrow, data_params

from stages.data import label_column
from stages.runtime import params
from stages.runtime.errors import UserError

NLI = ("entailment", "neutral", "contradiction")


def table_of(labels):
    """A table with a label column of text, integers, …, or of a ClassLabel as (names, codes)."""
    if isinstance(labels, tuple):
        names, codes = labels
        features = {name: datasets.Value("string") for name in ("premise", "hypothesis")}
        texts = ["x"] * len(codes)
        declared = features | {"label": datasets.ClassLabel(names=names)}
        table = arrow(declared, premise=texts, hypothesis=texts, label=codes)
    else:
        table = pa.table({"label": labels})
    return table


def read(labels, split="test"):
    return label_column.read_label_columns({split: table_of(labels)}, "label")[0]


def inferred(*columns):
    return label_column.resolve_classes(
        label_column.read_label_columns(dict(enumerate(map(table_of, columns))), "label"), None
    )


def codes(labels, names=NLI):
    return label_column.encode_labels(read(labels), names).tolist()


def error_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- labels that match classes by name ---


@pytest.mark.parametrize(
    "labels",
    [
        ["entailment", "contradiction", "neutral"],
        ["Entailment ", " CONTRADICTION", "neutral"],
        [0, 2, 1],
        [-0.0, 2.0, 1.0],
        (["entailment", "neutral", "contradiction"], [0, 2, 1]),
        (["contradiction", "Neutral ", "entailment"], [2, 0, 1]),
        pa.array([0, 2, 1], pa.int8()),
        pa.array(["entailment", "contradiction", "neutral"], pa.large_string()),
    ],
    ids=[
        "text",
        "case and blanks",
        "integers",
        "whole floats",
        "ClassLabel",
        "ClassLabel in another order",
        "int8",
        "large text",
    ],
)
def test_labels_of_every_type_become_the_same_classes(labels):
    assert codes(labels) == [0, 2, 1]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([1, 5, 3], ("1", "2", "3", "4", "5"), [0, 4, 2]),
        ([-1, 1, 0], ("-1", "0", "1"), [0, 2, 1]),
        ([True, False], ("False", "True"), [1, 0]),
        ([True, False], ("true", "false"), [0, 1]),
        (["Co", "CO", "co2"], ("CO", "Co", "co2"), [1, 0, 2]),
        (["-", "+"], ("+", "-"), [1, 0]),
        (["10", "2"], ("2", "10"), [1, 0]),
    ],
    ids=[
        "stars",
        "minus one is a class",
        "booleans",
        "booleans by name",
        "case matters",
        "a dash is a class",
        "digits",
    ],
)
def test_integers_booleans_and_marks_are_matched_as_text(labels, names, expected):
    assert codes(labels, names) == expected


@pytest.mark.parametrize(
    "labels",
    [
        ["entailment", "-", "neutral"],
        ["entailment", None, "neutral"],
        ["entailment", "", "neutral"],
        ["entailment", "  ", "neutral"],
        [0, -1, 1],
        [0, None, 1],
        [0.0, None, 1.0],
        pa.array([0.0, float("nan"), 1.0]),
        ["0", "-1", "1"],
        ["0", "-", "1"],
        ["0.0", "-1.0", "1.0"],
        (list(NLI), [0, -1, 1]),
        (list(NLI), [0, None, 1]),
    ],
    ids=[
        "dash",
        "null",
        "empty",
        "blank",
        "-1",
        "null among integers",
        "null among floats",
        "NaN",
        "text -1",
        "dash among digits",
        "text -1.0",
        "ClassLabel -1",
        "ClassLabel null",
    ],
)
def test_every_mark_of_an_unlabelled_row_is_recognized(labels):
    assert codes(labels) == [0, -1, 1]


def test_a_column_of_nulls_has_no_labels():
    assert codes(pa.nulls(2)) == [-1, -1]


# --- numbers as text, as in a csv file ---


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["0", "2", "1"], NLI, [0, 2, 1]),
        (["0.0", "2.0", "1.0"], NLI, [0, 2, 1]),
        (["01", "02"], ("01", "02"), [0, 1]),
        (["1", "01"], ("01", "1"), [1, 0]),
        (["1.10", "1.1"], ("1.1", "1.10"), [1, 0]),
        (["1e3", "1000"], ("1000", "1e3"), [1, 0]),
        (["0.5", "1.0"], ("0.5", "1.0"), [0, 1]),
        (["1", "1a"], ("1a", "1"), [1, 0]),
        (["5.0", "4.0"], ("4", "5"), [1, 0]),
        (["5.0", "4.0"], ("4.0", "5.0"), [1, 0]),
    ],
    ids=["numbers", "whole floats", "codes", "a code and a number", "versions", "exponent", "half stars", "a letter",
         "whole floats by name", "whole floats as text"],
)  # fmt: skip
def test_digits_are_class_numbers_if_they_are_integers_and_no_class_is_a_number(labels, names, expected):
    assert codes(labels, names) == expected


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("names", [("0.1", "1", "1.5"), ("0.1", "1.0", "1.50")])
def test_fractions_are_classes_if_they_are_listed(kind, names):
    assert codes(pa.array([1.5, 0.1, 1.0, None], kind), names) == [2, 0, 1, -1]


def test_a_number_next_to_names_is_a_name():
    assert codes(["1", "a"], ("1", "a")) == [0, 1]
    assert "has '1.0' in row 0, counted from 0" in error_of(codes, ["1.0", "a"], ("1", "a"))


def test_a_split_with_only_digits_is_read_like_the_other_splits():
    """`1` is not the number of a class if another split has `1a`."""
    splits = {"train": table_of(["1", "2", "1a"]), "test": table_of(["2", "1"])}
    test = label_column.read_label_columns(splits, "label")[1]
    assert error_of(label_column.encode_labels, test, NLI).startswith(
        "data: split 'test': column 'label' has '2' in row 0, counted from 0; "
    )
    assert label_column.encode_labels(test, ("1a", "2", "1")).tolist() == [1, 2]


def test_integers_are_the_same_classes_in_splits_with_and_without_missing_values():
    """pandas writes 1.0 into a csv file with missing values, and 1 into another."""
    splits = {"train": table_of(["0.0", "1.0", None]), "test": table_of(["1", "0"])}
    labels = label_column.read_label_columns(splits, "label")
    for names in (("no", "yes"), label_column.resolve_classes(labels, None)):
        assert [label_column.encode_labels(one, names).tolist() for one in labels] == [[0, 1, -1], [1, 0]]


def test_integers_are_matched_by_name_if_one_class_is_a_number():
    assert codes([1, 2], ("2", "1", "none")) == [1, 0]


@pytest.mark.parametrize("number", [1e19, -1e19])
def test_a_number_beyond_int64_is_not_a_class(number):
    assert f"'{number:.0f}' in row 1, counted from 0" in error_of(codes, pa.array([0, number], pa.float64()))


def test_the_name_of_a_type_with_many_fields_is_shortened():
    line = error_of(codes, [{f"{row}": "a" for row in range(1000)}] * 2)
    assert line.startswith("params.yaml: data.label: label: holds struct<") and len(line) < 250


# --- labels that are rejected ---


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["entailment", "maybe"], "'maybe' in row 1, counted from 0; data.classes: entailment, neutral, contradiction"),
        ([0, 3], "'3' in row 1, counted from 0; data.classes: 0 (entailment), 1 (neutral), 2 (contradiction)"),
        ([-2, 0], "'-2' in row 0, counted from 0"),
        ([True, False], "'True' in row 0, counted from 0"),
        (
            (["entailment", "neutral"], [0, 1]),
            "has the classes entailment, neutral; data.classes: entailment, neutral, c",
        ),
        ((["yes", "maybe", "no"], [0, 1]), "has the classes yes, maybe, no; data.classes: entailment, neutral, contra"),
        ((["neutral", "entailment", "contradiction", "hidden"], [0, 1]), "hidden; data.classes"),
    ],
)
def test_a_label_that_is_not_a_class_is_named_with_its_row(labels, message):
    line = error_of(codes, labels)
    assert line.startswith("data: split 'test': column 'label' ")
    assert message in line


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.0], "classes are supported, not numbers to be predicted"),
        ([float("inf"), 1.0], "not numbers to be predicted"),
        ([{"a": 1}, {"a": 2}], "text, integers, booleans or ClassLabel"),
        ([b"a", b"b"], "text, integers"),
    ],
)
def test_labels_of_other_types_are_rejected(labels, message):
    line = error_of(codes, labels)
    assert line.startswith("params.yaml: data.label: label: holds ")
    assert message in line


def test_a_code_that_the_class_label_does_not_declare_is_rejected():
    features = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    table = pa.table({"label": [0, 7]}).replace_schema_metadata(features.arrow_schema.metadata)
    line = error_of(label_column.read_label_columns, {"test": table}, "label")
    assert line.endswith("has 7 in row 1, counted from 0; allowed: -1 to 1 (a, b)")


# --- classes that are not listed in params.yaml ---


def test_listed_classes_keep_the_order_of_the_list():
    labels = [read(["b", "a", "c"])]
    assert label_column.resolve_classes(labels, ["c", "b", "a"]) == ("c", "b", "a")


def test_a_negative_integer_or_a_known_mark_may_mean_no_label():
    assert "has -2, which may be a class or no label" in error_of(inferred, [-2, 1] * 9)
    assert inferred(["-2 degrees", "warm"] * 9) == ("-2 degrees", "warm")


def test_an_infinite_label_is_not_a_class():
    assert "not numbers to be predicted" in error_of(inferred, [float("inf"), 1.0] * 9)


def test_few_rows_may_have_up_to_twenty_classes():
    names = [f"class {row:02}" for row in range(21)]
    assert inferred(names[:20]) == tuple(names[:20])
    assert "21 different values in 21 labelled rows" in error_of(inferred, names)


def test_an_error_lists_only_some_of_many_classes():
    line = error_of(codes, ["x"], [f"class {number}" for number in range(900)])
    assert "has 'x' in row 0, counted from 0; data.classes: class 0, class 1, " in line
    assert line.endswith("…") and len(line) < 600


def test_declared_classes_keep_their_order():
    assert inferred((["b", "c", "a"], [0, 1]), (["b", "c", "a"], [2, 2])) == ("b", "c", "a")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ((["b", "a", "b", "a"], ["c", "c"]), ("a", "b", "c")),
        (([10, 9, 2, 10, 9, 2], [2, 10]), ("2", "9", "10")),
        (([True, False, True, False],), ("False", "True")),
        ((["a ", "a", "b", None, ""],), ("a", "b")),
        ((["10", "9", "10", "9"], ["2"] * 2), ("2", "9", "10")),
        ((["10.0", "9.0", None] * 2,), ("9.0", "10.0")),
        ((["10.0", "9.0", None] * 2, ["10", "9"]), ("9", "10")),
        ((["01", "02", "01"], ["1a"] * 2), ("01", "02", "1a")),
        ((["10", "010", "9"] * 2,), ("010", "10", "9")),
        (([1.0, None, 10.0], [2.0, 1.0, 2.0]), ("1", "2", "10")),
    ],
)
def test_undeclared_classes_are_the_sorted_labels_of_all_splits(columns, expected):
    assert inferred(*columns) == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([-1, 0, 1],), "has -1, which may be a class or no label"),
        ((["a", "b", "-"] * 9,), "has -, which may be a class or no label"),
        ((["a", "b"] * 9, [0, 1]), "in one split than in another"),
        (((["a", "b"], [0, 1]), (["b", "a"], [0, 1])), "in one split than in another"),
        ((["0", "1", "-1"] * 9,), "has -1, which may be a class or no label"),
        ((["0", "1", "-"] * 9,), "has -, which may be a class or no label"),
        (([0.5, 1.0] * 9,), "numbers such as 0.5, which may be classes or numbers to be predicted"),
        ((["0.5", "1.0"] * 9,), "numbers such as 0.5, which may be classes or numbers to be predicted"),
        (([1.0, 2.0], [1.5, 2.0]), "numbers such as 1.5, which may be classes"),
        (([row + 0.5 for row in range(40)],), "data.label: label: holds numbers such as 0.5 in split '0'; classes are"),
        (([f"{row}.5" for row in range(40)],), "; classes are supported, not numbers to be predicted"),
        ((["a"] * 9,), "1 different values in 9 labelled rows; allowed: 2 to 1000"),
        (([f"id {i}" for i in range(30)],), "30 different values in 30 labelled rows"),
        ((["Yes", "yes", "no"] * 9,), "Yes, yes, which differ only in case"),
        (([None, None],), "0 different values"),
    ],
)
def test_labels_that_may_not_be_classes_are_rejected(columns, message):
    line = error_of(inferred, *columns)
    assert message in line
    assert "data.classes" in line or "data.label" in line or "column 'label'" in line


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "must name 2 to 1,000 classes, not ['a']"),
        ([f"class {i}" for i in range(1001)], "must name 2 to 1,000 classes, not ['class 0', "),
        (["a", " "], "classes.1: must not be blank and must not contain NUL, not ''"),
        (["a", "b\0"], "classes.1: must not be blank and must not contain NUL, not 'b\\x00'"),
        (["a", "b", "a "], "must name each class once ('a' is there twice)"),
    ],
    ids=["one", "1,001", "a blank one", "one with NUL", "a duplicate"],
)
def test_declared_classes_obey_the_rules_of_data_classes(names, message):
    line = error_of(inferred, (names, [0]))
    assert line.startswith("data: column 'label': classes")
    assert message in line
    with pytest.raises(UserError) as caught:
        params.validate(data_params().model_dump() | {"classes": names}, params.Data, "params.yaml")
    assert message.split(", not ")[0] in str(caught.value)


def test_a_thousand_declared_classes_are_allowed():
    names = [f"class {i}" for i in range(1000)]
    assert inferred((names, [0, 999])) == tuple(names)


def test_case_matters_if_two_classes_differ_only_in_case():
    assert error_of(codes, ["CO", "Co", "co"], ("CO", "Co")).count("'co' in row 2, counted from 0") == 1


def test_a_label_column_knows_its_split():
    assert [read(["a"], split).split for split in SPLITS] == list(SPLITS)
