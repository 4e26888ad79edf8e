"""Calibration: compared with scikit-learn, a loop, and the probabilities before the temperature."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics

from stages.analysis import calibration
from stages.data.labels import MultiLabel, SingleLabel
from stages.report import render
from stages.report.figures.reliability import draw_reliability

LABELS = SingleLabel(("a", "b", "c"))


def test_reliability_by_hand():
    right = np.array([True, False, True, True])
    bins = calibration.reliability(right, np.array([0.4, 0.35, 0.95, 1.0]))  # 0.4 is the upper end of its bin
    assert list(bins["rows"]) == [0, 0, 0, 2, 0, 0, 0, 0, 0, 2]
    assert bins["accuracy"][[3, 9]] == pytest.approx([0.5, 1])
    assert bins["probability"][[3, 9]] == pytest.approx([0.375, 0.975])
    assert np.isnan(bins["accuracy"][0])
    assert calibration.calibration_error(bins) == pytest.approx(0.5 * 0.125 + 0.5 * 0.025)


def test_the_outer_bins_hold_0_and_values_rounded_above_1():
    bins = calibration.reliability(np.array([True, False, True]), np.array([0.0, 0.05, 1 + 1e-7]))
    assert list(bins["rows"]) == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert bins["accuracy"][[0, 9]].tolist() == [0.5, 1]


def test_calibration_error_against_a_loop():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(1 / 3, 1, 500)
    right = rng.random(500) < confidence**2
    expected = 0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration.calibration_error(calibration.reliability(right, confidence)) == pytest.approx(expected)


def test_the_calibration_error_of_several_labels_is_the_mean_over_the_labels():
    """A product of 70 probabilities is near 0, and so is the share of rows whose labels are all right."""
    rng = np.random.default_rng(0)
    gold, labels = rng.random((1000, 70)) < 0.1, MultiLabel(tuple(map(str, range(70))))
    for probability, expected in ((0.1, 0.0), (0.4, 0.3)):
        probabilities = np.full(gold.shape, probability)
        error = calibration.expected_calibration_error(gold, probabilities > 0.5, probabilities, labels)
        assert error == pytest.approx(expected, abs=0.01)


def test_calibration_bins_hold_enough_rows():
    rng = np.random.default_rng(3)
    sure = np.concatenate([rng.uniform(0.5, 0.9, 60), rng.uniform(0.99, 1, 940)])
    right = rng.random(1000) < sure
    bins = calibration.calibration_curve(right, sure, np.arange(1000), 0.95)
    assert len(bins) == calibration.BINS and bins["rows"].sum() == 1000
    assert bins["rows"].between(95, 105).all()
    assert ((bins["low"] <= bins["accuracy"]) & (bins["accuracy"] <= bins["high"])).all()
    first = np.sort(sure)[: bins["rows"][0]]
    assert bins["probability"][0] == pytest.approx(first.mean())
    assert len(calibration.calibration_curve(right[:59], sure[:59], np.arange(59), 0.95)) == 1
    assert len(calibration.calibration_curve(right, np.ones(1000), np.arange(1000), 0.95)) == 1, (
        "equal ones share a bin"
    )


def test_loss_and_brier_agree_with_scikit_learn():
    rng = np.random.default_rng(4)
    gold, shares = rng.integers(0, 3, 50), rng.dirichlet([1, 1, 1], 50)
    brier = sklearn_metrics.brier_score_loss(gold, shares, labels=[0, 1, 2], scale_by_half=False)
    assert calibration.squared_distances(gold, shares).mean() == pytest.approx(brier)
    assert calibration.losses(gold, shares).mean() == pytest.approx(sklearn_metrics.log_loss(gold, shares))
    certain = np.array([[0, 0, 1.0], [1.0, 0, 0]])
    assert calibration.squared_distances(np.array([2, 2]), certain).tolist() == [0, 2]
    assert calibration.losses(np.array([2, 2]), certain) == pytest.approx([0, np.log(2e6)]), "a stored 0 is finite"
    assert calibration.losses(np.arange(3), np.full((3, 3), 1 / 3)) == pytest.approx(np.log([3, 3, 3])), "guessing"


@pytest.mark.parametrize("temperature", [0.8, 1, 1.7, 4.1])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_temperature_is_undone(temperature, classes):
    logits = np.random.default_rng(0).normal(0, 3, (200, classes))
    stored = softmax(logits / temperature, axis=1).round(6)
    assert calibration.undo_temperature(LABELS, stored, temperature) == pytest.approx(softmax(logits, axis=1), abs=2e-5)


def test_a_stored_0_is_undone_without_a_warning():
    before = calibration.undo_temperature(LABELS, np.array([[1.0, 0.0], [0.0, 0.0]]), 4.0)
    assert before == pytest.approx(np.array([[1, 0], [0.5, 0.5]]))


def test_calibration_has_the_scores_without_the_temperature():
    """The gold classes are drawn with the calibrated probabilities; the logits were four times as large."""
    rng = np.random.default_rng(1)
    after = rng.dirichlet([1, 1, 1], 5000).round(6)
    gold = (after.cumsum(axis=1) < rng.random((5000, 1))).sum(axis=1).clip(max=2)
    temperature = {"value": 4.0, "low": 3.5, "high": 4.6, "rows": 100}
    result = calibration.measure_calibration(gold, after.argmax(axis=1), after, LABELS, temperature)
    assert (result.temperature, result.low, result.high, result.rows) == (4.0, 3.5, 4.6, 100)
    before = softmax(4 * np.log(np.maximum(after, 5e-7)), axis=1)
    right = after.argmax(axis=1) == gold
    expected = calibration.calibration_error(calibration.reliability(right, before.max(axis=1)))
    assert result.without.calibration_error == pytest.approx(expected) and expected > 0.2
    clipped = -np.log(np.maximum(before[np.arange(5000), gold], 5e-7)).mean()
    assert result.without.loss == pytest.approx(clipped) and clipped > calibration.losses(gold, after).mean() + 0.5
    assert result.without.brier == pytest.approx(((before - np.eye(3)[gold]) ** 2).sum(axis=1).mean())


def test_a_model_without_a_temperature_has_no_calibration():
    assert calibration.measure_calibration(np.array([0]), np.array([0]), np.array([[0.9, 0.1]]), LABELS, None) is None


def test_the_picture_has_the_interval_of_each_bin():
    bins = pd.DataFrame({"probability": [0.6, 0.9], "accuracy": [0.5, 0.95], "low": [0.4, 0.9], "high": [0.65, 0.97],
                         "rows": [40, 41]})  # fmt: skip
    (axes,) = draw_reliability(bins, bins[1:], "probability", render.ON_WHITE).axes
    for bars, expected in zip(axes.containers, (bins[1:], bins), strict=True):
        ends = [segment[:, 1].tolist() for segment in bars[2][0].get_segments()]
        assert ends == [pytest.approx(pair) for pair in expected[["low", "high"]].to_numpy().tolist()]


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_picture_has_the_dots_of_each_series(calibrated):
    rng = np.random.default_rng(0)
    probability = rng.uniform(0.5, 1, 300)
    right = rng.random(300) < probability
    tuned, without = (
        calibration.calibration_curve(right, values, np.arange(300), 0.95)
        for values in (probability, probability**0.25)
    )
    (axes,) = draw_reliability(tuned, without if calibrated else None, "probability", render.ON_WHITE).axes
    series = {line.get_color(): line for line in axes.lines if line.get_marker() not in ("None", "_")}
    assert list(series["#1f66d0"].get_xdata()) == pytest.approx(list(tuned["probability"]))
    assert (render.ON_WHITE["muted"] in series) == calibrated and (axes.get_legend() is not None) == calibrated
    if calibrated:
        assert list(series[render.ON_WHITE["muted"]].get_ydata()) == pytest.approx(list(without["accuracy"]))
        assert [text.get_text() for text in axes.get_legend().texts] == ["with calibration", "without"]
