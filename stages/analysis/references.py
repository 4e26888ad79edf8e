"""What a tuned model must exceed on the same test rows: the references of `analysis.references`."""

import numpy as np

REFERENCES = ("majority_class", "bag_of_words", "zero_shot", "probe", "untrained_head")  # the cheapest first
OF_LANGUAGE_MODEL = ("zero_shot", "probe", "untrained_head")  # eval_base predicts them


def find_majority_class(train_gold: np.ndarray) -> int:
    """The most frequent label of the training rows; of equally frequent ones, the first."""
    return int(np.bincount(train_gold).argmax())
