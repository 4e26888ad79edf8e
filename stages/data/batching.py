"""Rows of tokens into batches: their order, their padding."""

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import pyarrow as pa
import torch

from stages.runtime.params import Batches

IGNORE_INDEX = -100  # label of a row that only fills a batch: PyTorch's cross-entropy leaves it out


class TokenizedRows(Sequence):
    """Rows of tokens and their classes, in arrow's memory: as Python objects they would take ten times as much.

    Each is {"input_ids": int64 [tokens], "labels": int}.

    Attributes:
        labels: numbers of the rows' classes, int64 [rows].
        lengths: tokens of each row, int64 [rows].
    """

    def __init__(self, table: pa.Table) -> None:
        rows = table["input_ids"].combine_chunks()
        self.offsets, self.tokens = rows.offsets.to_numpy(), rows.values.to_numpy()
        self.lengths = np.diff(self.offsets).astype(np.int64)
        self.labels = table["label"].to_numpy().astype(np.int64)

    @classmethod
    def from_lists(cls, input_ids: Iterable[Sequence[int]], labels: Iterable[int]) -> Self:
        """Rows that are Python objects."""
        return cls(pa.table({"input_ids": pa.array(input_ids, pa.list_(pa.int32())), "label": pa.array(labels)}))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int | slice) -> dict | list[dict]:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        tokens = self.tokens[self.offsets[row] : self.offsets[row + 1]]
        return {"input_ids": tokens.astype(np.int64), "labels": int(self.labels[row])}


def count_tokens(rows: Sequence[dict]) -> np.ndarray:
    """Tokens of each row, int64 [rows]."""
    return rows.lengths if isinstance(rows, TokenizedRows) else np.array([len(row["input_ids"]) for row in rows])


def pad_rows(
    batch: list[dict], pad_id: int, batches: Batches, max_length: int, longest: int = 0
) -> dict[str, torch.Tensor]:
    """Pad rows on the right into tensors.

    No attention mask: in a causal model a token never sees the padding to its right, and the classifier reads the
    last token that is not padding. It saves the mask's kernels and lets attention take its causal fast path.

    Args:
        batch: list of {"input_ids": ints, "labels": int}.
        batches: the group `batches` of params.yaml.
        max_length: `tokenize.max_length`, the length where `batches.padding` is "max_length".
        longest: tokens of a row that is not in this part of a batch, and is to be padded to all the same.

    Returns:
        {"input_ids": int64 [rows, length], "labels": int64 [rows]}
    """
    length = padded_length(max(longest, *(len(row["input_ids"]) for row in batch)), batches, max_length)
    ids = torch.full((len(batch), length), pad_id, dtype=torch.int64)
    for i, row in enumerate(batch):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    return {"input_ids": ids, "labels": torch.tensor([row["labels"] for row in batch])}


def pack_rows(batch: list[dict], pad_id: int, rows: int = 0, tokens: int = 0) -> dict[str, torch.Tensor]:
    """Rows one behind the other into tensors, without padding between them.

    Args:
        batch: list of {"input_ids": ints, "labels": int}.
        pad_id: a row ends before tokens of this kind, as transformers' classifiers read it.
        rows: fill up to so many rows, with empty ones whose label a loss leaves out.
        tokens: fill up to so many tokens, or to the next `bucket_size`, with `pad_id`; 0: to no more than there are.

    Returns:
        int64: {"input_ids": [tokens], "positions": [tokens], each token's place in its row, "starts": [rows + 1], row i
        has the tokens from starts[i] to before starts[i + 1], "last": [rows], the token that is classified,
        "labels": [rows]}
    """
    ids = [np.asarray(row["input_ids"], dtype=np.int64) for row in batch]
    ids = [row if len(row) else np.array([pad_id]) for row in ids]  # as padding has it: nothing is read as a pad token
    lengths = [len(row) for row in ids]
    total, empty = sum(lengths), max(rows - len(batch), 0)
    filling = (bucket_size(max(total, tokens)) if tokens else total) - total
    starts = np.concatenate([[0], np.cumsum(lengths), np.full(empty, total)]).astype(np.int64)
    ends = [int((row != pad_id).nonzero()[0].max(initial=0)) for row in ids]
    arrays = {
        "input_ids": np.concatenate([*ids, np.full(filling, pad_id)]),
        "positions": np.concatenate([*map(np.arange, lengths), np.zeros(filling, dtype=np.int64)]),
        "starts": starts,
        "last": np.concatenate([starts[: len(batch)] + ends, np.zeros(empty, dtype=np.int64)]),
        "labels": np.concatenate([[row["labels"] for row in batch], np.full(empty, IGNORE_INDEX)]),
    }
    return {name: torch.from_numpy(np.asarray(array, dtype=np.int64)) for name, array in arrays.items()}


