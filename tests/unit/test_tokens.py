"""From texts to tokens: the template, and the cut of what is too long."""

import json

import pandas as pd
import pytest
from helpers.memory import traced_peak
from helpers.parameters import manifest_of
from helpers.project import NANO

from stages.runtime.errors import UserError
from stages.task import tokens
from stages.task.tokens import load_tokenizer

TEMPLATE = "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"


def frame(premise, hypothesis):
    return pd.DataFrame({"text_premise": [premise], "text_hypothesis": [hypothesis]})


@pytest.fixture(scope="module")
def words():
    return load_tokenizer(manifest_of(NANO))


def encoded(words, premise, hypothesis, max_length=128, template=TEMPLATE):
    return tokens.tokenize(frame(premise, hypothesis), words, template, max_length).iloc[0]


def test_progress_counts_rows(words):
    told = []
    tokens.tokenize(pd.concat([frame("a man sleeps", "a man runs")] * 2500), words, TEMPLATE, 128, told.append)
    assert told == [1000, 1000, 500]


def test_many_rows_are_never_all_python_objects(words):
    """All rows' texts and tokens as lists would take 1,000 bytes a row; a thousand rows' take 70 a row of 20,000."""
    rows = pd.concat([frame("a man sleeps", "a man runs")] * 20_000, ignore_index=True)
    made = []
    peak = traced_peak(lambda: made.append(tokens.tokenize(rows, words, TEMPLATE, 128)))
    assert len(made[0]) == 20_000 and made[0]["input_ids"].map(len).min() > 10
    assert peak / 20_000 < 300


def test_braces_in_a_text_are_text():
    texts = {"premise": "{hypothesis} {0} \\1", "hypothesis": "{premise}"}
    assert tokens.fill("P: {premise} H: {hypothesis}.", texts) == "P: {hypothesis} {0} \\1 H: {premise}."


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("Text: {text}\nTopic:", ("text",)),
        ("{b} {a} {b}", ("b", "a")),
        ('{"title": "{Review Title}", "n": {n}}', ("Review Title", "n")),
        ("{größe} {a.b} {{x}}", ("größe", "a.b", "x")),
    ],
)
def test_a_template_names_its_columns_in_its_order(template, columns):
    assert tokens.columns_of(template) == columns


def test_a_column_may_stand_twice_and_other_braces_stay():
    assert tokens.fill('{"a": {a}, "again": {a}}', {"a": "x"}) == '{"a": x, "again": x}'


def test_of_three_texts_the_longest_is_cut(words):
    table = pd.DataFrame({"text_a": ["a man"], "text_b": ["sleeps " * 200], "text_c": ["a dog runs"]})
    row = tokens.tokenize(table, words, "{a} | {b} | {c}.", 48).iloc[0]
    text = words.decode(row["input_ids"])
    assert row["truncated"] and 45 <= len(row["input_ids"]) <= 48
    assert text.startswith("a man | sleeps sleeps") and text.endswith(" | a dog runs.")


def test_one_text_is_cut_before_the_templates_end(words):
    row = tokens.tokenize(pd.DataFrame({"text_text": ["a man " * 200]}), words, "Text: {text}\nTopic:", 32).iloc[0]
    assert words.decode(row["input_ids"]).endswith("\nTopic:")


def test_the_template_stands_around_both_texts(words):
    row = encoded(words, "a man sleeps", "a man runs")
    assert words.decode(row["input_ids"]) == "Premise: a man sleeps\nHypothesis: a man runs\nLabel:"
    assert not row["truncated"]


def test_the_name_of_a_special_token_in_a_text_is_text(words):
    plain = encoded(words, "a man <|endoftext|> sleeps", "a man runs")["input_ids"]
    assert words.eos_token_id not in plain


LONG = {
    "premise": ("a man sleeps " * 200, "a man runs"),
    "hypothesis": ("a man sleeps", "a man runs " * 200),
    "both": ("a man sleeps " * 200, "a dog runs " * 150),
    "one word": ("x" * 100_000, "a man runs"),
    "emoji": ("👩🏽‍🚀" * 20_000, "a man runs"),
}


@pytest.mark.parametrize("name", LONG)
def test_an_over_long_text_is_cut_and_the_templates_end_stays(words, name):
    row = encoded(words, *LONG[name], max_length=48)
    text = words.decode(row["input_ids"])
    assert row["truncated"]
    assert len(row["input_ids"]) <= 48
    assert text.startswith("Premise: ")
    assert text.endswith("\nLabel:")
    assert "\nHypothesis: " in text


@pytest.mark.parametrize("name", LONG)
def test_the_text_that_is_read_makes_the_tokens(words, name):
    """So that others can be given the text instead."""
    (text,), (ids,), truncated = tokens.read(frame(*LONG[name]), words, TEMPLATE, 48)
    assert truncated == [True] and text.endswith("\nLabel:") and len(text) < 64 * 48
    assert words(text, split_special_tokens=True)["input_ids"] == ids


@pytest.mark.parametrize("name", ["premise", "hypothesis", "both"])
def test_a_cut_text_loses_no_more_than_it_must(words, name):
    assert len(encoded(words, *LONG[name], max_length=48)["input_ids"]) >= 45


def test_the_longer_text_is_cut_first(words):
    text = words.decode(encoded(words, *LONG["premise"], max_length=48)["input_ids"])
    assert text.endswith("\nHypothesis: a man runs\nLabel:")


def test_a_text_of_just_the_longest_length_is_not_cut(words):
    ids = encoded(words, "a man sleeps", "a man runs")["input_ids"]
    row = encoded(words, "a man sleeps", "a man runs", max_length=len(ids))
    assert list(row["input_ids"]) == list(ids)
    assert not row["truncated"]


def test_a_template_longer_than_max_length_is_an_error(words):
    with pytest.raises(UserError, match=r"tokenize\.max_length: 8 "):
        encoded(words, *LONG["both"], max_length=8)


@pytest.mark.parametrize(
    "text", ["🙂 smile", "שלום עולם", "مرحبا", "a\0b", "naïve café", "\u202eright to left", "👩🏽‍🚀"]
)
def test_any_text_comes_out_as_it_went_in(words, text):
    decoded = words.decode(encoded(words, text, text)["input_ids"])
    assert decoded == f"Premise: {text}\nHypothesis: {text}\nLabel:"


def test_no_rows_make_no_tokens(words):
    assert len(tokens.tokenize(frame("a", "b")[:0], words, TEMPLATE, 128)) == 0


@pytest.mark.parametrize("max_length", [128, 24])
def test_a_tokenizer_that_begins_a_text_with_its_bos_token_does_so_here(nano_copy, max_length):
    """Gemma and Llama need it. Written in a text, the token's name is text; a row that is cut has it too."""
    path = nano_copy / "tokenizer.json"
    said = json.loads(path.read_text())
    bos = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    said["post_processor"] |= {"special_tokens": {"<|endoftext|>": bos}}
    said["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}})
    path.write_text(json.dumps(said))
    row = encoded(load_tokenizer(manifest_of(nano_copy)), "a <|endoftext|> man " * 4, "a dog runs", max_length)
    assert row["truncated"] == (max_length == 24)
    assert row["input_ids"].index(0) == 0 and row["input_ids"].count(0) == 1
