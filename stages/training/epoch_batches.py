"""The batches of an epoch, divided among the ranks and into parts. A batch has the same rows in any division."""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.data.batching import count_tokens, order_rows, split_evenly, split_to_limits
from stages.runtime import distributed

Part = dict[str, torch.Tensor]  # what a model computes at once


class EpochBatches(Dataset):
    """The batches of an epoch; each item is this rank's share of one batch, as a list of parts.

    The order of the rows depends only on seed and epoch. A resumed run continues with the same batches, even on another
    number of ranks. The sum of the parts' gradients, each times its `weight`, is the batch's gradient.

    Args:
        rows: of {"input_ids", "labels"}.
        batch_size: rows of a batch, on all ranks together.
        order: `batches.order` of params.yaml.
        collate: collate(rows, offsets) makes tensors of a part's rows; offsets: where each row begins in the batch.

    Attributes:
        max_rows, max_tokens: limits of a part.
    """

    def __init__(
        self, rows: Sequence[dict], batch_size: int, order: str, seed: int, collate: Callable[..., Part],
        max_rows: int | None = None,
    ) -> None:  # fmt: skip
        self.rows, self.batch_size, self.order, self.seed, self.collate = rows, batch_size, order, seed, collate
        self.lengths = np.maximum(count_tokens(rows), 1)  # an empty row gets a pad token
        self.ranks, self.rank = distributed.world_size(), distributed.rank()
        self.max_rows = max_rows or batch_size
        self.max_tokens = int(self.lengths.sum())
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Order the rows for this epoch."""
        self.epoch = epoch
        self.row_order = np.asarray(order_rows(self.lengths, self.order, self.batch_size, [self.seed, epoch]))

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, number: int) -> list[Part]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        batch, parts, is_idle = self._divide(number)
        lengths = self.lengths[batch]
        offsets = np.cumsum(lengths) - lengths
        items = []
        for part in parts:
            tensors = self.collate([self.rows[row] for row in batch[part]], offsets=offsets[part])
            tensors["weight"] = torch.tensor(0.0 if is_idle else len(part) / len(batch), dtype=torch.float32)
            items.append(tensors)
        return items

    def list_parts(self) -> Iterator[list[np.ndarray]]:
        """For each batch of the epoch, the lengths of the rows of this rank's parts."""
        for number in range(len(self)):
            batch, parts, _ = self._divide(number)
            yield [self.lengths[batch[part]] for part in parts]

    def _divide(self, number: int) -> tuple[np.ndarray, list[np.ndarray], bool]:
        """The rows of a batch, the indices in it of each of this rank's parts, and whether this rank has no rows."""
        batch = self.row_order[number * self.batch_size : (number + 1) * self.batch_size]
        lengths = self.lengths[batch]
        share = split_evenly(lengths, self.ranks)[self.rank]
        # A rank without rows computes another rank's first row with weight 0, because every rank needs a gradient.
        share, is_idle = (share, False) if len(share) else (np.zeros(1, dtype=np.int64), True)
        return batch, [share[part] for part in split_to_limits(lengths[share], self.max_rows, self.max_tokens)], is_idle


class BatchNumbers(Sampler[list[int]]):
    """The numbers of an epoch's batches, one at a time.

    A training that resumes in the middle of an epoch skips the first numbers (accelerate's `skip_first_batches`). The
    rows of these batches are not read. The loader with the rest has no `set_epoch`, so the Trainer calls this one.
    """

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in range(len(self.batches)))

    def set_epoch(self, epoch: int) -> None:
        """Order the rows for this epoch."""
        self.batches.set_epoch(epoch)


class EpochLoader(DataLoader):
    """Loads `EpochBatches` one by one, without accelerate, which repeats rows until all ranks have equally many.

    - __iter__: draws as many random numbers as earlier versions, whose validation drew one: dropout stays as it was.
    """

    def __init__(self, batches: EpochBatches, pin_memory: bool) -> None:
        numbers = BatchNumbers(batches)
        super().__init__(batches, batch_sampler=numbers, collate_fn=itemgetter(0), pin_memory=pin_memory)
        self.set_epoch = numbers.set_epoch  # the Trainer calls it when an epoch begins

    def __iter__(self) -> Any:
        if self.dataset.epoch > 0:  # type: ignore[attr-defined]
            torch.empty((), dtype=torch.int64).random_()
        return super().__iter__()
