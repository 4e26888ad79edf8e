"""Likely label errors: test or validation rows whose gold label the tuned model finds nearly impossible.

They are candidates to look at, not a verdict: the model can be wrong and sure.
"""

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from stages.data.labels import LEAST_PROBABILITY
from stages.data.row_places import place_columns
from stages.data.task import Task

FALSE_SHARE = 0.5  # of the listed rows, at most this share should have a right label if the probabilities are right


def likely_label_errors(predictions: pd.DataFrame, task: Task) -> pd.DataFrame:
    """List the rows whose gold label is more surprising than the model's own probabilities allow.

    A row's p-value is the total probability of the labels that are no more probable than its gold label. With
    calibrated probabilities and right labels, few rows have a small one, as chance has it. The procedure of Benjamini
    and Hochberg (1995) lists more rows only if there are more. The order is that of confident learning (Northcutt et
    al. 2021, Journal of Artificial Intelligence Research 70): the margin, gold label's probability minus prediction's.

    In simulations of 2,000 rows without wrong labels it listed 0 to 3 rows; with 2 or 8% wrong, 65 to 100% of the
    listed ones were wrong. It listed most wrong labels of 77 classes. With two or three classes it listed 54% or more
    of them if the model is calibrated, and 0 to 30% if the temperature was fitted to rows with wrong labels. The
    threshold of confident learning, a class's mean probability in its own rows, listed 49 to 358 rows without wrong
    labels. If the model is not calibrated (`train.calibrate: false`), the list has more of its own errors.

    If a row may have several labels, each label of each row is a decision between two classes, yes and no. A row then
    has a line for each of its labels that may be wrong.

    Gold classes that the model answers to no row are left out: the model did not learn them, so it is sure of other
    classes whether or not the label is right.

    Args:
        predictions: of one split: `row`, texts, `label`, `prediction`, and the classes' probabilities.

    Returns:
        data frame: `row`, `file` and `file_row` (see `row_places`), texts, `gold`, `predicted` (names of
        classes), `probability` (of the prediction), `probability_of_gold`; the surest first. With several labels per
        row, `doubted` is the label that may be wrong, and the probabilities are those of the answer and of the gold
        label about it, yes or no.
    """
    probabilities, labels = predictions[task.probability_columns].to_numpy(dtype=float), task.labels
    gold, answers = (labels.from_codes(predictions[column]) for column in ("label", "prediction"))
    answered, rows, doubted = find_answered(gold, answers), np.arange(len(gold)), {}
    if task.multi_label:
        rows, numbers = np.divmod(np.arange(gold.size), len(task.classes))
        doubted = {"doubted": np.array(task.classes, dtype=object)[numbers]}
        gold, answers = gold.ravel().astype(int), answers.ravel().astype(int)
        probabilities = np.stack([1 - probabilities.ravel(), probabilities.ravel()], axis=1)
    of_gold, p_values = measure_surprise(gold, probabilities)
    of_answer = probabilities[np.arange(len(answers)), answers]
    tested = np.flatnonzero(answered)
    listed = tested[false_discovery_control(p_values[tested]) <= FALSE_SHARE]
    listed = listed[np.argsort((of_gold - of_answer)[listed], kind="stable")]
    table = predictions[["row", *place_columns(predictions), *task.text_columns]].assign(
        gold=labels.names(predictions["label"]), predicted=labels.names(predictions["prediction"])
    )
    columns = doubted | {"probability": of_answer, "probability_of_gold": of_gold}
    columns = {name: values[listed] for name, values in columns.items()}
    return table.iloc[rows[listed]].reset_index(drop=True).assign(**columns)


def find_answered(gold: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Whether the model answers the gold class to any row, bool [decisions]; gold, answers: label arrays.

    With several labels per row, a decision is one label of one row, in the order of `gold.ravel()`.
    """
    if gold.ndim == 1:
        return np.isin(gold, answers)
    return np.where(gold, answers.any(axis=0), ~answers.all(axis=0)).ravel()


def measure_surprise(gold: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each row's gold label, and its p-value, [rows] each; gold: class numbers."""
    upper_ends = np.maximum(probabilities, LEAST_PROBABILITY)  # a stored 0 can be as much; of many classes it adds up
    of_gold = probabilities[np.arange(len(gold)), gold]
    return of_gold, np.where(probabilities <= of_gold[:, None], upper_ends, 0).sum(axis=1).clip(max=1)
