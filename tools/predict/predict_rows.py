"""Predict the rows of tables, part by part. Whatever part of it is repeated, the logits are the same bytes."""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from stages.data.batching import TokenizedRows
from stages.data.classifier_settings import ClassifierSettings
from stages.data.task import name_text_columns, parse_columns
from stages.data.tokenization import tokenize_rows
from stages.model.classifier import Classifier
from stages.model.devices import report_out_of_memory
from stages.runtime.errors import UserError
from tools.predict.progress import ProgressFolder
from tools.predict.read_tables import Reader

PART = 4096  # rows that are sorted by length together
SAVE_SECONDS = 10.0  # a kill loses this much work, and a batch
GPU_BATCHES = 4  # that a GPU may be behind: it never waits for the results of the last one

Item = TypeVar("Item")


@dataclass
class Part:
    """Consecutive rows of a file, tokenized.

    Attributes:
        place: what errors call the file.
        file, number: of the file, and of the part in it.
        first_row: its number in the file.
        rows: how many.
        kept: numbers in the part of the rows that have a text, int64 [examples].
        examples: those rows.
        truncated, longest: rows that are longer than the model reads, and tokens of the longest of all.
    """

    place: str
    file: int
    number: int
    first_row: int
    rows: int
    kept: np.ndarray
    examples: TokenizedRows
    truncated: int
    longest: int


def read_parts(
    readers: Sequence[Reader],
    columns: Sequence[str],
    classifier: Classifier,
    settings: ClassifierSettings,
    progress: ProgressFolder,
) -> Iterator[Part]:
    """Yield the parts that are not complete.

    Args:
        columns: of the tables, in the order of the template's.
    """
    names = name_text_columns(parse_columns(settings.template))
    start = replace(progress.state)  # it changes while the parts are read
    for file, reader in enumerate(readers):
        if file < start.file:
            continue
        first_part = start.part if file == start.file else 0
        rows = itertools.chain.from_iterable(reader.read_texts(columns, ()))
        for number in itertools.count():
            texts = list(itertools.islice(rows, PART))
            if not texts:
                break
            if number < first_part:
                continue
            kept = [row for row, values in enumerate(texts) if any(value.strip() for value in values)]
            table = pd.DataFrame([texts[row] for row in kept], columns=names, dtype=object)
            table = tokenize_rows(table, classifier.tokenizer, settings.template, classifier.max_length)
            examples = TokenizedRows.from_lists(table["input_ids"], [0] * len(table))
            truncated, longest = int(table["truncated"].sum()), int(table["full_length"].max() if kept else 0)
            yield Part(
                reader.place, file, number, number * PART, len(texts), np.array(kept, int), examples, truncated, longest
            )


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items. A thread makes the next one meanwhile."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, iterator, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]


class PartPredictor:
    """Computes the logits of parts, and saves them in the progress folder. A row without a text gets NaN."""

    def __init__(
        self, classifier: Classifier, outputs: int, progress: ProgressFolder, batch_size: int, bar: Any
    ) -> None:
        self.classifier, self.outputs, self.progress = classifier, outputs, progress
        self.batch_size, self.bar = batch_size, bar
        self.saved = time.monotonic()
        self.logits: np.ndarray | None = None  # of the present part, float32 [rows, outputs]
        # Batches that a GPU may still compute; no rows: the end of a part
        self.pending: deque[tuple[Part, np.ndarray, torch.Tensor, torch.cuda.Event | None]] = deque()

    def predict(self, parts: Iterable[Part]) -> None:
        computed = self.progress.state.computed  # of the first part
        for part in parts:
            for rows in self.classifier.split_batches(part.examples, self.batch_size, computed):
                with report_out_of_memory(
                    f"a text of up to {self.classifier.max_length:,} tokens does not fit this GPU's memory; to use the "
                    "CPU, write CUDA_VISIBLE_DEVICES= before the command"
                ):
                    self._add(part, rows, self.classifier.compute_batch_logits([part.examples[row] for row in rows]))
            self._add(part, np.empty(0, int), torch.empty(0))
            computed = 0
        while self.pending:
            self._finish_first()
        self.progress.save()

    def _add(self, part: Part, rows: np.ndarray, logits: torch.Tensor) -> None:
        event = torch.cuda.Event() if logits.is_cuda else None
        host_logits = logits.float().to("cpu", non_blocking=True)
        if event:
            event.record()
        self.pending.append((part, rows, host_logits, event))
        while len(self.pending) > (GPU_BATCHES if event else 0):
            self._finish_first()

    def _finish_first(self) -> None:
        """Wait for the first pending batch, and take its logits."""
        part, rows, host_logits, event = self.pending.popleft()
        if event:
            event.synchronize()
        if self.logits is None:
            self.logits = self._start_part(part)
        is_end, is_due = not len(rows), time.monotonic() - self.saved > SAVE_SECONDS
        if not is_end:
            self._take(part, part.kept[rows], host_logits.numpy())
        if is_end or is_due:
            self.progress.write_logits(part.file, part.first_row, self.logits)
        if is_end:
            self._end_part(part)
        if is_due:
            self.progress.save()
            self.saved = time.monotonic()

    def _start_part(self, part: Part) -> np.ndarray:
        """The logits of a part, which may be there in part."""
        state = self.progress.state
        if state.computed:
            return self.progress.read_logits(part.file, part.first_row, part.rows, self.outputs)
        if part.file != state.file:
            self.progress.save()
        state.file, state.part = part.file, part.number
        return np.full((part.rows, self.outputs), np.nan, np.float32)

    def _take(self, part: Part, rows: np.ndarray, logits: np.ndarray) -> None:
        if len(wrong := rows[~np.isfinite(logits).all(axis=1)]):
            raise UserError(
                f"{part.place}: the model's outputs for row {part.first_row + wrong.min():,}, counted from 0, are not "
                "finite; run it in another precision, or train the adapter again"
            )
        assert self.logits is not None
        self.logits[rows] = logits
        self.progress.state.computed += len(rows)
        self.progress.state.rows += len(rows)
        self.bar.update(len(rows))

    def _end_part(self, part: Part) -> None:
        state, blank = self.progress.state, part.rows - len(part.kept)
        state.part, state.computed = part.number + 1, 0
        state.rows += blank
        state.truncated += part.truncated
        state.longest = max(state.longest, part.longest)
        self.bar.update(blank)
        self.logits = None
