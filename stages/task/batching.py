"""Rows of tokens into batches: their order, their padding."""

import numpy as np
import pandas as pd
import torch

from stages.runtime.params import Batches


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


def random_order(rows: int, seed: int | list[int]) -> list[int]:
    """A random order of `rows` rows, a function of its seed alone."""
    return np.random.default_rng(seed).permutation(rows).tolist()


def as_examples(table: pd.DataFrame) -> list[dict]:
    """Rows of a tokenized table as the list of dicts that `collate` takes."""
    return [
        {"input_ids": np.asarray(ids, dtype=np.int64), "labels": int(label)}
        for ids, label in zip(table["input_ids"], table["label"], strict=True)
    ]