def bucket_size(tokens: int) -> int:
    """The next of few sizes, so that batches of nearly as many tokens share one, and large ones fill a GPU's tiles."""
    step = min(max(16, 2 ** (tokens.bit_length() - 4)), 256)
    return -(-tokens // step) * step


def padded_length(longest: int, batches: Batches, max_length: int) -> int:
    """Length of a batch whose longest row has `longest` tokens."""
    if batches.padding == "max_length":
        return max_length
    padded = -(-longest // batches.multiple_of) * batches.multiple_of
    return max(longest, min(padded, max_length))  # beyond `max_length` the model may have no positions


def padding_share(lengths: np.ndarray, order: list[int], batch_size: int, batches: Batches, max_length: int) -> float:
    """Part of all tokens in the batches that is padding, 0 to 1."""
    lengths = np.asarray(lengths)[np.asarray(order)]
    rows = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    padded = sum(len(r) * padded_length(r.max(), batches, max_length) for r in rows)
    return 1 - lengths.sum() / padded


def order_by_similar_length(lengths: list[int], batch_size: int, seed: int | list[int]) -> list[int]:
    """A random order of rows in which rows of similar length stand together.

    As transformers' group_by_length (shuffle, then sort by length within 50 batches), but a function of its seed
    alone, so that a resumed run sees the rows that an undisturbed one sees; and whole batches are shuffled again, so
    that long and short ones alternate.
    """
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    order = rng.permutation(len(lengths))
    span = batch_size * 50
    chunks = [order[i : i + span] for i in range(0, len(order), span)]
    order = np.concatenate([chunk[np.argsort(-lengths[chunk], kind="stable")] for chunk in chunks])
    whole = len(order) // batch_size * batch_size
    shuffled = order[:whole].reshape(-1, batch_size)[rng.permutation(whole // batch_size)].reshape(-1)
    return np.concatenate([shuffled, order[whole:]]).tolist()


def order_in_balanced_batches(lengths: list[int], batch_size: int, seed: int | list[int]) -> list[int]:
    """A random order of rows in which each batch has rows of all lengths, and so nearly as many tokens as another.

    The rows of the whole batches, sorted by length, are cut into `batch_size` parts; each batch has one row of each.
    """
    rng = np.random.default_rng(seed)
    lengths, order = np.asarray(lengths), rng.permutation(len(lengths))
    batches = len(order) // batch_size
    whole, rest = order[: batches * batch_size], order[batches * batch_size :]
    parts = whole[np.argsort(lengths[whole], kind="stable")].reshape(batch_size, batches)
    return np.concatenate([rng.permuted(parts, axis=1).T.reshape(-1), rest]).tolist()


def order_randomly(rows: int, seed: int | list[int]) -> list[int]:
    """A random order of `rows` rows, a function of its seed alone."""
    return np.random.default_rng(seed).permutation(rows).tolist()


def order_rows(lengths: list[int], order: str, batch_size: int, seed: int | list[int]) -> list[int]:
    """The rows in the order that `batches.order` names."""
    if order == "random":
        return order_randomly(len(lengths), seed)
    return {"balanced": order_in_balanced_batches, "grouped": order_by_similar_length}[order](lengths, batch_size, seed)


def split_rows_among_ranks(lengths: np.ndarray, ranks: int) -> list[np.ndarray]:
    """A batch divided among ranks: as many rows for each, or one less, and nearly as many tokens.

    Args:
        lengths: tokens of the batch's rows, [rows].

    Returns:
        for each rank the places of its rows in the batch, in their order; none where there are more ranks than rows.
    """
    longest_first = np.argsort(-np.asarray(lengths), kind="stable")
    turn, place = np.divmod(np.arange(len(lengths)), ranks)
    rank_of = np.where(turn % 2, ranks - 1 - place, place)  # dealt from left to right and back again
    return [np.sort(longest_first[rank_of == rank]) for rank in range(ranks)]


def assign_batches(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Whole batches divided among ranks, the most costly first, each to the rank that has least to do by then.

    Args:
        costs: of each batch.

    Returns:
        for each rank the numbers of its batches, in their order.
    """
    given, loads = [[] for _ in range(ranks)], [0] * ranks
    for batch in sorted(range(len(costs)), key=lambda batch: -costs[batch]):
        rank = loads.index(min(loads))
        given[rank].append(batch)
        loads[rank] += costs[batch]
    return [sorted(batches) for batches in given]
