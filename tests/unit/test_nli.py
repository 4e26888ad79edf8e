"""Natural language inference: how the task is recognised, its slices, and the published report's claims."""

import itertools

import numpy as np
import pandas as pd
import pytest
from helpers.tables import CLASSES, template_of

from stages.analysis import nli
from stages.analysis.intervals import Interval
from stages.data.task import Task
from stages.report.published_claims import describe_claims

NLI = nli.NliTask.from_task(Task(CLASSES, "{premise}{hypothesis}", "premise"))


@pytest.mark.parametrize(
    "columns, group, premise",
    [
        (("premise", "hypothesis"), None, "premise"),
        (("hypothesis", "premise"), None, "premise"),
        (("Hypothesis", "context"), None, "context"),
        (("context", "hypothesis"), None, "context"),
        (("claim", "Premise"), None, "Premise"),
        (("sentence1", "sentence2"), None, "sentence1"),
        (("sentence2", "sentence1"), "sentence1", "sentence1"),
        (("sentence1", "sentence2"), "promptID", "sentence1"),
    ],
)
def test_the_premise_is_found(columns, group, premise):
    result = nli.NliTask.from_task(Task(CLASSES, template_of(columns), group))
    assert result.premise == premise
    assert {result.premise, result.hypothesis} == set(columns)


def test_classes_are_found_by_name_in_any_order_and_case():
    result = nli.NliTask.from_task(Task(("Contradiction", "ENTAILMENT", "neutral"), "{a}{b}", None))
    assert (result.entailment, result.neutral) == (1, 2)


@pytest.mark.parametrize(
    "classes, columns",
    [
        (("entailment", "not_entailment"), ("a", "b")),
        (("negative", "neutral", "positive"), ("a", "b")),
        (CLASSES, ("text",)),
        (CLASSES, ("a", "b", "c")),
        ((*CLASSES, "other"), ("a", "b")),
    ],
)
def test_another_task_is_not_nli(classes, columns):
    assert nli.NliTask.from_task(Task(classes, template_of(columns), None)) is None


def test_a_task_with_several_labels_a_row_is_not_nli():
    """A row can follow from its premise and contradict it. The words of NLI would be wrong, and its slices too."""
    assert nli.NliTask.from_task(Task(CLASSES, "{premise}{hypothesis}", "premise", multi_label=True)) is None


def test_traits_read_the_hypothesis_against_the_premise():
    texts = pd.DataFrame({"hypothesis": ["A dog is not here.", "A man"], "premise": ["A dog runs.", "A man sleeps."]})
    result = nli.traits(texts, NLI)
    assert result["overlap"].tolist() == [2 / 5, 1]
    assert result["negated"].tolist() == [True, False]


def test_overlap_is_the_share_of_hypothesis_words_in_the_premise():
    assert nli.overlap("A man sleeps.", "A MAN, a man!") == 1
    assert nli.overlap("A man sleeps.", "The dog runs") == 0
    assert nli.overlap("a b c d", "a b x y") == 0.5
    assert nli.overlap("anything", "?!") == 0


@pytest.mark.parametrize(
    "text, negated",
    [("Nobody is here.", True), ("He isn't in", True), ("He isn’t in", True), ("A knot, noted", False), ("", False)],
)  # fmt: skip
def test_negation(text, negated):
    assert nli.is_negated(text) is negated


def cases(gold, untrained, tuned, hypothesis_only=None, overlap=None):
    rows = len(gold)
    return pd.DataFrame({"gold": gold, "untrained_head": untrained, "tuned": tuned, "group": range(rows),
                         "bag_of_words_hypothesis": [0] * rows if hypothesis_only is None else hypothesis_only,
                         "overlap": [0.5] * rows if overlap is None else overlap})  # fmt: skip


def verdicts(table):
    return nli.check_claims(table, NLI, 0.95).verdicts()


def test_claims_that_hold():
    """The base always answers neutral. Tuned is wrong only about neutral rows: entailment, if overlap is high."""
    gold = np.repeat([0, 1, 2], 100)
    tuned, overlap = gold.copy(), np.tile([0.1, 0.3, 0.6, 0.9], 75)
    tuned[(gold == 1) & (overlap > 0.8)] = 0
    table = cases(gold, [1] * 300, tuned, overlap=overlap)
    result = verdicts(table)
    pulled = nli.check_claims(table, NLI, 0.95).high_overlap_pulls_to_entailment
    assert (pulled.inside.hits, pulled.inside.rows) == (25, 50), "of the rows that are not entailment"
    assert (pulled.outside.hits, pulled.outside.rows) == (0, 150)
    for key in ("base_answers_one_class", "tuning_fixes_most", "neutral_is_hardest", "premise_is_read"):
        assert result[key] == "holds", key
    assert result["high_overlap_pulls_to_entailment"] == "holds"
    assert result["low_overlap_fails"] == "does not hold"


