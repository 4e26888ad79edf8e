"""The batches of an epoch, divided among the ranks. A batch has the same rows on any number of ranks."""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.data.batching import count_tokens, order_rows, split_rows_among_ranks
from stages.runtime import distributed


class EpochBatches(Dataset):
    """The batches of an epoch; each item is this rank's part of one batch.

    The order of the rows depends only on seed and epoch. A resumed run continues with the same batches, even on another
    number of ranks.

    Args:
        rows: of {"input_ids", "labels"}.
        batch_size: rows of a batch, on all ranks together.
        order: `batches.order` of params.yaml.
        collate: makes tensors of a rank's rows. Its arguments make the shape equal on all ranks: `tokens`, the largest
            number of tokens of any rank's part, and `longest`, the tokens of the batch's longest row.
    """

    def __init__(
        self, rows: Sequence[dict], batch_size: int, order: str, seed: int,
        collate: Callable[..., dict[str, torch.Tensor]],
    ) -> None:  # fmt: skip
        self.rows, self.batch_size, self.order, self.seed, self.collate = rows, batch_size, order, seed, collate
        self.lengths = np.maximum(count_tokens(rows), 1)  # an empty row gets a pad token
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Order the rows for this epoch."""
        self.epoch = epoch
        self.row_order = np.asarray(order_rows(self.lengths, self.order, self.batch_size, [self.seed, epoch]))

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        batch = self.row_order[number * self.batch_size : (number + 1) * self.batch_size]
        lengths = self.lengths[batch]
        parts = split_rows_among_ranks(lengths, distributed.world_size())
        part = parts[distributed.rank()]
        # A rank without rows computes another rank's first row with weight 0, because every rank needs a gradient.
        rows = [self.rows[row] for row in batch[part if len(part) else [0]]]
        tokens = max(int(lengths[part_of_rank].sum()) for part_of_rank in parts)
        tensors = self.collate(rows, tokens=tokens, longest=int(lengths.max()))
        if distributed.world_size() > 1:
            tensors["weight"] = torch.tensor(len(part) / len(batch), dtype=torch.float32)
        return tensors


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
