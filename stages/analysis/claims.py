"""What the published report claims from ten rows, put to the test on all of them; and the headline, in words."""

import numpy as np

from stages.analysis.analysis import difference, effective_counts, wilson
from stages.analysis.slices import quartiles
from stages.task.labels import LABELS

HOLDS, FAILS, OPEN = "holds", "does not hold", "can't be told"
ALMOST_ALL = 0.8  # the share of answers from which on we call them almost one class
MOST = 0.5


def claims(cases, confidence):
    """Each claim with its verdict and its evidence, both made from the numbers.

    A claim holds where the whole interval lies on its side of the bar, fails where it lies on the other, and can't be
    told from these rows where the bar is inside.

    Args:
        cases: data frame with `gold`, `base`, `tuned`, `baseline` (labels), `overlap` and `premise`, a line a test row.
        confidence: of the intervals, such as 0.95.

    Returns:
        {key: {"claim", "verdict", "evidence"}}
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


def overlap_ends(cases):
    """Which rows are in the lowest and which in the highest quartile of word overlap, bool [rows] each."""
    groups, edges = quartiles(cases["overlap"])
    return (groups == 0) & (len(edges) > 0), (groups == len(edges)) & (len(edges) > 0)


def verdict(low, high, bar):
    """What an interval says of «more than the bar». A NaN interval says nothing."""
    return HOLDS if low > bar else FAILS if high < bar else OPEN


def finding(claim, interval, bar, evidence):
    return {"claim": claim, "verdict": verdict(*interval, bar), "evidence": evidence}


def share_interval(happened, cases, confidence):
    """Interval of the share of rows in which something happened; happened: bool, its index that of rows in `cases`."""
    return wilson(*effective_counts(happened, cases["premise"][happened.index]), confidence)


def gap_between(cases, here, elsewhere, confidence):
    """By how much more often something happened here than elsewhere: (gap, low, high); both as `share_interval`'s."""
    sides = [effective_counts(side, cases["premise"][side.index]) for side in (here, elsewhere)]
    return difference(*sides[0], *sides[1], confidence)


def base_answers_one_class(cases, confidence):
    counts = np.bincount(cases["base"], minlength=len(LABELS))
    most, rows = counts.max(), len(cases)
    interval = share_interval(cases["base"] == counts.argmax(), cases, confidence)
    evidence = (
        f"{share(most, rows, interval)} of the base's answers are {LABELS[counts.argmax()]}; "
        f"almost one class is taken as {ALMOST_ALL:.0%} or more."
    )
    return finding("The base model answers almost one class", interval, ALMOST_ALL, evidence)


def tuning_fixes_most(cases, confidence):
    wrong = cases[cases["base"] != cases["gold"]]
    fixed = wrong["tuned"] == wrong["gold"]
    interval = share_interval(fixed, cases, confidence)
    evidence = f"Of the rows that the base gets wrong, tuning corrects {share(fixed.sum(), len(wrong), interval)}."
    return finding("Tuning fixes most of the base's mistakes", interval, MOST, evidence)


def neutral_is_hardest(cases, confidence):
    """Neutral against the class that the tuned model gets wrong most often of the other two."""
    wrong = {i: (cases["tuned"] != i)[cases["gold"] == i] for i in range(len(LABELS))}
    present = [i for i, rows in wrong.items() if len(rows) and LABELS[i] != "neutral"]
    neutral = wrong[LABELS.index("neutral")]
    claim = "Neutral is the hardest class"
    if not present or not len(neutral):
        return finding(claim, (np.nan, np.nan), 0, "These rows do not hold neutral and another class.")
    rival = max(present, key=lambda i: wrong[i].mean())
    gap, *interval = gap_between(cases, neutral, wrong[rival], confidence)
    evidence = (
        f"The tuned model misses {percent(neutral.mean())} of {len(neutral):,} neutral rows and "
        f"{percent(wrong[rival].mean())} of {len(wrong[rival]):,} {LABELS[rival]} rows, the worst of the others: "
        f"{points(gap, interval)}."
    )
    return finding(claim, interval, 0, evidence)


