"""LoRA layers in fewer kernels.

`LoraLinears` computes LoRA layers that share their input in one autograd function, in the precision of the activations.
PEFT casts each input to fp32 and each output back.
"""

import math
from collections.abc import Sequence

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer

from stages.kernels.dropout import Masks, add_dropped_, dropped
from stages.kernels.errors import StepUnavailable


class LoraCopies:
    """LoRA's weights in the precision of the activations, in one buffer, and their gradients in another.

    The products use the copies, the optimizer uses the fp32 weights. B's copy is scaled by alpha / r, which saves a
    kernel at each use. With one buffer for all, a cast takes two kernels instead of two for each of 384 weights.

    Args:
        groups: the LoRA layers, in groups that share their input.
        dtype: of the activations.

    Attributes:
        copies: leaves of the autograd graph: A of each group, [n, r, in], then B of each layer, [out, r].

    Raises:
        StepUnavailable: where a layer does more than LoRA's formula.
    """

    def __init__(self, groups: Sequence[Sequence[LoraLayer]], dtype: torch.dtype) -> None:
        layers = [layer for group in groups for layer in group]
        for layer in layers:
            if not _is_plain(layer):
                raise StepUnavailable(f"no fast form of {type(layer).__name__} on {type(layer.base_layer).__name__}")
        scalings = {layer.scaling["default"] for layer in layers}
        if len(scalings) != 1:
            raise StepUnavailable("LoRA layers of several scalings")
        self.scaling = scalings.pop()
        a = [layer.lora_A["default"].weight for layer in layers]
        b = [layer.lora_B["default"].weight for layer in layers]
        self.weights, self.count_a = a + b, sum(w.numel() for w in a)
        count = sum(w.numel() for w in self.weights)
        self.buffer = torch.empty(count, dtype=dtype, device=a[0].device)
        self.grad_buffer = torch.empty(count, dtype=torch.float32, device=a[0].device)
        self.grads = _views(self.grad_buffer, [w.shape for w in self.weights])
        stacks = [(len(group), *group[0].lora_A["default"].weight.shape) for group in groups]
        self.copies = [view.requires_grad_() for view in _views(self.buffer, stacks + [w.shape for w in b])]
        self.stacked_a, self.b = self.copies[: len(groups)], dict(zip(layers, self.copies[len(groups) :], strict=True))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights as they are now."""
        now = torch.cat([w.view(-1) for w in self.weights])
        now[self.count_a :] *= self.scaling
        self.buffer.copy_(now)

    @torch.no_grad()
    def take_grads(self, grads: Sequence[torch.Tensor]) -> None:
        """Take the gradients of `copies`, in their order, as those of the weights."""
        self.grad_buffer.copy_(torch.cat([g.reshape(-1) for g in grads]))
        self.grad_buffer[self.count_a :] *= self.scaling

    def hand_out_grads(self) -> None:
        """Put the gradients where the optimizer looks for them."""
        for weight, grad in zip(self.weights, self.grads, strict=True):
            weight.grad = grad


def _views(buffer: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """`buffer` cut into tensors of these shapes."""
    pieces = buffer.split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _is_plain(module: LoraLayer) -> bool:
    base = module.base_layer
    return (
        type(base) in (bnb.nn.Linear4bit, torch.nn.Linear)
        and list(module.lora_A) == ["default"]
        and not module.lora_variant
        and not module.merged
        and module.lora_A["default"].bias is None
        and module.lora_B["default"].bias is None
    )


class LoraGroup:
    """LoRA layers that share their input, as one call.

    Args:
        a: copies of their A, [n, r, in].
        b: copies of their B, n of [out_i, r], scaled.
        dequantize_once: keep the dequantized weights, or dequantize them at each use.
    """

    def __init__(
        self,
        layers: Sequence[LoraLayer],
        a: torch.Tensor,
        b: Sequence[torch.Tensor],
        masks: Masks,
        dequantize_once: bool,
    ) -> None:
        self.layers, self.a, self.b, self.masks = layers, a, b, masks
        self.frozen = [FrozenLinear(layer.base_layer, a.dtype, dequantize_once) for layer in layers]
        dropout = layers[0].lora_dropout["default"]
        self.p = dropout.p if isinstance(dropout, torch.nn.Dropout) else 0.0

    def __call__(self, x: torch.Tensor) -> dict[LoraLayer, torch.Tensor]:
        """{layer: its output} for x [..., in]."""
        site = self.masks.next_sites(len(self.layers))
        outputs = LoraLinears.apply(x, self.a, self.frozen, self.p, self.masks.seed, site, *self.b)
        return dict(zip(self.layers, outputs, strict=True))


class FrozenLinear:
    """A frozen base layer: its weight [out, in] in the precision of its products.

    Args:
        layer: quantized or not.
        dtype: of the activations.
        keep: keep the dequantized weight, or dequantize it at each use.
    """

    def __init__(self, layer: torch.nn.Linear, dtype: torch.dtype, keep: bool) -> None:
        quantized = isinstance(layer, bnb.nn.Linear4bit)
        # As in bitsandbytes: with fp32 activations the quantized products have a precision of their own.
        self.dtype = layer.compute_dtype if quantized and dtype == torch.float32 else dtype
        self.layer = layer
        self.bias = None if layer.bias is None else layer.bias.detach().to(self.dtype)
        self.kept = self._dense() if keep or not quantized else None

    def _dense(self) -> torch.Tensor:
        weight = self.layer.weight
        if isinstance(weight, bnb.nn.Params4bit):
            return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).to(self.dtype)
        return weight.detach().to(self.dtype)

    def weight(self) -> torch.Tensor:
        """[out, in], dense."""
        return self._dense() if self.kept is None else self.kept

    def add_input_grad(self, dx: torch.Tensor | None, dy: torch.Tensor) -> torch.Tensor:
        """dx + dy W, in dy's precision. `dx` is changed in place; it is None before the first layer of a group."""
        if dx is not None and self.dtype == dy.dtype:
            return dx.addmm_(dy, self.weight())
        grad = (dy.to(self.dtype) @ self.weight()).to(dy.dtype)
        return grad if dx is None else dx.add_(grad)


