"""Replace a model's layers by fused ones: linear modules computed together, and dropouts with `DropoutMasks`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer

from stages.kernels.architecture import Architecture
from stages.kernels.attention import RowLayout
from stages.kernels.dropout import DropoutMasks, SeededDropout
from stages.kernels.errors import StepUnavailable
from stages.kernels.faster_product import find_faster_bias
from stages.kernels.fused_linear import FusedLinear, FusedProjections
from stages.kernels.gradient_buffer import GradientBuffer
from stages.kernels.lora_kernels import MANY_TOKENS
from stages.kernels.multi_tensor_copy import MultiTensorCopy
from stages.kernels.registry import find_architecture

RESERVED_BYTES = 3e9  # in evaluation, for a batch and for CUDA


class FusedModel:
    """A model whose layers are fused, in place. Linear layers dequantize their weights at each use.

    Args:
        masks: of the dropouts.

    Raises:
        StepUnavailable: where the fused layers do not support a layer; the model is unchanged.
    """

    def __init__(self, model: torch.nn.Module, masks: DropoutMasks) -> None:
        self.model, self.masks = model, masks
        self.linears = _fuse(model, masks)
        self._collect_copies()
        unwrap_peft(model).base_model.register_forward_pre_hook(self._before_forward)

    def keep_weights(self, keep: bool = True) -> None:
        """Choose whether a dequantized copy of all weights is kept."""
        for linear in self.linears:
            linear.keep_weight(keep)
        self._collect_copies()

    def _collect_copies(self) -> None:
        copies = [copy for linear in self.linears if linear.lora_layers for copy in linear.list_copies()]
        self.lora_copy = MultiTensorCopy(copies) if copies else None

    def _before_forward(self, *_: object) -> None:
        """Copy LoRA's current weights, and restart the numbering of dropouts."""
        self.masks.start_layer(0)
        if self.lora_copy:
            self.lora_copy.run()


class FusedTraining(FusedModel):
    """A LoRA model with fused layers, for training and evaluation.

    Attributes:
        gradients: the buffer into which the backward writes all gradients.
    """

    def __init__(self, model: PeftModel, masks: DropoutMasks) -> None:
        super().__init__(model, masks)
        with_lora = [linear for linear in self.linears if linear.lora_layers]
        lora_parameters = {w for linear in with_lora for layer in linear.lora_layers for w in layer.parameters()}
        others = [weight for weight in model.parameters() if weight.requires_grad and weight not in lora_parameters]
        self.gradients = GradientBuffer(with_lora, others)
        self._collect_copies()  # the buffer has moved LoRA's weights
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for number, layer in enumerate(layers, start=1):
            _set_forward(layer, _with_numbered_masks(type(layer).forward, masks, number))
        if uses_gradient_checkpointing(model):
            self.set_checkpointing(True)

    def choose_products(self, tokens: int) -> None:
        """Compute products of kept weights without a bias by the faster of two kernels.

        Args:
            tokens: of the batch. If they are many, nothing is to be gained.
        """
        if tokens >= MANY_TOKENS:
            return
        zeros: dict[torch.Size, torch.Tensor | None] = {}
        for linear in self.linears:
            if linear.weight is None or not linear.b_in_weight or linear.bias is not None:
                continue
            shape = linear.weight.shape
            if shape not in zeros:
                zeros[shape] = find_faster_bias(linear.weight, tokens)
            if (bias := zeros[shape]) is not None:
                linear.zeros[tokens] = bias

    def set_checkpointing(self, enabled: bool) -> None:
        """Choose whether the layers are recomputed in the backward."""
        base = unwrap_peft(self.model)
        if enabled:  # masks need no random state, and a graph capture has none to save
            kwargs = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
            base.gradient_checkpointing_enable(kwargs)
        elif uses_gradient_checkpointing(base):
            base.gradient_checkpointing_disable()


def fuse_for_evaluation(model: torch.nn.Module, dequantize_once: bool) -> bool:
    """Replace a classifier's layers by fused ones, in place, for evaluation only.

    Returns:
        False where the fused layers do not support a layer; the model is unchanged.
    """
    try:
        fused = FusedModel(model, DropoutMasks(next(model.parameters()).device))
    except StepUnavailable:
        return False
    if dequantize_once:
        fused.keep_weights()
    return True


