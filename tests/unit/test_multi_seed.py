"""Recipes compared over seeds and rows: coverage by simulation, and each formula against scipy or a result by hand."""

import sys
import time

import numpy as np
import pytest
from helpers.project import ROOT
from helpers.tables import CLASSES
from scipy import stats
from sklearn.metrics import f1_score

from stages.analysis import intervals, metrics, significance_tests
from stages.analysis.f1 import f1_values
from stages.analysis.measures import one_row_variance
from stages.analysis.multi_seed.comparison import compare_pair, compare_recipes, decide_verdict, estimate_difference
from stages.analysis.multi_seed.power import power, smallest_detectable_difference
from stages.analysis.multi_seed.row_values import GoldRows
from stages.analysis.multi_seed.scores import Recipe, mean_accuracy, mean_f1, score_recipe
from stages.analysis.multi_seed.significance import SMALLEST_P, holm, margin_of_error, p_value
from stages.analysis.multi_seed.variance import (
    VarianceComponent,
    difference_components,
    mean_components,
    pool,
    row_covariances,
    seed_component,
)
from stages.analysis.paired_difference import find_changes
from stages.analysis.paired_f1 import macro_f1_changes

sys.path.insert(0, str(ROOT / "benchmarks"))
import multi_seed as simulation
from multi_seed import Cell

ROWS = 300
ONE_ROW = 1 / ROWS**2  # `one_row_variance` of accuracy


def answers(rng, gold, trainings, share):
    """Predictions that are right in a share of the rows, int [trainings, rows]."""
    wrong = (gold + rng.integers(1, 3, (trainings, len(gold)))) % 3
    return np.where(rng.random((trainings, len(gold))) < share, gold, wrong)


def rows_of(gold, groups=None, classes=3, metric="accuracy"):
    """Test rows; without groups, all rows are independent."""
    return GoldRows(gold, np.arange(len(gold)) if groups is None else groups, classes, metric)


@pytest.fixture
def two_recipes():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, ROWS)
    first = Recipe("first", (1, 2, 3), answers(rng, gold, 3, 0.8))
    other = Recipe("other", (1, 2, 3), answers(rng, gold, 3, 0.9))
    return gold, first, other


# `python benchmarks/multi_seed.py` prints the whole table. With two seeds the intervals are conservative: there is one
# degree of freedom. They cover 95% if the seeds have all of the variance, and more if the rows have a part of it.
@pytest.mark.parametrize(
    ("cell", "most"),
    [
        (Cell(100, 1, 1, 0, 0.06), 0.98),  # rounding: an exact test with about ten changed rows
        (Cell(100, 2, 2, 0, 0), 0.99),
        (Cell(1_000, 2, 2, 0.02, 0.02), 0.985),
        (Cell(1_000, 3, 3, 0, 0.02), 0.97),
        (Cell(1_000, 5, 5, 0.01, 0), 0.97),
        (Cell(999, 4, 4, 0.01, 0.02, a_group=3), 0.97),
        (Cell(1_000, 2, 2, 0.01, 0.02, same=False), 0.985),
        (Cell(1_000, 3, 5, 0.01, 0.02, same=False), 0.975),
        (Cell(1_000, 2, 5, 0.005, 0.02, same=False, times=4), 0.998),
        (Cell(10_000, 2, 5, 0.02, 0.02, same=False, times=0.25), 0.985),  # the two seeds vary more
        (Cell(10_000, 3, 3, 0.005, 0.02), 0.97),
        # Recipes that differ in many rows: the rows have most of the variance in every design.
        (Cell(1_000, 1, 1, 0, 0.02, apart=0.3), 0.97),
        (Cell(1_000, 5, 5, 0.002, 0.02, apart=0.3), 0.985),
        (Cell(1_000, 5, 5, 0.002, 0.02, same=False, apart=0.3), 0.97),
        (Cell(1_000, 3, 5, 0.002, 0.02, same=False, apart=0.3), 0.98),
        (Cell(1_000, 2, 5, 0.002, 0.02, same=False, apart=0.3), 0.995),
        (Cell(999, 4, 4, 0.002, 0.02, same=False, a_group=3, apart=0.3), 0.99),
    ],
    ids=str,
)
def test_the_intervals_cover_the_truth_as_often_as_their_confidence_promises(cell, most):
    result = simulation.coverage(cell, {99: 2000, 100: 2000, 999: 600, 1_000: 600, 10_000: 200}[cell.rows], seed=1)
    assert 0.93 <= result["difference"] <= most
    assert 0.92 <= result["score"] <= 0.99