class LoraLinears(torch.autograd.Function):
    """y_i = x W_i' + bias_i + dropout_i(x) A_i' B_i', i = 1 to n, with W frozen and B scaled by alpha / r.

    Shapes: x [..., in], a [n, r, in], b_i [out_i, r]. Saved for the backward: x and dropout(x) A'. W is kept, or
    dequantized again. Source: Hu et al. 2021 (LoRA), Dettmers et al. 2023 (QLoRA).
    """

    @staticmethod
    def forward(
        ctx,
        x: torch.Tensor,
        a: torch.Tensor,
        frozen: Sequence[FrozenLinear],
        p: float,
        seed: torch.Tensor,
        site: int,
        *b: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.frozen, ctx.p, ctx.site = frozen, p, site
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        u = dropped(rows, len(b), p, seed, site) @ a.mT  # [n, rows, r]
        outputs = []
        for layer, u_i, b_i in zip(frozen, u, b, strict=True):
            y = torch.nn.functional.linear(rows.to(layer.dtype), layer.weight(), layer.bias).to(x.dtype)
            outputs.append(y.addmm_(u_i, b_i.t()).view(*x.shape[:-1], -1))
        ctx.save_for_backward(rows, a, u, seed, *b)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *dys: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a, u, seed, *b = ctx.saved_tensors
        shape, dys = dys[0].shape[:-1], [dy.reshape(-1, dy.shape[-1]) for dy in dys]
        du = torch.empty_like(u)
        for dy, b_i, du_i in zip(dys, b, du, strict=True):
            torch.mm(dy, b_i, out=du_i)
        db = [dy.t() @ u_i for dy, u_i in zip(dys, u, strict=True)]
        da = du.mT @ dropped(x, len(b), ctx.p, seed, ctx.site)
        dx = None
        if ctx.needs_input_grad[0]:
            for layer, dy in zip(ctx.frozen, dys, strict=True):
                dx = layer.add_input_grad(dx, dy)
            dx = add_dropped_(dx, du @ a, ctx.p, seed, ctx.site).view(*shape, -1)
        return dx, da, None, None, None, None, *db
