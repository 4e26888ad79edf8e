"""The best threshold of two classes, compared with scikit-learn at every possible one."""

import time

import numpy as np
import pytest
from sklearn.metrics import f1_score

from stages.data.thresholds import best_threshold, best_thresholds


def macro_f1(gold, scores, threshold):
    return f1_score(gold, scores > threshold, average="macro")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("digits", [1, 6])  # one digit: many equal scores
def test_no_other_threshold_has_a_higher_macro_f1(seed, digits):
    rng = np.random.default_rng(seed)
    scores = rng.beta(1, 3, 60).round(digits)
    gold = (rng.random(60) < scores).astype(int)
    gold[:2] = [0, 1]
    threshold = best_threshold(gold, scores)
    distinct = np.unique(scores)
    candidates = np.append((distinct[1:] + distinct[:-1]) / 2, [0.5, 0, 1])
    f1 = np.array([macro_f1(gold, scores, candidate) for candidate in candidates])
    assert macro_f1(gold, scores, threshold) == pytest.approx(f1.max())
    distances = np.abs(candidates - 0.5)
    assert abs(threshold - 0.5) == pytest.approx(distances[f1 > f1.max() - 1e-9].min()), "the nearest to 0.5"


def test_a_rare_class_gets_a_low_threshold():
    gold = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    scores = np.array([0.01, 0.02, 0.03, 0.02, 0.01, 0.1, 0.3, 0.45])
    assert best_threshold(gold, scores) == pytest.approx(0.2)
    shuffled = np.random.default_rng(0).permutation(8)
    assert best_threshold(gold[shuffled], scores[shuffled]) == pytest.approx(0.2)


def test_without_a_better_threshold_it_is_one_half():
    assert best_threshold(np.array([0, 1]), np.array([0.2, 0.7])) == 0.5
    assert best_threshold(np.array([0, 1]), np.array([0.5, 0.7])) == 0.5, "0.5 itself is the first class, as by argmax"
    assert best_threshold(np.array([0, 1, 1]), np.array([0.3, 0.3, 0.3])) == 0.5


@pytest.mark.parametrize("gold", [[0, 0, 0], [1, 1, 1], []])
def test_without_a_second_gold_class_it_is_one_half(gold):
    assert best_threshold(np.array(gold, dtype=int), np.linspace(0, 0.4, len(gold))) == 0.5


def test_100000_rows_take_little_time():
    rng = np.random.default_rng(0)
    scores = rng.random(100_000)
    start = time.process_time()
    best_threshold((rng.random(100_000) < scores).astype(int), scores)
    assert time.process_time() - start < 0.5


def test_each_label_has_its_own_threshold_with_the_best_f1():
    rng = np.random.default_rng(0)
    scores = rng.random((300, 3)) * [1, 0.3, 0.5]
    gold = rng.random((300, 3)) < scores
    gold[:, 2] = False
    chosen = best_thresholds(gold, scores)
    for label in (0, 1):
        f1 = [f1_score(gold[:, label], scores[:, label] > edge, zero_division=0) for edge in np.linspace(0, 1, 101)]
        assert f1_score(gold[:, label], scores[:, label] > chosen[label]) >= max(f1)
    assert chosen[2] == 0.5, "without a row of it, nothing is known"
