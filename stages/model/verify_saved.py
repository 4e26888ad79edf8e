"""Verify a saved adapter: loaded as a user loads it, it must have the trained model's weights and logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch.nn.attention import sdpa_kernel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from stages.data.batching import count_tokens
from stages.model.base import make_precision_arguments, stabilize_4_bit_layers
from stages.model.base_cache import BaseCache
from stages.model.classifier import ATTENTION
from stages.model.devices import pick_precision
from stages.runtime import params
from stages.runtime.errors import UserError, type_and_first_line
from stages.sources.fetch import find_model_folder

ROWS = 8
# The largest accepted `relative_distance` of the logits, by the precision of the products. With Gemma 3 270M on SNLI's
# texts, on a CPU, rounding causes 1e-6 (fp32), 0.001 (fp16), 0.01 and 0.04 (bf16). Half of alpha causes 0.4 to 1.3,
# another pad token 0.35, silu instead of gelu 1 to 2, another head 1 to 7. In bf16 gelu instead of its tanh form stays
# within rounding.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.03, "bf16": 0.2}


@dataclass(frozen=True)
class AdapterSnapshot:
    """Weights and logits of a trained adapter. The model itself can then be deleted to free its memory.

    Attributes:
        examples: `ROWS` rows from the shortest to the longest, list of {"input_ids": ints}.
        logits: of these rows, float64 [rows, classes].
        weights: {name: LoRA matrix or head}, on the CPU.
    """

    examples: list[dict]
    logits: torch.Tensor
    weights: dict[str, torch.Tensor]

    @classmethod
    @torch.no_grad()
    def take(cls, model: PeftModel, examples: Sequence[dict]) -> Self:
        """Copy the weights of a model and compute its logits, row by row, thus without padding.

        Args:
            model: is left in evaluation mode.
            examples: rows to choose from, of {"input_ids": ints}.
        """
        by_length = np.argsort(count_tokens(examples), kind="stable")
        evenly_spaced = np.unique(np.linspace(0, len(by_length) - 1, ROWS).round().astype(int))
        chosen = [examples[row] for row in by_length[evenly_spaced]]
        device = next(model.parameters()).device
        rows = [torch.tensor(row["input_ids"])[None].to(device) for row in chosen]
        with sdpa_kernel(ATTENTION):
            logits = torch.cat([model.eval()(input_ids=row).logits for row in rows]).double().cpu()
        weights = {name: weight.cpu().clone() for name, weight in get_peft_model_state_dict(model).items()}
        return cls(chosen, logits, weights)


def verify_saved_adapter(
    folder: Path, trained: AdapterSnapshot, manifest: dict, model_params: params.ModelSettings, device: torch.device,
    cache: BaseCache | None = None,
) -> None:  # fmt: skip
    """Load a saved adapter by plain transformers and PEFT, and compare it with the trained model.

    Base and head are loaded again, and transformers initialises the head at random. Nothing in memory can replace
    what the folder lacks. Each row is a batch with the longest one, padded by the saved tokenizer: all rows at once may
    need more memory than a training step. With a cache, the base is a new model around its weights, if they are as
    they were loaded and the saved config is theirs. It then has only the embeddings that training kept.

    Args:
        folder: that `save_adapter` wrote.
        manifest: of the base.
        model_params: the section `model` of params.yaml.
        cache: of this base and these `model_params`.

    Raises:
        UserError: a weight differs, or the logits differ by more than rounding explains.
    """
    failure = "outs/adapter: not saved: loaded by plain transformers and peft, it"
    try:
        model = _load(folder, manifest, model_params, device, cache)
        logits = _compute_logits(model, folder, trained.examples)
    except Exception as error:  # many types: a missing weight or file, another shape
        raise UserError(f"{failure} is not loadable ({type_and_first_line(error)})") from error
    weights = {name: weight.cpu() for name, weight in get_peft_model_state_dict(model).items()}
    for name, expected in trained.weights.items():
        if name not in weights or not torch.equal(weights[name], expected.to(weights[name].dtype)):
            raise UserError(f"{failure} has another {name} than the trained model")
    distance, tolerance = relative_distance(logits, trained.logits), TOLERANCES[pick_precision(model_params, device)]
    if not distance <= tolerance:  # true for NaN too
        raise UserError(
            f"{failure} predicts otherwise than the trained model: the logits differ by {distance:.2g} of their size, "
            f"and rounding explains {tolerance}"
        )


def relative_distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Euclidean norm of the difference of two tensors, divided by that of the expected one."""
    return ((actual - expected).norm() / expected.norm()).item()


def _load(
    folder: Path, manifest: dict, model_params: params.ModelSettings, device: torch.device, cache: BaseCache | None
) -> PeftModel:
    config = AutoConfig.from_pretrained(folder)
    base = cache.share_equal_model(config) if cache else None
    if base is None:
        base = AutoModelForSequenceClassification.from_pretrained(
            find_model_folder(manifest), config=config, device_map={"": device}, use_safetensors=True,
            **make_precision_arguments(model_params, device),
        )  # fmt: skip
        stabilize_4_bit_layers(base)
    return PeftModel.from_pretrained(base, str(folder)).eval()


@torch.no_grad()
def _compute_logits(model: PeftModel, folder: Path, examples: list[dict]) -> torch.Tensor:
    tokenizer, logits = AutoTokenizer.from_pretrained(folder), dict[int, torch.Tensor]()
    last = len(examples) - 1  # the longest
    for row in range(max(last, 1)):
        pair = sorted({row, last})
        ids = {"input_ids": [np.asarray(examples[number]["input_ids"]).tolist() for number in pair]}
        with sdpa_kernel(ATTENTION):
            outputs = model(**tokenizer.pad(ids, return_tensors="pt").to(model.device)).logits
        logits |= dict(zip(pair, outputs.double().cpu(), strict=True))
    return torch.stack([logits[row] for row in range(len(examples))])
