"""The loss: cross-entropy, or binary cross-entropy if a row may have several labels; with class weights if asked for.

It is always computed from the model's logits by `compute_loss`: in eager and captured steps and in validation. A
model's own forward computes the same without weights, except where some families (GPT-2, OPT) ignore `loss_function`.
"""

from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from stages.data.labels import Labels


def set_loss(model: PreTrainedModel, labels: Labels, train_labels: np.ndarray, balanced: bool) -> None:
    """Let `compute_loss` compute the loss of these labels, in place.

    Args:
        train_labels: label array of the training rows, from which the weights are computed.
        balanced: whether classes count equally, however many rows they have.
    """
    if labels.multi_label:
        use_binary_loss(model, compute_positive_weights(train_labels) if balanced else None)
    elif balanced:
        weigh_classes(model, compute_balanced_weights(train_labels, len(labels.classes)))


def compute_loss(model: PeftModel, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss of the rows of a batch. Rows that only fill it have labels below 0, and don't count.

    Args:
        logits: [rows, classes].
        labels: int64 [rows] or [rows, classes].
    """
    base = cast(PreTrainedModel, model.get_base_model())
    return base.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=base.config)


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
    """Weight a classifier's cross-entropy by class, in place.

    The sum of weight times cross-entropy is divided by the number of rows. `torch.nn.CrossEntropyLoss` would divide by
    the sum of the rows' weights, so weights would have no effect in a batch of one class.

    Args:
        weights: float32 [classes].
    """
    weights = weights.to(model.device)

    def loss(labels: torch.Tensor, pooled_logits: torch.Tensor, **_: Any) -> torch.Tensor:
        total = torch.nn.functional.cross_entropy(pooled_logits.float(), labels, weight=weights, reduction="sum")
        return total / (labels >= 0).sum()

    model.loss_function = loss


def compute_positive_weights(labels: np.ndarray) -> torch.Tensor:
    """How often a row with a class counts: as often as rows without it are more frequent. 1 if all rows are alike.

    Args:
        labels: bool [rows, classes].

    Returns:
        float32 [classes], PyTorch's `pos_weight`.
    """
    positives = labels.sum(axis=0)
    negatives = len(labels) - positives
    weights = np.divide(negatives, positives, out=np.ones(len(positives)), where=(positives > 0) & (negatives > 0))
    return torch.from_numpy(weights.astype(np.float32))


def use_binary_loss(model: PreTrainedModel, weights: torch.Tensor | None) -> None:
    """Let a classifier's loss be the binary cross-entropy, the mean over rows and classes, in place.

    This is `torch.nn.BCEWithLogitsLoss`, as in transformers, but rows that only fill a batch don't count.

    Args:
        weights: from `compute_positive_weights`.
    """
    weights = None if weights is None else weights.to(model.device)

    def loss(labels: torch.Tensor, pooled_logits: torch.Tensor, **_: Any) -> torch.Tensor:
        counts = labels >= 0
        logits = pooled_logits.float().masked_fill(~counts, 0)  # 0 times an overflow would be NaN
        targets = labels.clamp(min=0).to(logits.dtype)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weights, reduction="none"
        )
        return (losses * counts).sum() / counts.sum()

    model.loss_function = loss
