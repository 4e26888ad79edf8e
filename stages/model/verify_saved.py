"""The proof that a saved adapter is whole: read back as a user reads it, it is what the trained model was."""

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
from stages.model.base import precision_arguments, stabilize_4_bit_layers
from stages.model.classifier import ATTENTION
from stages.model.devices import pick_precision
from stages.runtime import params
from stages.runtime.errors import UserError, type_and_first_line
from stages.sources.fetch import find_model_folder

ROWS = 8
# The largest `relative_distance` of the logits, by the precision of the products. Gemma 3 270M on SNLI's texts, on a
# CPU, came back at 1e-6 (fp32), 0.001 (fp16), and 0.01 and 0.04 (bf16), by rounding alone. It was at 0.4 to 1.3
# with half of alpha, at 0.35 with another pad token, at 1 to 2 with silu for gelu, at 1 to 7 with another head. In bf16
# gelu for its tanh form stays within rounding.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.03, "bf16": 0.2}


@dataclass(frozen=True)
class AdapterSnapshot:
    """What a trained model knows and answers, kept apart from it, so that its memory can be given back.

    Attributes:
        examples: `ROWS` rows of different lengths, list of {"input_ids": ints}.
        logits: of these rows, float64 [rows, classes].
        weights: {name: LoRA matrix or head}, on the CPU.
    """

    examples: list[dict]
    logits: torch.Tensor
    weights: dict[str, torch.Tensor]

    @classmethod
    @torch.no_grad()
    def take(cls, model: PeftModel, examples: Sequence[dict]) -> Self:
        """Ask a model, which comes back in evaluation mode; each row stands alone, so without padding.

        Args:
            examples: rows to choose from, of {"input_ids": ints}.
        """
        by_length = np.argsort(count_tokens(examples), kind="stable")
        places = np.unique(np.linspace(0, len(by_length) - 1, ROWS).round().astype(int))
        some = [examples[row] for row in by_length[places]]
        device = next(model.parameters()).device
        rows = [torch.tensor(row["input_ids"])[None].to(device) for row in some]
        with sdpa_kernel(ATTENTION):
            logits = torch.cat([model.eval()(input_ids=row).logits for row in rows]).double().cpu()
        return cls(some, logits, {name: w.cpu().clone() for name, w in get_peft_model_state_dict(model).items()})


def verify_saved_adapter(
    folder: Path, trained: AdapterSnapshot, manifest: dict, group: params.Model, device: torch.device
) -> None:
    """Read an adapter back by plain transformers and PEFT, and compare it with the model that was saved.

    Base and head are loaded anew, the head as transformers draws it, so that nothing of the model in memory can stand
    in for what the folder lacks. The rows stand in one batch, padded by the saved tokenizer.

    Args:
        folder: that `save_adapter` wrote.
        manifest: of the base.
        group: the group `model` of params.yaml.

    Raises:
        UserError: where a weight is not the same, or the logits are further apart than rounding takes them.
    """
    failed = "outs/adapter: not kept: read back by plain transformers and peft, it"
    try:
        model = _read(folder, manifest, group, device)
        logits = _logits(model, folder, trained.examples)
    except Exception as error:  # a weight or a file that is not there, another shape: a dozen kinds
        raise UserError(f"{failed} is not loadable ({type_and_first_line(error)})") from error
    found = {name: weight.cpu() for name, weight in get_peft_model_state_dict(model).items()}
    for name, weight in trained.weights.items():
        if name not in found or not torch.equal(found[name], weight.to(found[name].dtype)):
            raise UserError(f"{failed} has another {name} than the trained model")
    apart, allowed = relative_distance(logits, trained.logits), TOLERANCES[pick_precision(group, device)]
    if not apart <= allowed:  # NaN too
        raise UserError(
            f"{failed} answers otherwise than the trained model: the logits are {apart:.2g} of their size apart, "
            f"and rounding explains {allowed}"
        )


def relative_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative distance of two tensors, by the Euclidean norm of all elements."""
    return ((found - expected).norm() / expected.norm()).item()


def _read(folder, manifest, group, device):
    base = AutoModelForSequenceClassification.from_pretrained(
        find_model_folder(manifest), config=AutoConfig.from_pretrained(folder), device_map={"": device},
        use_safetensors=True, **precision_arguments(group, device),
    )  # fmt: skip
    stabilize_4_bit_layers(base)
    return PeftModel.from_pretrained(base, str(folder)).eval()


@torch.no_grad()
def _logits(model, folder, examples):
    rows = {"input_ids": [np.asarray(row["input_ids"]).tolist() for row in examples]}
    batch = AutoTokenizer.from_pretrained(folder).pad(rows, return_tensors="pt").to(model.device)
    with sdpa_kernel(ATTENTION):
        return model(**batch).logits.double().cpu()
