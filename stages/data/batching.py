"""From tokenized rows to batches: the order of the rows, padding or packing, and their split among ranks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import torch

from stages.data.labels import Labels
from stages.runtime.params import Batches

# Tokens of a batch of validation and evaluation. This many fill the products of any GPU, and phi-2's activations then
# take under 1 GB. Rounding depends on the batch, so only a run that lacks memory takes smaller ones.
EVALUATION_TOKENS = 8192
MIN_EQUALIZED = 8  # rows of a batch: in batches of 2, equal sums would mean the same pairs in each epoch
MAX_SWAPS, MAX_CANDIDATES = 10_000, 64  # 10,000 swaps take a second; a swap considers so many rows of each batch
IGNORE_INDEX = -100  # label of an empty row that only fills a batch: PyTorch's cross-entropy ignores it

Row = dict[str, Any]  # {"input_ids": int64 [tokens], "labels": a row of a label array (see `labels`)}
Seed = int | list[int]


class TokenizedRows(Sequence[Row]):
    """Rows of tokens with their labels, stored in Arrow memory: Python objects would take ten times as much.

    A row is {"input_ids": int64 [tokens], "labels": the row's label}.

    Args:
        input_ids: tokens of each row.
        labels: label array of the rows.

    Attributes:
        labels: label array, int64 [rows] or bool [rows, classes].
        lengths: tokens of each row, int64 [rows].
    """

    def __init__(self, input_ids: pa.ListArray, labels: np.ndarray) -> None:
        self.offsets, self.tokens = input_ids.offsets.to_numpy(), input_ids.values.to_numpy()
        self.lengths = np.diff(self.offsets).astype(np.int64)
        self.labels = labels

    @classmethod
    def from_table(cls, table: pa.Table, labels: Labels) -> Self:
        """From the columns `input_ids` and `label` that `tokenize` wrote."""
        return cls(table["input_ids"].combine_chunks(), labels.from_column(table["label"]))

    @classmethod
    def from_lists(cls, input_ids: Iterable[Sequence[int]], labels: Sequence[int] | np.ndarray) -> Self:
        table = pa.table({"input_ids": pa.array(input_ids, pa.list_(pa.int32()))})  # a column of `datasets` has chunks
        return cls(table["input_ids"].combine_chunks(), np.asarray(labels))

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        tokens = self.tokens[self.offsets[index] : self.offsets[index + 1]]
        return {"input_ids": tokens.astype(np.int64), "labels": self.labels[index]}


def count_tokens(rows: Sequence[Row]) -> np.ndarray:
    """Number of tokens of each row, int64 [rows]."""
    return rows.lengths if isinstance(rows, TokenizedRows) else np.array([len(row["input_ids"]) for row in rows])


def list_tokens(pad_id: int, *splits: TokenizedRows) -> np.ndarray:
    """The numbers of the pad token and of all tokens that occur, ascending, int64."""
    occurs = np.zeros(1 + max(int(rows.tokens.max(initial=pad_id)) for rows in splits), dtype=bool)
    occurs[pad_id] = True
    for rows in splits:
        occurs[rows.tokens] = True
    return np.flatnonzero(occurs)


def stack_labels(batch: list[Row]) -> np.ndarray:
    """The labels of a batch, int64 [rows] or [rows, classes]."""
    return np.array([row["labels"] for row in batch], dtype=np.int64)


def pad_rows(
    batch: list[Row], pad_id: int, batches: Batches, max_length: int, longest: int = 0
) -> dict[str, torch.Tensor]:
    """Pad the rows of a batch on the right, into tensors.

    There is no attention mask. In a causal model no token attends to the padding on its right, and the classifier reads
    the last token that is not padding. This saves the mask's kernels and lets attention take its causal fast path.

    Args:
        batch: list of {"input_ids": ints, "labels": a row of a label array}.
        batches: the section `batches` of params.yaml.
        max_length: `tokenize.max_length`, the length if `batches.padding` is "max_length".
        longest: tokens of the longest row of the whole batch, if `batch` is only one rank's part of it.

    Returns:
        {"input_ids": int64 [rows, length], "labels": from `stack_labels`}
    """
    length = padded_length(max(longest, *(len(row["input_ids"]) for row in batch)), batches, max_length)
    ids = torch.full((len(batch), length), pad_id, dtype=torch.int64)
    for i, row in enumerate(batch):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    return {"input_ids": ids, "labels": torch.from_numpy(stack_labels(batch))}


def pack_rows(
    batch: list[Row], pad_id: int, rows: int = 0, tokens: int = 0, offsets: Sequence[int] | np.ndarray | None = None
) -> dict[str, torch.Tensor]:
    """Concatenate the rows of a batch into tensors, without padding between them.

    Args:
        batch: list of {"input_ids": ints, "labels": a row of a label array}.
        pad_id: the pad token. As in transformers' classifiers, pad tokens at a row's end are not classified.
        rows: minimum number of rows; empty rows with the label IGNORE_INDEX make up the difference.
        tokens: minimum number of tokens; pad tokens make up the difference.
        offsets: where each row begins in the whole batch, of which these rows are a part.

    Returns:
        int64: {"input_ids": [tokens], "positions": [tokens], the position of each token in its row, "starts":
        [rows + 1], row i has the tokens starts[i] to starts[i + 1] - 1, "last": [rows], the token that is classified,
        "labels": from `stack_labels`}, and with `offsets` {"batch_positions": int32 [tokens]}, the position in the
        whole batch
    """
    ids = [np.asarray(row["input_ids"], dtype=np.int64) for row in batch]
    ids = [row if len(row) else np.array([pad_id]) for row in ids]  # as in `pad_rows`, an empty row is one pad token
    lengths = [len(row) for row in ids]
    total, empty_rows, labels = sum(lengths), max(rows - len(batch), 0), stack_labels(batch)
    pad_tokens = max(total, tokens) - total
    starts = np.concatenate([[0], np.cumsum(lengths), np.full(empty_rows, total)]).astype(np.int64)
    last = [int((row != pad_id).nonzero()[0].max(initial=0)) for row in ids]
    arrays = {
        "input_ids": np.concatenate([*ids, np.full(pad_tokens, pad_id)]),
        "positions": np.concatenate([*map(np.arange, lengths), np.zeros(pad_tokens, dtype=np.int64)]),
        "starts": starts,
        "last": np.concatenate([starts[: len(batch)] + last, np.zeros(empty_rows, dtype=np.int64)]),
        "labels": np.concatenate([labels, np.full((empty_rows, *labels.shape[1:]), IGNORE_INDEX)]),
    }
    tensors = {name: torch.from_numpy(np.asarray(array, dtype=np.int64)) for name, array in arrays.items()}
    if offsets is not None:
        first = torch.from_numpy(np.repeat(np.asarray(offsets), lengths))
        in_batch = torch.zeros(total + pad_tokens, dtype=torch.int32)
        in_batch[:total] = tensors["positions"][:total] + first
        tensors["batch_positions"] = in_batch
    return tensors


def bucket_size(tokens: int) -> int:
    """Round a number of tokens up to a multiple of 16, by less than 4%; of at most 256, which fills a GPU's tiles."""
    step = min(max(16, 2 ** (tokens.bit_length() - 6)), 256)
    return -(-tokens // step) * step


def padded_length(longest: int, batches: Batches, max_length: int) -> int:
    """Length of a padded batch whose longest row has `longest` tokens."""
    if batches.padding == "max_length":
        return max_length
    padded = -(-longest // batches.multiple_of) * batches.multiple_of
    return max(longest, min(padded, max_length))  # the model may have no positions beyond `max_length`


def split_batches(
    lengths: np.ndarray, order: Iterable[int], max_rows: int, max_tokens: int, pad: Callable[[int], int] | None
) -> list[np.ndarray]:
    """Split rows into batches of at most `max_rows` rows and `max_tokens` tokens. A longer row is its own batch.

    Args:
        lengths: tokens of each row.
        order: numbers of rows, in the order in which they fill the batches.
        pad: length of a padded batch by the tokens of its longest row; None for packed rows, which have no padding.

    Returns:
        for each batch the numbers of its rows.
    """
    batches: list[list[int]] = []
    total = longest = 0
    for row in order:
        length = max(int(lengths[row]), 1)  # an empty row gets a pad token
        total, longest = total + length, max(longest, length)
        tokens = pad(longest) * (len(batches[-1]) + 1) if pad and batches else total
        if not batches or len(batches[-1]) == max_rows or tokens > max_tokens:
            batches.append([])
            total = longest = length
        batches[-1].append(row)
    return [np.array(batch) for batch in batches]


def count_batch_tokens(lengths: np.ndarray, pad: Callable[[int], int] | None) -> int:
    """Tokens of a batch of rows of these lengths, with the padding. `pad` is as for `split_batches`."""
    lengths = np.maximum(lengths, 1)  # an empty row gets a pad token
    return len(lengths) * pad(int(lengths.max())) if pad else int(lengths.sum())


def padding_share(lengths: np.ndarray, order: list[int], batch_size: int, batches: Batches, max_length: int) -> float:
    """Share of padding in the tokens of all batches, 0 to 1."""
    ordered = lengths[np.asarray(order)]
    parts = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    padded = sum(len(part) * padded_length(part.max(), batches, max_length) for part in parts)
    return 1 - ordered.sum() / padded


def order_rows(lengths: np.ndarray, order: str, batch_size: int, seed: Seed) -> list[int]:
    """The numbers of the rows, in the order that `batches.order` names."""
    if order == "random":
        return order_randomly(len(lengths), seed)
    return {"balanced": order_in_balanced_batches, "grouped": order_by_similar_length}[order](lengths, batch_size, seed)


def order_randomly(rows: int, seed: Seed) -> list[int]:
    """A random order of `rows` rows, which depends on nothing but the seed."""
    return np.random.default_rng(seed).permutation(rows).tolist()


def order_by_similar_length(lengths: np.ndarray, batch_size: int, seed: Seed) -> list[int]:
    """A random order in which each batch has rows of similar length.

    As in transformers' group_by_length, rows are shuffled, then sorted by length within 50 batches. Two things differ.
    The order depends on nothing but the seed, so a resumed run sees the rows of an uninterrupted one. Full batches are
    shuffled once more, so long and short ones alternate.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(lengths))
    chunk_size = batch_size * 50
    chunks = [shuffled[i : i + chunk_size] for i in range(0, len(shuffled), chunk_size)]
    order = np.concatenate([chunk[np.argsort(-lengths[chunk], kind="stable")] for chunk in chunks])
    batches = len(order) // batch_size
    full, rest = order[: batches * batch_size].reshape(-1, batch_size), order[batches * batch_size :]
    return np.concatenate([full[rng.permutation(batches)].reshape(-1), rest]).tolist()


def order_in_balanced_batches(lengths: np.ndarray, batch_size: int, seed: Seed) -> list[int]:
    """A random order of batches that have nearly equal numbers of tokens.

    The rows of the full batches are sorted by length and cut into `batch_size` parts. Each batch gets a random row of
    each part. In batches of at least `MIN_EQUALIZED` rows, one part after the other is then rearranged: its longest row
    goes to the batch whose other rows have the fewest tokens, and so on (the rearrangement algorithm: Puccetti and
    Rüschendorf 2012). Very long rows still make large batches, so these swap rows with small batches.

    Long rows come first in a batch.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(lengths))
    batches = len(shuffled) // batch_size
    full, rest = shuffled[: batches * batch_size], shuffled[batches * batch_size :]
    parts = full[np.argsort(-lengths[full], kind="stable")].reshape(batch_size, batches)
    parts = rng.permuted(parts, axis=1)
    if batches and batch_size >= MIN_EQUALIZED:
        _equalize_tokens(parts, lengths)
        parts = parts[:, rng.permutation(batches)]  # where batches are equal, the sorting left their order
    return np.concatenate([parts.T.reshape(-1), rest]).tolist()


def _equalize_tokens(parts: np.ndarray, lengths: np.ndarray) -> None:
    """Rearrange the rows of each part, then swap rows between the batches with the most and the fewest tokens.

    Args:
        parts: the numbers of each batch's rows, [batch_size, batches]; changed in place.
    """
    totals = lengths[parts].sum(axis=0)
    for part in parts:
        others = totals - lengths[part]
        part[np.argsort(others, kind="stable")] = part[np.argsort(-lengths[part], kind="stable")]
        totals = others + lengths[part]
    candidates = slice(None, None, -(-len(parts) // MAX_CANDIDATES))
    for _ in range(MAX_SWAPS):
        most, fewest = totals.argmax(), totals.argmin()
        large, small = parts[candidates, most], parts[candidates, fewest]  # views
        gap = totals[most] - totals[fewest]
        moved = lengths[large][:, None] - lengths[small]
        i, j = np.unravel_index(np.abs(gap - 2 * moved).argmin(), moved.shape)
        if not 0 < moved[i, j] < gap:
            return
        large[i], small[j] = small[j], large[i]
        totals[most] -= moved[i, j]
        totals[fewest] += moved[i, j]


def split_evenly(lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Split the rows of one batch: row counts differ by one at most, and token counts are similar.

    Args:
        lengths: tokens of the batch's rows, [rows].

    Returns:
        for each part the indices of its rows in the batch, ascending; empty for some parts if there are too few rows.
    """
    if parts == 1:  # seconds for a million batches
        return [np.arange(len(lengths))]
    longest_first = np.argsort(-lengths, kind="stable")
    turn, column = np.divmod(np.arange(len(lengths)), parts)
    part_of_row = np.where(turn % 2, parts - 1 - column, column)  # parts 0, 1, 2, then 2, 1, 0, and so on
    return [np.sort(longest_first[part_of_row == part]) for part in range(parts)]


def split_to_limits(lengths: np.ndarray, max_rows: int, max_tokens: int) -> list[np.ndarray]:
    """Split the rows of one batch into the fewest parts of `split_evenly` that stay within both limits.

    Args:
        lengths: tokens of the batch's rows, [rows].
        max_tokens: of a part; at least the longest row, which is a part of its own if need be.
    """
    fewest = max(-(-len(lengths) // max_rows), -(-int(lengths.sum()) // max_tokens))
    for count in range(fewest, len(lengths)):
        parts = split_evenly(lengths, count)
        if count == 1 or max(lengths[part].sum() for part in parts) <= max_tokens:
            return parts
    return split_evenly(lengths, len(lengths))


def assign_batches(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Assign whole batches to ranks, the most costly first, each to the rank with the lowest cost so far.

    Args:
        costs: the cost of each batch.

    Returns:
        for each rank the numbers of its batches, ascending.
    """
    assigned: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for batch in sorted(range(len(costs)), key=lambda batch: -costs[batch]):
        rank = loads.index(min(loads))
        assigned[rank].append(batch)
        loads[rank] += costs[batch]
    return [sorted(batches) for batches in assigned]
