"""Fits the fused layers into a model: which LoRA layers compute together, and whose dropout mask is which."""

import functools
from types import MappingProxyType

import torch
from peft.tuners.lora import LoraLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from stages.kernels.dropout import SeededDropout
from stages.kernels.lora import LoraGroup
from stages.kernels.phi import is_fused_phi_layer, phi_layer_forward, phi_shared


def layers_by_input(model):
    """The LoRA layers in groups that share their input: q, k, v and fc1 of a phi layer; every other one alone."""
    groups = []
    for layer in model.modules():
        if is_fused_phi_layer(layer):
            groups.append([module for module in phi_shared(layer) if isinstance(module, LoraLayer)])
    grouped = {layer for group in groups for layer in group}
    alone = [[module] for module in model.modules() if isinstance(module, LoraLayer) and module not in grouped]
    return [group for group in groups if group] + alone


def use_fused_layers(model, groups, masks, lora, dequantize_once):
    """Let LoRA layers and dropouts in `model` compute as below while it trains, and phi's layers always."""
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
    use_fused_phi_layers(model, group_of)
    model.register_forward_pre_hook(lambda *_: masks.start_layer(0))
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers, start=1):
        _set_forward(layer, _numbered(type(layer).forward, masks, number))


def _set_forward(layer, forward):
    """Let a decoder layer compute by forward(layer, …), set at a class of its own: an instance's forward would go round
    checkpointing, which transformers 5.17 has in the class's call and 5.23 in the class's forward, without hooks."""
    layer.__class__ = type(type(layer).__name__, (type(layer),), {"forward": forward})


def _numbered(forward, masks, number):
    def numbered(layer, *args, **kwargs):
        masks.start_layer(number)
        return forward(layer, *args, **kwargs)

    return numbered


def use_fused_phi_layers(model, group_of=MappingProxyType({})):
    """Let phi's layers in `model` compute as below, in evaluation too.

    Args:
        group_of: {LoRA layer: its `LoraGroup`}, used while the model trains.
    """
    for module in list(model.modules()):
        if is_fused_phi_layer(module):
            group = next((group_of[shared] for shared in phi_shared(module) if shared in group_of), None)
            _set_forward(module, functools.partialmethod(phi_layer_forward, group))


def _lora_forward(layer, original, group, x, *args, **kwargs):
    if not (layer.training and torch.is_grad_enabled()):
        return original(x, *args, **kwargs)
    return group(x)[layer]


def _dropout_forward(module, original, masks, x):
    if not (module.training and torch.is_grad_enabled()):
        return original(x)
    return SeededDropout.apply(x, module.p, masks.seed, masks.next_sites(1))
