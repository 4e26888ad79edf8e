"""Base, tuned model and baselines compared on the same test rows."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.analysis.baselines import ALL_COLUMNS, guess_column, majority_class
from stages.analysis.design_effects import design_effect
from stages.analysis.intervals import gain_interval, measure_share
from stages.analysis.metrics import Estimate
from stages.analysis.significance_tests import mcnemar
from stages.data.task import Task


@dataclass(frozen=True)
class Baseline:
    """The accuracy of a baseline, and the design effect that its interval includes."""

    accuracy: Estimate
    design_effect: float


@dataclass(frozen=True)
class Comparison:
    """The gain of tuning, and the baselines. The attributes are the keys of details.json.

    Attributes:
        fixed, broken, both_right, both_wrong: rows by what tuning did to them.
        rows: all test rows.
        design_effect: of the gain.
        mcnemar_p: two-sided p of the gain.
        majority_class: always answers the training rows' most frequent class.
        bag_of_words, bag_of_words_by_column: learned from all columns, and from each.
    """

    fixed: int
    broken: int
    both_right: int
    both_wrong: int
    rows: int
    accuracy_gain: Estimate
    design_effect: float
    mcnemar_p: float
    majority_class: Baseline
    bag_of_words: Baseline
    bag_of_words_by_column: dict[str, Baseline]


def compare_models(cases: pd.DataFrame, train_gold: np.ndarray, task: Task, confidence: float) -> Comparison:
    """Measure the gain with its interval and p, and the accuracy of the baselines.

    Args:
        cases: from `build_case_table`.
        train_gold: labels of the training rows.
        confidence: of the intervals, such as 0.95.
    """
    gains, groups = changes(cases["gold"], cases["base"], cases["tuned"]), cases["group"]
    p = mcnemar(gains, groups)

    def measure_baseline(predicted: pd.Series | int) -> Baseline:
        right = (cases["gold"] == predicted).to_numpy()
        accuracy = measure_share(right, groups, confidence)
        return Baseline(Estimate(accuracy.value, accuracy.interval), design_effect(right, groups))

    counts = cases["fate"].value_counts()
    fixed, broken = int(counts.get("fixed", 0)), int(counts.get("broken", 0))
    return Comparison(
        fixed=fixed,
        broken=broken,
        both_right=int(counts.get("both_right", 0)),
        both_wrong=int(counts.get("both_wrong", 0)),
        rows=len(cases),
        accuracy_gain=Estimate((fixed - broken) / len(cases), gain_interval(gains, groups, p, confidence)),
        design_effect=design_effect(gains, groups),
        mcnemar_p=p,
        majority_class=measure_baseline(majority_class(train_gold)),
        bag_of_words=measure_baseline(cases[ALL_COLUMNS]),
        bag_of_words_by_column={column: measure_baseline(cases[guess_column(column)]) for column in task.columns},
    )


def changes(gold: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """1 for a fixed row, -1 for a broken row, else 0, [rows]. The mean is the gain in accuracy."""
    return (np.asarray(tuned) == gold).astype(int) - (np.asarray(base) == gold).astype(int)
