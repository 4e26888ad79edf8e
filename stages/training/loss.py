"""The loss that training minimises, where classes are to weigh alike however many rows they have."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.runtime.errors import UserError


def balanced_weights(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Weight of each class: rows / (classes that are there * rows of the class), as scikit-learn's "balanced".

    The mean over the rows is 1, so that a learning rate means what it meant. A class without rows weighs 1.

    Args:
        labels: numbers of classes, [rows].

    Returns:
        float32 [classes].
    """
    there, rows = np.unique(labels, return_counts=True)
    weights = np.ones(classes, dtype=np.float32)
    weights[there] = len(labels) / (len(there) * rows)
    return torch.from_numpy(weights)


def weigh_classes(model: PreTrainedModel, weights: torch.Tensor) -> None:
    """Let a classifier's loss weigh its classes, in place: in an eager step, a captured one and in validation alike.

    The sum over the rows of weight times cross-entropy is divided by the number of rows, not by the sum of their
    weights as `torch.nn.CrossEntropyLoss` has it: there a batch of one class would weigh as if it had no weights.

    Args:
        model: computes its loss by `loss_function`, as most of transformers' classifiers do.
        weights: float32 [classes].

    Raises:
        UserError: where the model's own forward passes `loss_function` by (GPT-2, OPT): its loss would have no weights.
    """
    weights = weights.to(model.device)

    def loss(labels: torch.Tensor, pooled_logits: torch.Tensor, **_: Any) -> torch.Tensor:
        total = torch.nn.functional.cross_entropy(pooled_logits.float(), labels, weight=weights, reduction="sum")
        return total / (labels >= 0).sum()  # a row that only fills a batch has a label below 0

    model.loss_function = loss
    labels = (weights - 1).abs().argmax()[None]  # tried on the class where weights tell most
    with torch.no_grad():
        found = model(input_ids=torch.ones((1, 2), dtype=torch.int64, device=model.device), labels=labels)
        expected = loss(labels, found.logits)
    if not torch.isclose(found.loss.float(), expected, rtol=1e-2):
        raise UserError(
            f"params.yaml: train.class_weights: balanced, but {type(model).__name__} computes a loss of its own; "
            "allowed: null"
        )
