"""The plan of a training's memory is measured and tried before the first step. The GPU's memory is a model of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")

from stages.data.batching import TokenizedRows
from stages.runtime import distributed, params
from stages.runtime.errors import UserError
from stages.training import prepare_step as module
from stages.training.epoch_batches import EpochBatches
from stages.training.memory_plan import Plan
from stages.training.part_collator import PartCollator
from stages.training.prepare_step import prepare_step

MB = 10**6
BYTES_PER_TOKEN = {False: 2 * MB, True: MB // 2}  # by whether layers are checkpointed
KEPT_WEIGHTS = 1000 * MB
SUM_BYTES = 1 * MB  # of the gradients of a batch in parts
LIMITS = {8192: 8100, 4096: 4050, 2048: 2030, 1024: 1010}  # of a validation batch, and the tokens of the largest


class Step:
    """A captured step that computes nothing. It runs out of memory where a GPU with `free` bytes would."""

    can_checkpoint, model, rows, plan = True, None, 1, None

    def __init__(self, free, padded):
        self.free, self.padded, self.captured, self.peak, self.checkpointing = free, padded, {}, 0, False
        self.layers = SimpleNamespace(
            linears=[SimpleNamespace(count_weight_bytes=lambda: KEPT_WEIGHTS)], set_checkpointing=self.set_checkpointing
        )

    def set_checkpointing(self, enabled):
        self.checkpointing = enabled

    def apply(self, plan):
        self.plan, self.checkpointing = plan, plan.checkpointing
        if plan.keep_weights and self.free < KEPT_WEIGHTS:
            raise torch.OutOfMemoryError

    def count_optimizer_bytes(self):
        return 0

    def count_sum_bytes(self):
        return SUM_BYTES

    def forget_graphs(self):
        self.captured = {}

    def warm_up(self, part):
        tokens = self.rows * part["input_ids"].shape[1] if self.padded else len(part["input_ids"])
        self.peak = tokens * BYTES_PER_TOKEN[self.checkpointing]
        if self.peak + self.kept_bytes() > self.free:
            raise torch.OutOfMemoryError

    def kept_bytes(self):
        return KEPT_WEIGHTS if self.plan and self.plan.keep_weights else 0

    def capture(self, parts):
        for part in parts:
            self.warm_up(part)
            self.captured[tuple(part["input_ids"].shape)] = part


@pytest.fixture
def prepare(monkeypatch, make_params, capsys):
    """prepare(lengths of the rows, free bytes) -> step, batches and the printed line."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")

    def prepare(
        lengths, free, padded=False, batch_size=4, max_length=2048, bound=3 * MB, validation=0, validation_token=0,
        limits=LIMITS, **train,
    ):  # fmt: skip
        """validation: bytes next to the largest graph, maybe by the tokens; validation_token: bytes, measured"""
        step = Step(free, padded)

        def validate(max_tokens):
            step.validation_tokens = max_tokens
            if max_tokens * validation_token > free:
                raise UserError("a validation batch does not fit")
            needs = validation(max_tokens) if callable(validation) else validation
            if step.captured and step.peak + step.kept_bytes() + needs > free:
                raise UserError("a validation batch does not fit next to the graphs")
            return max_tokens * validation_token

        monkeypatch.setattr(module, "RESERVED", 0.0)
        monkeypatch.setattr(module, "count_free_bytes", lambda: free)
        monkeypatch.setattr(module, "estimate_bytes_per_token", lambda model: bound)
        monkeypatch.setattr(module, "measure_peak", lambda call: call() or step.peak)  # validate returns its own
        settings = params.Batches(padding="longest" if padded else "none", multiple_of=1, order="random")
        collate = PartCollator(not padded, 0, settings, max_length)
        rows = TokenizedRows.from_lists([[1] * length for length in lengths], [0] * len(lengths))
        train = make_params(**{f"train__{name}": value for name, value in ({"epochs": 1} | train).items()}).train
        micro_batch = None if train.micro_batch == "auto" else train.micro_batch
        batches = EpochBatches(rows, batch_size, "random", 0, collate, micro_batch)
        description = prepare_step(step, batches, collate, train, validate, limits)
        line = capsys.readouterr().out
        assert line == f"GPU memory: {description}\n"
        return step, batches, line

    return prepare


