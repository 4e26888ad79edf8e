"""Load base, head and adapter as one classifier, and predict the classes of rows."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from peft import PeftModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.data.batching import (
    EVALUATION_TOKENS,
    assign_batches,
    count_batch_tokens,
    count_tokens,
    pack_rows,
    pad_rows,
    padded_length,
    split_batches,
)
from stages.data.labels import Labels
from stages.data.tokenization import load_tokenizer
from stages.model.adapter import get_base, load_adapter
from stages.model.base import load_base
from stages.runtime import distributed, params
from stages.runtime.progress import progress_bar

# Without cuDNN's attention: it builds a plan for each new shape, and nearly every batch here has another length.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ClassifierParams(Protocol):
    """What both params.yaml and an adapter's classifier.json define for a classifier."""

    @property
    def seed(self) -> int: ...

    @property
    def model(self) -> params.ModelSettings: ...

    @property
    def batches(self) -> params.Batches: ...


class Classifier:
    """A model that predicts. It cannot be trained further.

    Args:
        model: returns `.logits` [rows, classes] for `input_ids` [rows, length]; in evaluation mode.
        tokenizer: its pad token fills batches.
        batches: the section `batches` of params.yaml.
        max_length: `tokenize.max_length`.
        labels: the classes, and how many of them a row may have.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        batches: params.Batches,
        max_length: int,
        labels: Labels,
    ) -> None:
        self.labels = labels
        self.model, self.tokenizer, self.batches, self.max_length = model, tokenizer, batches, max_length
        compute_packed_logits = speed_up(model)
        self.compute_packed_logits = compute_packed_logits if batches.padding == "none" else None
        # Nothing is captured here, so padding to a multiple would only cost time.
        self.padding = batches.model_copy(update={"multiple_of": 1})
        self.pad_length = (
            None if self.compute_packed_logits else partial(padded_length, batches=self.padding, max_length=max_length)
        )
        self.max_tokens = EVALUATION_TOKENS  # that fit the memory, as far as is known

    @classmethod
    def load(
        cls,
        manifest: dict,
        settings: ClassifierParams,
        max_length: int,
        labels: Labels,
        device: torch.device,
        adapter: Path | None = None,
    ) -> Self:
        """Load the base that a manifest describes, with a head and, if given, an adapter.

        Args:
            manifest: what `download` wrote.
            max_length: `tokenize.max_length`.
            labels: the classes, and how many of them a row may have.
            adapter: folder that `train_qlora` wrote, or None for the base with an untrained head.
        """
        tokenizer = load_tokenizer(manifest)
        base = load_base(manifest, settings.model, labels, device, settings.seed, tokenizer)
        model = load_adapter(base, adapter, manifest) if adapter else base
        return cls(model, tokenizer, settings.batches, max_length, labels)

    def predict(self, examples: Sequence[dict], batch_size: int, title: str | None = None) -> np.ndarray:
        """Predict class probabilities, from `compute_logits` with the same arguments."""
        return self.labels.to_probabilities(self.compute_logits(examples, batch_size, title))

    @torch.inference_mode()
    def compute_logits(self, examples: Sequence[dict], batch_size: int, title: str | None = None) -> np.ndarray:
        """Compute the outputs of the head.

        Each rank computes complete batches. A batch has the same rows on any number of GPUs, so the logits are equal
        byte for byte.

        Args:
            examples: of {"input_ids", "labels"}.
            batch_size: as for `split_batches`.
            title: of the progress bar, which counts rows sent to the device; None for no bar.

        Returns:
            float64 [rows, outputs], in the order of `examples`, on every rank.
        """
        batches = self.split_batches(examples, batch_size)
        lengths = count_tokens(examples)
        numbers = assign_batches([lengths[rows].sum() for rows in batches], distributed.world_size())[
            distributed.rank()
        ]
        results = []
        disable = not (title and distributed.is_main())
        with progress_bar(sum(len(batches[i]) for i in numbers), title or "", "row", disable=disable) as bar:
            for rows in map(batches.__getitem__, numbers):
                logits = self.compute_batch_logits([examples[i] for i in rows])
                results.append((rows, logits.float()))  # copied later: the GPU need not wait
                bar.update(len(rows))
        device = next(self.model.parameters()).device
        # A rank without batches does not know the number of outputs.
        outputs = max(distributed.all_gather(results[0][1].shape[1] if results else 0))
        all_logits = torch.zeros((len(examples), outputs), dtype=torch.float64, device=device)
        for rows, values in results:
            all_logits[torch.from_numpy(rows).to(device)] = values.double()
        distributed.all_reduce(all_logits)
        return all_logits.cpu().numpy()

    def split_batches(self, examples: Sequence[dict], batch_size: int, first: int = 0) -> list[np.ndarray]:
        """The numbers of the rows of each batch, in the order in which the batches are computed.

        Args:
            batch_size: rows of a batch, at most. `batching.EVALUATION_TOKENS` limits its tokens.
            first: rows to leave out at the start: those of batches that are already computed.
        """
        lengths = count_tokens(examples)
        order = np.arange(len(examples))
        if self.batches.order != "random":  # longest first: a batch that does not fit the memory fails at once
            order = np.argsort(-lengths, kind="stable")
        return split_batches(lengths, order[first:].tolist(), batch_size, EVALUATION_TOKENS, self.pad_length)

    @torch.inference_mode()
    def compute_batch_logits(self, examples: list[dict]) -> torch.Tensor:
        """The outputs of the head for the rows of a batch, [rows, outputs], on the device: a GPU may still compute.

        Where a batch does not fit the GPU's memory, it and the batches after it are computed in smaller parts.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
        """
        lengths = count_tokens(examples)
        while True:
            parts = split_batches(lengths, range(len(lengths)), len(lengths), self.max_tokens, self.pad_length)
            try:
                with sdpa_kernel(ATTENTION):
                    return torch.cat([self._compute_logits([examples[row] for row in rows]) for rows in parts])
            except torch.OutOfMemoryError:
                if len(parts) == len(lengths):
                    raise
            divisible = [lengths[rows] for rows in parts if len(rows) > 1]  # a long row is a part beyond the limit
            self.max_tokens = max(count_batch_tokens(part, self.pad_length) for part in divisible) // 2
            print(f"GPU memory: batches of up to {self.max_tokens:,} tokens", file=sys.stderr)

    def _compute_logits(self, examples: list[dict]) -> torch.Tensor:
        pad_id, device = self.tokenizer.pad_token_id, next(self.model.parameters()).device
        if self.compute_packed_logits:
            batch = pack_rows(examples, pad_id)
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            return self.compute_packed_logits(self.model, batch, max(1, *(len(row["input_ids"]) for row in examples)))
        batch = pad_rows(examples, pad_id, self.padding, self.max_length)
        return self.model(input_ids=batch["input_ids"].to(device, non_blocking=True)).logits


def speed_up(model: PreTrainedModel | PeftModel) -> Callable | None:
    """Make a classifier evaluate faster, in place. It cannot be trained afterwards.

    On a GPU its layers use the captured step's kernels. On a CPU LoRA computes in the precision of the activations.

    Returns:
        `packed_rows.compute_logits` if the model accepts packed rows, else None.
    """
    if next(model.parameters()).is_cuda and find_spec("triton"):
        from stages.kernels import fusion, packed_rows

        fused = fusion.fuse_for_evaluation(model, fusion.dequantized_weights_fit(model))
        return packed_rows.compute_logits if fused and fusion.takes_packed_rows(model) else None
    dtype = get_base(model).dtype
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return None