def test_intervals_that_ignore_the_seeds_cover_the_truth_too_rarely():
    """The test above can fail: intervals that allow only for other rows cover the truth far too rarely."""
    chances, covered = np.random.default_rng(0), 0
    for _ in range(300):
        rows, first, other = simulation.draw(Cell(10_000, 3, 3, 0.01, 0.02), chances)
        _, low, high, _, _ = estimate_difference(first, other, rows, "rows only", 0.95)
        covered += low <= 0.02 <= high
    assert covered / 300 < 0.7


def test_the_intervals_of_f1_cover_the_truth():
    """Three classes of uneven size. A seed makes all errors more likely, or all less likely."""
    rng, covered = np.random.default_rng(0), np.zeros(2)
    sizes, errors = np.array([0.6, 0.3, 0.1]), np.array([[0, 0.07, 0.03], [0.15, 0, 0.05], [0.2, 0.2, 0]])

    def simulate(trainings, rows, deviation):
        gold = np.searchsorted(sizes.cumsum(), rng.random(rows))
        chances = errors * np.exp(deviation * rng.normal(size=trainings))[:, None, None]
        chances = chances + np.eye(3) * (1 - chances.sum(axis=2, keepdims=True))
        predicted = (rng.random((trainings, rows, 1)) > chances.cumsum(axis=2)[:, gold, :]).sum(axis=2).clip(max=2)
        return gold, predicted

    truth = np.mean([f1_values(*simulate(20, 10_000, 0.2), 3).mean(axis=(1, 2)) for _ in range(40)], axis=0)
    for _ in range(400):
        result = mean_f1(*simulate(4, 1_000, 0.2), np.arange(1_000), 3, 0.95)
        covered += [score.low <= value <= score.high for score, value in zip(result.values(), truth, strict=True)]
    assert (covered >= 0.93 * 400).all() and (covered <= 0.98 * 400).all(), covered / 400


def test_f1_is_that_of_scikit_learn(two_recipes):
    gold, first, _ = two_recipes
    for average, values in zip(("weighted", "macro"), f1_values(gold, first.predictions, 3), strict=True):
        scipy_result = [f1_score(gold, predicted, average=average) for predicted in first.predictions]
        assert values.mean(axis=1) == pytest.approx(scipy_result)
    absent = f1_values(np.array([0, 1, 0, 1]), np.array([[0, 1, 1, 1]]), 4)  # no row has the last two classes
    assert absent.mean(axis=2)[:, 0] == pytest.approx(
        [f1_score([0, 1, 0, 1], [0, 1, 1, 1], average=average) for average in ("weighted", "macro")]
    )


def test_the_influence_of_a_row_on_f1_is_that_of_the_jackknife(two_recipes):
    """Without a row, F1 changes by the row's influence, to first order."""
    gold, first, _ = two_recipes
    for average, values in zip(("weighted", "macro"), f1_values(gold, first.predictions[:1], 3), strict=True):
        whole = f1_score(gold, first.predictions[0], average=average)
        without = [
            f1_score(np.delete(gold, row), np.delete(first.predictions[0], row), average=average) for row in range(40)
        ]
        assert (values[0, :40] - whole) / ROWS == pytest.approx(whole - np.array(without), abs=3e-5)


def test_one_training_each_is_compared_by_mcnemar_and_tango(two_recipes):
    gold, first, other = two_recipes
    groups = np.arange(ROWS) // 2
    _, (result,) = compare_recipes(
        [Recipe("a", (1,), first.predictions[:1]), Recipe("b", (7,), other.predictions[:1])],
        rows_of(gold, groups),
        0.95,
    )
    changed = find_changes(gold, other.predictions[0], first.predictions[0])
    p = significance_tests.mcnemar(changed, groups)
    assert result.design == "rows only"
    assert (result.value, result.p) == pytest.approx((changed.mean(), p))
    assert (result.low, result.high) == intervals.gain_interval(changed, groups, p, 0.95)


def test_the_scores_of_one_training_are_those_of_the_report(two_recipes):
    gold, first, _ = two_recipes
    groups = np.arange(ROWS) // 2
    result = score_recipe(Recipe("a", (1,), first.predictions[:1]), rows_of(gold, groups), 0.95)
    report = metrics.score_model(
        metrics.Predictions(gold, first.predictions[0], np.eye(3)[gold], groups, CLASSES, 0.95)
    )
    for name in ("accuracy", "f1_weighted", "f1_macro"):
        score = getattr(result, name)
        assert score.value == pytest.approx(report.scores[name].value)
        assert (score.low, score.high) == pytest.approx(report.scores[name].interval), name
    assert np.isnan(result.seed_deviation)


