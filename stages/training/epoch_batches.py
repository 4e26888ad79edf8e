"""What a rank computes at each step: its part of a batch whose rows are the same on any number of ranks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from stages.data.batching import count_tokens, order_rows, split_rows_among_ranks
from stages.runtime import distributed


class EpochBatches(Dataset):
    """The batches of an epoch, of each this rank's part.

    The order of the rows is a function of seed and epoch alone, so that resuming goes on as before, on another number
    of ranks too.

    Args:
        rows: of {"input_ids", "labels"}.
        batch_size: rows of a batch, on all ranks together.
        order: `batches.order` of params.yaml.
        lay: makes tensors of a rank's rows. It is told `tokens`, those of the rank that has most, and `longest`, those
            of the batch's longest row: all ranks make the same shape.
    """

    def __init__(self, rows: Sequence[dict], batch_size: int, order: str, seed: int, lay: Callable) -> None:
        self.rows, self.batch_size, self.order, self.seed, self.lay = rows, batch_size, order, seed, lay
        self.lengths = np.maximum(count_tokens(rows), 1)  # an empty row has a pad token
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch."""
        self.places = np.asarray(order_rows(self.lengths, self.order, self.batch_size, [self.seed, epoch]))

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        batch = self.places[number * self.batch_size : (number + 1) * self.batch_size]
        lengths = self.lengths[batch]
        parts = split_rows_among_ranks(lengths, distributed.world_size())
        mine = parts[distributed.rank()]
        # A rank without rows computes another's, so that it has a gradient, and counts it as nothing.
        rows = [self.rows[place] for place in batch[mine if len(mine) else [0]]]
        tensors = self.lay(rows, tokens=max(int(lengths[part].sum()) for part in parts), longest=int(lengths.max()))
        if distributed.world_size() > 1:
            tensors["weight"] = torch.tensor(len(mine) / len(batch), dtype=torch.float32)
        return tensors


class EpochLoader(DataLoader):
    """Loads `EpochBatches` one by one. Not by accelerate: it repeats rows until each rank has as many as another."""

    def __init__(self, batches: EpochBatches, pin_memory: bool) -> None:
        super().__init__(batches, batch_size=None, pin_memory=pin_memory)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer where an epoch begins."""
        self.dataset.set_epoch(epoch)
