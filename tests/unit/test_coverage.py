"""Accuracy against coverage: compared with loops, and the intervals with a model whose truth is known."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from stages.analysis import coverage, intervals
from stages.report import render
from stages.report.figures.coverage import draw_coverage


def draw_rows(rows, seed, scale=3.0, sharpness=1.0):
    """(right, probability) of a model of three classes; it is calibrated if `sharpness` is 1."""
    rng = np.random.default_rng(seed)
    shares = softmax(rng.normal(0, scale, (rows, 3)), axis=1)
    gold = (shares.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    right = shares.argmax(axis=1) == gold
    powers = shares**sharpness
    return right, (powers / powers.sum(axis=1, keepdims=True)).max(axis=1).round(6)


def test_each_point_of_the_curve_is_the_accuracy_above_its_threshold():
    right, probability = draw_rows(500, 0)
    probability = probability.round(2)  # many equal ones
    curve = coverage.coverage_curve(right, probability, np.arange(500), 0.95)
    for line in curve.itertuples():
        answered = probability >= line.threshold
        assert line.rows == answered.sum() >= 10 and line.coverage == answered.mean()
        assert line.accuracy == right[answered].mean()
        low, high = intervals.wilson(right[answered].sum(), answered.sum(), 0.95)
        assert line.low <= low + 1e-12 and high - 1e-12 <= line.high
    assert (line.low, line.high) == pytest.approx((low, high)), "of all rows: without a threshold"
    assert curve["coverage"].iloc[-1] == 1 and curve["coverage"].is_monotonic_increasing
    assert curve["threshold"].is_unique and 20 < len(curve) <= 100


def test_the_curve_widens_by_the_groups_of_its_own_rows():
    right, probability = (np.repeat(values, 3) for values in draw_rows(200, 1))
    shuffled = np.random.default_rng(0).permutation(600)
    groups = np.repeat([f"text {number}" for number in range(200)], 3)
    curve = coverage.coverage_curve(right[shuffled], probability[shuffled], groups[shuffled], 0.95)
    independent = coverage.coverage_curve(right, probability, np.arange(600), 0.95)
    assert curve[["coverage", "accuracy"]].equals(independent[["coverage", "accuracy"]])
    wider = (curve["high"] - curve["low"]) / (independent["high"] - independent["low"])
    assert wider[curve["rows"] > 100].between(1.5, 3.1).all()  # sqrt(3), or 3 without errors
    expected = intervals.measure_share(right, groups, 0.95).interval
    assert tuple(curve[["low", "high"]].iloc[-1]) == pytest.approx(expected)


def test_the_threshold_adds_to_the_variance_by_hand():
    """Of 200 rows, 100 are answered, 90 of them right; of the 20 rows around the threshold, 10 are right."""
    right = np.ones(200, bool)
    right[90:100] = False
    assert coverage.threshold_variance(right, 100) == pytest.approx(1 + 0.5 * (0.9 - 0.5) ** 2 / 0.09)
    assert coverage.threshold_variance(right, 200) == 1
    assert coverage.threshold_variance(right, 50) == 1, "rows near the threshold are as accurate as the others"


@pytest.mark.parametrize("rows", [1, 5])
def test_a_few_rows_have_one_point(rows):
    curve = coverage.coverage_curve(np.ones(rows, bool), np.linspace(0.5, 1, rows), np.arange(rows), 0.95)
    assert curve[["coverage", "accuracy", "rows"]].to_numpy().tolist() == [[1, 1, rows]]


def test_coverage_by_hand():
    curve = pd.DataFrame({
        "coverage": [0.2, 0.4, 0.6, 0.8, 1], "threshold": [0.9, 0.8, 0.7, 0.6, 0.5],
        "accuracy": [0.99, 0.94, 0.96, 0.93, 0.9], "low": [0.96, 0.91, 0.93, 0.91, 0.88],
        "high": [1, 0.97, 0.98, 0.96, 0.93],
    })  # fmt: skip
    assert coverage.coverage_at(curve, 0.95) == coverage.Coverage(0.95, 0.6, (0.2, 1), 0.7)
    assert coverage.coverage_at(curve, 0.98) == coverage.Coverage(0.98, 0.2, (0, 0.8), 0.9)
    assert coverage.coverage_at(curve, 0.995) is None
    assert coverage.coverage_at(curve, 0.85).coverage == 1


@pytest.mark.parametrize(("goal", "sharpness"), [(0.9, 1), (0.95, 3)])
def test_the_interval_of_the_coverage_covers_it(goal, sharpness):
    right, probability = draw_rows(400_000, 0, sharpness=sharpness)
    accuracy = np.cumsum(right[np.argsort(-probability)]) / np.arange(1, 400_001)
    truth = (np.flatnonzero(accuracy >= goal)[-1] + 1) / 400_000
    covered, estimates = [], []
    for seed in range(1, 201):
        right, probability = draw_rows(500, seed, sharpness=sharpness)
        result = coverage.coverage_at(coverage.coverage_curve(right, probability, np.arange(500), 0.95), goal)
        covered.append(result.interval.low <= truth <= result.interval.high)
        estimates.append(result.coverage)
    assert 0.5 < truth < 0.8 and np.mean(estimates) == pytest.approx(truth, abs=0.02)
    assert 0.92 < np.mean(covered) < 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("digits", [2, 6])
def test_the_chosen_threshold_answers_the_most_rows(seed, digits):
    right, probability = draw_rows(120, seed)
    probability = probability.round(digits)
    threshold = coverage.choose_threshold(right, probability, 0.9)
    reaching = [
        (probability >= each).sum() for each in probability
        if (probability >= each).sum() >= 10 and right[probability >= each].mean() >= 0.9
    ]  # fmt: skip
    assert (probability >= threshold).sum() == max(reaching)
    assert right[probability >= threshold].mean() >= 0.9


def test_a_goal_that_no_threshold_reaches_has_none():
    right = np.arange(40) % 2 == 0
    assert coverage.choose_threshold(right, np.linspace(0.5, 1, 40), 0.9) is None
    assert coverage.choose_threshold(np.ones(9, bool), np.linspace(0.5, 1, 9), 0.9) is None, "too few rows"


def test_a_threshold_is_measured_on_other_rows():
    right, probability = draw_rows(300, 3)
    result = coverage.measure_threshold(right, probability, np.arange(300), 0.95, 0.8, 0.95)
    answered = probability >= 0.8
    assert (result.coverage.hits, result.coverage.rows) == (answered.sum(), 300)
    assert (result.accuracy.hits, result.accuracy.rows) == (right[answered].sum(), answered.sum())
    assert result.accuracy.interval == intervals.wilson(right[answered].sum(), answered.sum(), 0.95)
    nothing = coverage.measure_threshold(right, probability, np.arange(300), 0.95, 1.1, 0.95)
    assert nothing.coverage.hits == 0 and np.isnan(nothing.accuracy.value)


def test_10000_rows_take_under_a_second():
    right, probability = draw_rows(10_000, 0)
    start = time.process_time()
    coverage.coverage_curve(right, probability, np.arange(10_000) // 3, 0.95)
    assert time.process_time() - start < 1


def test_the_picture_has_the_curve_and_its_goals():
    right, probability = draw_rows(500, 0)
    curve = coverage.coverage_curve(right, probability, np.arange(500), 0.95)
    goals = [coverage.coverage_at(curve, goal) for goal in (0.9, 0.95)]
    (axes,) = draw_coverage(curve, goals, render.ON_WHITE).axes
    line, *marks = axes.lines
    assert np.array_equal(line.get_xydata(), curve[["coverage", "accuracy"]].to_numpy())
    assert [mark.get_xydata().tolist() for mark in marks[1::2]] == [[[each.coverage, each.goal]] for each in goals]
    assert [mark.get_xdata().tolist() for mark in marks[::2]] == [list(each.interval) for each in goals]
    assert len(draw_coverage(curve, [], render.ON_WHITE).axes[0].lines) == 1
