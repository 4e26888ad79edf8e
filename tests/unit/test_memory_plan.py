"""The plan of a training's memory: the fastest that fits. Figures are those of phi-2 on 16 rows of 34 tokens."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.data.batching import bucket_size
from stages.training.graph_sizes import LEAST_SAVING, choose_sizes
from stages.training.memory_plan import Choices, Memory, Plan, choose_plan, describe_plan, estimate_time, next_smaller

GB = 1e9
TOKENS = np.array([528, 544, 560])
ANY = Choices((False, True), (False, True), smallest_part=96)
MEMORY = Memory(
    free=20 * GB, kept_weights=5 * GB, fixed={False: 0.1 * GB, True: 0.1 * GB}, per_token={False: 2.7e6, True: 0.4e6}
)


def plan_with(free, tokens=TOKENS, choices=ANY):
    return choose_plan(replace(MEMORY, free=free * GB), tokens, choices)


def test_with_enough_memory_weights_are_kept_and_batches_are_computed_at_once():
    assert plan_with(20) == Plan(True, False, 560)


def test_a_batch_is_divided_before_anything_else_is_given_up_if_its_parts_are_large():
    assert plan_with(20, tokens=TOKENS * 20) == Plan(True, False, 5120)  # 14.9 GB hold 5,518 tokens


def test_with_less_memory_weights_are_dequantized_at_each_use():
    assert plan_with(4) == Plan(False, False, 560)


def test_with_least_memory_layers_are_checkpointed_or_batches_divided_whichever_takes_less_time():
    plan = plan_with(0.4)
    assert plan.max_tokens * MEMORY.per_token[plan.checkpointing] <= 0.3 * GB
    others = [Plan(False, False, int(0.3 * GB / 2.7e6)), Plan(False, True, 560)]
    assert estimate_time(plan, TOKENS) == min(estimate_time(other, TOKENS) for other in others)


@pytest.mark.parametrize(
    ("free", "tokens"),
    [*itertools.product([0.5, 1, 2, 4, 6, 8, 12, 16, 24, 80], [TOKENS, TOKENS * 8, TOKENS * 40])],
)
def test_a_plan_fits_and_more_memory_never_takes_longer(free, tokens):
    plan, with_more = plan_with(free, tokens), plan_with(free * 1.5, tokens)
    needed = MEMORY.fixed[plan.checkpointing] + plan.max_tokens * MEMORY.per_token[plan.checkpointing]
    assert needed + plan.keep_weights * MEMORY.kept_weights <= free * GB
    assert estimate_time(with_more, tokens) <= estimate_time(plan, tokens)


def test_a_part_fits_when_it_is_filled_up_and_similar_free_memory_gives_the_same_plan():
    choices, plans = replace(ANY, checkpointing=(False,)), set()
    for free in np.linspace(0.5, 40, 1000):
        plan = plan_with(free, TOKENS * 40, choices)
        filled = bucket_size(plan.max_tokens) * MEMORY.per_token[False]
        assert MEMORY.fixed[False] + plan.keep_weights * MEMORY.kept_weights + filled <= free * GB
        plans.add(plan)
    assert len(plans) < 100


def test_choices_of_the_user_are_kept():
    assert plan_with(20, choices=Choices((False,), (True,), 96)) == Plan(False, True, 560)
    assert plan_with(6.1, choices=Choices((False, True), (False,), 560)) == Plan(False, False, 560)


def test_if_nothing_fits_the_plan_needs_the_least_memory():
    assert plan_with(0.05) == Plan(False, True, 96)


def test_a_plan_is_described_in_one_line():
    assert describe_plan(Plan(True, False, 560), 1) == "a dequantized copy of the weights, each batch at once"
    assert describe_plan(Plan(False, True, 300), 2) == (
        "weights dequantized at each use, gradient checkpointing, batches in up to 2 parts of 300 tokens"
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_other_sizes_of_the_same_number_need_fewer_tokens(seed):
    sizes = np.random.default_rng(seed).integers(1, 30, 12) * 500
    chosen = choose_sizes(sizes)

    def filled(candidates):
        return sum(min(size for size in candidates if size >= part) for part in sizes)

    others = [c for c in itertools.combinations(np.unique(sizes), len(chosen)) if c[-1] == max(sizes)]
    assert chosen == sorted(chosen) and chosen[-1] == max(sizes)
    assert filled(chosen) == min(map(filled, others))


def test_similar_batches_get_one_size_and_so_does_a_small_last_one():
    assert choose_sizes([544] * 62 + [272]) == [544]
    assert len(choose_sizes([*range(256, 16384, 256)] * 10)) > 4


def test_sizes_of_thousands_of_lengths_are_chosen_in_a_moment():
    start = time.process_time()
    chosen = choose_sizes(range(1, 8193), tokens_a_unit=16)
    assert chosen == sorted(chosen) and chosen[-1] == 8192 and len(chosen) == 8
    assert time.process_time() - start < 1


def test_another_size_must_save_enough_tokens():
    few, many = LEAST_SAVING // 50 - 1, LEAST_SAVING // 50 + 1
    assert choose_sizes([100] * 1000 + [50] * few) == [100]
    assert choose_sizes([100] * 1000 + [50] * many) == [50, 100]
    assert choose_sizes([100] * 1000 + [50] * few, tokens_a_unit=2) == [50, 100]


def test_after_a_plan_that_does_not_fit_no_copy_is_kept_then_parts_get_smaller_then_layers_are_checkpointed():
    plans = [Plan(True, False, 560)]
    with pytest.raises(torch.OutOfMemoryError):
        while True:
            plans.append(next_smaller(plans[-1], ANY))
    assert plans[1:] == [Plan(False, False, tokens) for tokens in (560, 280, 140, 96)] + [Plan(False, True, 96)]
