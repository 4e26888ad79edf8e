"""The parts of a batch, on one or more ranks, are together the batch."""

import numpy as np
import pytest

from stages.data.batching import TokenizedRows, pack_rows
from stages.training.epoch_batches import EpochBatches, EpochLoader

LENGTHS = np.random.default_rng(0).integers(0, 40, 37)  # some rows are empty
ROWS = TokenizedRows.from_lists([[1 + row] * length for row, length in enumerate(LENGTHS)], range(37))
PAD = 0


def pack(rows, offsets):
    return pack_rows(rows, PAD, rows=8, offsets=offsets)


def real(part):
    """Labels of the rows that do not only fill the part."""
    return part["labels"][part["labels"] >= 0].tolist()


@pytest.fixture
def epoch_of(monkeypatch):
    """load(ranks, epoch) -> the batches of an epoch, [rank][batch][part]."""

    def load(ranks, epoch=0, max_rows=None, max_tokens=None):
        batches = []
        for rank in range(ranks):
            if ranks > 1:
                for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", ranks)):
                    monkeypatch.setenv(name, str(value))
            epoch_batches = EpochBatches(ROWS, 8, "balanced", 42, pack, max_rows)
            epoch_batches.max_tokens = max_tokens or epoch_batches.max_tokens
            loader = EpochLoader(epoch_batches, pin_memory=False)
            loader.set_epoch(epoch)
            batches.append(list(loader))
        return batches

    return load


@pytest.mark.parametrize(
    ("ranks", "limits"),
    [(2, {}), (3, {}), (6, {}), (1, {"max_rows": 3}), (1, {"max_tokens": 60}), (2, {"max_rows": 2})],
)
def test_the_parts_of_all_ranks_are_the_batch(epoch_of, ranks, limits):
    (single,), of_ranks = epoch_of(1), epoch_of(ranks, **limits)
    for (batch,), shares in zip(single, zip(*of_ranks, strict=True), strict=True):
        parts = [part for share in shares for part in share]
        labels = [label for part in parts if part["weight"] > 0 for label in real(part)]
        assert sorted(labels) == sorted(real(batch))
        assert sum(part["weight"].item() for part in parts) == pytest.approx(1)
        assert all(len(real(part)) <= limits.get("max_rows", 8) for part in parts)
        assert all(len(part["input_ids"]) <= limits.get("max_tokens", 10**6) for part in parts)
    assert ranks > 1 or len(of_ranks[0][0]) > 1, "the limits have no effect"


@pytest.mark.parametrize(("ranks", "max_rows"), [(1, 3), (3, None), (2, 1)])
def test_a_token_has_the_same_position_in_the_batch_in_all_divisions(epoch_of, ranks, max_rows):
    def positions(batches):
        """{label: positions of the row's tokens} of one batch; each row has its own label."""
        return {
            int(label): part["batch_positions"][part["starts"][i] : part["starts"][i + 1]].tolist()
            for rank in batches for part in rank[0] for i, label in enumerate(real(part))
        }  # fmt: skip

    whole = positions(epoch_of(1))
    assert sorted(p for row in whole.values() for p in row) == list(range(sum(map(len, whole.values()))))
    assert positions(epoch_of(ranks, max_rows=max_rows)) == whole


def test_a_rank_without_rows_computes_another_ranks_with_weight_0(epoch_of):
    last = [part for rank in epoch_of(6) for part in rank[-1]]  # the last batch has 5 of the 37 rows
    assert [part["weight"].item() for part in last] == pytest.approx([0.2] * 5 + [0])
    assert (last[5]["labels"] >= 0).sum() == 1


@pytest.mark.parametrize("ranks", [1, 6, 9])  # the 9th has no row in any batch
def test_the_parts_are_known_before_they_are_loaded(epoch_of, ranks):
    loaded = epoch_of(ranks, epoch=1, max_rows=3)[-1]
    batches = EpochBatches(ROWS, 8, "balanced", 42, pack, max_rows=3)  # of the last rank
    batches.set_epoch(1)
    listed = [[lengths.sum() for lengths in parts] for parts in batches.list_parts()]
    assert listed == [[len(part["input_ids"]) for part in batch] for batch in loaded]


def test_each_epoch_has_another_order(epoch_of):
    first, second = (epoch_of(1, epoch)[0] for epoch in (0, 1))
    assert [batch[0]["labels"].tolist() for batch in first] != [batch[0]["labels"].tolist() for batch in second]