def high_overlap_pulls(cases, high, confidence):
    """Entailment answered where it is wrong: rows of the highest quartile of overlap against the others."""
    claim = "High word overlap pulls towards entailment"
    other = cases["gold"] != LABELS.index("entailment")
    pulled = cases["tuned"] == LABELS.index("entailment")
    return compare(
        claim, cases, pulled, other & high, other & ~high, confidence,
        "Of rows that are not entailment, {} are called so by tuned where overlap is highest, {} elsewhere: {}.",
    )  # fmt: skip


def low_overlap_fails(cases, low, confidence):
    """Mistakes in the rows of the lowest quartile of overlap against the others."""
    claim = "Low word overlap fails more often"
    wrong = cases["tuned"] != cases["gold"]
    return compare(
        claim, cases, wrong, low, ~low, confidence,
        "The tuned model misses {} where overlap is lowest and {} elsewhere: {}.",
    )  # fmt: skip


def compare(claim, cases, happened, here, elsewhere, confidence, sentence):
    """Whether something happens more often in some rows than in others."""
    gap, *interval = gap_between(cases, happened[here], happened[elsewhere], confidence)
    if not here.any() or not elsewhere.any():
        return finding(claim, interval, 0, "Too few different overlaps in these rows to compare.")
    first, second = (f"{percent(happened[side].mean())} of {side.sum():,}" for side in (here, elsewhere))
    return finding(claim, interval, 0, sentence.format(first, second, points(gap, interval)))


def premise_is_read(cases, confidence):
    """Of the rows on which the tuned model and the hypothesis-only one differ in being right, the share it wins."""
    right, guessed = cases["tuned"] == cases["gold"], cases["baseline"] == cases["gold"]
    won = right[right != guessed]
    interval = share_interval(won, cases, confidence)
    evidence = (
        f"A classifier that sees the hypothesis alone gets {percent(guessed.mean())} right, the tuned model "
        f"{percent(right.mean())}; where one is right and the other wrong, the tuned model is right in "
        f"{share(won.sum(), len(won), interval)}."
    )
    return finding("The tuned model does better than the hypothesis alone allows", interval, MOST, evidence)


def headline(counts, p, gain_interval):
    """What tuning was worth, in one sentence or two.

    Args:
        counts: from `analysis.gain`.
        p: from `analysis.mcnemar`.
        gain_interval: (low, high) of the gain in accuracy.
    """
    gap = counts["accuracy_gain"]
    verb = "raised" if gap > 0 else "lowered" if gap < 0 else "did not move"
    interval = bounds(gain_interval, points=True)
    by = f" by {abs(gap) * 100:.1f} points (interval {interval})." if gap else f". Interval of the gain: {interval}."
    return (
        f"Tuning {verb} accuracy{by} Of {counts['rows']:,} rows it corrected {counts['fixed']:,} and "
        f"broke {counts['broken']:,}; {chance(p)}"
    )


def chance(p):
    """A McNemar p in words."""
    value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    how = "almost never" if p < 0.001 else "seldom" if p < 0.05 else None
    split = f"would {how} split them so" if how else "could well split them so"
    return f"chance alone {split} ({value}, McNemar test)."


def percent(value):
    return "–" if np.isnan(value) else f"{value * 100:.1f}%"


def bounds(interval, points=False):
    low, high = interval
    return f"{signed(low)} to {signed(high)}" if points else f"{low * 100:.1f} to {high * 100:.1f}%"


def signed(share):
    """Points with their sign, a true minus."""
    return f"{share * 100:+.1f}".replace("-", "−")


def share(part, whole, interval):
    return f"{percent(part / whole)} ({part:,} of {whole:,}, {bounds(interval)})" if whole else "none of 0"


def points(gap, interval):
    return f"{signed(gap)} points ({bounds(interval, points=True)})"
