"""The ranks' parts of a batch: together the batch, all in one shape."""

from functools import partial

import numpy as np
import pytest
from helpers.project import CPU

from stages.data.batching import TokenizedRows, pack_rows, pad_rows
from stages.model.adapter import add_lora
from stages.runtime import distributed
from stages.runtime.usage_recorder import Recorder
from stages.training.epoch_batches import EpochBatches, EpochLoader
from stages.training.trainer import make_trainer

LENGTHS = np.random.default_rng(0).integers(0, 40, 37)  # some rows are empty
ROWS = TokenizedRows.from_lists([[1 + row] * length for row, length in enumerate(LENGTHS)], range(37))
PAD = 0


def pack(rows, tokens, longest):
    assert type(tokens) is int and type(longest) is int, "Triton rejects NumPy's numbers"
    return pack_rows(rows, PAD, rows=8, tokens=tokens)


def real(batch):
    """Labels of the rows that do not only fill the batch."""
    return batch["labels"][batch["labels"] >= 0].tolist()


@pytest.fixture
def epoch_of(monkeypatch):
    """load(ranks, collate, epoch) -> the batches of an epoch, [rank][batch]."""

    def load(ranks, collate, epoch=0):
        batches = []
        for rank in range(ranks):
            if ranks > 1:
                for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", ranks)):
                    monkeypatch.setenv(name, str(value))
            loader = EpochLoader(EpochBatches(ROWS, 8, "balanced", 42, collate), pin_memory=False)
            loader.set_epoch(epoch)
            batches.append(list(loader))
        return batches

    return load


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_the_parts_of_all_ranks_are_the_batch_of_a_single_rank(epoch_of, ranks):
    (single,), parts = epoch_of(1, pack), epoch_of(ranks, pack)
    for batch, of_ranks in zip(single, zip(*parts, strict=True), strict=True):
        assert "weight" not in batch
        labels = [part["labels"][part["labels"] >= 0].tolist() for part in of_ranks if part["weight"] > 0]
        assert sorted(label for some in labels for label in some) == sorted(
            batch["labels"][batch["labels"] >= 0].tolist()
        )
        assert sum(part["weight"].item() for part in of_ranks) == pytest.approx(1)
        assert len({part["input_ids"].shape for part in of_ranks}) == 1, (
            "otherwise ranks would capture different graphs"
        )


def test_a_rank_without_rows_computes_another_ranks_with_weight_0(epoch_of):
    last = [part[-1] for part in epoch_of(6, pack)]  # the last batch has 5 of the 37 rows
    assert [part["weight"].item() for part in last] == pytest.approx([0.2] * 5 + [0])
    assert (last[5]["labels"] >= 0).sum() == 1


def test_rows_are_padded_to_the_longest_of_all_ranks(epoch_of, make_params):
    batches = make_params(batches__padding="longest", batches__multiple_of=1).batches
    collated = partial(pad_rows, pad_id=PAD, batches=batches, max_length=128)
    parts = epoch_of(2, lambda rows, tokens, longest: collated(rows, longest=longest))
    (single,) = epoch_of(1, lambda rows, tokens, longest: collated(rows, longest=longest))
    for batch, first, second in zip(single, *parts, strict=True):
        assert first["input_ids"].shape[1] == second["input_ids"].shape[1] == batch["input_ids"].shape[1]


def test_each_epoch_has_another_order(epoch_of):
    first, second = (epoch_of(1, pack, epoch)[0] for epoch in (0, 1))
    assert [b["labels"].tolist() for b in first] != [b["labels"].tolist() for b in second]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch_size", [8, 37, 256])
def test_a_batch_is_not_filled_up_beyond_the_number_of_rows(
    monkeypatch, make_params, load_nano, tmp_path, world_size, batch_size
):
    """Steps are captured for full batches, so a batch size above the number of rows would add filling rows."""
    params = make_params(train__batch_size=batch_size)
    classifier = add_lora(load_nano()[0], params.lora, 42)
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    trainer = make_trainer(classifier, ROWS, ROWS, params, PAD, tmp_path, Recorder(CPU))
    largest = min(batch_size, 37)
    assert trainer.rows_per_rank == -(-largest // world_size)
    batch = EpochBatches(ROWS, batch_size, "balanced", 42, trainer.collate_packed)[0]
    assert len(batch["labels"]) == trainer.rows_per_rank
    tokens = np.maximum(LENGTHS, 1).sum()
    assert len(batch["input_ids"]) < 1.3 * tokens * largest / 37 / world_size
