"""Make tensors of the rows that a model computes at once."""

import numpy as np
import torch

from stages.data.batching import bucket_size, pack_rows, pad_rows, padded_length
from stages.runtime.params import Batches
from stages.training.epoch_batches import Part


class PartCollator:
    """Packs or pads the rows of a part of a batch, and fills it up to one of a few sizes.

    The size of a packed part is its number of tokens, that of a padded part its length.

    Args:
        is_packed: pack the rows, or pad them to the part's longest row.
        pad_id: token that fills parts.
        batches: the section `batches` of params.yaml.
        max_length: `tokenize.max_length`.

    Attributes:
        sizes: ascending; empty: parts are not filled up.
        rows: a packed part with fewer rows is filled up with empty ones.
    """

    def __init__(self, is_packed: bool, pad_id: int, batches: Batches, max_length: int) -> None:
        self.is_packed, self.pad_id, self.batches, self.max_length = is_packed, pad_id, batches, max_length
        self.sizes: list[int] = []
        self.rows = 0

    def size_of(self, lengths: np.ndarray) -> int:
        """The size of a part whose rows have these numbers of tokens, [rows]."""
        if self.is_packed:
            return bucket_size(int(lengths.sum()))
        return padded_length(int(lengths.max()), self.batches, self.max_length)

    def count_tokens(self, lengths: np.ndarray, rows: int) -> int:
        """Tokens of such a part, filled up to this number of rows."""
        return self.size_of(lengths) * (1 if self.is_packed else rows)

    def max_rows(self, max_tokens: int, longest: int) -> int:
        """The most rows of a part of `max_tokens` tokens, if the longest row has size `longest`."""
        return max_tokens if self.is_packed else max(1, max_tokens // longest)

    def __call__(self, rows: list[dict], offsets: np.ndarray) -> Part:
        """Tensors of a part's rows; offsets: where each of them begins in the batch, [rows]."""
        lengths = np.array([max(1, len(row["input_ids"])) for row in rows])
        size = self.size_of(lengths)
        return self.fill_up_to(next((larger for larger in self.sizes if larger >= size), size), rows, offsets)

    def fill_up_to(self, size: int, rows: list[dict], offsets: np.ndarray) -> Part:
        """Tensors of a part of this size."""
        if self.is_packed:
            return pack_rows(rows, self.pad_id, self.rows, size, offsets)
        part = pad_rows(rows, self.pad_id, self.batches, self.max_length, longest=size)
        positions = offsets[:, None] + np.arange(part["input_ids"].shape[1])
        return part | {"batch_positions": torch.from_numpy(positions.astype(np.int32))}
