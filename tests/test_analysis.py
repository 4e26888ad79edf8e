"""Every statistic against scipy, scikit-learn or a computation by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from stages.core import analysis, claims, slices

CASES = {
    "mixed": ([0, 1, 2, 0, 1, 2, 0], [0, 2, 2, 0, 1, 1, 1]),
    "a class never predicted": ([0, 1, 2, 0, 1], [0, 0, 2, 0, 0]),
    "a class that no row has": ([0, 1, 0], [2, 1, 0]),
    "one row": ([1], [1]),
    "all right": ([0, 1, 2], [0, 1, 2]),
    "all wrong": ([0, 1, 2], [1, 2, 0]),
}


@pytest.mark.parametrize("gold, predicted", CASES.values(), ids=CASES)
def test_scores_are_those_of_scikit_learn(gold, predicted):
    scores = analysis.scores(np.array(gold), np.array(predicted))

    def f1(average):
        return metrics.f1_score(gold, predicted, labels=[0, 1, 2], average=average, zero_division=0)

    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(gold, predicted))
    assert scores["f1_weighted"] == pytest.approx(f1("weighted"))
    assert scores["f1_macro"] == pytest.approx(f1("macro"))
    assert list(scores["f1"].values()) == pytest.approx(f1(None))
    assert scores["rows"] == len(gold)


@pytest.mark.parametrize("right, rows", [(0, 10), (10, 10), (3, 10), (1, 1), (0, 1), (91, 100), (8765, 9824)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_by_its_formula(right, rows, confidence):
    z, share = stats.norm.ppf((1 + confidence) / 2), right / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    assert analysis.wilson(right, rows, confidence) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_wilson_of_no_rows_is_unknown():
    assert np.isnan(analysis.wilson(0, 0, 0.95)).all()


def test_difference_is_newcombes():
    """Newcombe 1998, table II, case (a): 56/70 against 48/80, score intervals: 0.0524 to 0.3339."""
    gap, low, high = analysis.difference(56, 70, 48, 80, 0.95)
    assert (gap, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    back = analysis.difference(48, 80, 56, 70, 0.95)
    assert back == pytest.approx((-gap, -high, -low))
    assert np.isnan(analysis.difference(1, 2, 0, 0, 0.95)).all()


@pytest.mark.parametrize("fixed, broken", [(0, 0), (1, 0), (0, 5), (7, 7), (10, 2), (400, 320)])
def test_mcnemar_by_counting(fixed, broken):
    n = fixed + broken
    tail = sum(math.comb(n, k) for k in range(min(fixed, broken) + 1)) / 2**n
    assert analysis.mcnemar(fixed, broken) == pytest.approx(min(1, 2 * tail))


def test_fates_and_gain():
    gold, base, tuned = np.array([0, 1, 2, 0]), np.array([0, 0, 2, 1]), np.array([0, 1, 1, 2])
    assert list(analysis.fates(gold, base, tuned)) == ["both_right", "fixed", "broken", "both_wrong"]
    counts = analysis.gain(gold, base, tuned)
    assert counts == {"both_right": 1, "fixed": 1, "broken": 1, "both_wrong": 1, "rows": 4, "accuracy_gain": 0}
    assert analysis.accuracy_gain(np.array([[1, 3, 1, 0], [0, 0, 2, 0]])) == pytest.approx([0.4, -1])


def test_bootstrap_is_that_of_resampled_rows():
    """Counts drawn at once against rows drawn one by one by scipy: the same interval, but for the draws."""
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 3, 200)
    predicted = np.where(rng.random(200) < 0.7, gold, rng.integers(0, 3, 200))
    ours = analysis.bootstrap(analysis.confusion_counts(gold, predicted), analysis.f1_weighted, 4000, 0.95, 42)
    theirs = stats.bootstrap(
        (gold, predicted), lambda g, p: analysis.scores(g, p)["f1_weighted"], paired=True, vectorized=False,
        n_resamples=1000, method="percentile", rng=7,
    ).confidence_interval  # fmt: skip
    assert ours == pytest.approx(tuple(theirs), abs=0.012)
    again = analysis.bootstrap(analysis.confusion_counts(gold, predicted), analysis.f1_weighted, 4000, 0.95, 42)
    assert ours == again


def test_bootstrap_where_nothing_varies():
    assert analysis.bootstrap([5, 0, 0, 0], analysis.accuracy_gain, 200, 0.95, 0) == (0, 0)
    assert analysis.bootstrap([0, 1, 0, 0], analysis.accuracy_gain, 200, 0.95, 0) == (1, 1)


def test_bootstrap_of_the_gain_is_near_its_normal_interval():
    counts = np.array([600, 250, 50, 100])
    low, high = analysis.bootstrap(counts, analysis.accuracy_gain, 20_000, 0.95, 0)
    changed, gap = 300 / 1000, 200 / 1000
    half = 1.96 * math.sqrt((changed - gap**2) / 1000)
    assert (low, high) == pytest.approx((gap - half, gap + half), abs=0.002)


def test_reliability_by_hand():
    right = np.array([True, False, True, True])
    bins = analysis.reliability(right, np.array([0.4, 0.35, 0.95, 1.0]))  # 0.4 closes its bin
    assert list(bins["rows"]) == [0, 0, 0, 2, 0, 0, 0, 0, 0, 2]
    assert bins["accuracy"][[3, 9]] == pytest.approx([0.5, 1])
    assert bins["confidence"][[3, 9]] == pytest.approx([0.375, 0.975])
    assert np.isnan(bins["accuracy"][0])
    assert analysis.calibration_error(bins) == pytest.approx(0.5 * 0.125 + 0.5 * 0.025)


def test_calibration_error_against_a_loop():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(1 / 3, 1, 500)
    right = rng.random(500) < confidence**2
    expected = 0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert analysis.calibration_error(analysis.reliability(right, confidence)) == pytest.approx(expected)


def test_brier():
    rng = np.random.default_rng(4)
    gold, shares = rng.integers(0, 3, 50), rng.dirichlet([1, 1, 1], 50)
    theirs = metrics.brier_score_loss(gold, shares, labels=[0, 1, 2], scale_by_half=False)
    assert analysis.brier(gold, shares) == pytest.approx(theirs)
    assert analysis.brier(np.array([2]), np.array([[0, 0, 1.0]])) == 0
    assert analysis.brier(np.array([2]), np.array([[1.0, 0, 0]])) == 2


def test_majority_class_takes_the_first_of_equals():
    assert analysis.majority_class(np.array([1, 2, 2, 1])) == 1
    assert analysis.majority_class(np.array([2])) == 2


def test_hypothesis_only_finds_an_artefact_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    telling = [f"the {('cat', 'perhaps', 'nobody')[label]} sat" for label in labels]
    assert (analysis.hypothesis_only(telling[:200], labels[:200], telling[200:]) == labels[200:]).all()
    silent = ["the cat sat"] * 300
    assert len(set(analysis.hypothesis_only(silent[:200], labels[:200], silent[200:]))) == 1


@pytest.mark.parametrize("hypotheses, labels", [(["a"], [2]), (["?", "!"], [1, 1]), (["猫が寝る", "🐈"], [0, 2])])
def test_hypothesis_only_takes_any_text(hypotheses, labels):
    guesses = analysis.hypothesis_only(hypotheses, np.array(labels), [*hypotheses, "other words"])
    assert set(guesses) <= set(labels)


def test_thinned_keeps_short_curves_and_averages_long_ones():
    steps = pd.DataFrame({"step": range(1, 8), "loss": [1.0, 3, 2, 4, 3, 5, 9]})
    pd.testing.assert_frame_equal(analysis.thinned(steps, 7), steps)
    thin = analysis.thinned(steps, 4)
    assert list(thin["step"]) == [2, 4, 6, 7]
    assert list(thin["loss"]) == [2, 3, 4, 9]


def test_overlap():
    assert slices.overlap("A man sleeps.", "A MAN, a man!") == 1
    assert slices.overlap("A man sleeps.", "The dog runs") == 0
    assert slices.overlap("a b c d", "a b x y") == 0.5
    assert slices.overlap("anything", "?!") == 0


@pytest.mark.parametrize(
    "text, negated",
    [("Nobody is here.", True), ("He isn't in", True), ("He isn’t in", True), ("A knot, noted", False), ("", False)],
)  # fmt: skip
def test_negation(text, negated):
    assert slices.is_negated(text) is negated


def test_quartiles_keep_equal_values_together():
    groups, edges = slices.quartiles(range(1, 9))
    assert list(edges) == [2, 4, 6] and list(groups) == [0, 0, 1, 1, 2, 2, 3, 3]
    groups, edges = slices.quartiles([1, 1, 1, 1, 1, 2])
    assert list(edges) == [1] and list(groups) == [0, 0, 0, 0, 0, 1]
    groups, edges = slices.quartiles([5, 5, 5])
    assert not len(edges) and set(groups) == {0}
    groups, edges = slices.quartiles([0.3])
    assert not len(edges) and list(groups) == [0]


def test_names_of_slices():
    assert slices.share_names([0.25, 0.5]) == ["up to 25%", "25% to 50%", "over 50%"]
    assert slices.length_names([3, 4, 8]) == ["up to 3 words", "4 words", "5 to 8 words", "over 8 words"]
    assert slices.length_names([]) == slices.share_names([]) == ["all alike"]


def test_slice_table_counts_every_row_once_in_each_cut():
    rng = np.random.default_rng(5)
    gold = rng.integers(0, 2, 100)  # contradiction: no rows
    traits = pd.DataFrame({"overlap": rng.random(100).round(1), "negated": False, "words": rng.integers(2, 9, 100)})
    right, sure = rng.random(100) < 0.6, rng.uniform(0.4, 1, 100)
    table = slices.slice_table(slices.cuts(gold, traits, sure), right, 0.95)
    assert (table.groupby("cut")["rows"].sum() == 100).all()
    assert (table.groupby("cut")["right"].sum() == right.sum()).all()
    assert table["slice"].is_unique
    line = table.set_index("slice").loc["class: neutral"]
    assert line["accuracy"] == pytest.approx(right[gold == 1].mean())
    assert (line["low"], line["high"]) == analysis.wilson(right[gold == 1].sum(), (gold == 1).sum(), 0.95)
    for empty in ("class: contradiction", "negation: with"):
        line = table.set_index("slice").loc[empty]
        assert line["rows"] == 0 and np.isnan([line["accuracy"], line["low"], line["high"]]).all()


def cases(gold, base, tuned, baseline=None, overlap=None):
    rows = len(gold)
    return pd.DataFrame({"gold": gold, "base": base, "tuned": tuned,
                         "baseline": [0] * rows if baseline is None else baseline,
                         "overlap": [0.5] * rows if overlap is None else overlap})  # fmt: skip


def verdicts(table):
    return {key: found["verdict"] for key, found in claims.claims(table, 0.95).items()}


def test_claims_that_hold():
    """The base always says neutral; tuned is wrong in neutral alone, called entailment where overlap is high."""
    gold = np.repeat([0, 1, 2], 100)
    tuned, overlap = gold.copy(), np.tile([0.1, 0.3, 0.6, 0.9], 75)
    tuned[(gold == 1) & (overlap > 0.8)] = 0
    table = cases(gold, [1] * 300, tuned, overlap=overlap)
    found = verdicts(table)
    for key in ("base_answers_one_class", "tuning_fixes_most", "neutral_is_hardest", "premise_is_read"):
        assert found[key] == claims.HOLDS, key
    assert found["high_overlap_pulls_to_entailment"] == claims.HOLDS
    assert found["low_overlap_fails"] == claims.FAILS


def test_claims_that_do_not_hold():
    gold = np.repeat([0, 1, 2], 100)
    base = np.tile([0, 1, 2, 1, 2, 0], 50)
    tuned = np.where(gold == 2, 0, base)  # contradiction is never answered
    found = verdicts(cases(gold, base, tuned, baseline=gold, overlap=np.tile([0, 1], 150)))
    for key in ("base_answers_one_class", "tuning_fixes_most", "neutral_is_hardest", "premise_is_read"):
        assert found[key] == claims.FAILS, key


@pytest.mark.parametrize("gold", [[0], [1], [0, 1]])
def test_few_rows_tell_little(gold):
    found = claims.claims(cases(gold, gold, gold), 0.95)
    assert {f["verdict"] for f in found.values()} == {claims.OPEN}
    assert not any("nan" in f["evidence"] for f in found.values())


def test_every_claim_takes_any_two_rows():
    for gold, base, tuned in itertools.product(((0, 0), (0, 1), (1, 1), (2, 1)), repeat=3):
        found = claims.claims(cases(gold, base, tuned, overlap=[0, 1]), 0.95)
        assert not any("nan" in f["evidence"] for f in found.values())


@pytest.mark.parametrize("low, high, expected", [(0.1, 0.2, claims.HOLDS), (-0.2, -0.1, claims.FAILS),
                                                 (-0.1, 0.1, claims.OPEN), (np.nan, np.nan, claims.OPEN)])  # fmt: skip
def test_verdict(low, high, expected):
    assert claims.verdict(low, high, 0) == expected


def test_headline_says_what_the_numbers_say():
    def said(fixed, broken, rows=100):
        counts = {"rows": rows, "fixed": fixed, "broken": broken, "accuracy_gain": (fixed - broken) / rows}
        return claims.headline(counts, analysis.mcnemar(fixed, broken), (-0.1, 0.2))

    assert "raised accuracy by 50.0 points" in said(55, 5) and "p < 0.001" in said(55, 5)
    assert "lowered accuracy by 2.0 points" in said(3, 5) and "could well" in said(3, 5)
    assert "did not move accuracy." in said(0, 0) and "p = 1.000" in said(0, 0)
    assert "seldom" in said(9, 1)
