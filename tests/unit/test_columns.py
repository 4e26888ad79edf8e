"""tools.columns: the label, the texts, a group and a given split of tables as users have them."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.project import ROOT
from helpers.user_tables import EXAMPLES, Example

from stages.data.task import parse_columns
from stages.runtime.errors import UserError
from tools.init.columns import choose_columns, list_some, make_template

ASSETS = ROOT / "demo/assets"
SNLI = ROOT.parent / "shared/data/snli"
CHOSEN = ("label", "texts", "group", "split_values")


def error_of(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def choices(columns):
    return {name: getattr(columns, name) for name in CHOSEN}


def table(columns, rows=300):
    return Example(columns, "", rows=rows).make()


# --- the columns of well-known data sets ---


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if example.label])
def test_the_columns_of_a_known_data_set_are_chosen(name):
    example = EXAMPLES[name]
    columns = choose_columns(example.make())
    label = "|".join(columns.label_columns)
    found = (label, ", ".join(columns.texts), columns.group or "", columns.split_values)
    assert found[0] in (example.label, *example.label.split("|"))
    assert found[1] == example.texts
    assert found[2] in example.group.split("|")
    assert found[3] == example.split
    assert columns.label_candidates[0] == columns.label


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if not example.label])
def test_a_table_without_a_label_is_rejected_with_what_each_column_has(name):
    example = EXAMPLES[name]
    error = error_of(choose_columns, example.make(), place="reviews.csv")
    assert error.startswith("reviews.csv: no column looks like a label")
    assert all(f"{part.partition(' = ')[0]}: " in error for part in example.columns.split("; "))


@pytest.mark.parametrize("name", ["amazon", "mnli", "medical notes", "numbers and names", "numbered splits"])
def test_the_choice_does_not_depend_on_the_order_of_the_rows(name):
    rows = EXAMPLES[name].make()
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(len(rows))))
    assert choices(choose_columns(shuffled)) == choices(choose_columns(rows))


@pytest.mark.parametrize("name", ["amazon", "forty patients", "numbered splits", "six labels of jigsaw"])
def test_numbers_and_the_text_of_a_csv_file_lead_to_the_same_choice(name):
    rows = EXAMPLES[name].make()
    as_text = pa.table({column: rows[column].cast(pa.string()) for column in rows.column_names})
    assert choices(choose_columns(as_text)) == choices(choose_columns(rows))


# --- the data of this project ---


def test_the_demos_data_sets_get_the_columns_of_their_examples():
    moods = pa.Table.from_pandas(pd.read_csv(ASSETS / "everyday-moods/moods.csv", dtype=str))
    lines = (ASSETS / "everyday-pairs/train.jsonl").read_text().splitlines()
    pairs = pa.Table.from_pylist([json.loads(line) for line in lines])
    topics = pq.read_table(ASSETS / "everyday-topics/train.parquet")
    nli = pq.read_table(ASSETS / "everyday-nli/test.parquet")
    chosen = {}
    for name, rows in {"moods": moods, "pairs": pairs, "topics": topics, "nli": nli}.items():
        columns = choose_columns(rows)
        chosen[name] = columns.label, columns.texts, columns.group
    assert chosen == {
        "moods": ("sentiment", ("text",), None),
        "pairs": ("gold_label", ("sentence1", "sentence2"), "sentence1"),
        "topics": ("topic", ("title", "body"), None),
        "nli": ("label", ("premise", "hypothesis"), None),  # each premise is there once
    }


@pytest.mark.skipif(not SNLI.exists(), reason="SNLI is not here")
def test_snli_gets_premise_and_hypothesis_and_groups_by_premise():
    columns = choose_columns(pq.read_table(SNLI / "test.parquet"))
    assert (columns.label, columns.texts, columns.group) == ("label", ("premise", "hypothesis"), "premise")


# --- label ---


def test_the_reason_for_a_label_counts_its_values_and_names_the_other_candidates():
    reason = choose_columns(table("text = text; sentiment = a|b|; genre = x|y; stars = 1|2|3")).reasons["label"]
    assert reason.startswith("sentiment, 2 values in ")
    assert "rows have none" in reason
    assert reason.endswith("other candidates: stars, genre")


def test_a_label_column_given_by_hand_is_taken_and_its_oddities_are_listed():
    columns = choose_columns(table("text = text; label = a|b; score = 0.5|1.5|-1"), label="score")
    assert columns.label == "score"
    assert "odd: -1 may mean a row that is not labelled, numbers with fractions" in columns.reasons["label"]


def test_neighbouring_columns_of_0_and_1_are_labels_together():
    rows = EXAMPLES["six labels of jigsaw"].make()
    columns = choose_columns(rows)
    assert columns.label == ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
    assert columns.reasons["label"].startswith("6 columns of 0 and 1, of which a row may have several: toxic, severe")
    single = choose_columns(rows, label="toxic")
    assert single.label == "toxic" and "repeat --label for each" in single.reasons["label"]
    named = choose_columns(rows, label=["toxic", "threat"])
    assert (named.label, named.texts, named.separator) == (("toxic", "threat"), ("comment_text",), None)


@pytest.mark.parametrize("others", ["", "; threat = 1|2", "; vote_count = 0|1", "; user = 0|1"])
def test_fewer_than_three_columns_of_0_and_1_are_no_labels_together(others):
    assert choose_columns(table(f"text = text; toxic = 0|1; insult = 0|1{others}")).label == "toxic"


FLAGS = ("bug", "billing", "login", "speed")


def flags(column="bug", row=0, value=0, yes=1, no=0):
    """60 rows with four labels, and a cell with another value."""
    cells = {name: [yes if (row >> number) % 2 else no for row in range(60)] for number, name in enumerate(FLAGS)}
    cells[column][row] = value
    return pa.table({"text": [f"text number {row} of all" for row in range(60)], **cells})


@pytest.mark.parametrize("column", FLAGS)
@pytest.mark.parametrize(("value", "problem"), [(2, "has 2"), (None, "is empty"), (-1, "has -1")])
def test_one_wrong_cell_does_not_remove_a_column_of_0_and_1_from_the_labels(column, value, problem):
    error = error_of(choose_columns, flags(column, 17, value))
    assert error.startswith("columns bug, billing, login, speed: have 0 and 1, as labels of which a row may have ")
    assert f"But column '{column}' {problem} in row 17, counted from 0" in error
    assert error.endswith("name the columns that are labels: --label bug --label billing --label login --label speed")


def test_columns_of_yes_and_no_are_not_reduced_to_one_label():
    error = error_of(choose_columns, flags(value="No", yes="Yes", no="No"))
    assert error.startswith("columns bug, billing, login, speed: have yes and no; allowed if they are labels of which ")
    assert choose_columns(flags(value="No", yes="Yes", no="No"), "bug").label == "bug"


def test_a_label_that_no_row_has_does_not_divide_the_columns_of_0_and_1():
    rows = flags().set_column(2, "billing", pa.array([0] * 60))
    assert choose_columns(rows).label == FLAGS
    assert choose_columns(rows.set_column(1, "bug", pa.array([0] * 60)).append_column("x", rows["speed"])).label == (
        "login", "speed", "x",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        (["a|b", "a", "b", "c|a", "c"], "|"),
        (["a; b", "a", "b", "c; a", "c"], ";"),
        (["2,27", "0", "3,0", "27", "2", "3"], ","),
        (["New York, NY", "Boston, MA", "Paris"], None),  # names with a comma: no part is in several cells
        (["en;x", "en;y", "de;x", "de;y", "fr;x", "fr;y"], None),  # each cell has two parts
        (["a|a", "a", "b", "a|b", "c|b", "c"], None),  # a label twice
        (["red", "green", "blue"], None),
    ],
)
def test_a_text_of_few_parts_that_occur_in_several_cells_is_a_list_of_labels(labels, separator):
    texts = [f"text number {row} of all" for row in range(60)]
    columns = choose_columns(pa.table({"text": texts, "label": [labels[row % len(labels)] for row in range(60)]}))
    assert (columns.label, columns.texts, columns.separator) == ("label", ("text",), separator)
    assert ("of which a row may have several" in columns.reasons["label"]) == (separator is not None)


def test_a_label_that_one_cell_has_twice_does_not_hide_the_separator():
    cells = ["a|b", "a", "b", "c|a", "c", "b|c"] * 10
    cells[17] = "a|b|a"
    columns = choose_columns(pa.table({"text": [f"text number {row} of all" for row in range(60)], "label": cells}))
    assert columns.separator == "|"


def separated(separator):
    cells = [separator.join(labels) for labels in (["a", "b"], ["c", "b"], ["a", "c"])] * 20
    return pa.table({"text": [f"text number {row}: all" for row in range(60)], "tags": cells, "stars": [1, 2, 3] * 20})


@pytest.mark.parametrize("separator", [" / ", " ", "  ", "::"])
@pytest.mark.parametrize("label", [None, "tags"])
def test_a_separator_given_by_hand_is_kept_as_it_is(separator, label):
    columns = choose_columns(separated(separator), label, texts=["text"], separator=separator)
    assert (columns.label, columns.separator) == ("tags", separator)
    assert "3 values, of which a row may have several" in columns.reasons["label"]


@pytest.mark.parametrize(
    ("label", "separator", "error"),
    [
        (None, "#", "--separator '#': no cell of a column of text has it"),
        ("tags", ":", "--separator ':': no cell of column 'tags' has it"),
        ("stars", "|", "--separator '|': column 'stars' holds int64; allowed: text"),
        ("lists", "|", "--separator '|': column 'lists' holds lists; allowed: text"),
        (["tags", "stars"], "|", "--separator: is for one label column"),
        ("tags", "", "--separator: is empty"),
    ],
)
def test_a_separator_that_fits_no_column_is_rejected(label, separator, error):
    rows = separated("|").append_column("lists", pa.array([["a"], ["b"], ["a", "b"]] * 20))
    assert error_of(choose_columns, rows, label, separator=separator).startswith(error)


def test_a_column_of_lists_is_a_label_unless_another_column_is_likelier():
    texts = [f"text number {row} of all" for row in range(60)]
    rows = pa.table({"text": texts, "emotions": [[["joy"], ["joy", "awe"], []][row % 3] for row in range(60)]})
    columns = choose_columns(rows)
    assert (columns.label, columns.separator) == ("emotions", None)
    assert columns.reasons["label"].startswith("emotions, lists of 2 values, of which a row may have several")
    assert choose_columns(rows.append_column("label", pa.array(["a", "b"] * 30))).label == "label"
    vectors = pa.table({"text": texts, "label": [[0.5, 1.5]] * 60})
    assert "no column looks like a label" in error_of(choose_columns, vectors)


@pytest.mark.parametrize("lists", [["['joy']", "['joy', 'awe']", "[]"], ['["joy"]', '["joy", "awe"]', "[]"]])
def test_lists_that_are_written_as_text_are_no_label(lists):
    texts = [f"text number {row} of all" for row in range(60)]
    rows = pa.table({"text": texts, "tags": lists * 20})
    problem = (
        f"tags has lists that are written as text, such as {lists[1]}; for labels, convert it to lists in a json or "
        "parquet file, or to texts with a separator, such as joy|awe"
    )
    assert error_of(choose_columns, rows).endswith(f"values that rows share; {problem}")
    assert error_of(choose_columns, rows, label="tags") == problem
    rows = rows.append_column("source", pa.array(["a", "b"] * 30))
    columns = choose_columns(rows)
    assert columns.label == "source" and columns.reasons["label"].endswith(f"; but {problem}")
    assert problem not in choose_columns(rows, "source").reasons["label"]


@pytest.mark.parametrize("cells", [["[0.1, 0.2]", "[0.3, 0.4]"], ["{'a': 1}", "{'a': 2}"], ["[A]", "[B]"], ["[1]"]])
def test_other_texts_in_brackets_are_no_lists_of_labels(cells):
    texts = [f"text number {row} of all" for row in range(60)]
    rows = pa.table({"text": texts, "mood": ["a", "b"] * 30, "more": [cells[row % len(cells)] for row in range(60)]})
    assert "lists" not in choose_columns(rows).reasons["label"]


def listed(cells, **others):
    return pa.table({"text": [f"text number {row} of all" for row in range(60)], "tags": cells * 20, **others})


OBJECTS = (
    "tags has lists of objects with name, score; for labels, keep one value of each object, such as [item['name'] for "
    "item in row['tags']]"
)


def test_lists_of_objects_are_no_label_and_the_advice_says_what_to_do():
    rows = listed([[{"name": "a", "score": 1}], [], [{"name": "b", "score": 2}, {"name": "a", "score": 2}]])
    assert error_of(choose_columns, rows).endswith(f"values that rows share; {OBJECTS}")
    assert error_of(choose_columns, rows, "tags") == OBJECTS
    reason = choose_columns(rows.append_column("source", pa.array(["a", "b"] * 30))).reasons["label"]
    assert reason.startswith("source") and reason.endswith(f"; but {OBJECTS}")


@pytest.mark.parametrize("vectors", [[[0, 1, 0], [1, 1, 0], [0, 0, 1]], [[True, False], [False, True], [True, True]]])
def test_vectors_that_the_pipeline_rejects_are_no_label(monkeypatch, vectors):
    def reject(*arguments):
        raise UserError("data: split 'train': column 'tags' holds vectors")

    monkeypatch.setattr("stages.data.label_lists.read_lists", reject)
    rows = listed(vectors)
    assert error_of(choose_columns, rows).endswith("; data: split 'train': column 'tags' holds vectors")
    assert error_of(choose_columns, rows, "tags") == "data: split 'train': column 'tags' holds vectors"
    assert choose_columns(rows.append_column("source", pa.array(["a", "b"] * 30))).label == "source"


@pytest.mark.parametrize("mark", ["1", "x", 1, True])
def test_columns_of_1_or_nothing_are_pointed_out(mark):
    cells = {name: [mark, None, None] * 20 for name in ("bug", "speed", "login")}
    rows = pa.table({"text": [f"text number {row} of all" for row in range(60)], **cells})
    error = error_of(choose_columns, rows)
    assert f"; bug, speed, login have {mark} or nothing; for labels, write 1 and 0 in their cells" in error
    assert error.endswith("--label bug --label speed --label login")


ADVICE = "if a cell holds several labels, name what is between them: --separator '/'"


def combinations(separator, names="abcdefg", times=1):
    """Each set of the names, except for the empty one."""
    sets = [[name for bit, name in enumerate(names) if row >> bit & 1] for row in range(1, 2 ** len(names))] * times
    return pa.table({
        "text": [f"text number {row} of all" for row in range(len(sets))],
        "label": [separator.join(labels) for labels in sets],
    })  # fmt: skip


@pytest.mark.parametrize("separator", ["/", " / "])
def test_the_likely_separator_of_labels_is_named(separator):
    rows = combinations(separator)
    assert error_of(choose_columns, rows).endswith(f"values that rows share; label: {ADVICE}")
    assert ADVICE in choose_columns(rows, "label").reasons["label"]
    few = choose_columns(combinations(separator, "abc", times=9))
    assert few.label == "label" and ADVICE in few.reasons["label"] and few.advice == ADVICE
    reason = choose_columns(rows.append_column("source", pa.array((["a", "b"] * 64)[:127]))).reasons["label"]
    assert reason.endswith(f"; but label: {ADVICE}")


def test_the_words_of_a_few_classes_are_not_taken_for_labels():
    cells = ["very good", "good", "bad", "very bad"] * 15
    columns = choose_columns(pa.table({"text": [f"text number {row} of all" for row in range(60)], "label": cells}))
    assert "--separator" not in columns.reasons["label"]
    assert columns.advice.endswith("--separator TEXT")


def test_rows_that_nobody_graded_do_not_hide_columns_of_0_and_1():
    rows = {"text": [f"text number {row} of all" for row in range(60)]}
    rows |= {name: [-1, 0, 1, shift] * 15 for name, shift in (("rude", 0), ("loud", 1), ("kind", 1))}
    columns = choose_columns(pa.table(rows))
    assert columns.label == ("rude", "loud", "kind")
    assert choose_columns(pa.table(rows), ["rude", "kind"]).label == ("rude", "kind")


def test_rare_values_of_the_label_are_pointed_out():
    rows = pa.table({"text": [f"text number {i} of all" for i in range(50)], "label": ["a", "b"] * 24 + ["c", "d"]})
    assert "2 values occur in one row only" in choose_columns(rows).reasons["label"]
    assert "1 value occurs in one row only" in choose_columns(rows.slice(0, 49)).reasons["label"]
    labels = pa.array(["a", "b"] * 24 + ["A", "B"])
    assert "odd" not in choose_columns(rows.set_column(1, "label", labels)).reasons["label"], "these differ in case"


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("nosuch", "no such column; allowed: text, label, always, vector"),
        ("always", "one value, x"),
        ("vector", "list<"),
        ("text", "text, 1,100 values"),
    ],
)
def test_a_label_column_given_by_hand_that_has_no_classes_is_rejected(label, reason):
    rows = table("text = text 6-9; label = a|b; always = x; number = number; vector = lists number", rows=1100)
    rows = rows.drop_columns("number")
    assert error_of(choose_columns, rows, label=label).startswith(f"--label: {label}: {reason}")
    error = error_of(choose_columns, rows, label=["always", "label"])
    assert error.startswith(
        "--label: column 'always' has x in row 0, counted from 0; allowed in each column that data.label lists: 0 "
    )


# --- texts ---


def test_texts_given_by_hand_keep_their_order_and_leave_the_label_alone():
    columns = choose_columns(table("title = title; body = text; label = a|b"), texts=["body", "title"])
    assert (columns.texts, columns.label) == (("body", "title"), "label")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nosuch", "no such column; allowed: text, number, empty, {x}, label"),
        ("number", "holds int64; allowed: text"),
        ("empty", "holds no values; allowed: text"),
        ("label", "is --label"),
    ],
)
def test_a_text_column_given_by_hand_that_holds_no_text_is_rejected(text, reason):
    rows = table("text = text; number = ints 1|2|3; empty = ; {x} = text; label = a|b")
    rows = rows.set_column(2, "empty", pa.array([""] * len(rows)))
    assert error_of(choose_columns, rows, texts=[text], label="label").startswith(f"--text: {text}: {reason}")


@pytest.mark.parametrize("classes", [25, 60])
def test_a_description_of_each_class_is_no_input_and_no_group(classes):
    intents = [f"intent {row % classes}" for row in range(600)]
    described = [f"the customer wants to get the thing number {intent} very soon" for intent in intents]
    texts = [f"please help me with the things of row {row}" for row in range(600)]
    columns = choose_columns(pa.table({"utterance": texts, "intent": intents, "intent_description": described}))
    assert (columns.label, columns.texts, columns.group) == ("intent", ("utterance",), None)
    assert "left out: intent_description (says the label)" in columns.reasons["texts"]


def test_the_only_column_of_text_is_taken_even_if_it_is_short():
    columns = choose_columns(EXAMPLES["names"].make())
    assert "though short" in columns.reasons["texts"]


@pytest.mark.parametrize("rows", [pa.table({"label": ["a", "b"] * 50}), table("label = a|b; price = number; id = row")])
def test_a_table_without_text_is_rejected(rows):
    assert error_of(choose_columns, rows, place="a.csv").startswith("a.csv: no column of text next to the label")


def test_a_table_without_rows_is_rejected():
    assert error_of(choose_columns, table("text = text; label = a|b").slice(0, 0)).startswith("data: no rows")


# --- group ---


def test_values_that_rows_share_by_chance_are_no_group():
    rows = table("user = key 9000; text = text; label = a|b", rows=300)
    assert choose_columns(rows).group is None


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("patient = key 6; text = text; label = a|b", "patient (6 values, 100% of the rows share one)"),
        ("user = key 1200; text = text; label = a|b", "user (269 values, 19% of the rows share one)"),
        ("text = text; label = a|b", "no column names the author"),
    ],
)
def test_the_reason_for_no_group_names_the_columns_that_came_near(columns, reason):
    found = choose_columns(table(columns))
    assert found.group is None
    assert found.reasons["group"].startswith(f"none: {reason}")


def test_the_reason_for_a_group_says_how_many_rows_share_a_value():
    assert "300 values in 900 rows, 3.0 rows each" in choose_columns(EXAMPLES["e-snli"].make()).reasons["group"]


@pytest.mark.parametrize(
    ("values", "words"),
    [(["train", "TRAIN", "test"], "train, TRAIN, test"), (["train", "test", None], "train, test, empty in 100 rows")],
)
def test_a_column_that_names_splits_in_another_way_is_pointed_out(values, words):
    rows = table("text = text; label = a|b")
    columns = choose_columns(rows.append_column("split", pa.array(values * 100)))
    assert columns.split is None
    assert columns.reasons["split"].startswith(f"WARNING: split is not used, although it has the values {words}; ")


# --- template ---


@pytest.mark.parametrize(
    ("texts", "label", "template"),
    [
        (["text"], "sentiment", "{text}\nSentiment:"),
        (["premise", "hypothesis"], "gold_label", "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"),
        (["Review Title", "reviewBody"], "y", "Review title: {Review Title}\nReview body: {reviewBody}\nLabel:"),
        (["column_2", "column_3"], "column_1", "Text 1: {column_2}\nText 2: {column_3}\nLabel:"),
        (["标题"], "类别", "{标题}\n类别:"),
        (["v2"], "product_category", "{v2}\nProduct category:"),
        (["question"], "is_duplicate", "{question}\nDuplicate:"),
        (["text"], "#", "{text}\nLabel:"),
        (["text"], ("toxic", "insult"), "{text}\nLabels:"),
    ],
)
def test_a_template_names_the_columns_in_words_and_ends_with_the_labels_name(texts, label, template):
    assert make_template(texts, label) == template
    assert list(parse_columns(template)) == texts


@pytest.mark.parametrize("name", ["{text}", "a}b", r"new\nline"])
def test_a_column_that_no_template_can_name_is_rejected(name):
    assert "a template can't name this column" in error_of(make_template, [name], "label")
    rows = table("text = text; label = a|b").rename_columns([name, "label"])
    assert "a template can't name this column" in error_of(choose_columns, rows)
    assert "a template can't name this column" in error_of(choose_columns, rows, texts=[name])


@pytest.mark.parametrize(("names", "listed"), [(12, "0; 1; .*; 11"), (1013, "0; 1; .*; 11 and 1,001 more")])
def test_a_line_lists_twelve_names_and_counts_the_others(names, listed):
    assert re.fullmatch(listed, list_some([*map(str, range(names))], "; "))