@pytest.fixture
def become_rank(monkeypatch):
    """become_rank(rank, ranks, all_gather): compute what this rank does; all follow their own plan, or rank 0's."""

    def become_rank(rank, ranks, all_gather, broadcast=lambda value: value):
        monkeypatch.setattr(distributed, "world_size", lambda: ranks)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "broadcast", broadcast)
        monkeypatch.setattr(distributed, "all_gather", all_gather)

    return become_rank


def test_rows_that_are_all_long_can_be_measured(prepare):
    step, batches, line = prepare([600] * 8, free=2000 * MB)
    assert len(batches[0]) > 1 or step.plan.checkpointing
    assert "parts" in line or "checkpointing" in line


def test_a_part_that_is_smaller_than_those_measured_is_tried(prepare):
    step, _, _ = prepare([300] * 8, free=700 * MB, gradient_checkpointing=False)
    assert step.plan.max_tokens < 512 and step.captured


def test_if_no_part_fits_the_search_ends(prepare):
    with pytest.raises(torch.OutOfMemoryError):
        prepare([600] * 8, free=100 * MB)


def test_a_wrong_measurement_is_answered_by_smaller_parts(prepare, monkeypatch):
    monkeypatch.setattr(module, "GAPS", 0.3)
    step, batches, _ = prepare([40] * 64, free=1500 * MB, batch_size=32, gradient_checkpointing=False)
    assert step.captured and max(len(part["input_ids"]) for part in batches[0]) * 2 * MB <= 1500 * MB


def test_a_copy_of_the_weights_that_does_not_fit_costs_nothing_but_the_copy(prepare, monkeypatch):
    """As if another process took memory after the plan was made."""
    monkeypatch.setattr(module, "choose_plan", lambda memory, tokens, choices: Plan(True, False, int(tokens.max())))
    step, _, line = prepare([40] * 8, free=900 * MB)
    assert not (step.plan.keep_weights or step.plan.checkpointing)
    assert line == "GPU memory: weights dequantized at each use, each batch at once\n"


def test_validation_that_does_not_fit_next_to_the_graphs_costs_smaller_parts(prepare):
    fits, too_large = (prepare([40] * 64, free=4000 * MB, batch_size=16, validation=n * MB)[0].plan for n in (0, 2000))
    assert fits == Plan(True, False, 640)
    assert too_large == Plan(True, False, 320)


