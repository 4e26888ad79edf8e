"""The classifier that answers: base, head and adapter, loaded once, and one forward pass over rows."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from stages.data.batching import assign_batches, count_tokens, pack_rows, pad_rows
from stages.data.tokenization import load_tokenizer
from stages.model.adapter import load_adapter
from stages.model.base import load_base
from stages.runtime import distributed, params

# All but cuDNN's attention, which builds a plan for each new shape: here nearly every batch has another length.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ClassifierParams(Protocol):
    """How a classifier is built and its inputs are read: params.yaml, or an adapter's classifier.json."""

    seed: int
    model: params.Model
    tokenize: params.Tokenize
    batches: params.Batches


class Classifier:
    """A model that predicts; it can't be trained further.

    Args:
        model: gives `.logits` [rows, classes] for `input_ids` [rows, length]; in evaluation mode.
        tokenizer: its pad token fills batches.
        batches: the group `batches` of params.yaml.
        max_length: `tokenize.max_length`.
    """

    def __init__(self, model: torch.nn.Module, tokenizer, batches: params.Batches, max_length: int):
        self.model, self.tokenizer, self.batches, self.max_length = model, tokenizer, batches, max_length
        logits = speed_up(model)
        self.packed_logits = logits if batches.padding == "none" else None

    @classmethod
    def load(
        cls,
        manifest: dict,
        reading: ClassifierParams,
        classes: Sequence[str],
        device: torch.device,
        adapter: Path | None = None,
    ) -> Self:
        """The classifier of a base that `download` described.

        Args:
            manifest: what `download` wrote.
            classes: names, in the order of their numbers.
            adapter: folder that `train_qlora` wrote, or None for the base with an untrained head.
        """
        tokenizer = load_tokenizer(manifest)
        model = load_base(manifest, reading.model, classes, device, reading.seed, tokenizer)
        if adapter:
            model = load_adapter(model, adapter, manifest)
        return cls(model, tokenizer, reading.batches, reading.tokenize.max_length)

    @torch.inference_mode()
    def predict(self, examples: Sequence[dict], batch_size: int, title: str | None = None) -> np.ndarray:
        """Class probabilities.

        Ranks divide the batches among them, whole: on as many GPUs as you like a batch has the rows that it has on one,
        and so its answers, to the byte.

        Args:
            examples: of {"input_ids", "labels"}.
            title: names a terminal's progress bar, which counts rows given to the device; None for no bar.

        Returns:
            float64 [rows, classes], in the order of `examples`, on every rank.
        """
        order, lengths = np.arange(len(examples)), count_tokens(examples)
        if self.batches.order != "random":  # longest first: running out of memory shows at once
            order = np.argsort(-lengths, kind="stable")
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        mine = assign_batches([lengths[rows].sum() for rows in batches], distributed.world_size())[distributed.rank()]
        done = []
        with (
            sdpa_kernel(ATTENTION),
            tqdm(total=sum(len(batches[i]) for i in mine), desc=title, unit="row",
                 disable=distributed.progress_bar_disabled() if title else True) as bar,
        ):  # fmt: skip
            for rows in map(batches.__getitem__, mine):
                logits = self._logits([examples[i] for i in rows])
                done.append((rows, torch.softmax(logits.double(), dim=-1)))  # fetched later: the GPU need not wait
                bar.update(len(rows))
        device = next(self.model.parameters()).device
        probabilities = torch.zeros((len(examples), self.model.config.num_labels), dtype=torch.float64, device=device)
        for rows, values in done:
            probabilities[torch.from_numpy(rows).to(device)] = values
        distributed.all_reduce(probabilities)
        return probabilities.cpu().numpy()

    def _logits(self, examples):
        pad_id, device = self.tokenizer.pad_token_id, next(self.model.parameters()).device
        if self.packed_logits:
            batch = pack_rows(examples, pad_id)
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            return self.packed_logits(self.model, batch, max(1, *(len(row["input_ids"]) for row in examples)))
        batches = self.batches.model_copy(update={"multiple_of": 1})  # nothing is captured here, and padding is work
        batch = pad_rows(examples, pad_id, batches, self.max_length)
        return self.model(input_ids=batch["input_ids"].to(device, non_blocking=True)).logits


def speed_up(model: torch.nn.Module) -> Callable | None:
    """Let a classifier evaluate faster, in place: it can't be trained further.

    On a GPU its layers compute as they do in the fast step; else LoRA computes in the precision of the activations.

    Returns:
        `packed.compute_logits` where the model takes rows end to end, else None.
    """
    if next(model.parameters()).is_cuda and find_spec("triton"):
        from stages.kernels import fusion, packed

        fused = fusion.fuse_for_evaluation(model, fusion.dequantized_weights_fit(model))
        return packed.compute_logits if fused and fusion.takes_packed_rows(model) else None
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)
    return None
