"""What tuning was worth: statistics of the two models' predictions. Pure functions of arrays, no file, no clock.

Labels are integers 0 to 2 (`LABELS`), [rows]; probabilities are floats [rows, classes]; shares are 0 to 1.
What can't be known (an interval of no rows) is NaN.
"""

import numpy as np
from scipy.stats import binomtest
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline

from stages.core.labels import LABELS

FATES = ("both_right", "fixed", "broken", "both_wrong")
BINS = 10  # of confidence, each 0.1 wide


def scores(gold, predicted):
    """Accuracy, weighted and macro F1, and F1 of each class."""
    confusion = confusion_counts(gold, predicted)
    return {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "f1_weighted": float(f1_weighted(confusion)),
        "f1_macro": float(f1_per_class(confusion).mean()),
        "rows": len(gold),
        "f1": {name: float(value) for name, value in zip(LABELS, f1_per_class(confusion), strict=True)},
    }


def confusion_counts(gold, predicted):
    """Rows of each gold class (down) and predicted class (across), int [classes, classes]."""
    return confusion_matrix(gold, predicted, labels=range(len(LABELS)))


def f1_per_class(confusion):
    """F1 = 2 tp / (2 tp + fp + fn) of each class; 0 for a class that is neither in the rows nor predicted.

    Args:
        confusion: counts [..., classes, classes], as `confusion_counts` has them.
    """
    twice_right = 2 * np.diagonal(confusion, axis1=-2, axis2=-1)
    counted = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return np.divide(twice_right, counted, out=np.zeros(counted.shape), where=counted > 0)


def f1_weighted(confusion):
    """Mean F1 of the classes, each weighted by its rows."""
    rows = confusion.sum(axis=-1)
    return (f1_per_class(confusion) * rows).sum(axis=-1) / rows.sum(axis=-1)


def wilson(right, rows, confidence):
    """Score interval of a share of rows (Wilson 1927): (low, high)."""
    if not rows:
        return np.nan, np.nan
    interval = binomtest(int(right), int(rows)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def difference(right, rows, other_right, other_rows, confidence):
    """How much higher one share is than another's, of different rows: (difference, low, high).

    The interval joins the two Wilson intervals (Newcombe 1998, Statistics in Medicine 17, method 10).
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


def bootstrap(counts, statistic, samples, confidence, seed):
    """Percentile interval of a statistic of counted rows (Efron 1979): (low, high).

    Drawing rows with replacement makes the counts of their cells multinomial, so the counts are drawn, not the rows.

    Args:
        counts: rows in each cell, any shape.
        statistic: function of counts [samples, *shape] that gives [samples].
    """
    counts = np.asarray(counts)
    shares = counts.ravel() / counts.sum()
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), shares, size=samples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(drawn.reshape(samples, *counts.shape)), [tail, 1 - tail])
    return float(low), float(high)


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


def accuracy_gain(counts):
    """Gain in accuracy from counts of the fates, [..., fates]."""
    return (counts[..., FATES.index("fixed")] - counts[..., FATES.index("broken")]) / counts.sum(axis=-1)


def mcnemar(fixed, broken):
    """Two-sided exact p of the split of the changed rows, were either way as likely (McNemar 1947); 1 if none is."""
    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


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
