"""Natural language inference: what its rows are cut by, and the published report's claims, tested on all rows.

The report has the words. Of the code this file alone knows premise and hypothesis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from stages.analysis.baselines import guess_column
from stages.analysis.design_effects import effective_counts
from stages.analysis.intervals import newcombe, wilson
from stages.analysis.slices import quartiles, share_names
from stages.analysis.words import words
from stages.data.task import Task

CLASSES = frozenset(["entailment", "neutral", "contradiction"])
NEGATIONS = frozenset(
    ["no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "without", "cannot"]
)
HOLDS, FAILS, OPEN = "holds", "does not hold", "can't be told"
ALMOST_ALL = 0.8  # the share of answers from which on we call them almost one class
MOST = 0.5


@dataclass(frozen=True)
class NliTask:
    """A task that is NLI.

    Attributes:
        premise, hypothesis: the two columns.
        entailment, neutral: numbers of these classes.
        classes: names, in the order of their numbers.
    """

    premise: str
    hypothesis: str
    entailment: int
    neutral: int
    classes: tuple[str, ...]

    @classmethod
    def from_task(cls, task: Task) -> Self | None:
        """A task seen as NLI; None if its classes or columns are others.

        The premise is the column of that name, or the one beside a hypothesis; else the one that rows share
        (`data.group`); else the first that the template reads.
        """
        names = [name.casefold() for name in task.classes]
        if set(names) != CLASSES or len(names) != len(CLASSES) or len(task.columns) != 2:
            return None
        premise = _premise(task)
        (hypothesis,) = set(task.columns) - {premise}
        return cls(premise, hypothesis, names.index("entailment"), names.index("neutral"), task.classes)


def _premise(task: Task) -> str:
    first, second = task.columns
    named = {column.casefold(): column for column in task.columns}
    if "premise" in named:
        return named["premise"]
    if "hypothesis" in named:
        return second if named["hypothesis"] == first else first
    return task.group if task.group in task.columns else first


def overlap(premise: str, hypothesis: str) -> float:
    """Share of the hypothesis's different words that stand in the premise, 0 to 1; 0 if it has no word."""
    wanted = set(words(hypothesis))
    return len(wanted & set(words(premise))) / len(wanted) if wanted else 0.0


def is_negated(hypothesis: str) -> bool:
    """Whether a hypothesis has a word of negation."""
    return any(word in NEGATIONS or word.endswith(("n't", "n’t")) for word in words(hypothesis))


def traits(texts: pd.DataFrame, nli: NliTask) -> pd.DataFrame:
    """What NLI's rows are cut by: data frame `overlap`, `negated`; texts: the task's columns by their own names."""
    pairs = list(zip(texts[nli.premise], texts[nli.hypothesis], strict=True))
    return pd.DataFrame(
        {
            "overlap": [overlap(premise, hypothesis) for premise, hypothesis in pairs],
            "negated": [is_negated(hypothesis) for _, hypothesis in pairs],
        },
        index=texts.index,
    )


def cuts(cases: pd.DataFrame) -> dict[str, tuple[Sequence[str], np.ndarray]]:
    """NLI's own ways of cutting the rows, as `slices.cuts` has them; cases: with `traits`."""
    overlaps, edges = quartiles(cases["overlap"])
    return {
        "word overlap": (share_names(edges), overlaps),
        "negation": (("without", "with"), cases["negated"].to_numpy().astype(int)),
    }


