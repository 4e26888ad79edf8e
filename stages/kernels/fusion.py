"""Fits the fused layers into a model: which LoRA layers compute together, and which dropout has which mask."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from stages.kernels.architecture import Architecture
from stages.kernels.dropout import Masks, SeededDropout
from stages.kernels.lora import LoraCopies, LoraGroup
from stages.kernels.registry import architecture_of


def layers_by_input(model: torch.nn.Module) -> list[list[LoraLayer]]:
    """The LoRA layers in groups that share their input: as the model's architecture says, every other one alone."""
    groups = []
    for layer, architecture in _known_layers(model):
        for modules in architecture.shared_inputs(layer):
            groups.append([module for module in modules if isinstance(module, LoraLayer)])
    grouped = {layer for group in groups for layer in group}
    alone = [[module] for module in model.modules() if isinstance(module, LoraLayer) and module not in grouped]
    return [group for group in groups if group] + alone


def fuse_for_training(
    model: PeftModel, groups: list[list[LoraLayer]], masks: Masks, lora: LoraCopies, dequantize_once: bool
) -> None:
    """Let a LoRA model compute by fused layers, in place: LoRA and dropouts in training, decoder layers always.

    Args:
        groups: from `layers_by_input`; `lora` has their copies.
        dequantize_once: keep dequantized weights, or dequantize them at each use.
    """
    in_lora = {module for group in groups for layer in group for module in layer.modules()}
    group_of = {}
    for group, a in zip(groups, lora.stacked_a, strict=True):
        together = LoraGroup(group, a, [lora.b[layer] for layer in group], masks, dequantize_once)
        group_of |= dict.fromkeys(group, together)
        if len(group) == 1:
            group[0].forward = functools.partial(_lora_forward, group[0], group[0].forward, together)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0 and module not in in_lora:
            module.forward = functools.partial(_dropout_forward, module, module.forward, masks)
    fuse_decoder_layers(model, group_of)
    model.register_forward_pre_hook(lambda *_: masks.start_layer(0))
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers, start=1):
        _set_forward(layer, _numbered(type(layer).forward, masks, number))
    if is_checkpointed(model):  # masks need no random state, and a capture has none to save
        kwargs = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
        model.get_base_model().gradient_checkpointing_enable(kwargs)


def fuse_decoder_layers(
    model: torch.nn.Module, group_of: Mapping[torch.nn.Module, LoraGroup] = MappingProxyType({})
) -> None:
    """Let the decoder layers of a known architecture compute in fewer kernels, in place; in evaluation too.

    Args:
        group_of: {LoRA layer: its `LoraGroup`}, used while the model trains.
    """
    project = functools.partial(_project, group_of)
    for layer, architecture in _known_layers(model):
        _set_forward(layer, functools.partialmethod(architecture.forward, project))


def is_checkpointed(model: torch.nn.Module) -> bool:
    """Whether layers are computed again in the backward, to save memory."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _known_layers(model: torch.nn.Module) -> list[tuple[torch.nn.Module, Architecture]]:
    pairs = [(module, architecture_of(module)) for module in model.modules()]
    return [(module, architecture) for module, architecture in pairs if architecture]


def _project(
    group_of: Mapping[torch.nn.Module, LoraGroup], modules: Sequence[torch.nn.Module], x: torch.Tensor
) -> list[torch.Tensor]:
    """The outputs of modules that share the input x: LoRA layers together while the model trains, the rest one by one.

    Of `architecture.Project`.
    """
    group = next((group_of[module] for module in modules if module in group_of), None)
    together = group(x) if group and modules[0].training and torch.is_grad_enabled() else {}
    return [together[module] if module in together else module(x) for module in modules]


def _set_forward(layer: torch.nn.Module, forward: Callable) -> None:
    """Let a decoder layer compute by forward(layer, …), set on a class of its own.

    A forward of the instance would go round checkpointing: transformers 5.17 has it in the class's call and 5.23 in the
    class's forward.
    """
    layer.__class__ = type(type(layer).__name__, (type(layer),), {"forward": forward})


def _numbered(forward: Callable, masks: Masks, number: int) -> Callable:
    def numbered(layer, *args, **kwargs):
        masks.start_layer(number)
        return forward(layer, *args, **kwargs)

    return numbered


def _lora_forward(layer: LoraLayer, original: Callable, group: LoraGroup, x: torch.Tensor, *args, **kwargs):
    if not (layer.training and torch.is_grad_enabled()):
        return original(x, *args, **kwargs)
    return group(x)[layer]


def _dropout_forward(module: torch.nn.Dropout, original: Callable, masks: Masks, x: torch.Tensor) -> torch.Tensor:
    if not (module.training and torch.is_grad_enabled()):
        return original(x)
    return SeededDropout.apply(x, module.p, masks.seed, masks.next_sites(1))
