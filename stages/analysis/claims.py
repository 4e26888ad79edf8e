"""What the published report claims from ten rows, put to the test on all of them. The report has the words."""

from typing import Any

import numpy as np
import pandas as pd

from stages.analysis.slices import quartiles
from stages.analysis.statistics import difference, effective_counts, wilson
from stages.task.labels import GROUP, LABELS

HOLDS, FAILS, OPEN = "holds", "does not hold", "can't be told"
ALMOST_ALL = 0.8  # the share of answers from which on we call them almost one class
MOST = 0.5


def claims(cases: pd.DataFrame, confidence: float) -> dict[str, dict[str, Any]]:
    """Each claim with its verdict and the numbers that it rests on.

    A claim holds where the whole interval lies on its side of the bar, fails where it lies on the other, and can't be
    told from these rows where the bar is inside.

    Args:
        cases: from `comparison.case_table`, one line a test row.
        confidence: of the intervals, such as 0.95.

    Returns:
        {key: finding}. Every finding has `verdict` and `interval` (low, high). A finding about one share has `part` and
        `rows` too; a finding about two shares has `gap`, `here` and `elsewhere`, each of these (part, rows).
    """
    low, high = overlap_ends(cases)
    return {
        "base_answers_one_class": base_answers_one_class(cases, confidence),
        "tuning_fixes_most": tuning_fixes_most(cases, confidence),
        "neutral_is_hardest": neutral_is_hardest(cases, confidence),
        "high_overlap_pulls_to_entailment": high_overlap_pulls(cases, high, confidence),
        "low_overlap_fails": low_overlap_fails(cases, low, confidence),
        "premise_is_read": premise_is_read(cases, confidence),
    }


def overlap_ends(cases: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are in the lowest and which in the highest quartile of word overlap, bool [rows] each."""
    groups, edges = quartiles(cases["overlap"])
    return (groups == 0) & (len(edges) > 0), (groups == len(edges)) & (len(edges) > 0)


def verdict(low: float, high: float, bar: float) -> str:
    """What an interval says of "more than the bar". A NaN interval says nothing."""
    return HOLDS if low > bar else FAILS if high < bar else OPEN


def share_finding(cases: pd.DataFrame, happened: pd.Series, bar: float, confidence: float) -> dict[str, Any]:
    """Whether something happened in more than `bar` of some rows; happened: bool, its index that of rows in `cases`."""
    interval = wilson(*effective_counts(happened, cases[GROUP][happened.index]), confidence)
    return {"verdict": verdict(*interval, bar), "interval": interval, **counts(happened)}


def gap_finding(cases: pd.DataFrame, here: pd.Series, elsewhere: pd.Series, confidence: float) -> dict[str, Any]:
    """Whether something happened more often here than elsewhere; both as in `share_finding`."""
    sides = [effective_counts(side, cases[GROUP][side.index]) for side in (here, elsewhere)]
    gap, *interval = difference(*sides[0], *sides[1], confidence)
    return {
        "verdict": verdict(*interval, 0),
        "interval": tuple(interval),
        "gap": gap,
        "here": counts(here),
        "elsewhere": counts(elsewhere),
    }


def counts(happened: pd.Series) -> dict[str, int]:
    """In how many rows it happened, and of how many."""
    return {"part": int(happened.sum()), "rows": len(happened)}


def base_answers_one_class(cases: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """The share of the base's most frequent answer; the finding names the `answer` and the `bar`."""
    answer = np.bincount(cases["base"], minlength=len(LABELS)).argmax()
    found = share_finding(cases, cases["base"] == answer, ALMOST_ALL, confidence)
    return found | {"answer": LABELS[answer], "bar": ALMOST_ALL}


def tuning_fixes_most(cases: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """Of the rows that the base gets wrong, the share that tuning gets right."""
    wrong = cases[cases["base"] != cases["gold"]]
    return share_finding(cases, wrong["tuned"] == wrong["gold"], MOST, confidence)


def neutral_is_hardest(cases: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """Neutral against the class that the tuned model gets wrong most often of the others, the finding's `rival`."""
    wrong = {name: (cases["tuned"] != i)[cases["gold"] == i] for i, name in enumerate(LABELS)}
    neutral = wrong.pop("neutral")
    others = {name: missed for name, missed in wrong.items() if len(missed)}
    rival = max(others, key=lambda name: others[name].mean(), default=None)
    return gap_finding(cases, neutral, others.get(rival, neutral[:0]), confidence) | {"rival": rival}


def high_overlap_pulls(cases: pd.DataFrame, high: np.ndarray, confidence: float) -> dict[str, Any]:
    """Entailment answered where it is wrong: rows of the highest quartile of overlap against the others."""
    other = cases["gold"] != LABELS.index("entailment")
    pulled = cases["tuned"] == LABELS.index("entailment")
    return gap_finding(cases, pulled[other & high], pulled[other & ~high], confidence)


def low_overlap_fails(cases: pd.DataFrame, low: np.ndarray, confidence: float) -> dict[str, Any]:
    """Mistakes in the rows of the lowest quartile of overlap against the others."""
    wrong = cases["tuned"] != cases["gold"]
    return gap_finding(cases, wrong[low], wrong[~low], confidence)


def premise_is_read(cases: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """Of the rows on which the tuned model and the hypothesis-only one differ in being right, the share it wins.

    The finding has the accuracy of both, `right` and `guessed`.
    """
    right, guessed = cases["tuned"] == cases["gold"], cases["baseline"] == cases["gold"]
    found = share_finding(cases, right[right != guessed], MOST, confidence)
    return found | {"right": right.mean(), "guessed": guessed.mean()}
