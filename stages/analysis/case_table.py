"""The case table: every test row with the predictions of the tuned model and of the references."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.analysis import nli
from stages.analysis.bag_of_words import BAG_OF_WORDS, predict_by_words
from stages.analysis.references import OF_LANGUAGE_MODEL, find_majority_class
from stages.analysis.text_terms import lengths
from stages.data.confusion import confusion_counts
from stages.data.data_summary import find_duplicates
from stages.data.row_places import place_columns
from stages.data.task import Task

OUTCOMES = ("fixed", "broken", "both_right", "both_wrong")


def build_case_table(
    base: pd.DataFrame, tuned: pd.DataFrame, tokenized: dict[str, pd.DataFrame], task: Task, references: Sequence[str]
) -> pd.DataFrame:
    """Join predictions, probabilities, the references' predictions and text lengths of each test row.

    Args:
        base, tuned: predictions of the same rows in the same order.
        tokenized: {"train", "test"}: the rows. The references without a language model learn from the training rows.
        references: `analysis.references`.

    Returns:
        one line for each test row: `row`, `file` and `file_row` (see `row_places`), texts, `group`, `gold`,
        `truncated`, `in_train` (a duplicate of a training row), a prediction for each reference that was computed,
        `tuned`, its probabilities, lengths, traits of NLI.
    """
    texts, train_texts = restore_column_names(tuned, task), restore_column_names(tokenized["train"], task)
    labels, train_gold = task.labels, tokenized["train"]["label"].to_numpy()
    cases = tuned[["row", *place_columns(tuned), *task.text_columns, "group"]].assign(gold=tuned["label"])
    cases["truncated"] = tokenized["test"]["truncated"].to_numpy()
    cases["in_train"] = find_duplicates(tuned, tokenized["train"], task)
    if "majority_class" in references:
        cases["majority_class"] = find_majority_class(train_gold)
    if BAG_OF_WORDS in references:
        by_words = predict_by_words(train_texts, labels.from_codes(train_gold), texts)
        cases = cases.assign(**{name: labels.to_codes(answers) for name, answers in by_words.items()})
    cases = cases.join(base[[name for name in OF_LANGUAGE_MODEL if name in base]])
    probabilities = tuned[task.probability_columns]
    cases["tuned"] = tuned["prediction"]
    cases = cases.join(probabilities.set_axis(probability_columns(task), axis="columns"))
    answers = labels.from_codes(tuned["prediction"])
    cases["tuned_probability"] = labels.answer_probability(probabilities.to_numpy(), answers)
    cases = cases.join(lengths(texts))
    nli_task = nli.NliTask.from_task(task)
    return cases.join(nli.traits(texts, nli_task)) if nli_task else cases


def restore_column_names(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The texts of a table under the data set's own column names."""
    return table[task.text_columns].set_axis(list(task.columns), axis="columns")


def probability_columns(task: Task) -> list[str]:
    """The columns with the tuned model's probabilities."""
    return [f"tuned_{name}" for name in task.probability_columns]


def find_outcomes(gold: np.ndarray, reference: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """What tuning did to each row, compared with a reference: one of `OUTCOMES`, [rows]."""
    reference_right, tuned_right = np.asarray(reference) == gold, np.asarray(tuned) == gold
    return np.select(
        [~reference_right & tuned_right, reference_right & ~tuned_right, reference_right & tuned_right],
        OUTCOMES[:3],
        default=OUTCOMES[3],
    )


def count_confusions(cases: pd.DataFrame, task: Task) -> np.ndarray:
    """`confusion_counts` of the tuned model's answers, int [classes, classes]."""
    gold, tuned = (task.labels.from_codes(cases[column]) for column in ("gold", "tuned"))
    return confusion_counts(gold, tuned, len(task.classes))
