"""The loss with class weights: classes count equally, however many rows they have."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.runtime.errors import UserError


def compute_balanced_weights(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Weight of each class: rows / (classes with rows * rows of the class), as scikit-learn's "balanced".

    The mean over the rows is 1, so the same learning rate suits. A class without rows has weight 1.

    Args:
        labels: class numbers, [rows].
        classes: number of classes.

    Returns:
        float32 [classes].
    """
    present, rows = np.unique(labels, return_counts=True)
    weights = np.ones(classes, dtype=np.float32)
    weights[present] = len(labels) / (len(present) * rows)
    return torch.from_numpy(weights)


def weigh_classes(model: PreTrainedModel, weights: torch.Tensor) -> None:
    """Weight a classifier's loss by class, in place. Eager steps, captured steps and validation use the same loss.

    The sum of weight times cross-entropy is divided by the number of rows. `torch.nn.CrossEntropyLoss` would divide by
    the sum of the rows' weights, so weights would have no effect in a batch of one class.

    Args:
        model: computes its loss by `loss_function`, as most of transformers' classifiers do.
        weights: float32 [classes].

    Raises:
        UserError: the model's forward does not call `loss_function` (GPT-2, OPT), so its loss would have no weights.
    """
    weights = weights.to(model.device)

    def loss(labels: torch.Tensor, pooled_logits: torch.Tensor, **_: Any) -> torch.Tensor:
        total = torch.nn.functional.cross_entropy(pooled_logits.float(), labels, weight=weights, reduction="sum")
        return total / (labels >= 0).sum()  # rows that only fill a batch have a label below 0

    model.loss_function = loss
    labels = (weights - 1).abs().argmax()[None]  # tried on the class with the most unusual weight
    with torch.no_grad():
        output = model(input_ids=torch.ones((1, 2), dtype=torch.int64, device=model.device), labels=labels)
        expected = loss(labels, output.logits)
    if not torch.isclose(output.loss.float(), expected, rtol=1e-2):
        raise UserError(
            f"params.yaml: train.class_weights: balanced, but {type(model).__name__} does not use transformers' "
            "`loss_function`; allowed: null"
        )
