"""`--column`: the map from the template's columns to the file's."""

import argparse

import pyarrow as pa
import pytest

from stages.runtime.errors import UserError
from tools.column_map import add_column_argument, parse_column_map
from tools.evaluate.read_set import check_columns
from tools.predict.read_tables import describe_missing

COLUMNS = ("premise", "hypothesis")


def test_columns_that_are_not_mapped_keep_their_name():
    assert parse_column_map([], COLUMNS) == {"premise": "premise", "hypothesis": "hypothesis"}
    mapped = parse_column_map(["hypothesis=a = b"], COLUMNS)
    assert list(mapped.items()) == [("premise", "premise"), ("hypothesis", "a = b")]


@pytest.mark.parametrize(
    "pairs, message",
    [
        (["premise"], "--column premise: must be COLUMN=COLUMN, such as premise=premise"),
        (["premise="], "--column premise=: must be COLUMN=COLUMN"),
        (["text=a"], "--column text=a: the template has no column text; it has premise, hypothesis"),
        (["premise=a", "premise=b"], "--column premise=b: premise is read from a already"),
    ],
)
def test_the_error_names_the_pair(pairs, message):
    with pytest.raises(UserError) as caught:
        parse_column_map(pairs, COLUMNS)
    assert str(caught.value).startswith(message)


def test_a_suggested_name_is_quoted_for_the_shell():
    with pytest.raises(UserError, match=r"such as 'the premise'='a b'$"):
        parse_column_map(["a b"], ("the premise",))
    assert str(describe_missing("in.csv", ["the premise"], [])).endswith("--column 'the premise'=COLUMN")
    with pytest.raises(UserError, match=r"--column 'the premise'=COLUMN$"):
        check_columns(pa.table({"a": ["text"]}), {"the premise": "the premise"}, (), "in.csv")


def test_the_option_may_be_repeated():
    parser = argparse.ArgumentParser()
    add_column_argument(parser)
    assert parser.parse_args(["--column", "premise=a", "--column", "hypothesis=b"]).columns == [
        "premise=a",
        "hypothesis=b",
    ]
    assert parser.parse_args([]).columns == []
