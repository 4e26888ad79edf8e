"""The report if rows may have several labels: the page's rows, alarms, and words that must be true of sets."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from stages.analysis.best_threshold import ThresholdEffect
from stages.analysis.case_table import count_confusions, probability_columns
from stages.analysis.comparison import compare_models
from stages.analysis.intervals import Interval
from stages.analysis.metrics import Estimate, Score
from stages.analysis.paired_difference import Difference
from stages.analysis.references import REFERENCES
from stages.analysis.slices import measure_slices
from stages.data.labels import MultiLabel, SingleLabel
from stages.data.task import Task
from stages.report import cases as page_rows
from stages.report import tables, wording
from stages.report.alarms import describe_classes_without_answers, find_alarms
from stages.report.captions import _confusion, _slices
from stages.report.document import breakable
from stages.report.figures.learning_curves import draw_validation
from stages.report.figures.scores import draw_slices
from stages.report.label_words import NO_CLASS, explain_guessing, list_gold, words_of
from stages.report.render import ON_WHITE
from stages.report.verdict import explain_gains, explain_missing, explain_verdict, name_reference
from tools.evaluate.tables import TestRows, render_sets

TASK = Task(("a", "b", "c"), "{text}", None, multi_label=True)
LABELS = TASK.labels
NONE, A, B, AB, C = 0, 1, 2, 3, 4


def make_cases(gold, tuned, reference=None):
    """A case table with codes of sets."""
    rows = range(len(gold))
    cases = pd.DataFrame({"row": rows, "group": rows, "text_text": "x", "gold": gold, "tuned": tuned})
    cases["majority_class"] = gold if reference is None else reference
    cases[probability_columns(TASK)] = 0.25
    return cases.assign(tuned_probability=0.5, outcome="both_right", in_train=False)


def test_the_page_names_each_set_and_each_class():
    cases = make_cases([AB, NONE, A], [A, C, A], [NONE, NONE, B])
    names = page_rows.list_names(cases, "majority_class", TASK)
    assert names[:3] == ["a", "b", "c"] and set(names[3:]) == {"a|b", NO_CLASS}
    rows = json.loads(page_rows.rows_as_json(cases, {}, "majority_class", TASK, names))
    assert [[names[place] for place in row[2:5]] for row in rows] == [
        ["a|b", NO_CLASS, "a"], [NO_CLASS, NO_CLASS, "c"], ["a", "b", "a"],
    ]  # fmt: skip
    assert [names[place] for place in rows[0][-1][::2]] == ["a", "b", "c"], "the most probable classes"


def test_a_set_of_labels_breaks_after_each_of_them_on_the_page():
    assert breakable("billing|bug") == "billing|<wbr>bug"


def test_the_page_filters_by_the_sets_that_are_gold():
    cases = make_cases([AB, AB, NONE], [A, A, A])
    names = page_rows.list_names(cases, "tuned", TASK)
    assert [(name, names[place]) for place, name in list_gold(cases["gold"], names, LABELS)] == [
        ("a|b", "a|b"), (NO_CLASS, NO_CLASS),
    ]  # fmt: skip
    single = SingleLabel(("a", "b", "c"))
    assert list_gold(pd.Series([0, 2]), ["a", "b", "c"], single) == [(0, "a"), (1, "b"), (2, "c")]


def test_an_error_without_classes_is_named():
    (error,) = page_rows.confident_errors(make_cases([AB], [NONE]), "majority_class", TASK)
    assert (error.gold, error.tuned, error.reference) == ("a|b", NO_CLASS, "a|b")


def test_a_cell_of_the_co_occurrence_is_a_share_of_the_rows_with_its_gold_class():
    cases = make_cases([AB, AB, A, A], [AB, A, A, NONE])
    assert count_confusions(cases, TASK)[0].tolist() == [3, 1, 0]
    assert tables.confusion_table(cases, TASK) == [
        ("b", "a", "2", "100.0%"), ("a", "b", "1", "25.0%"),
    ]  # fmt: skip


def alarms_of(gold, tuned, gain=0.1, verdict="not worth it", **options):
    reference = SimpleNamespace(difference=SimpleNamespace(value=gain))
    comparison = SimpleNamespace(
        metric="f1_micro",
        best_reference=reference,
        best="majority_class",
        verdict=verdict,
        verdict_with_duplicates=verdict,
    )
    return find_alarms(make_cases(gold, tuned), comparison, TASK, **options)


def test_an_alarm_names_a_class_that_is_never_in_an_answer():
    gold, tuned = [AB] * 20 + [C] * 12 + [NONE], [A] * 20 + [A | C] * 12 + [NONE]
    assert alarms_of(gold, tuned) == ["The tuned model never answers b, but test rows have this label."]
    assert alarms_of(gold, gold) == []
    assert alarms_of([AB] * 9 + [C] * 12, [A] * 9 + [C] * 12) == [], "9 rows can be chance"


def test_an_alarm_counts_rare_labels_together():
    """9 rows of one label, or half as many as the model finds of the other rare labels, can be chance."""
    alarm = "The tuned model never answers 2 rare labels, which 10 test rows have in all: b (7), c (3)."
    gold = [A] * 20 + [B] * 7 + [C] * 3
    assert alarms_of(gold, [A] * 20 + [NONE] * 10) == [alarm]
    assert alarms_of(gold[:-1], [A] * 20 + [NONE] * 9) == [], "9 rows in all"
    assert alarms_of(gold, [A] * 19 + [C] + [NONE] * 10) == [], "only the 7 rows of b remain"
    others = Task(tuple("abcdefg"), "{text}", None, multi_label=True)
    rows = np.repeat([1, 2, 4, 8, 16, 32, 64], [20, 5, 5, 3, 3, 3, 3])
    answers = np.where(np.isin(rows, [2, 4]), 0, rows)
    assert describe_classes_without_answers(make_cases(rows, answers).iloc[:-2], others), "10 of 20 rare rows"
    assert describe_classes_without_answers(make_cases(rows, answers), others) == [], "10 of 22 rare rows"


@pytest.mark.parametrize("answer, name", [(AB, "a|b"), (NONE, NO_CLASS)])
def test_an_alarm_says_that_all_rows_have_the_same_answer(answer, name):
    assert alarms_of([A, AB, NONE], [answer] * 3) == [
        f"The tuned model answers {name} to all 3 test rows: it learnt nothing."
    ]
    assert alarms_of([answer] * 3, [answer] * 3) == [
        f"All test rows have the set of labels {name}, and the tuned model always answers it: a model that learnt "
        "nothing would do so too."
    ]


def test_a_reference_that_is_better_is_an_alarm_with_its_name():
    assert alarms_of([A, B], [A, C], gain=-0.1)[-1] == (
        "The tuned model is not better than the best reference, most frequent set of labels."
    )


def test_that_alarm_agrees_with_the_verdict_that_it_is_too_close_to_tell():
    assert alarms_of([A, B], [A, C], gain=0.0, verdict="too close to tell")[-1] == (
        "The tuned model scores no higher than the best reference, most frequent set of labels. These test rows are "
        "too few to tell which is better."
    )


def test_the_verdict_speaks_of_sets():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 8, 200)
    cases = make_cases(gold, gold, np.full(200, AB)).assign(probe=NONE)
    comparison = compare_models(cases, TASK, 0.95)
    assert comparison.metric == "f1_micro"
    text = explain_verdict(comparison, 0.95, LABELS)
    assert "points of micro F1 above the best reference, the most frequent set of labels (" in text
    assert explain_gains(comparison, LABELS).startswith("Always answering the most frequent set of labels of the tra")
    missing = "leaves out: most frequent set of labels, bag of words, untrained head."
    assert explain_missing(["probe"], LABELS).endswith(missing), "zero-shot does not exist for several labels"
    assert explain_missing([key for key in REFERENCES if key != "zero_shot"], LABELS) is None
    assert "zero-shot" in explain_missing(["probe"], SingleLabel(("a", "b")))
    assert name_reference("majority_class", SingleLabel(("a", "b"))) == "most frequent class"


def test_the_table_of_other_data_speaks_of_shares_of_labels():
    own, other = (TestRows(name, None, make_cases([A, AB, C], [A, B, C]), TASK) for name in ("own", "other"))
    assert "other texts, other labels or other shares of labels." in render_sets(own, [other], 0.95)


@pytest.mark.parametrize(
    "thresholds, sentence",
    [
        (
            [0.2, 0.5, 0.31],
            "For 2 of 3 labels, F1 on the validation rows is best at another threshold: 0.200 to 0.310 (best_thr",
        ),
        (
            [0.5, 0.5, 0.31],
            "For 1 of 3 labels, F1 on the validation rows is best at another threshold: 0.310 (best_",
        ),
    ],
)
def test_other_thresholds_are_explained_label_by_label(thresholds, sentence):
    """A label keeps 0.5 if no other threshold is better, or if no validation row has it."""
    micro, macro, accuracy = (Estimate(value, Interval(0.1, 0.9)) for value in (0.72, 0.7, 0.417))
    scores = {"f1_micro": Score(0.71), "f1_macro": Score(0.52), "accuracy": Score(0.55)}
    gain = Difference(0.18, Interval(-0.01, 0.25), 0.2, 1.0)
    effect = ThresholdEffect(dict(zip("abc", thresholds, strict=True)), accuracy, macro, gain, micro, [])
    text = wording.explain_threshold(effect, scores)
    assert f"All results use the threshold 0.5. {sentence}" in text and "no validation row" not in text
    assert text.endswith(
        "On the test rows, these thresholds change micro F1 from 71.0% to 72.0%, macro F1 from 52.0% to 70.0% (+18.0 "
        "points, interval −1.0 to +25.0), and subset accuracy from 55.0% to 41.7%."
    )
    named = wording.explain_threshold(replace(effect, without_rows=["b"]), scores)
    assert " b keeps 0.5, since no validation row has such a label. On the test rows" in named
    unchanged = wording.explain_threshold(replace(effect, threshold=dict.fromkeys("abc", 0.5)), scores)
    assert unchanged == "All results use the threshold 0.5. The validation rows give no label another one."


def test_labels_are_not_counted_as_rows():
    (warning,) = wording.interval_warnings({"a": 1}, 20, 1, "author", MultiLabel)[:1]
    assert warning.startswith("All test rows share one author: "), "19 rows have no label"
    (warning,) = wording.interval_warnings({"a": 1, "b": 1}, 1, 1, None, MultiLabel)[:1]
    assert warning.startswith("There is one test row: ")


def test_a_picture_and_its_caption_name_subset_accuracy_and_labels():
    assert _slices(LABELS, "probe").startswith("Subset accuracy of the tuned model")
    assert _confusion(TASK.classes, LABELS.noun, LABELS.nouns).startswith("Test rows by gold and predicted label,")
    cuts = {"label": (TASK.classes, np.eye(3, dtype=bool))}
    slices = measure_slices(cuts, np.array([True, False, True]), np.arange(3), 0.95)
    drawn = draw_slices(slices, slices, "probe", words_of(LABELS).accuracy, ON_WHITE)
    assert drawn.axes[0].get_xlabel() == "subset accuracy"
    epochs = pd.DataFrame({"epoch": [1], "validation_accuracy": [0.5], "validation_f1_weighted": [0.4]})
    for table, names in ((epochs, ["accuracy", "weighted F1"]),
                         (epochs.assign(validation_f1_micro=0.6), ["micro F1", "subset accuracy"])):  # fmt: skip
        legend = draw_validation(table, 1, ON_WHITE).axes[0].get_legend()
        assert [text.get_text() for text in legend.texts][:2] == names
    (warning,) = wording.interval_warnings({"a": 3}, 20, 20, None, MultiLabel)
    assert warning.startswith("Labels with fewer than 10 test rows: a (3).")


def test_titles_and_explanations_are_those_of_sets():
    assert words_of(LABELS).titles["accuracy"] == "subset accuracy"
    assert words_of(SingleLabel(("a", "b"))).titles == {}
    assert "Probabilities of 0.5 for all labels have a loss of 0.693." in explain_guessing(LABELS)
    assert "Equal probabilities for all classes have a loss of 1.099." in explain_guessing(SingleLabel(TASK.classes))
    score = SimpleNamespace(interval=None)
    without = SimpleNamespace(tuned=SimpleNamespace(scores={wording.AVERAGE_PRECISION: score}))
    assert wording.average_precision_warnings(without) == [
        "Mean average precision has no interval, since the labels have too few test rows."
    ]
    assert wording.average_precision_warnings(SimpleNamespace(tuned=SimpleNamespace(scores={}))) == []
