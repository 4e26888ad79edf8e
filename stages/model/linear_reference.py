"""A reference that is a linear function of the base's last state of the classified token."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from stages.data.labels import Labels


@dataclass(frozen=True)
class LinearReference:
    """A head, and how its outputs become answers.

    Attributes:
        weight: [outputs, hidden].
        bias: [outputs].
        classify: turns states @ weight.T + bias [rows, outputs] into a label array.
    """

    weight: np.ndarray
    bias: np.ndarray
    classify: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def from_head(cls, head: torch.nn.Linear, labels: Labels) -> Self:
        weight = head.weight.detach().cpu().numpy()
        return cls(weight, np.zeros(len(weight)), labels.decide_by_logits)


def stack_heads(references: Iterable[LinearReference]) -> tuple[torch.Tensor, torch.Tensor]:
    """One head with the outputs of all references, one after another -> (weight, bias), fp32."""
    weights, biases = zip(*((reference.weight, reference.bias) for reference in references), strict=True)
    return torch.from_numpy(np.concatenate(weights)).float(), torch.from_numpy(np.concatenate(biases)).float()


def classify_all(references: dict[str, LinearReference], outputs: np.ndarray) -> dict[str, np.ndarray]:
    """Answer by each reference -> {name: label array}.

    Args:
        outputs: of the head from `stack_heads`, [rows, outputs of all references].
    """
    ends = np.cumsum([len(reference.bias) for reference in references.values()])
    parts = np.split(outputs, ends[:-1], axis=1)
    return {name: reference.classify(part) for (name, reference), part in zip(references.items(), parts, strict=True)}
