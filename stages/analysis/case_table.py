"""The case table: every test row with the predictions of both models and of the baselines."""

import numpy as np
import pandas as pd

from stages.analysis import nli
from stages.analysis.baselines import bag_of_words
from stages.analysis.text_terms import lengths
from stages.data.task import Task

FATES = ("fixed", "broken", "both_right", "both_wrong")


def build_case_table(
    base: pd.DataFrame, tuned: pd.DataFrame, tokenized: dict[str, pd.DataFrame], task: Task
) -> pd.DataFrame:
    """Join predictions, probabilities, the baselines' predictions, text lengths and the fate of each test row.

    Args:
        base, tuned: predictions of the same rows in the same order.
        tokenized: {"train", "test"}: the rows. The baselines learn from the training rows.
    """
    texts, train_texts = restore_column_names(base, task), restore_column_names(tokenized["train"], task)
    cases = base[["row", *task.text_columns, "group"]].assign(gold=base["label"])
    cases["truncated"] = tokenized["test"]["truncated"].to_numpy()
    for model, table in (("base", base), ("tuned", tuned)):
        probabilities = table[task.probability_columns]
        cases[model] = table["prediction"]
        cases = cases.join(probabilities.set_axis(probability_columns(model, task), axis="columns"))
        cases[f"{model}_probability"] = probabilities.max(axis=1)
    cases = cases.assign(**bag_of_words(train_texts, tokenized["train"]["label"].to_numpy(), texts))
    cases["fate"] = fates(cases["gold"], cases["base"], cases["tuned"])
    cases = cases.join(lengths(texts))
    nli_task = nli.NliTask.from_task(task)
    return cases.join(nli.traits(texts, nli_task)) if nli_task else cases


def restore_column_names(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The texts of a table under the data set's own column names."""
    return table[task.text_columns].set_axis(list(task.columns), axis="columns")


def probability_columns(model: str, task: Task) -> list[str]:
    """The columns with a model's probabilities; model: "base" or "tuned"."""
    return [f"{model}_{name}" for name in task.probability_columns]


def fates(gold: np.ndarray, base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """What tuning did to each row: one of `FATES`, [rows]."""
    base_right, tuned_right = np.asarray(base) == gold, np.asarray(tuned) == gold
    return np.select(
        [~base_right & tuned_right, base_right & ~tuned_right, base_right & tuned_right], FATES[:3], default=FATES[3]
    )
