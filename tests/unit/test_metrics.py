"""The metrics of a model, compared with scikit-learn; which of them a task has."""

import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from stages.analysis import intervals, metrics, two_classes


def draw_predictions(classes=3, rows=300, seed=0, gold=None, digits=6):
    """Predictions of a model that is often right. Each row has its own group."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, rows) if gold is None else np.array(gold)
    shares = rng.dirichlet([0.3] * classes, len(gold)) * 0.6
    shares[np.arange(len(gold)), gold] += 0.4 * rng.random(len(gold))
    shares = (shares / shares.sum(axis=1, keepdims=True)).round(digits)
    names = tuple(f"class {number}" for number in range(classes))
    return metrics.Predictions(gold, shares.argmax(axis=1), shares, np.arange(len(gold)), names, 0.95)


@pytest.mark.parametrize("gold, predicted", [
    ([0, 1, 2, 0, 1, 2, 0], [0, 2, 2, 0, 1, 1, 1]),
    ([0, 1, 2, 0, 1], [0, 0, 2, 0, 0]),  # a class is never predicted
    ([0, 1, 0], [2, 1, 0]),  # no row has a class
    ([0, 1, 0], [0, 1, 0]),  # a class is neither gold nor predicted
])  # fmt: skip
def test_scores_by_class_agree_with_scikit_learn(gold, predicted):
    gold, predicted = np.array(gold), np.array(predicted)
    result = metrics.score_model(
        metrics.Predictions(gold, predicted, np.eye(3)[predicted], np.arange(len(gold)), ("a", "b", "c"), 0.95)
    )
    expected = sklearn_metrics.precision_recall_fscore_support(gold, predicted, labels=[0, 1, 2], zero_division=np.nan)
    for key, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert list(result.class_scores[key].values()) == pytest.approx(list(values), nan_ok=True), key


@pytest.mark.parametrize("classes, extra", [
    (2, {"roc_auc", "average_precision"}), (3, set()), (5, set()), (6, {"top_3_accuracy", "top_5_accuracy"}),
])  # fmt: skip
def test_a_task_has_the_metrics_that_apply_to_it(classes, extra):
    scores = metrics.score_model(draw_predictions(classes)).scores
    assert set(scores) == {"accuracy", "f1_weighted", "f1_macro", "loss", "calibration_error", "brier"} | extra
    for key in set(scores) - {"calibration_error", "average_precision"}:
        low, high = scores[key].interval
        assert low < scores[key].value < high, key


@pytest.mark.parametrize("seed", range(5))
def test_top_k_accuracy_agrees_with_scikit_learn(seed):
    predictions = draw_predictions(8, seed=seed)
    scores = metrics.score_model(predictions).scores
    for k in (3, 5):
        expected = sklearn_metrics.top_k_accuracy_score(
            predictions.gold, predictions.probabilities, k=k, labels=np.arange(8)
        )
        assert scores[f"top_{k}_accuracy"].value == pytest.approx(expected) and expected < 1
        hits = round(expected * 300)
        assert scores[f"top_{k}_accuracy"].interval == pytest.approx(intervals.wilson(hits, 300, 0.95))


def test_of_equally_probable_classes_the_first_are_on_top():
    shares = np.array([[0.25, 0.25, 0.5, 0]] * 4)
    gold = np.arange(4)
    predictions = metrics.Predictions(gold, np.full(4, 2), shares, gold, ("a", "b", "c", "d"), 0.95)
    assert predictions.in_top(1).tolist() == [False, False, True, False]
    assert predictions.in_top(2).tolist() == [True, False, True, False]
    assert predictions.in_top(3).tolist() == [True, True, True, False]


def test_without_both_classes_two_class_scores_are_unknown():
    for gold, known in (([0, 0], False), ([1, 1], True)):
        scores = metrics.score_model(draw_predictions(2, gold=gold)).scores
        assert np.isnan(scores["roc_auc"].value) and scores["roc_auc"].interval is None
        assert np.isnan(scores["average_precision"].value) != known


def test_two_class_scores_agree_with_scikit_learn():
    predictions = draw_predictions(2, digits=1)  # many equal scores
    gold, scores = predictions.gold, predictions.probabilities[:, 1]
    result = metrics.score_model(predictions).scores
    assert result["roc_auc"].value == pytest.approx(sklearn_metrics.roc_auc_score(gold, scores))
    assert result["average_precision"].value == pytest.approx(sklearn_metrics.average_precision_score(gold, scores))


def test_the_interval_of_the_auc_at_its_ends_is_not_empty():
    gold = np.repeat([0, 1], 10)
    low, high = two_classes.roc_auc_interval(gold, gold.astype(float), np.arange(20), 0.95)
    assert 0.6 < low < 0.95 and high == 1
    low_of_more, _ = two_classes.roc_auc_interval(np.tile(gold, 10), np.tile(gold, 10) * 1.0, np.arange(200), 0.95)
    assert low < low_of_more < 1
    low, high = two_classes.roc_auc_interval(gold, 1 - gold.astype(float), np.arange(20), 0.95)
    assert low == 0 and 0.05 < high < 0.4


def test_the_interval_of_the_auc_is_wider_if_rows_share_groups():
    predictions = draw_predictions(2, rows=100)
    gold, scores = (np.tile(values, 3) for values in (predictions.gold, predictions.probabilities[:, 1]))
    once = two_classes.roc_auc_interval(predictions.gold, predictions.probabilities[:, 1], np.arange(100), 0.95)
    copies = two_classes.roc_auc_interval(gold, scores, np.tile(np.arange(100), 3), 0.95)
    independent = two_classes.roc_auc_interval(gold, scores, np.arange(300), 0.95)
    assert np.ptp(copies) == pytest.approx(np.ptp(once), rel=0.05)
    assert np.ptp(independent) == pytest.approx(np.ptp(once) / np.sqrt(3), rel=0.05)


def test_the_interval_of_the_auc_covers_it():
    rng = np.random.default_rng(0)
    shift = stats.norm.ppf(0.9) * np.sqrt(2)
    covered = []
    for _ in range(400):
        gold = np.repeat([0, 1], [80, 20])
        low, high = two_classes.roc_auc_interval(gold, rng.normal(shift * gold), np.arange(100), 0.95)
        covered.append(low <= 0.9 <= high)
    assert 0.92 < np.mean(covered) < 0.99


def test_the_interval_of_a_mean_without_skewness_is_students():
    values = np.array([1.0, 2, 3, 4, 5] * 4)
    expected = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    assert intervals.mean_interval(values, np.arange(20), 0.95) == pytest.approx(expected)
    doubled = intervals.mean_interval(np.repeat(values, 2), np.repeat(np.arange(20), 2), 0.95)
    assert np.ptp(doubled) == pytest.approx(np.ptp(expected), rel=0.05), "copies of a row add nothing"


def test_the_interval_of_skewed_losses_covers_their_mean():
    """The losses of an overconfident model: most are small, and one in twelve is between 0 and 9."""
    rng = np.random.default_rng(0)
    covered, students = [], []
    for _ in range(1000):
        values = np.where(rng.random(100) < 1 / 12, rng.uniform(0, 9, 100), rng.exponential(0.05, 100))
        mean = 4.5 / 12 + 0.05 * 11 / 12
        low, high = intervals.mean_interval(values, np.arange(100), 0.95)
        covered.append(low <= mean <= high)
        low, high = stats.t.interval(0.95, 99, values.mean(), stats.sem(values))
        students.append(low <= mean <= high)
    assert 0.93 < np.mean(covered) < 0.98 and np.mean(students) < 0.92


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.3, 0.3]])
def test_one_value_alone_has_no_interval(values):
    assert intervals.mean_interval(np.array(values), np.arange(len(values)), 0.95) is None


@pytest.mark.parametrize("classes", [2, 77])
def test_10000_rows_take_under_a_second(classes):
    predictions = draw_predictions(classes, rows=10_000)
    start = time.process_time()
    metrics.score_model(predictions)
    assert time.process_time() - start < 1
