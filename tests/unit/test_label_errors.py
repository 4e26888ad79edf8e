"""Likely label errors, in rows whose wrong labels are known; and the best threshold's effect."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score

from stages.analysis.best_threshold import measure_best_threshold
from stages.analysis.label_errors import likely_label_errors
from stages.analysis.metrics import Predictions
from stages.data.task import Task


def draw_predictions(classes, rows, wrong, seed=0):
    """(predictions of a calibrated model, task, rows that got a wrong label)."""
    rng = np.random.default_rng(seed)
    task = Task(tuple(f"class {number}" for number in range(classes)), "{text}", None)
    shares = softmax(rng.normal(0, 6, (rows, classes)), axis=1)
    gold = (shares.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1).clip(max=classes - 1)
    relabelled = rng.choice(rows, wrong, replace=False)
    gold[relabelled] = (gold[relabelled] + rng.integers(1, classes, wrong)) % classes
    table = pd.DataFrame(shares.round(6), columns=task.probability_columns)
    table["row"], table["text_text"] = table.index + 1000, [f"text {row}" for row in range(rows)]
    return table.assign(label=gold, prediction=shares.argmax(axis=1), group=0), task, set(relabelled + 1000)


@pytest.mark.parametrize("classes", [2, 3, 77])
def test_most_listed_rows_have_a_wrong_label(classes):
    table, task, wrong = draw_predictions(classes, 2000, 40)
    listed = likely_label_errors(table, task)
    assert len(listed) >= 5 and listed["row"].isin(wrong).mean() > 0.6
    first = listed.iloc[0]
    source = table.set_index("row").loc[first["row"]]
    assert first["text_text"] == source["text_text"] == f"text {first['row'] - 1000}"
    assert first["gold"] == task.classes[source["label"]] != first["predicted"] == task.classes[source["prediction"]]
    assert first["probability"] == source[f"p_{first['predicted']}"] > 0.99
    assert first["probability_of_gold"] == source[f"p_{first['gold']}"] < 0.01
    assert (listed["probability_of_gold"] - listed["probability"]).is_monotonic_increasing


@pytest.mark.parametrize("classes", [2, 3, 77])
def test_right_labels_give_a_short_list(classes):
    """The models are wrong in 100 to 400 rows, some of them surely."""
    lengths = []
    for seed in range(5):
        table, task, _ = draw_predictions(classes, 2000, 0, seed)
        assert (table["label"] != table["prediction"]).sum() > 100
        lengths.append(len(likely_label_errors(table, task)))
    assert np.mean(lengths) < 5


def test_one_row_and_stored_zeros():
    task = Task(("a", "b", "c"), "{text}", None)
    shares = {"p_a": [1.0, 0.0], "p_b": [0.0, 1.0], "p_c": [0.0, 0.0]}
    table = pd.DataFrame(shares | {"label": [1, 1], "prediction": [0, 1], "row": [7, 8]}).assign(text_text="x")
    listed = likely_label_errors(table, task)
    assert listed[["row", "gold", "predicted", "probability_of_gold"]].to_numpy().tolist() == [[7, "b", "a", 0]]
    assert len(likely_label_errors(table.assign(label=[0, 1]), task)) == 0
    assert len(likely_label_errors(table[:1].assign(label=0), task)) == 0


def test_gold_classes_that_the_model_never_predicts_are_left_out():
    """Their rows change nothing for the others, of which the first has a wrong label and the second is a close case."""
    task = Task(("a", "b", "c"), "{text}", None)
    gold, answers = np.array([1, 1] + [0, 1] * 20), np.array([0, 0] + [0, 1] * 20)
    shares = np.where(np.arange(3) == answers[:, None], 0.998, 0.001)
    shares[1] = 0.97, 0.03, 0

    def rows(gold, answers, shares):
        table = pd.DataFrame(shares, columns=task.probability_columns)
        return table.assign(label=gold, prediction=answers, row=range(len(gold)), text_text="x")

    table, never = rows(gold, answers, shares), rows([2] * 8, [0] * 8, [[1, 0, 0]] * 8)
    listed = likely_label_errors(table, task)
    assert listed[["row", "gold"]].to_numpy().tolist() == [[0, "b"]]
    pd.testing.assert_frame_equal(likely_label_errors(pd.concat([table, never]), task), listed)
    assert likely_label_errors(never, task).empty


def test_10000_rows_with_77_classes_take_under_a_second():
    table, task, _ = draw_predictions(77, 10_000, 300)
    start = time.process_time()
    likely_label_errors(table, task)
    assert time.process_time() - start < 1


def test_the_best_threshold_of_the_validation_rows_is_measured_on_the_test_rows():
    rng = np.random.default_rng(0)
    scores = rng.beta(0.4, 4, 2000).round(6)
    gold = (rng.random(2000) < scores).astype(int)
    shares = np.stack([1 - scores, scores], axis=1)
    predicted = shares.argmax(axis=1)
    test = Predictions(gold[500:], predicted[500:], shares[500:], np.arange(1500), ("ham", "spam"), 0.95)
    validation = replace(test, gold=gold[:500], predicted=predicted[:500], probabilities=shares[:500])
    effect = measure_best_threshold(test, validation)
    answers = scores[500:] > effect.threshold
    assert 0.1 < effect.threshold < 0.5
    assert effect.accuracy.value == pytest.approx(accuracy_score(gold[500:], answers))
    assert effect.f1_macro.value == pytest.approx(f1_score(gold[500:], answers, average="macro"))
    before = f1_score(gold[500:], predicted[500:], average="macro")
    assert effect.f1_macro_gain.value == pytest.approx(effect.f1_macro.value - before, abs=1e-9)
    assert effect.f1_macro_gain.value > 0.01


def test_three_classes_have_no_best_threshold():
    test = Predictions(np.array([0]), np.array([0]), np.full((1, 3), 1 / 3), np.array([0]), ("a", "b", "c"), 0.95)
    assert measure_best_threshold(test, test) is None