def test_seed_deviation_and_row_standard_error_are_those_of_the_means(two_recipes):
    gold, first, _ = two_recipes
    result = score_recipe(first, rows_of(gold), 0.95)
    right = first.predictions == gold
    assert result.seed_scores == pytest.approx(right.mean(axis=1))
    assert result.seed_deviation == pytest.approx(np.std(right.mean(axis=1), ddof=1))
    assert result.row_standard_error == pytest.approx(np.std(right.mean(axis=0), ddof=1) / ROWS**0.5)


@pytest.mark.parametrize("trainings", [2, 3])
def test_the_accuracy_of_several_trainings_has_the_interval_of_their_variance(trainings):
    """numpy computes both components. The interval is Wilson's for the number of rows with the same variance."""
    rng = np.random.default_rng(0)
    right = (rng.random((trainings, ROWS)) + rng.random(ROWS) < 1.4).astype(float)  # some rows are hard for all
    between = right.mean(axis=1).var(ddof=1) / trainings
    within = np.cov(right)[np.triu_indices(trainings, 1)].mean() / ROWS
    result = mean_components(right, np.arange(ROWS), ONE_ROW)
    assert [(part.variance, part.degrees_of_freedom) for part in result] == [
        (pytest.approx(between), trainings - 1), (pytest.approx(within), pytest.approx(ROWS - 1)),
    ]  # fmt: skip
    quantiles = stats.t.ppf(0.975, [trainings - 1, ROWS - 1])
    width = (between * quantiles[0] + within * quantiles[1]) / (between + within) ** 0.5
    share = right.mean()
    rows = share * (1 - share) * (stats.norm.ppf(0.975) / width) ** 2 * ROWS / (ROWS - 1)
    score = mean_accuracy(right, np.arange(ROWS), 0.95)
    assert (score.value, score.low, score.high) == pytest.approx((share, *intervals.wilson(share * rows, rows, 0.95)))


def test_if_the_seeds_have_all_of_the_variance_the_test_is_a_paired_t_test():
    """In a training, a row is always right or never: two trainings share no variance of the rows."""
    rows = np.arange(10_000)
    right = np.array([rows % 10_000 < count for count in (8000, 8100, 8250, 8050)], dtype=float)
    other = np.array([rows % 10_000 < count for count in (8150, 8300, 8300, 8290)], dtype=float)
    part = seed_component(other - right, 1e-8)
    scipy_result = stats.ttest_rel(other.mean(axis=1), right.mean(axis=1))
    assert part.degrees_of_freedom == 3
    assert p_value((other - right).mean(), [part]) == pytest.approx(scipy_result.pvalue, rel=1e-3)
    low, high = scipy_result.confidence_interval(0.95)
    assert margin_of_error([part], 0.05) == pytest.approx((high - low) / 2, rel=1e-3)


def test_seeds_with_equal_means_have_the_variance_of_rounding():
    """Means are rounded to steps of one row. A uniform distribution over a step has a twelfth of its square."""
    part = seed_component(np.tile([1.0, 0], (3, 5)), 1 / 10**2)
    assert part == VarianceComponent(pytest.approx(np.var((np.arange(10**4) + 0.5) / 10**4 / 10) / 3), 2)


def test_independent_seeds_are_compared_by_a_welch_test():
    right, other = np.array([0.80, 0.81, 0.825]), np.array([0.815, 0.83, 0.85, 0.81])
    scipy_result = stats.ttest_ind(other, right, equal_var=False)
    parts = [VarianceComponent(values.var(ddof=1) / len(values), len(values) - 1) for values in (right, other)]
    assert pool(parts).degrees_of_freedom == pytest.approx(scipy_result.df)
    assert p_value(other.mean() - right.mean(), [pool(parts)]) == pytest.approx(scipy_result.pvalue)


