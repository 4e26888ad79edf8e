"""What tuning was worth: statistics of the two models' predictions. Pure functions of arrays, no file, no clock.

Labels are integers 0 to 2 (`LABELS`), [rows]; probabilities are floats [rows, classes]; shares are 0 to 1.
What can't be known (an interval of no rows) is NaN.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline

from stages.task.labels import LABELS

FATES = ("both_right", "fixed", "broken", "both_wrong")
BINS = 10  # of confidence, each 0.1 wide
PRIOR_ROWS = 1  # the weight of F1's prior, spread over all cells: 0.5 to 1 cover best in simulation, 3 is too much


def scores(gold, predicted):
    """Accuracy, weighted and macro F1, and F1 of each class: NaN for one that is neither in the rows nor predicted."""
    confusion = confusion_counts(gold, predicted)
    f1 = f1_per_class(confusion)
    return {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "f1_weighted": float(f1_weighted(confusion)),
        "f1_macro": float(np.nanmean(f1)),  # over the classes that are there, as scikit-learn has it
        "rows": len(gold),
        "f1": {name: float(value) for name, value in zip(LABELS, f1, strict=True)},
    }


def confusion_counts(gold, predicted):
    """Rows of each gold class (down) and predicted class (across), int [classes, classes]."""
    return confusion_matrix(gold, predicted, labels=range(len(LABELS)))


def f1_per_class(confusion):
    """F1 = 2 tp / (2 tp + fp + fn) of each class; NaN for a class that is neither in the rows nor predicted.

    Args:
        confusion: counts or shares [..., classes, classes], as `confusion_counts` has them.
    """
    twice_right = 2 * np.diagonal(confusion, axis1=-2, axis2=-1)
    counted = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return np.divide(twice_right, counted, out=np.full(counted.shape, np.nan), where=counted > 0)


def f1_weighted(confusion):
    """Mean F1 of the classes, each weighted by its rows."""
    rows = confusion.sum(axis=-1)
    return np.nansum(f1_per_class(confusion) * rows, axis=-1) / rows.sum(axis=-1)


def f1_intervals(confusion, effect, samples, confidence, seed):
    """Intervals of weighted and macro F1: {"f1_weighted": (low, high), "f1_macro": (low, high)}.

    The shares of the confusion matrix are drawn from their posterior, a Dirichlet distribution (Goutte and Gaussier
    2005, ECIR; Caelen 2017, Annals of Mathematics and Artificial Intelligence 81). The ends are percentiles of the F1
    of the draws; the estimate itself always lies inside, so that all right has a high of 1 (as Brown, Cai and DasGupta
    2001, Statistical Science 16, do at the edges).

    Args:
        confusion: from `confusion_counts`.
        effect: design effect of right and wrong, by which the counts are divided.
        samples: number of draws.
    """
    prior = PRIOR_ROWS / confusion.size
    drawn = np.random.default_rng(seed).dirichlet(confusion.ravel() / effect + prior, size=samples)
    drawn = drawn.reshape(samples, *confusion.shape)
    here = np.isfinite(f1_per_class(confusion))
    tail = (1 - confidence) / 2

    def interval(estimate, values):
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(min(low, estimate)), float(max(high, estimate))

    return {
        "f1_weighted": interval(f1_weighted(confusion), f1_weighted(drawn)),
        "f1_macro": interval(np.nanmean(f1_per_class(confusion)), f1_per_class(drawn)[:, here].mean(axis=-1)),
    }


def design_effect(values, groups):
    """How many times greater the variance of a mean is than if its rows were independent: at least 1.

    Rows of one group (one premise) resemble each other. The variance between the groups' sums, over that of
    independent rows (Kish 1965, Survey Sampling; Rao and Scott 1992, Biometrics 48):
    [G/(G-1) * sum over groups of (sum of (v - mean))^2] / [n/(n-1) * sum of (v - mean)^2].
    Where that can't be known (no variance, or one group), the largest that it can be: as if a group's rows were all
    alike, the sum of its squared sizes over n. Else all right would look surer than all but one.

    Args:
        values: such as right or not; +1, 0, -1 for a gain; [rows].
        groups: what the rows share, of any type that sorts, [rows].
    """
    values = np.asarray(values, dtype=float)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    rows, count = len(values), len(names)
    if count == rows:
        return 1.0
    apart = values - values.mean()
    independent = rows / (rows - 1) * (apart**2).sum()
    if count == 1 or not independent:
        return float((np.bincount(group) ** 2).sum() / rows)
    between = count / (count - 1) * (np.bincount(group, weights=apart) ** 2).sum()
    return float(max(1, between / independent))


def effective_counts(happened, groups):
    """(How many rows it happened in, rows), both divided by the design effect; happened: bool [rows]."""
    effect = design_effect(happened, groups)
    return np.sum(happened) / effect, len(happened) / effect


def wilson(right, rows, confidence):
    """Score interval of a share (Wilson 1927): (low, high). The counts may be effective ones, no whole numbers.

    With z the normal quantile and s the share: (s + z^2/2n ± z sqrt(s(1-s)/n + z^2/4n^2)) / (1 + z^2/n).
    """
    if not rows:
        return np.nan, np.nan
    share, z2 = right / rows, norm.ppf((1 + confidence) / 2) ** 2 / rows
    middle, half = share + z2 / 2, np.sqrt(z2 * (share * (1 - share) + z2 / 4))
    low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    return float(low if right else 0), float(high if right < rows else 1)  # rounding must not leave the edges


def difference(right, rows, other_right, other_rows, confidence):
    """How much higher one share is than another's, of different rows: (difference, low, high).

    The interval joins the two Wilson intervals (Newcombe 1998, Statistics in Medicine 17, method 10). The counts may
    be effective ones.
    """
    if not rows or not other_rows:
        return np.nan, np.nan, np.nan
    share, other = right / rows, other_right / other_rows
    (low, high), (other_low, other_high) = (
        wilson(right, rows, confidence),
        wilson(other_right, other_rows, confidence),
    )
    gap = share - other
    return gap, gap - np.hypot(share - low, other_high - other), gap + np.hypot(high - share, other - other_low)


def tango(fixed, broken, rows, confidence):
    """Score interval of a paired difference, (fixed - broken) / rows: (low, high). Counts may be effective ones.

    The differences d at which |fixed - broken - rows d| <= z sqrt(rows (2q + d (1-d))), with q the most likely share of
    broken rows if d were true (Tango 1998, Statistics in Medicine 17, 891-908).
    """
    z = norm.ppf((1 + confidence) / 2)
    return -_tango_high(broken / rows, fixed / rows, rows, z), _tango_high(fixed / rows, broken / rows, rows, z)


def _tango_high(up, down, rows, z):
    def inside(gap):
        b = (2 - up + down) * gap - up - down
        q = (np.sqrt(max(0, b**2 + 8 * down * gap * (1 - gap))) - b) / 4
        return up - down - gap + z * np.sqrt(max(0, 2 * q + gap * (1 - gap)) / rows)

    start = up - down + 1e-10  # at the estimate itself the error can be 0, as where no row changed: a false root
    return float(brentq(inside, start, 1)) if start < 1 else 1.0


def fates(gold, base, tuned):
    """What became of each row: one of `FATES`, [rows]."""
    base_right, tuned_right = np.asarray(base) == gold, np.asarray(tuned) == gold
    return np.select(
        [base_right & tuned_right, ~base_right & tuned_right, base_right & ~tuned_right], FATES[:3], default=FATES[3]
    )


def gain(gold, base, tuned):
    """Rows of each fate, and the gain in accuracy."""
    fate = fates(gold, base, tuned)
    counts = {name: int((fate == name).sum()) for name in FATES}
    return {**counts, "rows": len(fate), "accuracy_gain": (counts["fixed"] - counts["broken"]) / len(fate)}


def changes(gold, base, tuned):
    """What tuning did to each row: 1 fixed, -1 broken, 0 neither, [rows]; their mean is the gain in accuracy."""
    return (np.asarray(tuned) == gold).astype(int) - (np.asarray(base) == gold).astype(int)


def mcnemar(changed, groups):
    """Two-sided p of the changed rows, were either way as likely (McNemar 1947); 1 if none is changed.

    The largest of three, so that neither rows that share a premise nor the way of counting make it too small, and that
    it never contradicts the interval: exact, each row's sign at random; exact, the sign of each group's sum at random;
    and the score test with the design effect, whose inversion is `tango`. With one row a group the first two are equal,
    and the third is smaller but for p under 1e-4.

    Args:
        changed: from `changes`, [rows].
        groups: what rows share, [rows].
    """
    changed = np.asarray(changed)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group, weights=changed).round().astype(int)
    score = abs(changed.sum()) / np.sqrt(max(1, np.abs(changed).sum()) * design_effect(changed, groups))
    return float(max(sign_flips(changed), sign_flips(sums), 2 * norm.sf(score)))


def sign_flips(values):
    """Exact p of a sum of whole numbers, were each one's sign random (Fisher 1935): P(|sum of ± v| >= |sum of v|)."""
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    chances = np.ones(1)  # of the sums from -total to total
    for size, count in zip(sizes, counts, strict=True):
        of_size = np.zeros(2 * size * count + 1)
        of_size[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_size)
    total, seen = len(chances) // 2, abs(values.sum())
    return min(1.0, 2 * chances[total + seen :].sum()) if seen else 1.0