def claims(cases: pd.DataFrame, nli: NliTask, confidence: float) -> dict[str, dict[str, Any]]:
    """Each claim with its verdict and the numbers that it rests on.

    A claim holds where the whole interval lies on its side of the bar, fails where it lies on the other, and can't be
    told from these rows where the bar is inside.

    Args:
        cases: from `comparison.build_case_table`, one line a test row.
        confidence: of the intervals, such as 0.95.

    Returns:
        {key: finding}. Every finding has `verdict` and `interval` (low, high). A finding about one share has `part` and
        `rows` too; a finding about two shares has `gap`, `here` and `elsewhere`, each of these (part, rows).
    """
    low, high = overlap_ends(cases)
    return {
        "base_answers_one_class": base_answers_one_class(cases, nli, confidence),
        "tuning_fixes_most": tuning_fixes_most(cases, confidence),
        "neutral_is_hardest": neutral_is_hardest(cases, nli, confidence),
        "high_overlap_pulls_to_entailment": high_overlap_pulls(cases, high, nli, confidence),
        "low_overlap_fails": low_overlap_fails(cases, low, confidence),
        "premise_is_read": premise_is_read(cases, nli, confidence),
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
    interval = wilson(*effective_counts(happened, cases["group"][happened.index], confidence), confidence)
    return {"verdict": verdict(*interval, bar), "interval": interval, **counts(happened)}


def gap_finding(cases: pd.DataFrame, here: pd.Series, elsewhere: pd.Series, confidence: float) -> dict[str, Any]:
    """Whether something happened more often here than elsewhere; both as in `share_finding`."""
    sides = [effective_counts(side, cases["group"][side.index], confidence) for side in (here, elsewhere)]
    gap, *interval = newcombe(*sides[0], *sides[1], confidence)
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


def base_answers_one_class(cases: pd.DataFrame, nli: NliTask, confidence: float) -> dict[str, Any]:
    """The share of the base's most frequent answer; the finding names the `answer` and the `bar`."""
    answer = np.bincount(cases["base"], minlength=len(nli.classes)).argmax()
    found = share_finding(cases, cases["base"] == answer, ALMOST_ALL, confidence)
    return found | {"answer": nli.classes[answer], "bar": ALMOST_ALL}


def tuning_fixes_most(cases: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """Of the rows that the base gets wrong, the share that tuning gets right."""
    wrong = cases[cases["base"] != cases["gold"]]
    return share_finding(cases, wrong["tuned"] == wrong["gold"], MOST, confidence)


def neutral_is_hardest(cases: pd.DataFrame, nli: NliTask, confidence: float) -> dict[str, Any]:
    """Neutral against the class that the tuned model gets wrong most often of the others, the finding's `rival`."""
    wrong = {name: (cases["tuned"] != i)[cases["gold"] == i] for i, name in enumerate(nli.classes)}
    neutral = wrong.pop(nli.classes[nli.neutral])
    others = {name: missed for name, missed in wrong.items() if len(missed)}
    rival = max(others, key=lambda name: others[name].mean(), default=None)
    return gap_finding(cases, neutral, others.get(rival, neutral[:0]), confidence) | {"rival": rival}


def high_overlap_pulls(cases: pd.DataFrame, high: np.ndarray, nli: NliTask, confidence: float) -> dict[str, Any]:
    """Entailment answered where it is wrong: rows of the highest quartile of overlap against the others."""
    other = cases["gold"] != nli.entailment
    pulled = cases["tuned"] == nli.entailment
    return gap_finding(cases, pulled[other & high], pulled[other & ~high], confidence)


def low_overlap_fails(cases: pd.DataFrame, low: np.ndarray, confidence: float) -> dict[str, Any]:
    """Mistakes in the rows of the lowest quartile of overlap against the others."""
    wrong = cases["tuned"] != cases["gold"]
    return gap_finding(cases, wrong[low], wrong[~low], confidence)


def premise_is_read(cases: pd.DataFrame, nli: NliTask, confidence: float) -> dict[str, Any]:
    """Of the rows on which the tuned model and the bag of a hypothesis's words differ, the share that the model wins.

    The finding has the accuracy of both, `right` and `guessed`.
    """
    right, guessed = cases["tuned"] == cases["gold"], cases[guess_column(nli.hypothesis)] == cases["gold"]
    found = share_finding(cases, right[right != guessed], MOST, confidence)
    return found | {"right": right.mean(), "guessed": guessed.mean()}
