"""Natural language inference: slices of its rows, and the published report's claims, tested on all test rows.

Only this file decides which column is the premise. stages/report/published_claims.py describes the claims in words.
"""

from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
import pandas as pd

from stages.analysis.bag_of_words import column_of_bag
from stages.analysis.intervals import Interval, Share, measure_share, newcombe
from stages.analysis.slices import Cut, name_shares, quartiles
from stages.analysis.text_terms import words
from stages.data.task import Task

Verdict = Literal["holds", "does not hold", "can't be told"]
CLASSES = frozenset(["entailment", "neutral", "contradiction"])
NEGATIONS = frozenset(
    ["no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "without", "cannot"]
)
ALMOST_ALL = 0.8  # share of answers that we call almost one class
MOST = 0.5


@dataclass(frozen=True)
class NliTask:
    """The columns and classes of an NLI task.

    Attributes:
        premise, hypothesis: names of the two columns.
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
        """The task as NLI; None if its classes or columns do not match, or if a row may have several classes.

        The premise is the column with that name, or the column next to a "hypothesis". Without such names it is
        `data.group`, or else the first column in the template.
        """
        names = [name.casefold() for name in task.classes]
        if task.multi_label or set(names) != CLASSES or len(names) != len(CLASSES) or len(task.columns) != 2:
            return None
        premise = _premise(task)
        (hypothesis,) = set(task.columns) - {premise}
        return cls(premise, hypothesis, names.index("entailment"), names.index("neutral"), task.classes)


def _premise(task: Task) -> str:
    first, second = task.columns
    names = {column.casefold(): column for column in task.columns}
    if "premise" in names:
        return names["premise"]
    if "hypothesis" in names:
        return second if names["hypothesis"] == first else first
    return task.group if task.group in task.columns else first


def overlap(premise: str, hypothesis: str) -> float:
    """Share of the hypothesis's distinct words that are in the premise, 0 to 1; 0 if it has no word."""
    hypothesis_words = set(words(hypothesis))
    return len(hypothesis_words & set(words(premise))) / len(hypothesis_words) if hypothesis_words else 0.0


def is_negated(hypothesis: str) -> bool:
    """Whether the hypothesis has a word of negation."""
    return any(word in NEGATIONS or word.endswith(("n't", "n’t")) for word in words(hypothesis))


def traits(texts: pd.DataFrame, nli: NliTask) -> pd.DataFrame:
    """The columns `overlap` and `negated` of the case table; texts: the task's columns under their own names."""
    pairs = list(zip(texts[nli.premise], texts[nli.hypothesis], strict=True))
    return pd.DataFrame(
        {
            "overlap": [overlap(premise, hypothesis) for premise, hypothesis in pairs],
            "negated": [is_negated(hypothesis) for _, hypothesis in pairs],
        },
        index=texts.index,
    )


def cuts(cases: pd.DataFrame) -> dict[str, Cut]:
    """Slices that only NLI has, as `slices.cuts` returns them; cases: with `traits`."""
    overlaps, edges = quartiles(cases["overlap"])
    return {
        "word overlap": (name_shares(edges), overlaps),
        "negation": (("without", "with"), cases["negated"].to_numpy().astype(int)),
    }


def overlap_ends(cases: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are in the lowest and in the highest quartile of word overlap, bool [rows] each."""
    groups, edges = quartiles(cases["overlap"])
    return (groups == 0) & (len(edges) > 0), (groups == len(edges)) & (len(edges) > 0)


def judge(interval: Interval, bar: float) -> Verdict:
    """What an interval says about "more than `bar`". A NaN interval says nothing."""
    return "holds" if interval.low > bar else "does not hold" if interval.high < bar else "can't be told"


@dataclass(frozen=True)
class ShareClaim:
    """The claim that a share is more than `bar`."""

    share: Share
    bar: float

    @property
    def verdict(self) -> Verdict:
        return judge(self.share.interval, self.bar)


@dataclass(frozen=True)
class AnswerClaim(ShareClaim):
    """The claim that the base answers almost one class: `share` of its answers are `answer`."""

    answer: str


@dataclass(frozen=True)
class HypothesisClaim(ShareClaim):
    """Where exactly one of the model and the hypothesis-only classifier is right, it is the model in `share`."""

    model_accuracy: float
    hypothesis_accuracy: float


@dataclass(frozen=True)
class GapClaim:
    """The claim that something is more frequent in some rows than in the others."""

    inside: Share
    outside: Share
    gap: float
    interval: Interval

    @property
    def verdict(self) -> Verdict:
        return judge(self.interval, 0)


@dataclass(frozen=True)
class NeutralClaim(GapClaim):
    """Neutral rows are inside; outside are the rows of `rival`, the most misclassified of the other classes."""

    rival: str | None


@dataclass(frozen=True)
class UnawareClaim(HypothesisClaim):
    """The claim that the base does not know how the two sentences relate.

    Where exactly one of probe and hypothesis-only classifier is right, it is the second one in `share`. The probe reads
    the frozen base's state after both sentences. An untrained head says nothing about the base.
    """

    zero_shot_accuracy: float | None


@dataclass(frozen=True)
class Claims:
    """The published report's claims. Each holds if its whole interval is above the bar, and fails if it is below.

    If the bar is inside the interval, these rows can't tell. A claim is None if `analysis.references` lacks what it
    needs.
    """

    base_answers_one_class: AnswerClaim | None
    base_is_unaware: UnawareClaim | None
    tuning_fixes_most: ShareClaim | None
    neutral_is_hardest: NeutralClaim
    high_overlap_pulls_to_entailment: GapClaim
    low_overlap_fails: GapClaim
    premise_is_read: HypothesisClaim | None

    def verdicts(self) -> dict[str, Verdict]:
        claims = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: claim.verdict for name, claim in claims.items() if claim}


def check_claims(cases: pd.DataFrame, nli: NliTask, confidence: float) -> Claims:
    """Test every claim on the test rows.

    Args:
        cases: from `build_case_table`.
        confidence: of the intervals, such as 0.95.
    """
    tuned, gold = cases["tuned"], cases["gold"]
    low, high = overlap_ends(cases)
    tuned_right = tuned == gold
    not_entailment, pulled = gold != nli.entailment, tuned == nli.entailment
    untrained, probe, zero_shot, hypothesis_only = (
        cases.get(name) for name in ("untrained_head", "probe", "zero_shot", column_of_bag(nli.hypothesis))
    )

    def measure(hits: pd.Series) -> Share:
        return measure_share(hits.to_numpy(), cases["group"][hits.index], confidence)

    def measure_gap(inside: pd.Series, outside: pd.Series) -> tuple[Share, Share, float, Interval]:
        shares = measure(inside), measure(outside)
        return *shares, *newcombe(*shares)

    def compare_with_hypothesis_only(predicted: pd.Series | None) -> HypothesisClaim | None:
        if predicted is None or hypothesis_only is None:
            return None
        right, other_right = predicted == gold, hypothesis_only == gold
        return HypothesisClaim(measure(right[right != other_right]), MOST, right.mean(), other_right.mean())

    def check_one_class(predicted: pd.Series) -> AnswerClaim:
        answer = np.bincount(predicted, minlength=len(nli.classes)).argmax()
        return AnswerClaim(measure(predicted == answer), ALMOST_ALL, nli.classes[answer])

    def check_unaware() -> UnawareClaim | None:
        if probe is None or hypothesis_only is None:
            return None
        right, other_right = probe == gold, hypothesis_only == gold
        return UnawareClaim(
            measure(other_right[right != other_right]), MOST, right.mean(), other_right.mean(),
            None if zero_shot is None else (zero_shot == gold).mean(),
        )  # fmt: skip

    errors = {name: ~tuned_right[gold == number] for number, name in enumerate(nli.classes)}
    neutral_errors = errors.pop(nli.classes[nli.neutral])
    rival = max((name for name in errors if len(errors[name])), key=lambda name: errors[name].mean(), default=None)
    rival_errors = errors[rival] if rival else neutral_errors[:0]
    return Claims(
        None if untrained is None else check_one_class(untrained),
        check_unaware(),
        None if untrained is None else ShareClaim(measure(tuned_right[untrained != gold]), MOST),
        NeutralClaim(*measure_gap(neutral_errors, rival_errors), rival),
        GapClaim(*measure_gap(pulled[not_entailment & high], pulled[not_entailment & ~high])),
        GapClaim(*measure_gap(~tuned_right[low], ~tuned_right[~low])),
        compare_with_hypothesis_only(tuned),
    )
