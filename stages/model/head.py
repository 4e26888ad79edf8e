"""The classification head on the last token: check it, draw it, freeze it, scale it."""

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from stages.runtime.errors import UserError


def check_head(model: PreTrainedModel) -> torch.nn.Linear:
    """Return the head, the linear layer `score` [classes, hidden].

    Raises:
        UserError: the model has no such layer, or it is quantised.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear):
        raise UserError(
            f"model: {type(model).__name__} has no linear head `score` on the last token, "
            "as classifiers made of causal language models have"
        )
    if isinstance(head, bnb.nn.Linear4bit):
        raise UserError("model.quantization: the classification head is quantised, so it cannot be trained")
    return head


def draw_head(model: PreTrainedModel, seed: int | None) -> None:
    """Initialise the head at random, in fp32, in place: the checkpoint of a language model has none.

    The weights are drawn on the CPU, so every device gets the same ones.

    Args:
        seed: of the weights; None for another head at each call.
    """
    head, generator = check_head(model), torch.Generator("cpu")
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    weight = torch.empty(head.weight.shape, dtype=torch.float32)
    weight.normal_(std=getattr(model.config, "initializer_range", 0.02), generator=generator)
    _set_weight(head, weight)


def replace_head(model: PreTrainedModel, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Replace the head, in place, by another linear one in fp32.

    Args:
        weight: [outputs, hidden], of any number of outputs.
        bias: [outputs].
    """
    outputs, hidden = weight.shape
    head = torch.nn.Linear(hidden, outputs, device=model.device)
    head.bias.data = bias.float().to(model.device)
    _set_weight(head, weight)
    model.score = head.requires_grad_(False)


def remove_head(model: PreTrainedModel) -> None:
    """Replace the head, in place, so that the model's logits are the last states of the classified tokens."""
    model.score = torch.nn.Identity()


def _set_weight(head: torch.nn.Linear, weight: torch.Tensor) -> None:
    """Set a head's weight in fp32. Its input is then cast to fp32."""
    head.weight = torch.nn.Parameter(weight.float().to(head.weight.device))
    head.register_forward_pre_hook(_cast_input)


def _cast_input(head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (inputs[0].to(head.get_parameter("weight").dtype),)


def freeze_head(model: torch.nn.Module) -> None:
    """Exclude the head from training, as in the notebook. Its loop froze every parameter without "lora" in its name.

    Args:
        model: with a LoRA adapter. PEFT makes its head trainable.
    """
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.requires_grad_(False)


@torch.no_grad()
def scale_head(model: PeftModel, temperature: float) -> None:
    """Divide the logits by a temperature, in place: by dividing the head's weights, frozen or trained.

    Args:
        model: with a LoRA adapter. PEFT saves its copy of the head with the adapter.
    """
    head = model.get_base_model().get_submodule("score")
    assert isinstance(head, ModulesToSaveWrapper)
    for parameter in head.modules_to_save[model.active_adapter].parameters():
        parameter.div_(temperature)
