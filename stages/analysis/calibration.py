"""How far the probabilities can be relied on: their loss, their calibration, and what one temperature changes.

Pure functions of arrays. The probabilities have the precision of predictions.parquet, 1e-6.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.analysis.intervals import measure_share
from stages.data.labels import LEAST_PROBABILITY, Labels, equal_rows

BINS = 10  # of the predicted class's probability
MIN_BIN_ROWS = 30  # in a bin of the calibration curve: the interval of its accuracy is 36 points wide at most


@dataclass(frozen=True)
class ProbabilityScores:
    """Three scores of probabilities; lower is better. The attributes are the keys of details.json."""

    calibration_error: float
    loss: float
    brier: float


@dataclass(frozen=True)
class Calibration:
    """The temperature of the saved head, and the scores of the same answers without it.

    Attributes:
        temperature: the logits are divided by it; above 1, the training had left the model overconfident.
        low, high: its interval.
        rows: validation rows that it was fitted to.
        without: scores of the probabilities without the temperature.
    """

    temperature: float
    low: float
    high: float
    rows: int
    without: ProbabilityScores


def measure_calibration(
    gold: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    labels: Labels,
    temperature: dict[str, Any] | None,
) -> Calibration | None:
    """What the temperature changed; None if the model was not calibrated.

    Args:
        gold, predicted: label arrays; the temperature does not change the predictions.
        probabilities: calibrated, [rows, classes].
        temperature: from the training's summary.json: `value`, `low`, `high`, `rows`.
    """
    if temperature is None:
        return None
    before = undo_temperature(labels, probabilities, temperature["value"])
    without = ProbabilityScores(
        calibration_error=expected_calibration_error(gold, predicted, before, labels),
        loss=float(losses(gold, before).mean()),
        brier=float(squared_distances(gold, before).mean()),
    )
    return Calibration(temperature["value"], temperature["low"], temperature["high"], temperature["rows"], without)


def undo_temperature(labels: Labels, probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities before the logits were divided by `temperature`, such as softmax(T log p): [rows, classes].

    A stored 0 counts as `LEAST_PROBABILITY`. With T above 1 its share is then 0 again. With T below 1 and many classes
    such shares add up: the result is approximate.
    """
    return labels.to_probabilities(temperature * labels.to_logits(probabilities))


def losses(gold: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each row's cross-entropy, -log of the gold class's probability, at most 14.5: [rows].

    Of several labels it is the mean over them.
    """
    if gold.ndim == 2:
        return -np.log(np.maximum(np.where(gold, probabilities, 1 - probabilities), LEAST_PROBABILITY)).mean(axis=1)
    return -np.log(np.maximum(probabilities[np.arange(len(gold)), gold], LEAST_PROBABILITY))


def squared_distances(gold: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each row's squared distance from its gold class, 0 to 2, summed over classes; their mean is Brier's score.

    Of several labels it is the mean over them, 0 to 1.
    """
    if gold.ndim == 2:
        return ((probabilities - gold) ** 2).mean(axis=1)
    return ((probabilities - np.eye(probabilities.shape[1])[gold]) ** 2).sum(axis=1)


def reliability(right: np.ndarray, probability: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and mean probability in `BINS` bins of equal width; a bin excludes its lower edge (Guo et al. 2017).

    Args:
        right: whether each prediction is right, [rows].
        probability: of the predicted class, [rows].

    Returns:
        {"rows", "probability", "accuracy"}, [BINS] each. The means are NaN for a bin without rows.
    """
    bins = np.clip(np.ceil(np.asarray(probability) * BINS).astype(int) - 1, 0, BINS - 1)
    rows = np.bincount(bins, minlength=BINS)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(bins, weights=values, minlength=BINS)
        return np.divide(sums, rows, out=np.full(BINS, np.nan), where=rows > 0)

    return {"rows": rows, "probability": mean(probability), "accuracy": mean(right)}


def expected_calibration_error(
    gold: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, labels: Labels
) -> float:
    """Expected calibration error: mean gap between accuracy and probability, weighted by rows (Guo et al. 2017).

    If a row may have several labels, it is the mean over the labels, of each label's probability and its share of rows:
    the probability of a whole set is near 0 if there are many labels, and so would be the error.

    Args:
        gold, predicted: label arrays.
        probabilities: [rows, classes].
    """
    if gold.ndim == 2:
        of_labels = zip(gold.T, probabilities.T, strict=True)
        return float(np.mean([calibration_error(reliability(*label)) for label in of_labels]))
    return calibration_error(
        reliability(equal_rows(predicted, gold), labels.answer_probability(probabilities, predicted))
    )


def calibration_error(bins: dict[str, np.ndarray]) -> float:
    """The error of one label or of all answers; bins: from `reliability`."""
    gaps = np.abs(bins["accuracy"] - bins["probability"])
    return float(np.nansum(gaps * bins["rows"]) / bins["rows"].sum())


def calibration_curve(
    right: np.ndarray, probability: np.ndarray, groups: np.ndarray, confidence: float
) -> pd.DataFrame:
    """The points of the calibration plot: bins of about equally many rows, at least `MIN_BIN_ROWS` each.

    If most probabilities are near 1, most bins of equal width would hold only a few rows.

    Args:
        right: whether each prediction is right, [rows].
        probability: of the predicted class, [rows]; equal values share a bin.
        groups: rows of the same group are not independent, [rows].
        confidence: of the intervals, such as 0.95.

    Returns:
        data frame with a line for each bin: `probability`, `accuracy` (means), `low`, `high` (of the accuracy), `rows`.
    """
    right, probability, groups = np.asarray(right), np.asarray(probability), np.asarray(groups)
    count = min(BINS, max(1, len(probability) // MIN_BIN_ROWS))
    edges = np.unique(np.quantile(probability, np.arange(1, count) / count, method="inverted_cdf"))
    bins = np.searchsorted(edges, probability)
    table = []
    for number in np.unique(bins):
        inside = bins == number
        accuracy = measure_share(right[inside], groups[inside], confidence)
        table.append((probability[inside].mean(), accuracy.value, *accuracy.interval, accuracy.rows))
    return pd.DataFrame(table, columns=["probability", "accuracy", "low", "high", "rows"])
