"""Rows of tokens into batches: their order, their padding."""

import numpy as np
import pandas as pd
import torch

from stages.runtime.params import Batches

IGNORED = -100  # label of a row that only fills a batch: PyTorch's cross-entropy leaves it out


def collate(batch: list[dict], pad_id: int, batches: Batches, max_length: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right into tensors.

    No attention mask: in a causal model a token never sees the padding to its right, and the classifier reads the
    last token that is not padding. It saves the mask's kernels and lets attention take its causal fast path.

    Args:
        batch: list of {"input_ids": list of int, "labels": int}.
        batches: the group `batches` of params.yaml.
        max_length: `tokenize.max_length`, the length where `batches.padding` is "max_length".

    Returns:
        {"input_ids": int64 [rows, length], "labels": int64 [rows]}
    """
    length = padded_length(max(len(row["input_ids"]) for row in batch), batches, max_length)
    ids = torch.full((len(batch), length), pad_id, dtype=torch.int64)
    for i, row in enumerate(batch):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    return {"input_ids": ids, "labels": torch.tensor([row["labels"] for row in batch])}


def lay_end_to_end(batch: list[dict], pad_id: int, rows: int = 0, tokens: int = 0) -> dict[str, torch.Tensor]:
    """Rows one behind the other into tensors, without padding between them.

    Args:
        batch: list of {"input_ids": list of int, "labels": int}.
        pad_id: a row ends before tokens of this kind, as transformers' classifiers read it.
        rows: fill up to so many rows, with empty ones whose label a loss leaves out.
        tokens: fill up to so many tokens, or to the next `size`, with `pad_id`; 0: to no more than there are.

    Returns:
        int64: {"input_ids": [tokens], "positions": [tokens], each token's place in its row, "starts": [rows + 1], row i
        has the tokens from starts[i] to before starts[i + 1], "last": [rows], the token that is classified,
        "labels": [rows]}
    """
    ids = [np.asarray(row["input_ids"], dtype=np.int64) for row in batch]
    ids = [row if len(row) else np.array([pad_id]) for row in ids]  # as padding has it: nothing is read as a pad token
    lengths = [len(row) for row in ids]
    total, empty = sum(lengths), max(rows - len(batch), 0)
    filling = (size(max(total, tokens)) if tokens else total) - total
    starts = np.concatenate([[0], np.cumsum(lengths), np.full(empty, total)]).astype(np.int64)
    ends = [int((row != pad_id).nonzero()[0].max(initial=0)) for row in ids]
    arrays = {
        "input_ids": np.concatenate([*ids, np.full(filling, pad_id)]),
        "positions": np.concatenate([*map(np.arange, lengths), np.zeros(filling, dtype=np.int64)]),
        "starts": starts,
        "last": np.concatenate([starts[: len(batch)] + ends, np.zeros(empty, dtype=np.int64)]),
        "labels": np.concatenate([[row["labels"] for row in batch], np.full(empty, IGNORED)]),
    }
    return {name: torch.from_numpy(np.asarray(array, dtype=np.int64)) for name, array in arrays.items()}


def size(tokens: int) -> int:
    """The next of few sizes, so that batches of nearly as many tokens share one, and large ones fill a GPU's tiles."""
    step = min(max(16, 2 ** (tokens.bit_length() - 4)), 256)
    return -(-tokens // step) * step


def padded_length(longest: int, batches: Batches, max_length: int) -> int:
    """Length of a batch whose longest row has `longest` tokens."""
    if batches.padding == "max_length":
        return max_length
    return -(-longest // batches.multiple_of) * batches.multiple_of


def padding_share(lengths: np.ndarray, order: list[int], batch_size: int, batches: Batches, max_length: int) -> float:
    """Part of all tokens in the batches that is padding, 0 to 1."""
    lengths = np.asarray(lengths)[np.asarray(order)]
    rows = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    padded = sum(len(r) * padded_length(r.max(), batches, max_length) for r in rows)
    return 1 - lengths.sum() / padded if padded else 0.0


def length_grouped_order(lengths: list[int], batch_size: int, seed: int | list[int]) -> list[int]:
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


def length_balanced_order(lengths: list[int], batch_size: int, seed: int | list[int]) -> list[int]:
    """A random order of rows in which each batch has rows of all lengths, and so nearly as many tokens as another.

    The rows of the whole batches, sorted by length, are cut into `batch_size` parts; each batch has one row of each.
    """
    rng = np.random.default_rng(seed)
    lengths, order = np.asarray(lengths), rng.permutation(len(lengths))
    batches = len(order) // batch_size
    whole, rest = order[: batches * batch_size], order[batches * batch_size :]
    parts = whole[np.argsort(lengths[whole], kind="stable")].reshape(batch_size, batches)
    return np.concatenate([rng.permuted(parts, axis=1).T.reshape(-1), rest]).tolist()


def random_order(rows: int, seed: int | list[int]) -> list[int]:
    """A random order of `rows` rows, a function of its seed alone."""
    return np.random.default_rng(seed).permutation(rows).tolist()


def order_of(lengths: list[int], order: str, batch_size: int, seed: int | list[int]) -> list[int]:
    """The rows in the order that `batches.order` names."""
    if order == "random":
        return random_order(len(lengths), seed)
    return {"balanced": length_balanced_order, "grouped": length_grouped_order}[order](lengths, batch_size, seed)


def as_examples(table: pd.DataFrame) -> list[dict]:
    """Rows of a tokenized table as the list of dicts that `collate` takes."""
    return [
        {"input_ids": np.asarray(ids, dtype=np.int64), "labels": int(label)}
        for ids, label in zip(table["input_ids"], table["label"], strict=True)
    ]
