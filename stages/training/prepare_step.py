"""Plan the memory of a training, and capture its steps, before the first one."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from stages.kernels.fusion import count_free_bytes, estimate_bytes_per_token
from stages.runtime import distributed
from stages.runtime.errors import UserError
from stages.runtime.params import Train
from stages.training.captured_step import CapturedStep
from stages.training.epoch_batches import EpochBatches, Part
from stages.training.graph_sizes import choose_sizes
from stages.training.memory_plan import Choices, Memory, Plan, choose_plan, describe_plan, next_smaller
from stages.training.part_collator import PartCollator

# phi-2 on an H200, parts of 1,024 to 9,216 tokens: graphs took 1.01 to 1.10 times the peak of an eager run, or at least
# 0.15 GB more; a token took 2.49 MB in all parts, with checkpointing 0.32 MB, 14% more than in the parts measured here.
RESERVED = 0.7e9  # bytes
GAPS = 1.15
# Of the free memory, for a validation batch. phi-2's batches of `EVALUATION_TOKENS` need less, also with 8 GB.
VALIDATION_SHARE = 0.25


def prepare_step(
    step: CapturedStep, batches: EpochBatches, collate: PartCollator, train: Train, validate: Callable[[int], object],
    validation_limits: dict[int, int],
) -> str:  # fmt: skip
    """Choose how batches are computed and for which sizes the step is captured, and capture them.

    Args:
        batches: of all epochs; this sets the limits of a part.
        collate: of `batches`; this sets its sizes.
        train: its `dequantize_once`, `gradient_checkpointing` and `micro_batch` limit the choice.
        validate: limits validation batches to so many tokens, and predicts the largest; raises UserError if it does
            not fit.
        validation_limits: such limits, descending, and the tokens of the largest batch under each.

    Returns:
        the plan in words, which is also printed.

    Raises:
        torch.OutOfMemoryError: no plan fits the memory.
        UserError: of `validate`, where nothing but the model is in the memory.
    """
    longest = collate.size_of(np.array([batches.lengths.max()]))
    parts = list(itertools.chain(*list_parts(batches, train.epochs)))
    # Of all ranks: a plan by rank 0's parts would divide slightly larger ones of another rank.
    rows = max(distributed.all_gather(max(map(len, parts))))
    tokens = np.concatenate(distributed.all_gather([collate.count_tokens(part, rows) for part in parts]))
    choices = list_choices(step, train, longest if train.micro_batch == "auto" else int(tokens.max()))
    limit, validation_bytes = fit_validation(validate, validation_limits)
    plan = distributed.broadcast(plan_memory(step, batches, collate, tokens, choices, validation_bytes))
    while True:
        most_parts, error = try_plan(plan, step, batches, collate, train.epochs, longest, partial(validate, limit))
        captured = all(distributed.all_gather(most_parts > 0))
        errors = [error for error in distributed.all_gather(error) if error is not None]
        if not errors:
            break
        step.forget_graphs()
        if captured and limit > min(validation_limits):
            limit = max(smaller for smaller in validation_limits if smaller < limit)
        elif captured and plan == choices.least:  # no allowed plan leaves more memory for validation
            raise UserError(errors[0])
        else:
            plan = next_smaller(plan, choices, captured)
    description = describe_plan(plan, most_parts)
    if limit < max(validation_limits):
        description += f", validation batches of up to {validation_limits[limit]:,} tokens"
    print(f"GPU memory: {description}")
    return description


def fit_validation(validate: Callable[[int], object], limits: Iterable[int]) -> tuple[int, int]:
    """Choose the first limit whose largest batch takes a small share of the free memory. The step needs the rest.

    Args:
        validate: as in `prepare_step`.
        limits: of a validation batch's tokens, descending. The last one is chosen if its batch fits at all.

    Returns:
        (the limit, bytes that its largest batch needs)

    Raises:
        UserError: the batch does not fit the memory of one rank. All ranks raise it.
    """
    for limit in limits:
        error, peak, free = None, 0, count_free_bytes()
        try:
            peak = measure_peak(partial(validate, limit))
        except UserError as does_not_fit:
            error = str(does_not_fit)  # the error itself would keep the tensors of its functions
        if all(distributed.all_gather(error is None and peak <= VALIDATION_SHARE * free)):
            return limit, peak
    errors = [error for error in distributed.all_gather(error) if error is not None]
    if errors:
        raise UserError(errors[0])
    return limit, peak


def try_plan(
    plan: Plan, step: CapturedStep, batches: EpochBatches, collate: PartCollator, epochs: int, longest: int,
    validate: Callable[[], object],
) -> tuple[int, str | None]:  # fmt: skip
    """Capture the step as planned, and validate next to the graphs.

    With Llama-3-8B's shape and 40 GB, the first validation ran out of memory: 3.2 GB were free, but in pieces that were
    too small.

    Returns:
        (the most parts of a batch, or 0: the step does not fit; what does not fit, None if all does). An error itself
        would keep the tensors of its functions.
    """
    allocate = partial(torch.empty, dtype=torch.uint8, device=torch.cuda.current_device())
    try:
        optimizer = allocate(step.count_optimizer_bytes())
        most_parts = apply_plan(plan, step, batches, collate, epochs, longest)
        gradients = allocate(step.count_sum_bytes() if most_parts > 1 else 0)
    except torch.OutOfMemoryError as error:
        return 0, str(error)
    try:
        validate()
        del optimizer, gradients  # allocated until here
    except UserError as error:
        return most_parts, str(error)
    return most_parts, None


def apply_plan(
    plan: Plan, step: CapturedStep, batches: EpochBatches, collate: PartCollator, epochs: int, longest: int
) -> int:
    """Set limits and sizes as planned, and capture the step.

    Returns:
        the most parts of a batch.

    Raises:
        torch.OutOfMemoryError: the plan does not fit the memory.
    """
    batches.max_tokens = plan.max_tokens
    batches.max_rows = min(batches.max_rows, collate.max_rows(plan.max_tokens, longest))
    step.apply(plan)
    return capture_sizes(step, batches, collate, epochs)


def list_parts(batches: EpochBatches, epochs: int) -> Iterator[list[np.ndarray]]:
    """For each batch of all epochs, the lengths of the rows of this rank's parts."""
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        yield from batches.list_parts()
    batches.set_epoch(0)


