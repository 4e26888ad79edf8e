"""Measures of several labels a row: equal to scikit-learn's, and intervals that cover the truth."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn import metrics as sklearn_metrics

from stages.analysis import calibration, measures, metrics
from stages.analysis.average_precision import (
    average_precision_interval,
    average_precision_values,
    average_precisions,
    mean_average_precision,
)
from stages.analysis.bag_of_words import predict_by_words
from stages.analysis.label_errors import likely_label_errors
from stages.analysis.label_f1 import (
    MACRO,
    MICRO,
    WEIGHTED,
    average_f1,
    f1_gradient,
    label_f1_difference,
    label_f1_interval,
    label_f1_values,
)
from stages.analysis.references import find_majority_class
from stages.data.confusion import confusion_counts, count_classes
from stages.data.labels import MultiLabel
from stages.data.task import Task

NAMES = {WEIGHTED: "weighted", MACRO: "macro", MICRO: "micro"}
SHARES = np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.03])
TASK = Task(("a", "b", "c", "d", "e", "f"), "{text}", None, multi_label=True)


def draw(rows, noise, seed, other_noise=None):
    """Labels of rows that depend on each other, and the answers of one or two models, bool [rows, labels] each."""
    rng = np.random.default_rng(seed)
    traits = np.sqrt(0.5) * (rng.normal(size=(rows, 1)) + rng.normal(size=(rows, len(SHARES))))
    edges, shared = norm.ppf(1 - SHARES), rng.normal(size=traits.shape)
    answers = [
        traits + each * (0.6 * shared + 0.8 * rng.normal(size=traits.shape)) > np.sqrt(1 + each**2) * edges
        for each in (noise, noise if other_noise is None else other_noise)
    ]
    return traits > edges, *answers


@pytest.mark.parametrize("average", NAMES)
def test_f1_is_that_of_scikit_learn(average):
    gold, predicted, _ = draw(80, 0.7, 1)
    expected = sklearn_metrics.f1_score(gold, predicted, average=NAMES[average], zero_division=np.nan)
    assert average_f1(count_classes(gold, predicted, 6), average) == pytest.approx(expected)
    assert label_f1_values(gold, predicted[None], average).mean() == pytest.approx(expected)


@pytest.mark.parametrize("average", NAMES)
def test_the_gradient_of_f1_is_its_derivative(average):
    counts = count_classes(*draw(400, 0.7, 1)[:2], 6).astype(float)  # with rows of each label
    for place in np.ndindex(counts.shape):
        change = np.zeros_like(counts)
        change[place] = 1e-5
        slope = (average_f1(counts + change, average) - average_f1(counts - change, average)) / 2e-5
        assert f1_gradient(counts, average)[place] == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("average", [MACRO, MICRO])
@pytest.mark.parametrize("rows", [100, 400])
def test_the_interval_of_f1_covers_the_truth(average, rows):
    truth = average_f1(count_classes(*draw(200_000, 0.5, 0)[:2], 6), average)
    groups, covered = np.arange(rows), 0
    for seed in range(300):
        low, high = label_f1_interval(*draw(rows, 0.5, [seed, rows])[:2], average, groups, 0.95)
        covered += low <= truth <= high
    assert 0.92 <= covered / 300 <= 0.985


@pytest.mark.parametrize("average", [MACRO, MICRO])
def test_the_interval_of_a_difference_covers_the_truth(average):
    gold, *answers = draw(200_000, 0.5, 0, other_noise=0.7)
    truth = np.subtract(*(average_f1(count_classes(gold, each, 6), average) for each in answers))
    covered = 0
    for seed in range(200):
        _, (low, high), p = label_f1_difference(*draw(200, 0.5, [seed], other_noise=0.7), average, np.arange(200), 0.95)
        covered += low <= truth <= high
        assert (p < 0.05) == (not low <= 0 <= high)
    assert 0.92 <= covered / 200 <= 0.99


@pytest.mark.parametrize("average", NAMES)
def test_copies_of_each_row_in_a_group_change_no_interval(average):
    rows, groups = draw(60, 0.6, 2, other_noise=0.9), np.arange(60)
    copies, copied_groups = [np.repeat(each, 3, axis=0) for each in rows], np.repeat(groups, 3)
    single = label_f1_interval(*rows[:2], average, groups, 0.95)
    assert label_f1_interval(*copies[:2], average, copied_groups, 0.95) == pytest.approx(single, abs=0.02)
    _, interval, _ = label_f1_difference(*rows, average, groups, 0.95)
    assert label_f1_difference(*copies, average, copied_groups, 0.95)[1] == pytest.approx(interval, abs=0.03)


@pytest.mark.parametrize("average", NAMES)
def test_extreme_answers_have_an_interval(average):
    gold, _, _ = draw(50, 0.5, 3)
    empty = np.zeros_like(gold)
    low, high = label_f1_interval(gold, gold, average, np.arange(50), 0.95)
    assert 0.7 < low < high == 1
    low, high = label_f1_interval(gold, empty, average, np.arange(50), 0.95)
    assert low == 0 < high < 0.3
    assert np.isnan(label_f1_interval(empty, empty, average, np.arange(50), 0.95)).all()
    difference, (low, high), p = label_f1_difference(gold, gold, empty, average, np.arange(50), 0.95)
    assert difference == 1 == high and low > 0.6 and p < 1e-6
    assert label_f1_difference(gold, empty, empty, average, np.arange(50), 0.95)[2] == 1
    assert label_f1_difference(empty, empty, empty, average, np.arange(50), 0.95)[0] == 0


def test_average_precision_is_that_of_scikit_learn_also_with_equal_scores():
    gold, _, _ = draw(120, 0.5, 4)
    gold[:, 5] = False
    scores = (np.random.default_rng(4).random(gold.shape) + 0.3 * gold).round(1)
    expected = [sklearn_metrics.average_precision_score(gold[:, label], scores[:, label]) for label in range(5)]
    assert average_precisions(gold, scores)[:5] == pytest.approx(expected)
    assert np.isnan(average_precisions(gold, scores)[5])
    assert mean_average_precision(gold, scores) == pytest.approx(np.mean(expected))
    assert average_precision_values(gold, scores).mean() == pytest.approx(np.mean(expected))


def test_a_row_s_value_of_average_precision_is_what_its_weight_changes():
    rng = np.random.default_rng(5)
    gold, scores = rng.random((200, 1)) < 0.3, rng.random((200, 1))
    scores += 0.5 * gold
    values, before = average_precision_values(gold, scores), mean_average_precision(gold, scores)
    for row in range(0, 200, 17):
        weights = np.ones(200)
        weights[row] += 1e-4
        after = sklearn_metrics.average_precision_score(gold[:, 0], scores[:, 0], sample_weight=weights)
        assert values[row] - before == pytest.approx((after - before) / 1e-4 * 200, rel=0.02, abs=0.02)


def draw_scores(rows, noise, seed):
    """Labels of rows, and scores that rank them, bool and float [rows, labels]."""
    rng = np.random.default_rng(seed)
    traits = np.sqrt(0.5) * (rng.normal(size=(rows, 1)) + rng.normal(size=(rows, len(SHARES))))
    return traits > norm.ppf(1 - SHARES), traits + noise * rng.normal(size=traits.shape)


@pytest.mark.parametrize("noise", [0.2, 0.6])
def test_the_interval_of_average_precision_covers_the_truth(noise):
    truth, groups, covered = average_precisions(*draw_scores(200_000, noise, 0))[:4], np.arange(300), 0
    for seed in range(200):
        gold, scores = (each[:, :4] for each in draw_scores(300, noise, [seed]))
        low, high = average_precision_interval(gold, scores, groups, 0.95)
        assert low <= mean_average_precision(gold, scores) <= high
        covered += low <= truth.mean() <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_extreme_rankings_have_an_interval():
    gold, scores = (each[:, :3] for each in draw_scores(100, 0.5, 1))
    low, high = average_precision_interval(gold, gold.astype(float), np.arange(100), 0.95)
    assert 0.5 < low < high == 1
    low, high = average_precision_interval(gold, -scores, np.arange(100), 0.95)
    assert 0 <= low < high < 0.5
    assert average_precision_interval(np.zeros_like(gold), scores, np.arange(100), 0.95) is None
    assert average_precision_interval(gold[:10], scores[:10], np.arange(10), 0.95) is None, "too few rows of a label"
    single = average_precision_interval(gold, scores, np.arange(100), 0.95)
    copies = [np.repeat(each, 3, axis=0) for each in (gold, scores)]
    wide = average_precision_interval(*copies, np.repeat(np.arange(100), 3), 0.95)
    assert np.diff(wide) == pytest.approx(np.diff(single), rel=0.15)


def test_loss_brier_and_calibration_are_of_all_decisions():
    gold = np.array([[True, False], [False, False]])
    probabilities = np.array([[0.8, 0.1], [0.4, 0.0]])
    assert calibration.losses(gold, probabilities) == pytest.approx([-np.log(0.8 * 0.9) / 2, -np.log(0.6) / 2])
    assert calibration.squared_distances(gold, probabilities) == pytest.approx([0.025, 0.08])
    assert calibration.answer_probability(gold, probabilities) == pytest.approx([0.72, 0.6])
    logits = np.log(probabilities[:, 0] / (1 - probabilities[:, 0]))
    before = calibration.undo_temperature(gold, probabilities, 3.0)
    assert before[:, 0] == pytest.approx(1 / (1 + np.exp(-3 * logits)))


def test_a_row_is_right_if_all_its_labels_are_and_only_metrics_of_labels_apply():
    gold, predicted, _ = draw(90, 0.4, 6)
    shares = np.where(predicted, 0.7, 0.2)
    scored = metrics.score_model(metrics.Predictions(gold, predicted, shares, np.arange(90), TASK.classes, 0.95))
    assert scored.accuracy.value == sklearn_metrics.accuracy_score(gold, predicted)
    assert {"f1_micro", "mean_average_precision"} <= scored.scores.keys()
    assert not {"roc_auc", "average_precision", "top_3_accuracy"} & scored.scores.keys()
    assert scored.class_scores.keys() == {"precision", "recall", "f1", "average_precision"}


def test_micro_f1_leads():
    assert measures.choose_leading_metric(draw(20, 0.5, 7)[0], 6) == "f1_micro"


def test_the_most_frequent_set_may_be_empty():
    assert find_majority_class(np.array([0, 5, 5, 0])) == 0
    assert find_majority_class(np.array([2**80, 5, 2**80], dtype=object)) == 2**80


def test_a_bag_of_words_learns_each_label():
    texts = pd.DataFrame({"text": ["red round", "red", "round", "blue", "round blue"] * 20})
    gold = np.stack([texts["text"].str.contains(word) for word in ("red", "round")], axis=1)
    answers = predict_by_words(texts, gold, texts)["bag_of_words"]
    assert answers.dtype == bool and (answers == gold).all()


def test_a_label_that_a_sure_model_misses_is_a_likely_error():
    labels = MultiLabel(("a", "b", "c"))
    gold = np.tile([[True, False, False], [False, False, True]], (50, 1))
    probabilities = np.where(gold, 0.999, 0.001)
    predicted = gold.copy()
    gold[7, 1] = True
    task = Task(labels.classes, "{text}", None, multi_label=True)
    table = pd.DataFrame(probabilities, columns=task.probability_columns).assign(row=range(100), text_text="x")
    table = table.assign(label=labels.to_codes(gold), prediction=labels.to_codes(predicted))
    listed = likely_label_errors(table, task)
    assert listed[["row", "gold", "predicted"]].to_numpy().tolist() == [[7, "b|c", "c"]]


def test_co_occurrence_counts_each_gold_label_with_each_predicted_one():
    gold, predicted = np.array([[1, 1, 0], [0, 0, 0]], bool), np.array([[1, 0, 1], [1, 0, 0]], bool)
    assert confusion_counts(gold, predicted, 3).tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 0]]