def gain_interval(changed, groups, confidence):
    """Tango's interval of the gain, on counts divided by the design effect: (low, high).

    It reaches to 0 where `mcnemar` can't tell the gain from chance at this level; elsewhere it leaves 0 out, since that
    p is at least the score test's.

    Args:
        changed, groups: as `mcnemar` takes them.
    """
    effect = design_effect(changed, groups)
    counts = ((changed == 1).sum() / effect, (changed == -1).sum() / effect, len(changed) / effect)
    low, high = tango(*counts, confidence)
    return (low, high) if mcnemar(changed, groups) < 1 - confidence else (min(low, 0.0), max(high, 0.0))


def reliability(right, confidence):
    """Accuracy beside confidence in `BINS` bins of equal width, open below (Guo et al. 2017).

    Args:
        right: whether each prediction is right, [rows].
        confidence: the probability of the predicted class, [rows].

    Returns:
        dict of arrays [BINS]: `low`, `high`, `rows`, `confidence` and `accuracy` (means, NaN where there are no rows).
    """
    bins = np.clip(np.ceil(np.asarray(confidence) * BINS).astype(int) - 1, 0, BINS - 1)
    rows = np.bincount(bins, minlength=BINS)

    def mean(values):
        sums = np.bincount(bins, weights=values, minlength=BINS)
        return np.divide(sums, rows, out=np.full(BINS, np.nan), where=rows > 0)

    edges = np.arange(BINS + 1) / BINS
    return {
        "low": edges[:-1],
        "high": edges[1:],
        "rows": rows,
        "confidence": mean(confidence),
        "accuracy": mean(right),
    }


