"""Base and tuned, row by row: what became of each test row, and the gain."""

from typing import Any

import numpy as np
import pandas as pd

from stages.analysis import slices
from stages.analysis.baselines import hypothesis_only, majority_class
from stages.analysis.metrics import ends
from stages.analysis.statistics import design_effect, gain_interval, mcnemar, wilson
from stages.task.labels import GROUP, LABELS, PROBABILITIES, TEXTS

FATES = ("fixed", "broken", "both_right", "both_wrong")


def case_table(base: pd.DataFrame, tuned: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Every test row with both predictions, their probabilities, the guess from the hypothesis alone, and its fate.

    Args:
        base, tuned: predictions of the same rows in the same order.
        train: the training rows, from which the guess learns.
    """
    premise, hypothesis = TEXTS
    cases = base[["row", *TEXTS]].assign(gold=base["label"])
    for name, table in (("base", base), ("tuned", tuned)):
        cases[name] = table["prediction"]
        cases[[f"{name}_{label}" for label in LABELS]] = table[PROBABILITIES]
        cases[f"{name}_confidence"] = table[PROBABILITIES].max(axis=1)
    cases["baseline"] = hypothesis_only(train[hypothesis], train["label"], cases[hypothesis])
    cases["fate"] = fates(cases["gold"], cases["base"], cases["tuned"])
    return cases.join(slices.features(cases[premise], cases[hypothesis]))


def comparison(cases: pd.DataFrame, train_gold: np.ndarray, confidence: float) -> dict[str, Any]:
    """The gain with its interval and its McNemar p; and what guesses right that reads no premise.

    Args:
        cases: from `case_table`.
        train_gold: labels of the training rows.
        confidence: of the intervals, such as 0.95.
    """
    changed = changes(cases["gold"], cases["base"], cases["tuned"])
    effect = design_effect(changed, cases[GROUP])
    p = mcnemar(changed, cases[GROUP], effect)
    guesses = {"majority_class": majority_class(train_gold), "hypothesis_only": cases["baseline"]}
    return {
        **gain(cases["gold"], cases["base"], cases["tuned"]),
        "accuracy_gain_interval": ends(gain_interval(changed, effect, p, confidence)),
        "design_effect": effect,
        "mcnemar_p": p,
        **{name: accuracy(cases["gold"] == guess, cases[GROUP], confidence) for name, guess in guesses.items()},
    }


def summary(details: dict[str, Any]) -> dict[str, float]:
    """The few scores that runs are compared by; details: metrics/details.json.

    DVC sorts by name, so the kind of figure comes first in it: scores before memory and seconds (`usage.summary`).
    """
    base, train, tuned = (details[name] for name in ("base", "train", "tuned"))
    return {
        "accuracy_base": base["accuracy"],
        "accuracy_gain": details["comparison"]["accuracy_gain"],
        "accuracy_tuned": tuned["accuracy"],
        "f1_base": base["f1_weighted"],
        "f1_tuned": tuned["f1_weighted"],
        "loss_train": train["train_loss"],
        "loss_validation": train["validation_loss"],
        "parameters_trained": train["parameters"]["trainable"],
    }


def accuracy(right: pd.Series, groups: pd.Series, confidence: float) -> dict[str, Any]:
    """Share of right rows, its interval, and the design effect of rows that share a group, which widens it."""
    effect = design_effect(right, groups)
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": ends(wilson(right.sum() / effect, len(right) / effect, confidence)),
        "design_effect": effect,
    }


def fates(gold: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """What became of each row: one of `FATES`, [rows]."""
    base_right, tuned_right = np.asarray(base) == gold, np.asarray(tuned) == gold
    return np.select(
        [~base_right & tuned_right, base_right & ~tuned_right, base_right & tuned_right], FATES[:3], default=FATES[3]
    )


def gain(gold: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> dict[str, Any]:
    """Rows of each fate, all rows, and the gain in accuracy."""
    fate = fates(gold, base, tuned)
    counts = {name: int((fate == name).sum()) for name in FATES}
    return {**counts, "rows": len(fate), "accuracy_gain": (counts["fixed"] - counts["broken"]) / len(fate)}


def changes(gold: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """What tuning did to each row: 1 fixed, -1 broken, 0 neither, [rows]; their mean is the gain in accuracy."""
    return (np.asarray(tuned) == gold).astype(int) - (np.asarray(base) == gold).astype(int)
