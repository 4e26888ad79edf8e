"""What a tuned model must exceed on the same test rows: the references of `analysis.references`."""

from typing import Any

import numpy as np

REFERENCES = ("majority_class", "bag_of_words", "zero_shot", "probe", "untrained_head")  # the cheapest first
OF_LANGUAGE_MODEL = ("zero_shot", "probe", "untrained_head")  # eval_base predicts them


def find_majority_class(train_gold: np.ndarray) -> Any:
    """The most frequent label of the training rows, by their codes; of equally frequent ones, the first."""
    codes, rows = np.unique(train_gold, return_counts=True)
    return codes[rows.argmax()]
