"""Fits the fused layers into a model: which linear modules compute together, and which dropout has which mask."""

import functools
from collections.abc import Callable

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer

from stages.kernels.architecture import Architecture
from stages.kernels.attention import RowLayout
from stages.kernels.dropout import DropoutMasks, SeededDropout
from stages.kernels.errors import StepUnavailable
from stages.kernels.fused_linear import FusedLinear, FusedProjections
from stages.kernels.gradient_buffer import GradientBuffer
from stages.kernels.multi_tensor_copy import MultiTensorCopy
from stages.kernels.registry import find_architecture

RESERVED_BYTES = 3e9  # bytes: CUDA's own, gradients and optimizer of LoRA, what lies unused between tensors


def fuse_for_training(model: PeftModel, masks: DropoutMasks, keep: bool) -> GradientBuffer:
    """Let a LoRA model compute by fused layers, in place, in training and in evaluation.

    Args:
        keep: keep dequantized weights, or dequantize them at each use.

    Returns:
        where the gradients of all that is trained come to lie.

    Raises:
        StepUnavailable: where a layer does more than the fused ones; the model is as it was.
    """
    groups = _fuse(model, masks, keep)
    with_lora = [group for group in groups if group.lora_layers]
    in_lora = {weight for group in with_lora for layer in group.lora_layers for weight in layer.parameters()}
    gradients = GradientBuffer(with_lora, [p for p in model.parameters() if p.requires_grad and p not in in_lora])
    _refresh_before_forward(model, masks, groups)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers, start=1):
        _set_forward(layer, _numbered(type(layer).forward, masks, number))
    if uses_gradient_checkpointing(model):  # masks need no random state, and a capture has none to save
        kwargs = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
        model.get_base_model().gradient_checkpointing_enable(kwargs)
    return gradients


def fuse_for_evaluation(model: torch.nn.Module, keep: bool) -> bool:
    """Let a classifier compute by fused layers, in place; for evaluation alone. False where its layers can't."""
    try:
        masks = DropoutMasks(next(model.parameters()).device)
        _refresh_before_forward(model, masks, _fuse(model, masks, keep))
    except StepUnavailable:
        return False
    return True


def dequantized_weights_fit(model: torch.nn.Module, tokens: int = 0) -> bool:
    """Whether the GPU has room for dequantized weights beside the 4-bit ones.

    Args:
        tokens: of the largest batch of a training that keeps all that its backward wants; 0 in evaluation.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return False
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's own, of models before
    return torch.cuda.mem_get_info(device)[0] + unused >= estimate_memory(model, tokens)


def estimate_memory(model: torch.nn.Module, tokens: int) -> float:
    """What dequantized weights take, and for each token input and output of each linear module, twice to be safe.

    Of phi-2 5.0e9, and 4.9e6 a token: 22.5e9 for 4,600 tokens. Its peak at batch 128 in benchmarks/results/h100.json,
    so many tokens, leaves 12.5e9 for them beside 6.7e9 of weights.
    """
    base = unwrap_peft(model)
    linears = [module for module in base.base_model.modules() if isinstance(module, torch.nn.Linear)]
    sizes = [(module.in_features, module.out_features) for module in linears if not module.weight.requires_grad]
    width = base.dtype.itemsize
    return width * (sum(i * o for i, o in sizes) + 2 * tokens * sum(i + o for i, o in sizes)) + RESERVED_BYTES


def uses_gradient_checkpointing(model: torch.nn.Module) -> bool:
    """Whether layers are computed again in the backward, to save memory."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def takes_packed_rows(model: torch.nn.Module) -> bool:
    """Whether the model takes packed rows: each decoder layer knows where a row ends (`packed.compute_logits`)."""
    base = unwrap_peft(model)
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    return (
        type(base).forward is GenericForSequenceClassification.forward
        and bool(layers)
        and all(find_architecture(layer) for layer in layers)
    )


def unwrap_peft(model: torch.nn.Module) -> PreTrainedModel:
    """transformers' classifier, below PEFT or as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _fuse(model: torch.nn.Module, masks: DropoutMasks, keep: bool) -> list[FusedLinear]:
    dtype, known = unwrap_peft(model).dtype, _known_layers(model)
    shared = [group for layer, architecture in known for group in architecture.linears_by_input(layer)]
    grouped = {module for group in shared for module in group}
    loras = [module for module in model.modules() if isinstance(module, LoraLayer)]
    alone = [(module,) for module in loras if module not in grouped]
    group_of = {modules: FusedLinear(modules, dtype, masks, keep) for modules in [*map(tuple, shared), *alone]}
    for modules in alone:
        modules[0].forward = group_of[modules]
    in_lora = {inner for module in loras for inner in module.modules()}
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0 and module not in in_lora:
            module.forward = functools.partial(_dropout_forward, module, module.forward, masks)
    project = FusedProjections(group_of, masks)
    for layer, architecture in known:
        _set_forward(layer, functools.partialmethod(_layer_forward, architecture.forward, project))
    return list(group_of.values())


def _refresh_before_forward(model: torch.nn.Module, masks: DropoutMasks, groups: list[FusedLinear]) -> None:
    pairs = [pair for group in groups if group.lora_layers for pair in group.copies()]
    hook = functools.partial(_before_forward, masks, MultiTensorCopy(pairs) if pairs else None)
    unwrap_peft(model).base_model.register_forward_pre_hook(hook)


def _known_layers(model: torch.nn.Module) -> list[tuple[torch.nn.Module, Architecture]]:
    pairs = [(module, find_architecture(module)) for module in model.modules()]
    return [(module, architecture) for module, architecture in pairs if architecture]


def _before_forward(masks: DropoutMasks, copies: MultiTensorCopy | None, *_: object) -> None:
    """The model computes with LoRA's weights of now, and by the masks of a forward's beginning."""
    masks.start_layer(0)
    if copies:
        copies.run()


def _layer_forward(
    layer: torch.nn.Module,
    forward: Callable,
    project: FusedProjections,
    x: torch.Tensor,
    *_: object,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **__: object,
) -> torch.Tensor:
    """`Architecture.forward` with what transformers gives to a decoder layer.

    The attention mask is not looked at: batches have none, and the causal one that transformers makes under a capture
    says no more than that a token does not see those after it.
    """
    return forward(layer, project, x, RowLayout.from_layer_inputs(x, position_embeddings, cu_seq_lens_q, max_length_q))


def _set_forward(layer: torch.nn.Module, forward: Callable) -> None:
    """Let a decoder layer compute by forward(layer, …), set on a class of its own.

    A forward of the instance would go round checkpointing: transformers 5.17 has it in the class's call and 5.23 in the
    class's forward.
    """
    layer.__class__ = type(type(layer).__name__, (type(layer),), {"forward": forward})


def _numbered(forward: Callable, masks: DropoutMasks, number: int) -> Callable:
    def numbered(layer, *args, **kwargs):
        masks.start_layer(number)
        return forward(layer, *args, **kwargs)

    return numbered


def _dropout_forward(
    module: torch.nn.Dropout, original: Callable, masks: DropoutMasks, x: torch.Tensor
) -> torch.Tensor:
    if not (module.training and torch.is_grad_enabled()):
        return original(x)
    return SeededDropout.apply(x, module.p, masks.seed, masks.next_sites(1))