def test_claims_that_do_not_hold():
    gold = np.repeat([0, 1, 2], 100)
    base = np.tile([0, 1, 2, 1, 2, 0], 50)
    tuned = np.where(gold == 2, 0, base)  # contradiction is never answered
    result = verdicts(cases(gold, base, tuned, hypothesis_only=gold, overlap=np.tile([0, 1], 150)))
    for key in ("base_answers_one_class", "tuning_fixes_most", "neutral_is_hardest", "premise_is_read"):
        assert result[key] == "does not hold", key


@pytest.mark.parametrize("probe_is_right, verdict", [(True, "does not hold"), (False, "holds"), (None, None)])
def test_the_probe_decides_whether_the_base_is_unaware_of_the_relation(probe_is_right, verdict):
    """Where exactly one of probe and hypothesis-only classifier is right, it is always the same one."""
    gold = np.repeat([0, 1, 2], 100)
    table = cases(gold, gold, gold, hypothesis_only=np.zeros(300, int) if probe_is_right else gold)
    if probe_is_right is not None:
        table["probe"] = gold if probe_is_right else 0
    assert verdicts(table).get("base_is_unaware") == verdict


def test_a_claim_without_its_reference_is_left_out():
    table = cases([0, 1, 2], [0, 1, 2], [0, 1, 2]).drop(columns=["untrained_head", "bag_of_words_hypothesis"])
    claims = nli.check_claims(table, NLI, 0.95)
    assert set(claims.verdicts()) == {"neutral_is_hardest", "high_overlap_pulls_to_entailment", "low_overlap_fails"}
    assert len(describe_claims(claims)) == 3


@pytest.mark.parametrize("gold", [[0], [1], [0, 1]])
def test_few_rows_decide_no_claim(gold):
    claims = nli.check_claims(cases(gold, gold, gold), NLI, 0.95)
    assert set(claims.verdicts().values()) == {"can't be told"}
    assert not any("nan" in text.evidence for text in describe_claims(claims))


@pytest.mark.parametrize(
    "overlap, low, high",
    [([0.1, 0.3, 0.6, 0.9], [0], [3]), ([0, 0, 1, 1], [0, 1], [2, 3]), ([0.5, 0.5, 0.5], [], []), ([0.5], [], [])],
)
def test_the_ends_of_overlap_are_the_outer_quartiles_and_empty_if_all_rows_are_alike(overlap, low, high):
    ends = nli.overlap_ends(pd.DataFrame({"overlap": overlap}))
    assert [np.flatnonzero(end).tolist() for end in ends] == [low, high]


def test_neutral_is_compared_with_nothing_if_no_other_class_has_rows():
    claim = nli.check_claims(cases([1] * 90, [1] * 90, [0] * 90), NLI, 0.95).neutral_is_hardest
    assert (claim.rival, claim.verdict) == (None, "can't be told")
    assert (claim.inside.hits, claim.inside.rows, claim.outside.hits, claim.outside.rows) == (90, 90, 0, 0)


def test_every_claim_can_be_computed_from_any_two_rows():
    for gold, base, tuned in itertools.product(((0, 0), (0, 1), (1, 1), (2, 1)), repeat=3):
        claims = nli.check_claims(cases(gold, base, tuned, overlap=[0, 1]), NLI, 0.95)
        assert not any("nan" in text.evidence for text in describe_claims(claims))


def test_rows_that_share_a_premise_prove_no_claim():
    """Eight rows decide nothing, and neither do forty copies of each with the same eight premises."""
    eight = cases([0, 1, 1, 2] * 2, [1, 1, 0, 1] * 2, [0, 1, 0, 2] * 2, [0, 0, 1, 2] * 2, [0.1, 0.4, 0.6, 0.9] * 2)
    assert set(verdicts(eight).values()) == {"can't be told"}
    copies = pd.concat([eight] * 40, ignore_index=True)
    assert set(verdicts(copies).values()) == {"can't be told"}
    assert set(verdicts(copies.assign(group=copies.index)).values()) == {"holds", "does not hold", "can't be told"}


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.1, 0.2, "holds"),
        (-0.2, -0.1, "does not hold"),
        (-0.1, 0.1, "can't be told"),
        (0.0, 0.1, "can't be told"),
        (-0.1, 0.0, "can't be told"),
        (np.nan, np.nan, "can't be told"),
    ],
)
def test_verdict(low, high, expected):
    assert nli.judge(Interval(low, high), 0) == expected
