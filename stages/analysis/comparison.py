"""Base and tuned, row by row: what became of each test row, and the gain."""

from typing import Any

import numpy as np
import pandas as pd

from stages.analysis import nli
from stages.analysis.baselines import ALL, bag_of_words, guess_column, majority_class
from stages.analysis.design_effects import design_effect, effective_counts
from stages.analysis.intervals import gain_interval, wilson
from stages.analysis.metrics import ends
from stages.analysis.significance_tests import mcnemar
from stages.analysis.words import lengths
from stages.data.task import Task

FATES = ("fixed", "broken", "both_right", "both_wrong")


def build_case_table(
    base: pd.DataFrame, tuned: pd.DataFrame, tokenized: dict[str, pd.DataFrame], task: Task
) -> pd.DataFrame:
    """Every test row with both predictions, their probabilities, what bags of words guess, its lengths, and its fate.

    Args:
        base, tuned: predictions of the same rows in the same order.
        tokenized: {"train", "test"}: the rows; the guesses learn from the training rows.
    """
    texts, train = own_names(base, task), own_names(tokenized["train"], task)
    cases = base[["row", *task.text_columns, "group"]].assign(gold=base["label"])
    cases["truncated"] = tokenized["test"]["truncated"].to_numpy()
    for name, table in (("base", base), ("tuned", tuned)):
        shares = table[task.probability_columns]
        cases[name] = table["prediction"]
        cases = cases.join(shares.set_axis(probabilities_of(name, task), axis="columns"))
        cases[f"{name}_probability"] = shares.max(axis=1)
    gold = tokenized["train"]["label"].to_numpy()
    cases = cases.assign(**bag_of_words(train, gold, texts))
    cases["fate"] = fates(cases["gold"], cases["base"], cases["tuned"])
    cases = cases.join(lengths(texts))
    kind = nli.NliTask.from_task(task)
    return cases.join(nli.traits(texts, kind)) if kind else cases


def own_names(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The texts of a table under the names that the data has for them."""
    return table[task.text_columns].set_axis(list(task.columns), axis="columns")


def probabilities_of(model: str, task: Task) -> list[str]:
    """The columns of the case table that hold a model's probabilities; model: "base" or "tuned"."""
    return [f"{model}_{name}" for name in task.probability_columns]


def comparison(cases: pd.DataFrame, train_gold: np.ndarray, task: Task, confidence: float) -> dict[str, Any]:
    """The gain with its interval and its McNemar p; and what guesses right with less.

    Args:
        cases: from `build_case_table`.
        train_gold: labels of the training rows.
        confidence: of the intervals, such as 0.95.
    """
    changed = changes(cases["gold"], cases["base"], cases["tuned"])
    p = mcnemar(changed, cases["group"])

    def of(guess):
        return accuracy(cases["gold"] == guess, cases["group"], confidence)

    return {
        **gain(cases["gold"], cases["base"], cases["tuned"]),
        "accuracy_gain_interval": ends(gain_interval(changed, cases["group"], p, confidence)),
        "design_effect": design_effect(changed, cases["group"]),
        "mcnemar_p": p,
        "majority_class": of(majority_class(train_gold)),
        "bag_of_words": of(cases[ALL]),
        "bag_of_words_by_column": {column: of(cases[guess_column(column)]) for column in task.columns},
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
        "f1_macro_tuned": tuned["f1_macro"],  # what the report leads with where classes are uneven
        "f1_tuned": tuned["f1_weighted"],
        "loss_train": train["train_loss"],
        "loss_validation": train["validation_loss"],
        "parameters_trained": train["parameters"]["trainable"],
    }


def accuracy(right: pd.Series, groups: pd.Series, confidence: float) -> dict[str, Any]:
    """Share of right rows, its interval, and the design effect of rows that share a group, which widens it."""
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": ends(wilson(*effective_counts(right, groups, confidence), confidence)),
        "design_effect": design_effect(right, groups),
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