def list_choices(step: CapturedStep, train: Train, smallest_part: int) -> Choices:
    """What the parameters and the model allow."""
    checkpointing: tuple[bool, ...] = (False, True) if step.can_checkpoint else (False,)
    if train.gradient_checkpointing != "auto":
        checkpointing = (train.gradient_checkpointing,)
    if train.dequantize_once != "auto":
        return Choices((train.dequantize_once,), checkpointing, smallest_part)
    # A user who sets checkpointing wants to save memory, so no copy of the weights.
    return Choices((False,) if checkpointing == (True,) else (False, True), checkpointing, smallest_part)


def plan_memory(
    step: CapturedStep, batches: EpochBatches, collate: PartCollator, tokens: np.ndarray, choices: Choices,
    validation_bytes: int,
) -> Plan:  # fmt: skip
    """Choose a plan by an upper bound of what a token needs; if the fastest plan might not fit, by measurements.

    Args:
        tokens: of each part.
        validation_bytes: that a validation batch needs.
    """
    bound = float(estimate_bytes_per_token(step.model))
    free = min(distributed.all_gather(count_free_bytes() - validation_bytes))
    memory = Memory(
        free=free - RESERVED - step.count_optimizer_bytes() - step.count_sum_bytes(),
        kept_weights=sum(linear.count_weight_bytes() for linear in step.layers.linears),
        fixed=dict.fromkeys(choices.checkpointing, RESERVED),
        per_token=dict.fromkeys(choices.checkpointing, bound),
    )
    fastest = Plan(max(choices.keep_weights), min(choices.checkpointing), int(tokens.max()))
    if choose_plan(memory, tokens, choices) == fastest:
        return fastest
    fixed, per_token = {}, {}
    for checkpointing in sorted(choices.checkpointing, reverse=True):  # first what needs the least memory
        step.layers.set_checkpointing(checkpointing)
        with contextlib.suppress(torch.OutOfMemoryError):
            fixed[checkpointing], per_token[checkpointing] = measure_step(step, batches, collate)
    if not fixed:  # a part may still fit: it can be smaller than those measured
        return choices.least
    choices = replace(choices, checkpointing=tuple(fixed))
    return choose_plan(replace(memory, fixed=fixed, per_token=per_token), tokens, choices)


def measure_step(step: CapturedStep, batches: EpochBatches, collate: PartCollator) -> tuple[float, float]:
    """Bytes of a step with no tokens, and of each token: from two small parts, which differ only in their size."""
    peaks, tokens = [], []
    for factor in (1, 2):
        if collate.is_packed:
            part = make_part(batches, collate, factor * 256 + max(0, int(batches.lengths.min()) - 256), rows=1)
        else:
            step.rows = factor
            part = make_part(batches, collate, collate.size_of(np.array([batches.lengths.max()])), rows=factor)
        step.warm_up(part)  # libraries allocate their workspaces at their first use
        peaks.append(measure_peak(partial(step.warm_up, part)))
        tokens.append(part["input_ids"].numel())
    per_token = (peaks[1] - peaks[0]) / (tokens[1] - tokens[0])
    return GAPS * (peaks[0] - per_token * tokens[0]), GAPS * per_token


def measure_peak(call: Callable[[], object]) -> int:
    """Bytes that PyTorch allocates at the call's peak, besides what is allocated before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def capture_sizes(step: CapturedStep, batches: EpochBatches, collate: PartCollator, epochs: int) -> int:
    """Capture the step for all sizes that parts are filled up to.

    The largest is the first: each graph then reuses the memory of the earlier ones.

    Returns:
        the most parts of a batch.
    """
    divided = list(list_parts(batches, epochs))
    parts = list(itertools.chain(*divided))
    step.rows = collate.rows = max(map(len, parts))
    sizes = [collate.size_of(part) for part in parts]
    collate.sizes = choose_sizes(sizes, 1 if collate.is_packed else step.rows)
    step.capture([make_part(batches, collate, size, rows=1) for size in reversed(collate.sizes)])
    return max(map(len, divided))


def make_part(batches: EpochBatches, collate: PartCollator, size: int, rows: int) -> Part:
    """A part of this size on the device, of copies of the shortest row."""
    row = batches.rows[int(batches.lengths.argmin())]
    part = collate.fill_up_to(size, [row] * rows, np.zeros(rows, dtype=np.int64))
    part["weight"] = torch.ones((), dtype=torch.float32)
    return {name: value.to(torch.cuda.current_device()) for name, value in part.items()}
