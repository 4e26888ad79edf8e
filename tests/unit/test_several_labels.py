"""Measures of several labels a row: equal to scikit-learn's, and intervals that cover the truth."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.project import ROOT
from scipy.stats import norm
from sklearn import metrics as sklearn_metrics

from stages.analysis import calibration, measures, metrics, slices
from stages.analysis.average_precision import (
    average_precision_interval,
    average_precision_values,
    average_precisions,
    mean_average_precision,
)
from stages.analysis.bag_of_words import predict_by_words
from stages.analysis.best_threshold import measure_best_threshold
from stages.analysis.label_errors import likely_label_errors
from stages.analysis.label_f1 import (
    MACRO,
    MICRO,
    WEIGHTED,
    average_f1,
    difference_intervals,
    f1_gradient,
    label_f1_difference,
    label_f1_values,
    micro_f1_changes,
)
from stages.analysis.multi_seed.comparison import choose_design, compare_recipes, estimate_difference
from stages.analysis.multi_seed.row_values import GoldRows
from stages.analysis.multi_seed.scores import Recipe, mean_f1
from stages.analysis.references import find_majority_class
from stages.data import confusion
from stages.data.confusion import confusion_counts, count_classes, pair_classes
from stages.data.labels import MultiLabel
from stages.data.task import Task
from stages.report.figures.scores import select_slices

sys.path.insert(0, str(ROOT / "benchmarks"))
from intervals import LABEL_SHARES, LabelCell, draw_labels, label_coverage

NAMES = {WEIGHTED: "weighted", MACRO: "macro", MICRO: "micro"}
SHARES = LABEL_SHARES["6, 50 to 3%"]
TASK = Task(("a", "b", "c", "d", "e", "f"), "{text}", None, multi_label=True)


def draw(rows, noise, seed, other_noise=None):
    """Labels of rows that depend on each other, and the answers of two models, bool [rows, labels] each."""
    noises = (noise, noise if other_noise is None else other_noise)
    gold, scores = draw_labels(SHARES, rows, noises, np.random.default_rng(seed))
    return gold, *(each > 0 for each in scores)


def draw_trainings(rows, counts, noises, deviation, seed, same):
    """Labels of rows, and the answers of two recipes' trainings, bool [seeds, rows, labels] each.

    A seed shifts all scores of a training; with `same` seeds, of both recipes alike.
    """
    rng = np.random.default_rng(seed)
    gold, scores = draw_labels(SHARES, rows, noises, rng)
    shifts = rng.normal(size=(2, max(counts), 1, 1))
    answers = [
        each + noise / 2 * rng.normal(size=(count, *gold.shape)) + deviation * shifts[0 if same else recipe, :count] > 0
        for recipe, (each, noise, count) in enumerate(zip(scores, noises, counts, strict=True))
    ]
    return gold, *answers


def label_f1_interval(gold, predicted, average, groups, confidence):
    return measures.f1_interval(gold, predicted, average, groups, gold.shape[1], confidence)


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


# Intervals that cover 98 to 100 of 100: with few mistakes in few rows, as `benchmarks/intervals.py` explains.
FEW_MISTAKES = ("micro difference", "macro", "macro difference", "precision")
COVERAGE_CELLS = [
    (LabelCell("6, 50 to 3%", 100, 1.0, 1.0), ()),
    (LabelCell("6, 50 to 3%", 300, 0.5, 0.7), ()),
    (LabelCell("6, 90 to 3%", 300, 0.2, 0.2), ("macro difference", "precision")),
    (LabelCell("6, 90 to 3%", 450, 0.5, 0.5, a_group=3), ()),
    (LabelCell("6, 50 to 3%", 100, 0.05, 0.05), FEW_MISTAKES),
]


@pytest.mark.parametrize(("cell", "wide"), COVERAGE_CELLS, ids=str)
def test_the_intervals_cover_the_truth(cell, wide):
    """`python benchmarks/intervals.py --tables labels` prints the whole table."""
    shares = label_coverage(cell, 300, seed=1)
    for name in ("micro", "macro", "precision", "micro difference", "macro difference"):
        lowest, highest = (0.96, 1) if name in wide else (0.92, 0.98)
        assert lowest <= shares[name] <= highest, (name, shares)
    if cell.noise == cell.other:
        assert shares["micro significant"] <= 0.08 and shares["macro significant"] <= 0.08, shares


def test_the_intervals_of_labels_with_few_rows_are_as_wide_as_macro_f1_varies():
    """Without the correction for few rows, they are 20% narrower."""
    shares, rng, groups = LABEL_SHARES["28, 30 to 1%"], np.random.default_rng(1), np.arange(100)
    values, widths = [], []
    for _ in range(200):
        gold, scores = draw_labels(shares, 100, (1.0, 1.0), rng)
        first, other = (each > 0 for each in scores)
        difference, interval = difference_intervals(gold, first, other, MACRO, groups)
        values.append((average_f1(count_classes(gold, first, 28), MACRO), difference))
        widths.append([np.diff(each) for each in (label_f1_interval(gold, first, MACRO, groups, 0.95), interval(0.95))])
    ratios = np.mean(widths, axis=0).ravel() / (2 * norm.ppf(0.975) * np.std(values, axis=0))
    assert (ratios > [0.9, 1.0]).all() and (ratios < 1.2).all()


@pytest.mark.parametrize("average", [MACRO, MICRO])
def test_the_interval_of_a_difference_excludes_0_if_and_only_if_p_is_below_the_level(average):
    excluded = 0
    for seed in range(40):
        _, (low, high), p = label_f1_difference(*draw(100, 0.5, [seed], other_noise=0.7), average, np.arange(100), 0.95)
        assert (p < 0.05) == (not low <= 0 <= high)
        excluded += p < 0.05
    assert 0 < excluded < 40


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


def test_the_interval_of_a_label_without_mistakes_comes_from_the_added_ones():
    """Added are z^2/2 right ones, z^2/4 missed ones, and z^2/4 that are not gold."""
    gold = np.arange(50)[:, None] < 40
    z = norm.ppf(0.975)
    added = z**2 / 2
    denominator, rows = 80 + 3 * added, 40 + 2 * added
    f1 = 2 * (40 + added) / denominator
    variance = (40 + added) * (2 * (1 - f1) / denominator) ** 2 + added * (f1 / denominator) ** 2
    half = z * np.sqrt(variance * rows / (rows - 1))
    middle = f1 + f1 * (1 - f1) / denominator
    for average in NAMES:
        interval = label_f1_interval(gold, gold, average, np.arange(50), 0.95)
        assert interval == pytest.approx((middle - half, 1))


def test_average_precision_is_that_of_scikit_learn_also_with_equal_scores():
    gold, _, _ = draw(120, 0.5, 4)
    gold[:, 5] = False
    scores = (np.random.default_rng(4).random(gold.shape) + 0.3 * gold).round(1)
    expected = [sklearn_metrics.average_precision_score(gold[:, label], scores[:, label]) for label in range(5)]
    assert average_precisions(gold, scores)[:5] == pytest.approx(expected)
    assert np.isnan(average_precisions(gold, scores)[5])
    assert mean_average_precision(gold, scores) == pytest.approx(np.mean(expected))


def test_a_row_s_value_of_average_precision_is_that_of_the_jackknife_also_with_equal_scores():
    rng = np.random.default_rng(5)
    gold = rng.random((60, 2)) < [0.3, 0.1]
    scores = (rng.random((60, 2)) + 0.5 * gold).round(1)

    def score(rows):
        return np.array([sklearn_metrics.average_precision_score(gold[rows, k], scores[rows, k]) for k in (0, 1)])

    everything = np.arange(60)
    expected = [60 * score(everything) - 59 * score(np.delete(everything, row)) for row in everything]
    assert average_precision_values(gold, scores) == pytest.approx(np.transpose(expected))


def test_the_jackknife_removes_most_of_the_bias_of_average_precision():
    truth, samples = mean_average_precision(*draw_scores(200_000, 0.5, 0)), range(500)
    scores = [mean_average_precision(*draw_scores(100, 0.5, [seed])) for seed in samples]
    without_bias = [average_precision_values(*draw_scores(100, 0.5, [seed])).mean() for seed in samples]
    assert np.mean(scores) - truth > 0.02 and abs(np.mean(without_bias) - truth) < 0.012


def draw_scores(rows, noise, seed):
    """Labels of rows, and scores that rank them, bool and float [rows, labels]."""
    gold, (scores,) = draw_labels(SHARES, rows, [noise], np.random.default_rng(seed))
    return gold, scores


def test_extreme_rankings_have_an_interval():
    gold, scores = (each[:, :3] for each in draw_scores(100, 0.5, 1))
    low, high = average_precision_interval(gold, gold.astype(float), np.arange(100), 0.95)
    assert 0.5 < low < high == 1
    low, high = average_precision_interval(gold, -scores, np.arange(100), 0.95)
    assert 0 <= low < high < 0.5
    assert average_precision_interval(np.zeros_like(gold), scores, np.arange(100), 0.95) is None
    few = gold & (np.cumsum(gold, axis=0) <= 5)
    assert average_precision_interval(few, scores, np.arange(100), 0.95) is None, "too few rows of the labels"
    few[:, 0] = gold[:, 0]
    few[:, 2] = np.cumsum(gold[:, 2]) * gold[:, 2] == 1
    assert np.isfinite(average_precision_values(few, scores)).all(), "a label has one row"
    single = average_precision_interval(gold, scores, np.arange(100), 0.95)
    copies = [np.repeat(each, 3, axis=0) for each in (gold, scores)]
    wide = average_precision_interval(*copies, np.repeat(np.arange(100), 3), 0.95)
    assert np.diff(wide) == pytest.approx(np.diff(single), rel=0.15)


def test_the_bias_of_average_precision_grows_with_the_design_effect():
    """If each row has two copies, the middle moves by 0.025, and without the design effect by 0.046."""
    gold, scores = draw_scores(100, 1.0, 2)
    single = average_precision_interval(gold, scores, np.arange(100), 0.95)
    copies = [np.repeat(each, 3, axis=0) for each in (gold, scores, np.arange(100))]
    assert np.mean(average_precision_interval(*copies, 0.95)) == pytest.approx(np.mean(single), abs=0.035)


def test_loss_brier_and_calibration_are_of_all_decisions():
    gold = np.array([[True, False], [False, False]])
    probabilities = np.array([[0.8, 0.1], [0.4, 0.0]])
    assert calibration.losses(gold, probabilities) == pytest.approx([-np.log(0.8 * 0.9) / 2, -np.log(0.6) / 2])
    assert calibration.squared_distances(gold, probabilities) == pytest.approx([0.025, 0.08])
    logits = np.log(probabilities[:, 0] / (1 - probabilities[:, 0]))
    before = calibration.undo_temperature(TASK.labels, probabilities, 3.0)
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
    gold[8, 1] = True
    probabilities = np.where(gold, 0.999, 0.001)
    predicted = gold.copy()
    gold[7, 1] = True
    task = Task(labels.classes, "{text}", None, multi_label=True)
    table = pd.DataFrame(probabilities, columns=task.probability_columns).assign(row=range(100), text_text="x")
    table = table.assign(label=labels.to_codes(gold), prediction=labels.to_codes(predicted))
    listed = likely_label_errors(table, task)
    columns = ["row", "gold", "predicted", "doubted", "probability", "probability_of_gold"]
    assert listed[columns].to_numpy().tolist() == [[7, "b|c", "c", "b", 0.999, 0.001]]


def test_a_label_that_the_model_gives_to_no_row_or_to_all_is_no_likely_error():
    gold = np.tile([[True, False, True, False, False, False], [True, False, False, False, False, True]], (50, 1))
    probabilities, predicted = np.where(gold, 0.9999, 0.0001), gold.copy()
    gold[7, 1], gold[9, 0] = True, False  # it never gives b, and always a
    gold[4, 2] = False
    table = pd.DataFrame(probabilities, columns=TASK.probability_columns).assign(row=range(100), text_text="x")
    labels, answers = (TASK.labels.to_codes(each) for each in (gold, predicted))
    listed = likely_label_errors(table.assign(label=labels, prediction=answers), TASK)
    assert listed[["row", "doubted"]].to_numpy().tolist() == [[4, "c"]]


@pytest.mark.parametrize("wrong", [0, 60])
def test_most_listed_labels_are_wrong_and_right_labels_give_a_short_list(wrong):
    """Of a calibrated model, 6 x 1,000 decisions; `wrong` of them have the opposite gold label."""
    rng = np.random.default_rng(wrong)
    probabilities = 1 / (1 + np.exp(-rng.normal(-2, 8, (1000, 6))))
    gold = rng.random(probabilities.shape) < probabilities
    flipped = np.zeros(gold.size, bool)
    flipped[rng.choice(gold.size, wrong, replace=False)] = True
    flipped = flipped.reshape(gold.shape)
    table = pd.DataFrame(probabilities.round(6), columns=TASK.probability_columns).assign(row=range(1000), text_text="")
    codes = [TASK.labels.to_codes(labels) for labels in (gold ^ flipped, probabilities > 0.5)]
    listed = likely_label_errors(table.assign(label=codes[0], prediction=codes[1]), TASK)
    is_wrong = flipped[listed["row"], listed["doubted"].map(TASK.classes.index)]
    assert len(listed) < 5 if wrong == 0 else len(listed) >= 10 and np.mean(is_wrong) > 0.6


def test_a_row_with_two_wrong_labels_has_two_lines():
    gold = np.tile([True, False, True, False, False, False], (50, 1))
    gold[9, :2] = False, True
    probabilities = np.where(gold, 0.9999, 0.0001)
    given = gold.copy()
    given[3, :2] = ~gold[3, :2]
    table = pd.DataFrame(probabilities, columns=TASK.probability_columns).assign(row=range(50), text_text="")
    labels, answers = (TASK.labels.to_codes(each) for each in (given, gold))
    listed = likely_label_errors(table.assign(label=labels, prediction=answers), TASK)
    assert listed[["row", "gold", "predicted", "doubted"]].to_numpy().tolist() == [
        [3, "b|c", "a|c", "a"], [3, "b|c", "a|c", "b"],
    ]  # fmt: skip


def test_the_thresholds_of_the_validation_rows_are_measured_on_the_test_rows():
    gold, scores = draw_labels(SHARES, 3000, [0.6], np.random.default_rng(8))
    probabilities = norm.cdf(scores[0] - 0.6).round(6)  # too low
    whole = metrics.Predictions(gold, probabilities > 0.5, probabilities, np.arange(3000), TASK.classes, 0.95)
    parts = {"gold", "predicted", "probabilities", "groups"}
    validation, test = (
        replace(whole, **{name: getattr(whole, name)[rows] for name in parts})
        for rows in (slice(1000), slice(1000, None))
    )
    effect = measure_best_threshold(test, validation)
    assert list(effect.threshold) == list("abcdef") and 0.1 < effect.threshold["a"] < 0.5
    assert effect.without_rows == []
    rare = replace(validation, gold=validation.gold & (np.arange(6) > 0))
    assert measure_best_threshold(test, rare).without_rows == ["a"]
    assert measure_best_threshold(test, rare).threshold["a"] == 0.5
    answers = test.probabilities > np.array(list(effect.threshold.values()))
    assert effect.accuracy.value == pytest.approx(sklearn_metrics.accuracy_score(test.gold, answers))
    for name in ("micro", "macro"):
        expected = sklearn_metrics.f1_score(test.gold, answers, average=name)
        assert getattr(effect, f"f1_{name}").value == pytest.approx(expected)
    before = sklearn_metrics.f1_score(test.gold, test.predicted, average="macro")
    assert effect.f1_macro_gain.value == pytest.approx(effect.f1_macro.value - before) and effect.f1_macro_gain.p < 0.01


def test_rows_are_sliced_by_their_number_of_labels():
    counts = [0, 1, 1, 2, 3, 5]
    gold = np.arange(6) < np.array(counts)[:, None]
    cases = pd.DataFrame({"gold": TASK.labels.to_codes(gold), "truncated": False, "words_text": 3})
    names, numbers = slices.cuts(cases, np.full(6, 0.2), TASK, {})["number of labels"]
    assert [names[number] for number in numbers] == ["none", "1", "1", "2", "3 or more", "3 or more"]


def test_low_probabilities_of_sets_of_labels_are_sliced_too():
    parts = ["up to 10%", "10% to 30%", "30% to 50%", "50% to 70%", "70% to 90%", "over 90%"]
    names, numbers = slices.cut_by_probability(np.array([0.02, 0.2, 0.4, 0.6]), TASK)["probability"]
    assert names == parts and numbers.tolist() == [0, 1, 2, 3], "in one part, they would say nothing"
    assert slices.cut_by_probability(np.array([0.01, 0.09]), TASK) == {}
    single = Task(TASK.classes, TASK.template, None)
    assert slices.cut_by_probability(np.array([0.2]), single)["probability"][0][0] == "up to 50%"


def test_a_row_is_in_the_slice_of_each_of_its_labels():
    gold = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]], bool)
    task = Task(("a", "b", "c"), "{text}", None, multi_label=True)
    cases = pd.DataFrame({"gold": task.labels.to_codes(gold), "truncated": False, "words_text": 3})
    cuts = slices.cuts(cases, np.full(3, 0.2), task, {})
    table = slices.measure_slices(cuts, np.array([True, False, False]), np.arange(3), 0.95)
    of_labels = table[table["slice"].str.startswith("label: ")]
    assert of_labels["slice"].tolist() == ["label: a", "label: b", "label: c"]
    assert of_labels[["rows", "right"]].to_numpy().tolist() == [[2, 1], [1, 1], [0, 0]]
    many = pd.concat([of_labels[:2]] * 6 + [table.query("cut != 'label'")], ignore_index=True)
    shown = select_slices(many, many)[1]
    assert len(shown.query("cut == 'label'")) == 10 and shown["accuracy"].iloc[0] == 0.5, "the lowest of 12 labels"


def test_row_changes_of_micro_f1_sum_to_the_exact_difference_and_are_0_for_equal_answers():
    gold, first, other = draw(60, 0.7, 9, other_noise=0.9)
    other[:5, 3:] = True  # it answers with more labels
    changes = micro_f1_changes(gold, first, other)
    scores = [sklearn_metrics.f1_score(gold, answers, average="micro") for answers in (first, other)]
    assert changes.mean() == pytest.approx(scores[1] - scores[0])
    same = (first == other).all(axis=1)
    assert same.any() and changes[same] == pytest.approx(0)


def test_one_rows_variance_of_several_labels_is_that_of_one_label():
    gold = np.zeros((100, 3), bool)
    gold[:40, 0] = gold[:10, 1] = True
    assert measures.one_row_variance(gold, "accuracy", 3) == pytest.approx(1 / 100**2)
    assert measures.one_row_variance(gold, "f1_micro", 3) == pytest.approx(1 / 50**2)
    assert measures.one_row_variance(gold, "f1_macro", 3) == pytest.approx((40 / 80**2 + 10 / 20**2) / 50)


def test_the_scores_of_one_training_are_those_of_the_report():
    gold, predicted, _ = draw(150, 0.6, 10)
    groups = np.arange(150) // 2
    (scores,), _ = compare_recipes([Recipe("a", (1,), predicted[None])], GoldRows(gold, groups, 6, "f1_micro"), 0.95)
    report = metrics.Predictions(gold, predicted, np.empty((150, 0)), groups, TASK.classes, 0.95)
    for name in ("accuracy", "f1_micro", "f1_macro"):
        score, expected = getattr(scores, name), getattr(report, name)
        assert (score.value, score.low, score.high) == pytest.approx((expected.value, *expected.interval))
    assert scores.f1_weighted is None and scores.seed_scores == pytest.approx((report.f1_micro.value,))


# The recipes have the same noise, and thus the same score, or the other one has more noise.
@pytest.mark.parametrize("noises", [(0.5, 0.5), (0.5, 0.8)])
@pytest.mark.parametrize(
    ("counts", "same", "deviation"),
    [((1, 1), True, 0), ((1, 4), False, 0), ((3, 3), True, 0.1), ((3, 4), False, 0.1)],
)
def test_the_intervals_of_several_trainings_cover_the_truth(noises, counts, same, deviation):
    gold, *answers = draw_trainings(20_000, (20, 20), noises, deviation, 0, same=False)
    scores = [measures.row_values("f1_micro", gold, each, 6).mean() for each in answers]
    design = choose_design(range(counts[0]), range(0 if same else 9, (0 if same else 9) + counts[1]))
    covered, significant = np.zeros(2), 0
    for seed in range(150):
        gold, first, other = draw_trainings(250, counts, noises, deviation, [1, seed], same)
        mean = mean_f1(gold, first, np.arange(250), 6, 0.95)["f1_micro"]
        rows = GoldRows(gold, np.arange(250), 6, "f1_micro")
        _, low, high, p, _ = estimate_difference(first, other, rows, design, 0.95)
        covered += mean.low <= scores[0] <= mean.high, low <= scores[1] - scores[0] <= high
        significant += p < 0.05
    assert (covered >= 0.9 * 150).all(), covered / 150
    assert significant < 0.1 * 150 if noises[0] == noises[1] else significant > 0.1 * 150


def test_one_training_each_in_subset_accuracy_has_tangos_interval():
    gold, first, other = draw(200, 0.6, 11, other_noise=0.9)
    rows = GoldRows(gold, np.arange(200), 6, "accuracy")
    value, low, high, p, _ = estimate_difference(first[None], other[None], rows, "rows only", 0.95)
    expected = measures.measure_difference("accuracy", gold, other, first, rows.groups, 6, 0.95)
    assert (value, low, high, p) == pytest.approx((expected.value, *expected.interval, expected.p))


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_answers_without_any_label_can_be_compared(seeds):
    empty = np.zeros((30, 6), bool)
    recipes = [Recipe(name, seeds, np.stack([empty] * len(seeds))) for name in "ab"]
    _, (difference,) = compare_recipes(recipes, GoldRows(empty, np.arange(30), 6, "f1_micro"), 0.95)
    assert difference.value == 0 and difference.verdict == "not significant"


def test_co_occurrence_counts_each_gold_label_with_each_predicted_one():
    gold, predicted = np.array([[1, 1, 0], [0, 0, 0]], bool), np.array([[1, 0, 1], [1, 0, 0]], bool)
    assert confusion_counts(gold, predicted, 3).tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_the_pairs_of_a_plot_are_those_of_the_counts_and_not_too_many(monkeypatch):
    rng = np.random.default_rng(0)
    gold, predicted = rng.random((2, 200, 5)) < 0.4
    counts = confusion_counts(gold, predicted, 5)
    first, second = pair_classes(gold, predicted)
    assert np.array_equal(np.bincount(first * 5 + second).reshape(5, 5), counts)
    monkeypatch.setattr(confusion, "MAX_PAIRS", 100)
    first, second = pair_classes(gold, predicted)
    assert np.bincount(first * 5 + second) == pytest.approx(counts.ravel() * 100 / counts.sum(), abs=0.5)