def calibration_error(bins):
    """Expected calibration error: mean gap between accuracy and confidence, weighted by rows (Guo et al. 2017)."""
    gaps = np.abs(bins["accuracy"] - bins["confidence"])
    return float(np.nansum(gaps * bins["rows"]) / bins["rows"].sum())


def brier(gold, probabilities):
    """Mean squared distance of the probabilities from the gold class, summed over classes: 0 to 2 (Brier 1950)."""
    return float(((probabilities - np.eye(len(LABELS))[gold]) ** 2).sum(axis=1).mean())


def majority_class(train_gold):
    """The label that most training rows have, the first of equals."""
    return int(np.bincount(train_gold, minlength=len(LABELS)).argmax())


def hypothesis_only(train_hypotheses, train_gold, hypotheses):
    """Labels predicted from the hypothesis alone, the premise unread: TF-IDF of words and pairs, logistic regression.

    What it gets right above the majority class is an artefact of how hypotheses were written (Gururangan et al. 2018).
    """
    one_class = len(np.unique(train_gold)) == 1
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, dtype=np.float32),
        DummyClassifier() if one_class else LogisticRegression(max_iter=1000, tol=1e-3),
    )
    return classifier.fit(train_hypotheses, train_gold).predict(hypotheses)


def thinned(steps, points):
    """A long curve as at most `points` means of equally many steps, each at its last step.

    Args:
        steps: data frame `step`, `loss`.
    """
    block = np.arange(len(steps)) // -(-len(steps) // points)
    return steps.groupby(block).agg({"step": "last", "loss": "mean"})