def dequantized_weights_fit(model: torch.nn.Module) -> bool:
    """Whether the GPU has enough free memory for dequantized weights in addition to the 4-bit ones, in evaluation."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return False
    weights = sum(i * o for i, o in _frozen_linears(model)) * unwrap_peft(model).dtype.itemsize
    return count_free_bytes() >= weights + RESERVED_BYTES


def count_free_bytes() -> int:
    """Bytes of the current GPU that are free, or that PyTorch reserved for earlier tensors and does not use."""
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + unused


def estimate_bytes_per_token(model: torch.nn.Module) -> int:
    """An upper bound of the bytes that a step keeps for each token: twice each linear module's input and output.

    For phi-2 it is 5.9e6. Measured were 2.7e6 (batch 128 in benchmarks/results/h100.json).
    """
    return 2 * sum(i + o for i, o in _frozen_linears(model)) * unwrap_peft(model).dtype.itemsize


def _frozen_linears(model: torch.nn.Module) -> list[tuple[int, int]]:
    """Columns of input and output of each frozen linear module."""
    linears = [module for module in unwrap_peft(model).base_model.modules() if isinstance(module, torch.nn.Linear)]
    return [(module.in_features, module.out_features) for module in linears if not module.weight.requires_grad]


def uses_gradient_checkpointing(model: torch.nn.Module) -> bool:
    """Whether layers are recomputed in the backward, to save memory."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def takes_packed_rows(model: torch.nn.Module) -> bool:
    """Whether `packed.compute_logits` can run the model: all decoder layers are fused, so each knows where rows end."""
    base = unwrap_peft(model)
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    return (
        type(base).forward is GenericForSequenceClassification.forward
        and bool(layers)
        and all(find_architecture(layer) for layer in layers)
    )


def unwrap_peft(model: torch.nn.Module) -> PreTrainedModel:
    """transformers' classifier: the model inside PEFT's, or the model itself."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def _fuse(model: torch.nn.Module, masks: DropoutMasks) -> list[FusedLinear]:
    dtype, layers = unwrap_peft(model).dtype, _fusable_layers(model)
    shared = [modules for layer, architecture in layers for modules in architecture.linears_by_input(layer)]
    in_layers = {module for modules in shared for module in modules}
    lora_modules = [module for module in model.modules() if isinstance(module, LoraLayer)]
    unshared = [(module,) for module in lora_modules if module not in in_layers]
    fused_linears = {modules: FusedLinear(modules, dtype, masks) for modules in [*shared, *unshared]}
    for modules in unshared:
        modules[0].forward = fused_linears[modules]
    in_lora = {inner for module in lora_modules for inner in module.modules()}
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0 and module not in in_lora:
            seeded = functools.partial(_dropout_forward, module, module.forward, masks)
            module.forward = seeded  # type: ignore[method-assign]  # of this instance only
    project = FusedProjections(fused_linears, masks)
    for layer, architecture in layers:
        _set_forward(layer, functools.partialmethod(_layer_forward, architecture.forward, project))
    return list(fused_linears.values())


def _fusable_layers(model: torch.nn.Module) -> list[tuple[torch.nn.Module, Architecture]]:
    """The layers to fuse, in the order in which the model runs them; the last with the architecture of a last layer."""
    found = [(module, find_architecture(module)) for module in model.modules()]
    pairs = [(module, architecture) for module, architecture in found if architecture]
    for module, architecture in pairs[-1:]:
        select = functools.partial(_select_last, architecture.forward)
        pairs[-1] = module, architecture.last or dataclasses.replace(architecture, forward=select)
    return pairs


def _select_last(
    forward: Callable[..., torch.Tensor], layer: torch.nn.Module, project: FusedProjections, x: torch.Tensor,
    layout: RowLayout,
) -> torch.Tensor:  # fmt: skip
    """The classified tokens of a last layer that computes all of them."""
    y = forward(layer, project, x, layout)
    return y if layout.last is None else y[:, layout.last]


def _layer_forward(
    layer: torch.nn.Module,
    forward: Callable[..., torch.Tensor],
    project: FusedProjections,
    x: torch.Tensor,
    *_: object,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    last: torch.Tensor | None = None,
    **__: object,
) -> torch.Tensor:
    """`Architecture.forward` with the arguments that transformers passes to a decoder layer.

    The attention mask is ignored: batches have none. The causal mask that transformers builds under a graph capture
    says only that a token does not see later ones.
    """
    layout = RowLayout.from_layer_inputs(x, position_embeddings, cu_seq_lens_q, max_length_q, last)
    return forward(layer, project, x, layout)


def _set_forward(layer: torch.nn.Module, forward: Any) -> None:
    """Give a decoder layer a class of its own with this forward: a function or a partialmethod.

    A forward set on the instance would bypass gradient checkpointing. transformers 5.17 applies it in the class's
    `__call__`, 5.23 in the class's `forward`.
    """
    layer.__class__ = type(type(layer).__name__, (type(layer),), {"forward": forward})


def _with_numbered_masks(
    forward: Callable[..., torch.Tensor], masks: DropoutMasks, number: int
) -> Callable[..., torch.Tensor]:
    """A forward that first goes to the dropout masks of its layer."""

    def numbered_forward(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        masks.start_layer(number)
        return forward(layer, *args, **kwargs)

    return numbered_forward


def _dropout_forward(
    module: torch.nn.Dropout, original: Callable[..., torch.Tensor], masks: DropoutMasks, x: torch.Tensor
) -> torch.Tensor:
    if not (module.training and torch.is_grad_enabled()):
        return original(x)
    return SeededDropout.apply(x, masks.make_dropout(module.p, 1, x.numel() // x.shape[-1]))