@pytest.mark.parametrize(("freedom", "least", "most"), [(1, 0.938, 0.979), (2, 0.949, 0.972), (4, 0.949, 0.964)])
def test_cochrans_quantile_covers(freedom, least, most):
    """Computed by quadrature. The seeds have a share of 0 to 1 of the variance, and the rest of the variance is known.

    Satterthwaite's quantile covers less.
    """
    estimates = stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, freedom) / freedom
    cochran, satterthwaite = [], []
    for share in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1):
        width = [
            margin_of_error([VarianceComponent(share * w, freedom), VarianceComponent(1 - share, np.inf)], 0.05)
            for w in estimates
        ]
        cochran.append((2 * stats.norm.cdf(width) - 1).mean())
        variance = share * estimates + 1 - share
        joint = np.minimum(freedom * (variance / (share * estimates)) ** 2, 1e9)
        satterthwaite.append((2 * stats.norm.cdf(stats.t.ppf(0.975, joint) * np.sqrt(variance)) - 1).mean())
    assert least < min(cochran) and max(cochran) < most
    assert min(satterthwaite) < min(cochran)
    if freedom == 1:
        assert 0.86 < min(satterthwaite) < 0.88


def test_the_variance_of_rows_is_that_of_their_means(two_recipes):
    gold, first, _ = two_recipes
    right = (first.predictions == gold).astype(float)
    alone, grouped = row_covariances(right, np.arange(ROWS))
    assert alone == pytest.approx(np.cov(right) / ROWS) and grouped == pytest.approx(alone)
    two = right[:, [0, np.flatnonzero(right[0] != right[0, 0])[0]]]
    assert row_covariances(two, np.arange(2))[0] == pytest.approx(np.cov(two) / 2)
    shuffled = np.random.default_rng(1).permutation(np.arange(ROWS) // 3)
    sums = np.array([np.bincount(shuffled, weights=line) for line in right - right.mean(axis=1, keepdims=True)])
    assert row_covariances(right, shuffled)[1] == pytest.approx(np.cov(sums) * len(sums[0]) / ROWS**2)


def test_the_row_component_of_two_recipes_is_that_of_their_difference():
    """With independent seeds: covariances within each recipe and across both, from numpy's covariance matrix."""
    rng = np.random.default_rng(3)
    independent, common = rng.random((2, 1, 5_000)), rng.random((7, 5_000))
    right, other = (common[:3] + independent[0] < 1.4).astype(float), (common[3:] + independent[1] < 1.4).astype(float)
    *_, rows = difference_components(right, other, np.arange(5_000), "independent seeds", 1 / 5_000**2)
    shared = np.cov(np.concatenate([right, other])) / 5_000
    within = [shared[:3, :3][np.triu_indices(3, 1)].mean(), shared[3:, 3:][np.triu_indices(4, 1)].mean()]
    assert rows.variance == pytest.approx(sum(within) - 2 * shared[:3, 3:].mean())
    assert rows.variance > 0.9 * min(within) and rows.degrees_of_freedom == 4_999


def test_the_row_component_of_rows_only_is_that_of_the_mean_difference(two_recipes):
    gold, first, other = two_recipes
    right, other = (recipe.predictions == gold for recipe in (first, other))
    (rows,) = difference_components(right[:1].astype(float), other.astype(float), np.arange(ROWS), "rows only", ONE_ROW)
    assert rows.variance == pytest.approx(np.var(other.mean(axis=0) - right[0], ddof=1) / ROWS)
    assert rows.degrees_of_freedom == pytest.approx(ROWS - 1)


def test_the_row_standard_error_of_a_difference_is_that_of_the_rows_differences(two_recipes):
    gold, first, other = two_recipes
    result = compare_pair(first, other, rows_of(gold), 0.95)
    apart = (other.predictions == gold).mean(axis=0) - (first.predictions == gold).mean(axis=0)
    assert result.row_standard_error == pytest.approx(apart.std(ddof=1) / ROWS**0.5)
    alike = compare_pair(first, other, rows_of(gold, np.zeros(ROWS)), 0.95)
    assert alike.row_standard_error == pytest.approx(apart.std(ddof=1)), "as if the rows of one group were one row"


@pytest.mark.parametrize("trainings", [1, 3])
def test_equal_answers_do_not_have_a_standard_error_of_zero(two_recipes, trainings):
    gold, first, _ = two_recipes
    right = Recipe("right", first.seeds[:trainings], np.tile(gold, (trainings, 1)))
    for result in (compare_pair(right, right, rows_of(gold), 0.95), score_recipe(right, rows_of(gold), 0.95)):
        assert result.row_standard_error == pytest.approx(1 / ROWS), "that of one row"


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_with_one_seed_the_row_standard_error_is_that_of_the_interval(two_recipes, metric):
    gold, first, other = two_recipes
    first, other = (Recipe(recipe.name, (1,), recipe.predictions[:1]) for recipe in (first, other))
    rows = rows_of(gold, np.arange(ROWS) // 2, metric=metric)
    (component,) = estimate_difference(first.predictions, other.predictions, rows, "rows only", 0.95)[-1]
    assert compare_pair(first, other, rows, 0.95).row_standard_error == pytest.approx(component.variance**0.5)


def test_one_group_of_rows_has_no_standard_error_of_100_points(two_recipes):
    gold, first, other = two_recipes
    first, other = (Recipe(recipe.name, (1,), recipe.predictions[:1]) for recipe in (first, other))
    assert 0.1 < compare_pair(first, other, rows_of(gold, np.zeros(ROWS)), 0.95).row_standard_error < 0.9


def test_groups_that_differ_less_than_rows_do_not_narrow_the_interval():
    """With independent seeds: all premises have equally many right rows, so that their sums do not vary."""
    right, other = np.tile([[1.0, 0, 1, 0], [0, 1, 1, 0]], 50), np.tile([[1.0, 1, 0, 0], [1, 1, 0, 0]], 50)
    alone, grouped = (
        difference_components(right, other, groups, "independent seeds", 1 / 200**2)[-1]
        for groups in (np.arange(200), np.arange(200) // 4)
    )
    assert grouped.variance >= alone.variance > 0


def test_two_seeds_against_more_are_not_pooled():
    rng = np.random.default_rng(0)
    for first, other, freedom in ((2, 5, [1, 4]), (5, 2, [4, 1]), (2, 2, None), (3, 5, None)):
        right, others = (rng.integers(0, 2, (count, 90)).astype(float) for count in (first, other))
        *parts, _ = difference_components(right, others, np.arange(90), "independent seeds", 1 / 90**2)
        apart = [seed_component(right, 1 / 90**2), seed_component(others, 1 / 90**2)]
        assert parts == (apart if freedom else [pool(apart)])
        assert freedom is None or [part.degrees_of_freedom for part in parts] == freedom


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_of_nearly_all_rows_has_an_interval_within_one(sign):
    wrong = np.ones((2, 20), dtype=int)
    wrong[0, :2] = 0
    rows = rows_of(np.zeros(20, dtype=int), classes=2)
    _, low, high, _, _ = estimate_difference(*(wrong, 1 - wrong)[::sign], rows, "paired seeds", 0.95)
    assert (high if sign > 0 else low) == sign


def test_copies_of_rows_in_the_same_group_add_no_information(two_recipes):
    gold, first, other = two_recipes
    once = compare_pair(first, other, rows_of(gold), 0.95)
    recipes = [Recipe(s.name, s.seeds, np.repeat(s.predictions, 3, axis=1)) for s in (first, other)]
    thrice = compare_pair(*recipes, rows_of(np.repeat(gold, 3), np.repeat(np.arange(ROWS), 3)), 0.95)
    assert thrice.row_standard_error == pytest.approx(once.row_standard_error)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.01)


def test_trainings_are_paired_by_their_seed(two_recipes):
    gold, first, other = two_recipes
    shuffled = Recipe("other", (3, 1, 2), other.predictions[[2, 0, 1]])
    same = compare_pair(first, other, rows_of(gold), 0.95)
    assert same.design == "paired seeds"
    assert compare_pair(first, shuffled, rows_of(gold), 0.95) == same
    elsewhere = Recipe("other", (3, 1, 4), other.predictions)
    assert compare_pair(first, elsewhere, rows_of(gold), 0.95).design == "independent seeds"
    fewer = Recipe("other", (1,), other.predictions[:1])
    assert compare_pair(first, fewer, rows_of(gold), 0.95).design == "rows only"


def test_a_seeds_effect_on_both_recipes_adds_no_variance_to_their_difference():
    rng = np.random.default_rng(0)
    threshold = np.array([0.70, 0.80, 0.90])[:, None]  # by seed
    number, gold = rng.random((2, 3, 5_000)), np.ones(5_000, dtype=int)
    first = Recipe("a", (1, 2, 3), (number[0] < threshold).astype(int))
    other = Recipe("b", (1, 2, 3), (number[1] < threshold + 0.05).astype(int))
    unpaired = Recipe("b", (4, 5, 6), other.predictions)
    paired = compare_pair(first, other, rows_of(gold), 0.95)
    assert paired.verdict == "better"
    apart = compare_pair(first, unpaired, rows_of(gold), 0.95)
    assert apart.value == paired.value and paired.high - paired.low < (apart.high - apart.low) / 3


@pytest.mark.parametrize("freedom", [1, 2, 4, 20])
def test_with_seeds_only_the_power_is_that_of_the_t_test(freedom):
    parts = [VarianceComponent(0.01**2, freedom), VarianceComponent(0.0, 999)]
    critical = stats.t.isf(0.025, freedom)
    for gap in (0.01, 0.03, 0.05):
        exact = stats.nct.sf(critical, freedom, gap / 0.01) + stats.nct.cdf(-critical, freedom, gap / 0.01)
        assert power(gap, parts, 0.95) == pytest.approx(exact, abs=0.003)


def test_with_rows_only_the_smallest_detectable_difference_is_that_of_textbooks():
    """(z of 97.5% + z of 80%) standard errors. At a low confidence it is smaller, because the other tail adds power."""
    for confidence in (0.5, 0.95, 0.999):
        result = smallest_detectable_difference([VarianceComponent(0.01**2, np.inf)], confidence)
        z = stats.norm.ppf((1 + confidence) / 2)
        assert stats.norm.sf(z - result / 0.01) + stats.norm.cdf(-z - result / 0.01) == pytest.approx(0.8)
    assert result == pytest.approx(0.01 * (z + stats.norm.ppf(0.8)), rel=1e-4)


def test_the_smallest_detectable_difference_is_detected_in_four_of_five_experiments():
    rng, samples = np.random.default_rng(0), []
    cell = Cell(1_000, 4, 4, 0.01, 0)
    for _ in range(200):
        rows, first, other = simulation.draw(cell, rng)
        *_, parts = estimate_difference(first, other, rows, "paired seeds", 0.95)
        samples.append([part.variance for part in parts])
    variances = np.mean(samples, axis=0)
    gap = smallest_detectable_difference(
        [VarianceComponent(variances[0], 3), VarianceComponent(variances[1], 999)], 0.95
    )
    assert 0.02 < gap < 0.06
    assert 0.75 < simulation.coverage(Cell(1_000, 4, 4, 0.01, gap), 500, seed=2)["significant"] < 0.88


def test_the_p_value_is_the_level_at_which_the_interval_reaches_0():
    parts = [VarianceComponent(0.01**2, 2), VarianceComponent(0.005**2, 999)]
    for gap in (0.001, 0.03, -0.03, 0.5):
        p = p_value(gap, parts)
        assert margin_of_error(parts, p) == pytest.approx(abs(gap))
    assert p_value(0.0, parts) == 1 and p_value(9e9, parts) == SMALLEST_P


def test_holm_by_hand():
    """Holm 1979's steps: 4 x 0.005, 3 x 0.01, 2 x 0.03. The last, 0.04, is raised to the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == pytest.approx([1, 1])
    assert holm([]) == []


def test_the_verdict_is_adjusted_for_all_comparisons(two_recipes):
    gold, first, _ = two_recipes
    rng = np.random.default_rng(5)
    better = Recipe("other", (1, 2, 3), answers(rng, gold, 3, 0.9))
    alike = [Recipe(f"alike {n}", (1, 2, 3), answers(rng, gold, 3, 0.8)) for n in range(3)]
    _, alone = compare_recipes([first, better], rows_of(gold), 0.95)
    _, among = compare_recipes([first, better, *alike], rows_of(gold), 0.95)
    assert alone[0].p_holm == alone[0].p == among[0].p < among[0].p_holm
    assert decide_verdict(0.1, 0.049, 0.95) == "better" and decide_verdict(-0.1, 0.049, 0.95) == "worse"
    assert decide_verdict(0.1, 1 - 0.95, 0.95) == "not significant", "the interval just reaches 0"
    assert decide_verdict(0.1, 0.051, 0.95) == decide_verdict(0.1, 0.09, 0.95) == "not significant"
    assert decide_verdict(0.1, 0.09, 0.9) == "better"


def test_trainings_without_an_error_still_have_an_interval():
    gold = np.zeros(50, dtype=int)
    recipes = [Recipe("a", (1, 2), np.zeros((2, 50), dtype=int)), Recipe("b", (1, 2), np.zeros((2, 50), dtype=int))]
    (first, _), (result,) = compare_recipes(recipes, rows_of(gold, classes=2), 0.95)
    assert (first.accuracy.low, first.accuracy.high) == pytest.approx(intervals.wilson(50, 50, 0.95))
    assert result.low < 0 < result.high and result.verdict == "not significant" and result.p == 1


@pytest.mark.parametrize("trainings", [2, 5])
def test_equal_trainings_still_have_an_interval(two_recipes, trainings):
    """Two trainings often have the same accuracy on 100 rows."""
    gold, first, _ = two_recipes
    first = np.repeat(first.predictions[:1], 5, axis=0)
    other = first.copy()
    other[:, :60] = gold[:60]
    gained = (other == gold).mean() - (first == gold).mean()
    result = compare_pair(
        Recipe("a", (1, 2), first[:2]),
        Recipe("b", (1, 2, 3, 4, 5)[:trainings], other[:trainings]),
        rows_of(gold),
        0.95,
    )
    assert (
        gained > 0 and result.value == pytest.approx(gained) and result.high - result.low > 1 / ROWS and result.p > 1e-9
    )
    alike = compare_pair(Recipe("a", (7,), first[:1]), Recipe("b", (1, 2), first[:2]), rows_of(gold), 0.95)
    assert alike.high == -alike.low == pytest.approx(1 / ROWS * stats.t.ppf(0.975, ROWS - 1))


SEEDS = [((1,), (1,)), ((1, 2), (1, 2)), ((1, 2), (3, 4)), ((1, 2), (3, 4, 5)), ((1,), (2, 3, 4))]


@pytest.mark.parametrize("trained", SEEDS, ids=str)
@pytest.mark.parametrize("rows", [1, 50])
def test_with_one_group_of_rows_no_difference_is_significant(trained, rows):
    """A single row is a single group too. Another group could show the opposite, however large the difference is."""
    gold = np.zeros(rows, dtype=int)
    gold[rows // 2 :] = rows > 1
    first, other = (
        Recipe(name, numbers, np.abs(np.tile(gold, (len(numbers), 1)) - wrong))
        for name, numbers, wrong in zip("ab", trained, (1, 0), strict=True)
    )
    scores, (result,) = compare_recipes([first, other], rows_of(gold, np.zeros(rows, dtype=int), 2), 0.95)
    assert result.value == 1 and result.p > 0.3 and result.low < 0 and result.verdict == "not significant"
    for score in (score for recipe in scores for score in (recipe.accuracy, recipe.f1_weighted, recipe.f1_macro)):
        assert 0 <= score.low <= score.value <= score.high <= 1 and score.high - score.low > 0.5, score


def test_with_one_group_the_row_component_is_the_largest_variance_of_a_difference():
    for how, trainings in (("rows only", 1), ("paired seeds", 2), ("independent seeds", 3)):
        right = np.ones((trainings, 9))
        *of_seeds, rows = difference_components(right, 1 - right, np.zeros(9), how, 1 / 9**2)
        assert rows == VarianceComponent(1.0, np.inf) and len(of_seeds) == (how != "rows only")


def test_one_group_of_rows_has_an_interval_as_wide_as_one_row():
    rng = np.random.default_rng(4)
    gold = rng.integers(0, 3, ROWS)
    recipe = Recipe("a", (1, 2), answers(rng, gold, 2, 0.8))
    (result,), _ = compare_recipes([recipe], rows_of(gold, np.zeros(ROWS)), 0.95)
    assert result.accuracy.high - result.accuracy.low > 0.7
    assert result.f1_macro.high - result.f1_macro.low > 0.6


def test_comparing_fifteen_recipes_takes_seconds():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, 10_000)
    recipes = [Recipe(str(n), (1, 2, 3, 4, 5), answers(rng, gold, 5, 0.8)) for n in range(15)]
    start = time.process_time()
    result = compare_recipes(recipes, rows_of(gold, np.arange(10_000) // 3), 0.95)
    assert [len(part) for part in result] == [15, 14]
    assert time.process_time() - start < 10


def test_a_recipe_with_one_seed_is_compared_with_the_training_of_that_seed():
    """Seed 2 is unlucky for both recipes, which predict the same. The mean over other seeds would be unfair."""
    gold = np.zeros(ROWS, dtype=int)
    lucky, unlucky = (np.arange(ROWS) < ROWS // share for share in (10, 3))
    several = Recipe("several", (1, 2, 3), np.stack([lucky, unlucky, lucky]).astype(int))
    one = Recipe("one", (2,), unlucky[None].astype(int))
    assert compare_pair(several, one, rows_of(gold), 0.95).value == 0
    assert compare_pair(one, several, rows_of(gold), 0.95).value == 0
    other_seed = Recipe("other_seed", (7,), unlucky[None].astype(int))
    assert compare_pair(several, other_seed, rows_of(gold), 0.95).value < 0


UNEVEN_CELLS = [
    Cell(200, 3, 3, 0.01, 0.02, classes="90, 8, 2%"),
    Cell(200, 5, 5, 0.01, 0, same=False, classes="90, 8, 2%", mistakes="one answer"),
    Cell(200, 1, 1, 0, 0, classes="90, 8, 2%"),
    Cell(1_000, 3, 3, 0, 0, classes="28 uneven", mistakes="one answer"),
    Cell(1_000, 5, 5, 0.01, 0.02, same=False, classes="28 uneven"),
    Cell(1_000, 1, 1, 0, 0, classes="28 uneven", mistakes="one answer"),
    Cell(1_000, 1, 5, 0, 0.02, classes="28 uneven", mistakes="one answer"),
]


@pytest.mark.parametrize("cell", UNEVEN_CELLS, ids=str)
def test_the_intervals_of_a_difference_in_macro_f1_cover_the_truth(cell):
    result = simulation.coverage(cell, 300, seed=1)
    assert 0.93 <= result["difference"] <= 0.985 and result["score"] >= 0.92
    if cell.gap == 0:
        assert result["significant"] == pytest.approx(1 - result["difference"]) and result["significant"] < 0.065


def test_the_true_macro_f1_of_a_simulation_is_that_of_a_large_sample():
    cell = Cell(100_000, 60, 60, 0.01, 0.06, classes="90, 8, 2%", mistakes="one answer")
    rows, first, other = simulation.draw(cell, np.random.default_rng(0))
    measured = [f1_values(rows.gold, predicted, 3)[1].mean() for predicted in (first, other)]
    assert cell.true_scores() == pytest.approx(measured, abs=0.01)


def test_row_changes_of_macro_f1_sum_to_the_exact_difference_and_are_0_for_equal_answers():
    """Class 3 has no test row, and only the other training predicts it: macro F1 then has one more class."""
    rng = np.random.default_rng(0)
    gold = np.array([0] * 30 + [1] * 6 + [2] * 2)
    first, other = (np.where(rng.random(38) < 0.7, gold, rng.integers(0, 3, 38)) for _ in range(2))
    for predicted in (other, np.where(np.arange(38) == 5, 3, other)):
        changes = macro_f1_changes(gold, first, predicted, 4)
        scores = [f1_score(gold, answers, average="macro", zero_division=0) for answers in (first, predicted)]
        assert changes.mean() == pytest.approx(scores[1] - scores[0])
        assert changes == pytest.approx(-macro_f1_changes(gold, predicted, first, 4))
    assert macro_f1_changes(gold, first, other, 3)[first == other] == pytest.approx(0)
    even = np.arange(300) % 3
    right, wrong = even.copy(), even.copy()
    wrong[:3] = (even[:3] + 1) % 3
    assert macro_f1_changes(even, wrong, right, 3)[:3] == pytest.approx(1, abs=0.01), "like 1 of accuracy"


def test_one_rows_variance_of_macro_f1_is_that_of_accuracy_if_the_classes_are_even():
    even, uneven = np.arange(300) % 3, np.array([0] * 297 + [1] * 3)
    assert one_row_variance(even, "f1_macro", 3) == pytest.approx(one_row_variance(even, "accuracy", 3)) == 1 / 300**2
    assert one_row_variance(uneven, "f1_macro", 2) == pytest.approx((1 / 297 + 1 / 3) / 4 / 300)
    assert one_row_variance(uneven + 4, "f1_macro", 6) == one_row_variance(uneven, "f1_macro", 2)


@pytest.mark.parametrize("trained", SEEDS, ids=str)
def test_with_one_group_of_rows_no_difference_in_macro_f1_is_significant(trained):
    gold = np.array([0] * 40 + [1] * 10)
    first, other = (
        Recipe(name, numbers, np.abs(np.tile(gold, (len(numbers), 1)) - wrong))
        for name, numbers, wrong in zip("ab", trained, (1, 0), strict=True)
    )
    result = compare_pair(first, other, rows_of(gold, np.zeros(50), 2, "f1_macro"), 0.95)
    assert result.value == 1 and result.p > 0.3 and result.low < 0 and result.verdict == "not significant"


def test_rows_of_a_group_widen_the_interval_of_macro_f1():
    rng = np.random.default_rng(0)
    gold = np.repeat(rng.choice(3, 100, p=(0.8, 0.15, 0.05)), 3)
    first, other = (
        Recipe(name, (seed,), np.repeat(answers(rng, gold[::3], 1, 0.7), 3, axis=1))
        for name, seed in (("a", 1), ("b", 2))
    )
    alone, grouped = (
        compare_pair(first, other, rows_of(gold, groups, metric="f1_macro"), 0.95)
        for groups in (None, np.arange(300) // 3)
    )
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(3**0.5, rel=0.03)