def test_validation_that_fits_next_to_the_graphs_in_smaller_batches_costs_no_smaller_parts(prepare):
    step, _, line = prepare([40] * 64, free=4000 * MB, batch_size=16, validation=lambda tokens: tokens * MB // 2)
    assert step.plan == Plan(True, False, 640) and step.validation_tokens == 2048
    assert line.endswith(", each batch at once, validation batches of up to 2,030 tokens\n")


def test_validation_that_fits_next_to_no_graph_is_an_error_about_validation(prepare):
    with pytest.raises(UserError, match="a validation batch does not fit next to the graphs"):
        prepare([600] * 8, free=5000 * MB, validation=5000 * MB)


@pytest.mark.parametrize("validation_token", [MB // 4, MB], ids=["fits", "does not fit"])
def test_validation_batches_get_smaller_until_they_leave_most_memory_to_the_step(prepare, validation_token):
    """A quarter of the memory is 1,000 MB: 4,096 tokens of a quarter MB are too many, and so are 1,024 of one MB."""
    step, _, line = prepare([40] * 64, free=4000 * MB, batch_size=16, validation_token=validation_token)
    assert step.validation_tokens == (2048 if validation_token == MB // 4 else 1024)
    assert line.endswith(f", validation batches of up to {LIMITS[step.validation_tokens]:,} tokens\n")


def test_the_memory_of_a_validation_batch_is_not_planned_for_the_step(prepare):
    plans = [prepare([40] * 64, free=2600 * MB, batch_size=16, validation_token=size)[0].plan for size in (0, 70_000)]
    assert plans == [Plan(True, False, 640), Plan(True, False, 416)]


def test_the_smallest_validation_batch_that_does_not_fit_is_an_error_before_any_capture(prepare):
    with pytest.raises(UserError, match=r"a validation batch does not fit$"):
        prepare([40] * 8, free=4000 * MB, validation_token=5 * MB)


def test_a_validation_batch_that_cannot_get_smaller_costs_smaller_parts_and_is_not_mentioned(prepare):
    step, _, line = prepare([40] * 64, free=4000 * MB, batch_size=16, validation=2000 * MB, limits={8192: 700})
    assert step.plan == Plan(True, False, 320) and step.validation_tokens == 8192
    assert line == "GPU memory: a dequantized copy of the weights, batches in up to 2 parts of 320 tokens\n"


@pytest.mark.parametrize("when", ["alone", "next to the graphs"])
def test_a_validation_batch_that_does_not_fit_another_rank_is_an_error_on_this_one_too(prepare, become_rank, when):
    def all_gather(value):
        if isinstance(value, bool) and when == "alone":
            return [value, False]
        return [value, "no memory on rank 1"] if value is None else [value, value]

    become_rank(0, 2, all_gather)
    with pytest.raises(UserError, match=r"^no memory on rank 1$"):
        prepare([40] * 8, free=4000 * MB, gradient_checkpointing=True)


def test_ranks_agree_on_the_tokens_of_a_validation_batch(prepare, become_rank):
    """This rank's fits at once, another rank's only with half of the tokens."""
    answers = iter([[True, False], [True, True], [True, True]])
    become_rank(0, 2, lambda value: next(answers) if isinstance(value, bool) else [value, value])
    assert prepare([40] * 64, free=80_000 * MB, batch_size=16)[0].validation_tokens == 4096


@pytest.mark.parametrize("fails", ["capture", "validation"])
def test_all_ranks_try_less_if_one_of_them_must(prepare, become_rank, fails):
    """On this rank all fits; in the first round another rank's step does not, or its validation."""
    answers = iter([[True, True], [True, fails == "validation"], [True, True]])
    errors = iter([[None, "no memory on rank 1"], [None, None]])

    def all_gather(value):
        return next(errors) if value is None else next(answers) if isinstance(value, bool) else [value, value]

    become_rank(0, 2, all_gather)
    step, _, _ = prepare([40] * 64, free=4000 * MB, batch_size=16)
    expected = (Plan(True, False, 320), 4096) if fails == "validation" else (Plan(False, False, 320), 8192)
    assert (step.plan, step.validation_tokens) == expected


def test_the_line_says_that_batches_are_divided_as_the_user_asks(prepare):
    _, batches, line = prepare([40] * 8, free=80_000 * MB, micro_batch=1)
    assert len(batches[0]) == 4
    assert "batches in up to 4 parts" in line


def test_a_long_row_in_the_short_last_batch_divides_no_padded_batch(prepare):
    lengths = np.full(10, 20)
    lengths[EpochBatches([{"input_ids": [1]}] * 10, 4, "random", 0, None).row_order[-1]] = 30
    _, batches, line = prepare(lengths, free=80_000 * MB, padded=True)
    assert "each batch at once" in line
    assert [len(batch) for batch in map(batches.__getitem__, range(3))] == [1, 1, 1]


def test_all_ranks_divide_batches_by_the_largest_part_of_any_rank(prepare, become_rank):
    """Rank 0 has rows of 100 and 10 tokens, and rank 1, which follows its plan, has two of 100."""
    lengths = [100, 100, 100, 10]
    given = [[], []]
    for rank in (0, 1):
        become_rank(rank, 2, lambda value, rank=rank: given[rank].append(value) or [value])
        prepare(lengths, free=80_000 * MB)
    plans = []
    for rank in (0, 1):
        values = iter(zip(*given, strict=True))
        become_rank(rank, 2, lambda _, values=values: list(next(values)), lambda plan: (plans.append(plan) or plans)[0])
        step, batches, _ = prepare(lengths, free=80_000 * MB)
        assert step.plan == plans[0] and len(batches[0]) == 1


def test_a_rank_that_never_has_rows_prepares_its_step(prepare, become_rank):
    become_rank(3, 4, lambda value: [value])
    step, batches, _ = prepare([40] * 8, free=80_000 * MB, batch_size=2)
    assert {tuple(part["input_ids"].shape) for part in batches[0]} <= step.captured.keys()


@pytest.mark.parametrize(("free", "expected"), [(4000 * MB, 0), (700 * MB, SUM_BYTES)])
def test_the_sum_of_gradients_needs_memory_only_with_several_parts(prepare, monkeypatch, free, expected):
    allocated, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, **options: allocated.append(size) or empty(size, **options))
    prepare([300] * 8, free=free, gradient_checkpointing=False)
    assert allocated[-1] == expected
