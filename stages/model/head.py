"""The classification head on the last token: how it is drawn, and whether it is trained."""

import bitsandbytes as bnb
import torch
from transformers import PreTrainedModel

from stages.runtime.errors import UserError


def check_head(model: PreTrainedModel) -> None:
    """Refuse a model without the linear layer `score` [classes, hidden], or with a quantised one."""
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise UserError(
            f"model.name: {type(model).__name__} has no linear head `score` on the last token, "
            "as classifiers made of causal language models have"
        )
    if isinstance(model.score, bnb.nn.Linear4bit):
        raise UserError("model.quantization: the classification head came out quantised; it has to be trained")


def draw_head(model: PreTrainedModel, seed: int | None) -> None:
    """Draw the head anew, in fp32, in place: the checkpoint is a language model and has none.

    Args:
        model: has passed `check_head`.
        seed: of the draw, made on the CPU, so that every device gets the same; None for another head at each call.
    """
    generator = torch.Generator("cpu")
    generator.manual_seed(seed) if seed is not None else generator.seed()
    weight = torch.empty(model.score.weight.shape, dtype=torch.float32)
    weight.normal_(std=getattr(model.config, "initializer_range", 0.02), generator=generator)
    model.score.weight = torch.nn.Parameter(weight.to(model.score.weight.device))
    model.score.register_forward_pre_hook(_to_head_dtype)


def _to_head_dtype(module, inputs):
    return (inputs[0].to(module.weight.dtype),)


def freeze_head(model: torch.nn.Module) -> None:
    """Leave the head as it was drawn, as published: there a loop froze all that has no "lora" in its name.

    Args:
        model: with a LoRA adapter, which keeps the head trainable otherwise.
    """
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.requires_grad_(False)
