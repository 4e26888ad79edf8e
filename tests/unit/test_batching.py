"""Batches of rows: padding, packing, order, and their split among ranks."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.data import batching
from stages.data.labels import MultiLabel, SingleLabel


@pytest.fixture
def longest(make_params):
    return make_params(batches__padding="longest", batches__multiple_of=4).batches


@pytest.fixture
def maximum(make_params):
    return make_params(batches__padding="max_length").batches


ROWS = [{"input_ids": [5, 6, 7], "labels": 2}, {"input_ids": [8], "labels": 0}]


def test_rows_are_padded_on_the_right_to_a_multiple(longest):
    batch = batching.pad_rows(ROWS, pad_id=9, batches=longest, max_length=128)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 9], [8, 9, 9, 9]]
    assert batch["labels"].tolist() == [2, 0]
    assert set(batch) == {"input_ids", "labels"}


def test_rows_are_padded_to_max_length_as_in_the_notebook(maximum):
    assert batching.pad_rows(ROWS, pad_id=0, batches=maximum, max_length=128)["input_ids"].shape == (2, 128)


@pytest.mark.parametrize(("tokens", "padded"), [(1, 4), (4, 4), (5, 8), (127, 128)])
def test_the_padded_length_is_the_next_multiple(longest, tokens, padded):
    assert batching.padded_length(tokens, longest, 128) == padded


def test_no_row_is_padded_beyond_max_length(longest):
    """The model may have no positions beyond max_length."""
    assert batching.padded_length(10, longest, 10) == batching.padded_length(9, longest, 10) == 10


def test_the_padding_share_is_the_share_of_padding_in_all_tokens(longest, maximum):
    lengths = np.array([3, 1, 6, 7])
    # (3, 1) are padded to 4, (6, 7) to 8: 24 tokens, 17 of them real
    assert batching.padding_share(lengths, [0, 1, 2, 3], 2, longest, 128) == pytest.approx(1 - 17 / 24)
    # (3, 6) and (1, 7) to 8: 32 tokens
    assert batching.padding_share(lengths, [0, 2, 1, 3], 2, longest, 128) == pytest.approx(1 - 17 / 32)
    # a last batch of one row
    assert batching.padding_share(lengths, [0, 1, 2, 3], 3, longest, 128) == pytest.approx(1 - 17 / 32)
    assert batching.padding_share(lengths, [0, 1, 2, 3], 2, maximum, 128) == pytest.approx(1 - 17 / 512)


def test_packed_rows_are_concatenated_and_filled_up_to_the_minimum_sizes():
    """A pad token at a row's end is not classified, as in transformers' classifiers."""
    rows = [{"input_ids": [5, 6, 9], "labels": 2}, {"input_ids": [8], "labels": 0}]
    batch = batching.pack_rows(rows, pad_id=9)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [5, 6, 9, 8], "positions": [0, 1, 2, 0], "starts": [0, 3, 4], "last": [1, 3], "labels": [2, 0],
    }  # fmt: skip
    assert batching.pack_rows(rows, pad_id=9, tokens=3)["input_ids"].tolist() == [5, 6, 9, 8]
    batch = batching.pack_rows(rows, pad_id=9, rows=4, tokens=16)
    assert batch["input_ids"].tolist() == [5, 6, 9, 8] + 12 * [9]
    assert batch["starts"].tolist() == [0, 3, 4, 4, 4]
    assert batch["last"].tolist() == [1, 3, 0, 0]
    assert batch["labels"].tolist() == [2, 0, -100, -100]


def test_a_row_without_tokens_is_packed_as_one_pad_token():
    rows = [{"input_ids": [], "labels": 1}, {"input_ids": [5, 6], "labels": 0}, {"input_ids": [], "labels": 2}]
    batch = batching.pack_rows(rows, pad_id=9)
    assert batch["input_ids"].tolist() == [9, 5, 6, 9]
    assert batch["starts"].tolist() == [0, 1, 3, 4]
    assert batch["last"].tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("tokens", "size"), [(1, 16), (16, 16), (255, 256), (256, 256), (257, 272), (577, 592), (4097, 4224), (9000, 9216)]
)
def test_sizes_are_rounded_up_to_few_buckets(tokens, size):
    assert batching.bucket_size(tokens) == size


LENGTHS = np.random.default_rng(0).integers(5, 80, size=1003)


@pytest.mark.parametrize("rows", [1, 15, 16, 1003])
def test_an_order_has_each_row_once(rows):
    lengths = LENGTHS[:rows]
    assert sorted(batching.order_by_similar_length(lengths, 16, 1)) == list(range(rows))
    assert sorted(batching.order_in_balanced_batches(lengths, 16, 1)) == list(range(rows))
    assert sorted(batching.order_randomly(rows, 1)) == list(range(rows))


@pytest.mark.parametrize("seed", [1, 2])
def test_batches_order_names_the_order(seed):
    assert batching.order_rows(LENGTHS, "random", 16, seed) == batching.order_randomly(1003, seed)
    assert batching.order_rows(LENGTHS, "balanced", 16, seed) == batching.order_in_balanced_batches(LENGTHS, 16, seed)
    assert batching.order_rows(LENGTHS, "grouped", 16, seed) == batching.order_by_similar_length(LENGTHS, 16, seed)


def test_balanced_batches_have_rows_of_all_lengths_and_similar_numbers_of_tokens():
    order = batching.order_in_balanced_batches(LENGTHS, 16, [42, 0])
    batches, random_batches = (LENGTHS[o][:992].reshape(-1, 16) for o in (order, batching.order_randomly(1003, 1)))
    assert np.ptp(batches.sum(axis=1)) <= 2 < 200 < np.ptp(random_batches.sum(axis=1))
    assert (np.sort(batches, axis=1).std(axis=0) < 3).all(), "some batches lack rows of some lengths"
    other = batching.order_in_balanced_batches(LENGTHS, 16, [42, 1])
    assert order != other and set(order[-11:]) != set(other[-11:]), (
        "the last, smaller batch has the same rows in each epoch"
    )
    assert order == batching.order_in_balanced_batches(LENGTHS, 16, [42, 0])


def test_a_few_very_long_rows_do_not_make_larger_batches():
    lengths = np.minimum(np.random.default_rng(0).lognormal(4, 0.8, size=5000).astype(int) + 1, 600)
    batches = lengths[batching.order_in_balanced_batches(lengths, 16, 1)][:4992].reshape(-1, 16)
    assert (lengths > 500).sum() > 5
    assert batches.sum(axis=1).max() <= 1.01 * batches.sum(axis=1).mean()
    assert (batches[:, 0] == batches.max(axis=1)).mean() > 0.95, "attention should begin with the longest rows"


@pytest.mark.parametrize("lengths", [LENGTHS, np.arange(40, 1043)], ids=["repeated", "distinct"])
@pytest.mark.parametrize("batch_size", [2, 4, 8, 16])
def test_rows_share_a_balanced_batch_with_other_rows_in_each_epoch(lengths, batch_size):
    def pairs(epoch):
        order = batching.order_in_balanced_batches(lengths, batch_size, [42, epoch])
        batches = np.reshape(order[: len(order) // batch_size * batch_size], (-1, batch_size))
        return {pair for batch in batches.tolist() for pair in itertools.combinations(sorted(batch), 2)}

    assert len(pairs(0) & pairs(1)) / len(pairs(0)) < 0.03  # at random 0.001 to 0.016


@pytest.mark.parametrize("batch_size", [1, 2, 8, 16])
@pytest.mark.parametrize("share_cut", [0, 0.95])
def test_the_lengths_of_balanced_batches_do_not_drift_within_an_epoch(batch_size, share_cut):
    """If most rows are cut to one length, most batches have equal numbers of tokens."""
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(8000) < share_cut, 512, rng.integers(20, 512, size=8000))
    batches = lengths[batching.order_in_balanced_batches(lengths, batch_size, 1)].reshape(-1, batch_size)
    for rank in range(batch_size):
        of_rank = np.sort(batches, axis=1)[:, rank]
        if of_rank.std() > 0:
            assert abs(np.corrcoef(np.arange(len(batches)), of_rank)[0, 1]) < 0.2


def test_the_parts_of_balanced_batches_are_rearranged_before_rows_are_swapped(monkeypatch):
    monkeypatch.setattr(batching, "MAX_SWAPS", 0)  # one at a time, they would take long
    batches = LENGTHS[batching.order_in_balanced_batches(LENGTHS, 16, 1)][:992].reshape(-1, 16)
    assert np.ptp(batches.sum(axis=1)) <= 3


def test_large_batches_take_little_memory():
    """A table of all pairs of rows of two batches would have 2.5e9 elements."""
    lengths = np.random.default_rng(0).lognormal(4, 1, size=100_000).astype(int)
    batches = lengths[batching.order_in_balanced_batches(lengths, 50_000, 1)].reshape(2, 50_000)
    assert np.ptp(batches.sum(axis=1)) <= 2


def test_an_order_depends_on_nothing_but_its_seed():
    np.random.seed(0)
    first = batching.order_by_similar_length(LENGTHS, 16, [42, 3])
    np.random.seed(1)
    assert batching.order_by_similar_length(LENGTHS, 16, [42, 3]) == first
    assert batching.order_by_similar_length(LENGTHS, 16, [42, 4]) != first
    assert batching.order_by_similar_length(LENGTHS, 16, [43, 3]) != first
    assert batching.order_randomly(1003, [42, 3]) == batching.order_randomly(1003, [42, 3])
    assert batching.order_randomly(1003, [42, 3]) != batching.order_randomly(1003, [42, 4])


def test_batches_of_similar_lengths_have_less_padding(longest):
    similar = batching.order_by_similar_length(LENGTHS, 16, 1)
    random = batching.order_randomly(len(LENGTHS), 1)
    shares = [batching.padding_share(LENGTHS, order, 16, longest, 128) for order in (similar, random)]
    assert shares[0] < 0.1 < 0.3 < shares[1]


def test_long_and_short_batches_alternate():
    """If batches became shorter and shorter, the length of a row would depend on the time in the epoch."""
    order = batching.order_by_similar_length(LENGTHS[:800], 16, 1)
    means = LENGTHS[order].reshape(-1, 16).mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_only_the_last_batch_has_fewer_rows():
    order = batching.order_by_similar_length(LENGTHS[:35], 16, 1)
    shortest = sorted(LENGTHS[:35])[:3]
    assert sorted(LENGTHS[order[32:]]) == shortest


def test_tokenized_rows_have_the_order_of_their_table():
    table = pa.concat_tables([pa.table({"input_ids": [[1, 2], [3]], "label": [2, 0]}),
                              pa.table({"input_ids": [[], [4, 5]], "label": [1, 1]})]).slice(1)  # fmt: skip
    rows = batching.TokenizedRows.from_table(table, SingleLabel(("a", "b", "c")))
    assert [row["input_ids"].tolist() for row in rows] == [[3], [], [4, 5]]
    assert [row["labels"] for row in rows] == rows.labels.tolist() == [0, 1, 1]
    assert rows.lengths.tolist() == [1, 0, 2]
    assert [row["labels"] for row in rows[1:9]] == [1, 1]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            rows[index]
    assert batching.count_tokens(rows).tolist() == batching.count_tokens(list(rows)).tolist() == [1, 0, 2]
    from_lists = batching.TokenizedRows.from_lists([[3], [], [4, 5]], np.array([0, 1, 1]))
    assert [row["input_ids"].tolist() for row in from_lists] == [[3], [], [4, 5]]


def test_tokens_of_all_splits_are_listed_once():
    splits = [batching.TokenizedRows.from_lists(rows, [0] * len(rows)) for rows in ([[7, 2], [2]], [[5, 7]], [[]])]
    assert batching.list_tokens(9, *splits).tolist() == [2, 5, 7, 9]
    assert batching.list_tokens(2, *splits).tolist() == [2, 5, 7]
    assert batching.list_tokens(0, splits[2]).tolist() == [0]


@pytest.mark.parametrize("classes", [3, 70])
def test_the_labels_of_a_row_with_several_are_a_row_of_ones_and_zeros_in_its_batch(longest, classes):
    labels = MultiLabel(tuple(map(str, range(classes))))
    table = pa.table({"input_ids": [[1, 2], [3], []], "label": [[0, 2], [], [1]]})
    rows, expected = batching.TokenizedRows.from_table(table, labels), np.zeros((5, classes), dtype=np.int64)
    expected[0, [0, 2]] = expected[2, 1] = 1
    expected[3:] = batching.IGNORE_INDEX
    packed = batching.pack_rows(list(rows), pad_id=9, rows=5)["labels"]
    assert packed.dtype == torch.int64 and packed.tolist() == expected.tolist()
    assert batching.pad_rows(list(rows), 9, longest, 8)["labels"].tolist() == expected[:3].tolist()


@pytest.mark.parametrize(
    ("pad", "batches"),
    [
        (None, [[2], [0, 4, 5], [1, 3], [6, 7]]),  # 12; 5 + 1 + 1, 3 rows; 4 + 3; 5 + 5
        (lambda longest: longest, [[2], [0, 4], [5, 1], [3, 6], [7]]),  # 12; 2 of 5; 2 of 4; 2 of 5; 5
        (lambda longest: -(-longest // 4) * 4, [[2], [0], [4, 5], [1, 3], [6], [7]]),  # 12; 8; 2 of 4; 2 of 4; 8; 8
    ],
    ids=["packed", "padded", "padded to a multiple"],
)
def test_an_evaluated_batch_has_at_most_so_many_rows_and_tokens(pad, batches):
    """An empty row counts as one token. A row that is too long is a batch of its own."""
    lengths = np.array([5, 4, 12, 3, 1, 0, 5, 5])
    order = [2, 0, 4, 5, 1, 3, 6, 7]
    assert [batch.tolist() for batch in batching.split_batches(lengths, order, 3, 10, pad)] == batches


def test_short_rows_are_split_by_their_number_only():
    lengths, order = np.full(150, 128), list(range(150))
    batches = batching.split_batches(lengths, order, 64, 8192, None)
    assert [len(batch) for batch in batches] == [64, 64, 22] and np.concatenate(batches).tolist() == order
    assert batching.split_batches(lengths, [], 64, 8192, None) == []


@pytest.mark.parametrize(("rows", "ranks"), [(16, 2), (17, 2), (7, 3), (64, 8), (2, 3), (1, 8)])
def test_each_rank_gets_as_many_rows_and_similar_numbers_of_tokens(rows, ranks):
    lengths = np.random.default_rng(rows).integers(5, 60, rows)
    parts = batching.split_evenly(lengths, ranks)
    assert sorted(row for part in parts for row in part) == list(range(rows))
    assert all(list(part) == sorted(part) for part in parts)
    counts, tokens = [len(part) for part in parts], [lengths[part].sum() for part in parts]
    assert max(counts) - min(counts) <= 1
    assert max(tokens) - min(tokens) <= max(lengths)


def test_rows_are_dealt_to_the_ranks_in_alternating_directions():
    lengths = np.array([60, 50, 40, 30, 20, 10])
    three, two = (batching.split_evenly(lengths, ranks) for ranks in (3, 2))
    assert [lengths[part].tolist() for part in three] == [[60, 10], [50, 20], [40, 30]]
    assert [lengths[part].tolist() for part in two] == [[60, 30, 20], [50, 40, 10]]


def test_a_single_rank_has_the_rows_of_the_batch_in_their_order():
    assert [part.tolist() for part in batching.split_evenly(np.array([3, 9, 1]), 1)] == [[0, 1, 2]]


def test_packed_tokens_know_their_position_in_the_whole_batch():
    rows = [{"input_ids": [5, 6, 7], "labels": 2}, {"input_ids": [8], "labels": 0}]
    positions = batching.pack_rows(rows, pad_id=9, tokens=6, offsets=[20, 4])["batch_positions"]
    assert positions.tolist() == [20, 21, 22, 4, 0, 0] and positions.numpy().dtype == np.int32


@pytest.mark.parametrize(("max_rows", "max_tokens"), [(16, 10**6), (4, 10**6), (16, 200), (16, 79), (5, 150)])
def test_a_batch_is_split_into_the_fewest_parts_within_both_limits(max_rows, max_tokens):
    lengths = LENGTHS[:16]
    parts = batching.split_to_limits(lengths, max_rows, max_tokens)
    assert sorted(row for part in parts for row in part) == list(range(16))
    assert all(len(part) <= max_rows and lengths[part].sum() <= max_tokens for part in parts)
    fewer = batching.split_evenly(lengths, len(parts) - 1) if len(parts) > 1 else []
    assert not fewer or any(len(part) > max_rows or lengths[part].sum() > max_tokens for part in fewer)


def test_batches_are_assigned_to_ranks_by_their_cost():
    assert batching.assign_batches([9, 5, 5, 4, 2], 1) == [[0, 1, 2, 3, 4]]
    assert batching.assign_batches([9, 5, 5, 4, 2], 2) == [[0, 3], [1, 2, 4]]
    assert batching.assign_batches([9], 3) == [[0], [], []]
