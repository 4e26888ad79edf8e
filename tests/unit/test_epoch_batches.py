"""What each rank computes of a batch: together the batch, in one shape."""

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


def packed(rows, tokens, longest):
    assert type(tokens) is int and type(longest) is int, "Triton takes no numbers of NumPy's"
    return pack_rows(rows, PAD, rows=8, tokens=tokens)


def real(batch):
    """Labels of rows that do not only fill the batch."""
    return batch["labels"][batch["labels"] >= 0].tolist()


@pytest.fixture
def epoch_of(monkeypatch):
    """The batches of an epoch, of each rank -> [rank][batch]."""

    def load(ranks, lay, epoch=0):
        found = []
        for rank in range(ranks):
            if ranks > 1:
                for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", ranks)):
                    monkeypatch.setenv(name, str(value))
            loader = EpochLoader(EpochBatches(ROWS, 8, "balanced", 42, lay), pin_memory=False)
            loader.set_epoch(epoch)
            found.append(list(loader))
        return found

    return load


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_the_ranks_parts_are_the_batch_of_one(epoch_of, ranks):
    (alone,), parts = epoch_of(1, packed), epoch_of(ranks, packed)
    for batch, of_ranks in zip(alone, zip(*parts, strict=True), strict=True):
        assert "weight" not in batch
        labels = [part["labels"][part["labels"] >= 0].tolist() for part in of_ranks if part["weight"] > 0]
        assert sorted(label for some in labels for label in some) == sorted(
            batch["labels"][batch["labels"] >= 0].tolist()
        )
        assert sum(part["weight"].item() for part in of_ranks) == pytest.approx(1)
        assert len({part["input_ids"].shape for part in of_ranks}) == 1, "each rank would capture a graph of its own"


def test_a_rank_without_rows_computes_anothers_and_counts_it_as_nothing(epoch_of):
    last = [part[-1] for part in epoch_of(6, packed)]  # of 37 rows five are left
    assert [part["weight"].item() for part in last] == pytest.approx([0.2] * 5 + [0])
    assert (last[5]["labels"] >= 0).sum() == 1


def test_rows_are_padded_to_the_longest_of_all_ranks(epoch_of, make_params):
    batches = make_params(batches__padding="longest", batches__multiple_of=1).batches
    collated = partial(pad_rows, pad_id=PAD, batches=batches, max_length=128)
    parts = epoch_of(2, lambda rows, tokens, longest: collated(rows, longest=longest))
    (alone,) = epoch_of(1, lambda rows, tokens, longest: collated(rows, longest=longest))
    for batch, ours, theirs in zip(alone, *parts, strict=True):
        assert ours["input_ids"].shape[1] == theirs["input_ids"].shape[1] == batch["input_ids"].shape[1]


def test_an_epoch_has_an_order_of_its_own(epoch_of):
    first, second = (epoch_of(1, packed, epoch)[0] for epoch in (0, 1))
    assert [b["labels"].tolist() for b in first] != [b["labels"].tolist() for b in second]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch_size", [8, 37, 256])
def test_a_batch_is_filled_up_to_no_more_rows_than_there_are(
    monkeypatch, make_params, load_nano, tmp_path, count, batch_size
):
    """A step is captured for whole batches; a batch size above the number of rows would capture filling rows."""
    params = make_params(train__batch_size=batch_size)
    classifier = add_lora(load_nano()[0], params.lora, 42)
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    trainer = make_trainer(classifier, ROWS, ROWS, params, PAD, tmp_path, Recorder(CPU))
    whole = min(batch_size, 37)
    assert trainer.rows_per_rank == -(-whole // count)
    batch = EpochBatches(ROWS, batch_size, "balanced", 42, trainer.collate_packed)[0]
    assert len(batch["labels"]) == trainer.rows_per_rank
    tokens = np.maximum(LENGTHS, 1).sum()
    assert len(batch["input_ids"]) < 1.3 * tokens * whole / 37 / count
