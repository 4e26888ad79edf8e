"""Choose how a batch is computed, so that it fits the GPU's memory in the least time.

Three things save memory: dequantizing the 4-bit weights at each use, computing a batch in parts, and gradient
checkpointing. None of them changes the result, except for rounding.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch

# Floating-point operations that a GPU computes in bf16 while it moves one byte: an H200 180, an A100 200, a T4 216.
OPERATIONS_A_BYTE = 200
# Bytes moved a weight to dequantize it: 0.56 are read, 2 are written.
DEQUANTIZE_BYTES = 2.6


@dataclass(frozen=True)
class Plan:
    """How a batch is computed.

    Attributes:
        keep_weights: keep a dequantized copy of the weights, or dequantize them at each use.
        checkpointing: recompute the layers in the backward.
        max_tokens: the most tokens of a part of a batch.
    """

    keep_weights: bool
    checkpointing: bool
    max_tokens: int


@dataclass(frozen=True)
class Memory:
    """Bytes that a training needs and has, besides what is allocated already.

    Attributes:
        free: for weights, graphs and activations.
        kept_weights: of a dequantized copy of all weights.
        fixed: of a step with no tokens, {whether layers are checkpointed: bytes}.
        per_token: of each token in a part, {whether layers are checkpointed: bytes}.
    """

    free: float
    kept_weights: float
    fixed: dict[bool, float]
    per_token: dict[bool, float]

    def max_tokens(self, keep_weights: bool, checkpointing: bool) -> int:
        """The most tokens of a part that fit, at least 0."""
        rest = self.free - self.fixed[checkpointing] - keep_weights * self.kept_weights
        return max(0, int(rest / self.per_token[checkpointing]))


@dataclass(frozen=True)
class Choices:
    """What a plan may be.

    Attributes:
        keep_weights, checkpointing: the allowed values.
        smallest_part: tokens of the smallest allowed part: those of the longest row, or of the largest batch if batches
            may not be divided.
    """

    keep_weights: tuple[bool, ...]
    checkpointing: tuple[bool, ...]
    smallest_part: int

    @property
    def least(self) -> Plan:
        """The plan that needs the least memory."""
        return Plan(min(self.keep_weights), max(self.checkpointing), self.smallest_part)


def choose_plan(memory: Memory, batch_tokens: np.ndarray, choices: Choices) -> Plan:
    """The plan that takes the least time of those that fit; if none fits, the one that needs the least memory.

    Args:
        batch_tokens: tokens of each batch, [batches].
    """
    largest, plans = int(batch_tokens.max()), []
    for keep, recompute in itertools.product(choices.keep_weights, choices.checkpointing):
        max_tokens = memory.max_tokens(keep, recompute)
        if max_tokens >= choices.smallest_part:
            max_tokens = max(_round_down(max_tokens), choices.smallest_part)
            plans.append(Plan(keep, recompute, min(max_tokens, largest)))
    return min(plans, key=lambda plan: estimate_time(plan, batch_tokens), default=choices.least)


def _round_down(tokens: int) -> int:
    """One of eight values for each power of two: similar free memory gives the same parts, which round alike.

    All are results of `batching.bucket_size`, so a part that is filled up stays within the limit.
    """
    step = max(16, 2 ** (tokens.bit_length() - 4))
    return tokens // step * step


def next_smaller(plan: Plan, choices: Choices, captured: bool = False) -> Plan:
    """The plan to try after one that did not fit.

    Args:
        captured: the step fitted, but not validation next to it.

    Raises:
        torch.OutOfMemoryError: no allowed plan needs less memory.
    """
    if plan == choices.least:
        raise torch.OutOfMemoryError("the smallest part of a batch does not fit")
    smaller_parts = replace(plan, max_tokens=max(plan.max_tokens // 2, choices.smallest_part))
    if captured and smaller_parts != plan:
        return smaller_parts
    if plan.keep_weights > min(choices.keep_weights):  # maybe the copy itself does not fit; without it much is free
        return replace(plan, keep_weights=False)
    return smaller_parts if smaller_parts != plan else choices.least


def estimate_time(plan: Plan, batch_tokens: np.ndarray) -> float:
    """A number proportional to the time of an epoch, from its frozen matrix products.

    A part computes each weight's products forward and backward, with checkpointing forward twice. They take the time of
    reading the weight's 2 bytes and of 2 operations a token. Dequantizing comes on top.

    For phi-2 the ratios of steps at batch 16 are 1.36 (dequantizing at each use) and 2.04 (checkpointing too). Measured
    were 1.44 and 2.11 (benchmarks/results/h100.json).
    """
    passes = 3 if plan.checkpointing else 2
    parts = np.ceil(batch_tokens / plan.max_tokens)
    dequantize_bytes = 0 if plan.keep_weights else DEQUANTIZE_BYTES
    return passes * float((parts * (2 + dequantize_bytes) + 2 * batch_tokens / OPERATIONS_A_BYTE).sum())


def describe_plan(plan: Plan, parts: int) -> str:
    """The plan as a line for the user; parts: the most parts of a batch."""
    return ", ".join(
        [
            "a dequantized copy of the weights" if plan.keep_weights else "weights dequantized at each use",
            *(["gradient checkpointing"] if plan.checkpointing else []),
            "each batch at once" if parts == 1 else f"batches in up to {parts} parts of {plan.max_tokens:,} tokens",
        ]
    )
