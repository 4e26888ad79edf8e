"""Linear modules that share their input, computed as one product, with their LoRA weights.

PEFT computes a LoRA layer in a dozen kernels and in fp32. Here the frozen W and LoRA's B are columns of one matrix
[W | B]. The layer's output is then one product, [x | u] [W | B]', where u is LoRA's down-projection of x. The gradients
of x and u are one more, dy [W | B].
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer

from stages.kernels.dropout import Dropout, DropoutMasks
from stages.kernels.errors import StepUnavailable
from stages.kernels.lora_kernels import MANY_TOKENS, compute_input_grad, down_project, padded_rank, write_a_grads
from stages.kernels.side_stream import SideStream

TILE = 256  # columns of the tiles that cuBLAS chooses for many tokens on an H200
Saved = tuple[torch.Tensor | None, Dropout]  # what `FusedLinear.backward` needs: [f | u], None without LoRA


def get_frozen_layer(module: torch.nn.Module) -> torch.nn.Module:
    """The frozen layer inside a LoRA module, or the module itself."""
    return module.base_layer if isinstance(module, LoraLayer) else module


def get_lora_weights(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, in] and B [out, r]."""
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    return cast(torch.nn.Linear, a).weight, cast(torch.nn.Linear, b).weight


def can_fuse_linear(module: torch.nn.Module) -> bool:
    """Whether `FusedLinear` supports all that a module does."""
    if not isinstance(module, LoraLayer):
        return type(module) in (bnb.nn.Linear4bit, torch.nn.Linear)
    return (
        can_fuse_linear(module.base_layer)
        and list(module.lora_A) == ["default"]
        and not module.lora_variant
        and not module.merged
        and module.lora_A["default"].bias is None
        and module.lora_B["default"].bias is None
    )


@dataclass
class LoraGrads:
    """Where the backward of a `FusedLinear` writes the gradients of its n LoRA modules.

    Attributes:
        buffer: fp32, flat, of the whole model.
        a_offsets: int64 [n], where in `buffer` each A's gradient begins.
        a: views of `buffer`, each [r, in].
        b: [sum of outs, n * R], from one product for all modules. Only its n diagonal blocks are gradients of B, and
            `GradientBuffer` copies them to `buffer`.
        dummy_input: an input of the autograd function that requires a gradient. Without it autograd would skip the
            backward of the first layer, whose x requires none.
        side_stream: where the gradients are computed.
        is_written: whether this step's backward has written the gradients.
    """

    buffer: torch.Tensor
    a_offsets: torch.Tensor
    a: list[torch.Tensor]
    b: torch.Tensor
    dummy_input: torch.Tensor
    side_stream: SideStream
    is_written: bool = False


class FusedLinear:
    """y = [x W_1' + bias_1 + LoRA_1(x) | x W_2' + … ] of modules with the input x.

    LoRA_i(x) = alpha / r * dropout_i(x) A_i' B_i' (Hu et al. 2021); it is left out where module i has no LoRA.

    Args:
        modules: linear layers, quantized (Dettmers et al. 2023) or not; some or all of them may have LoRA.
        dtype: of the activations.
        masks: of the dropouts.

    Attributes:
        weight: W, dequantized at each use; after `keep_weight` a copy of it is here.
        a: copies of A, padded, [n, R, in] (`lora_kernels.padded_rank`); only with LoRA.
        b: copies of alpha / r times B, block by block, [sum of outs, n * R]; only with LoRA.
        grads: None outside training.
        zeros: {number of tokens: zeros [sum of outs]}, where `multiply` is faster if it adds them.

    Raises:
        StepUnavailable: where a module does more than this formula.
    """

    a: torch.Tensor
    b: torch.Tensor

    def __init__(self, modules: Sequence[torch.nn.Module], dtype: torch.dtype, masks: DropoutMasks) -> None:
        self.masks = masks
        self.grads: LoraGrads | None = None
        self.layers: list[torch.nn.Linear] = []
        for module in modules:
            layer = get_frozen_layer(module)
            if not (can_fuse_linear(module) and isinstance(layer, torch.nn.Linear)):
                raise StepUnavailable(
                    f"the fused layers do not support {type(module).__name__} on {type(layer).__name__}; "
                    "supported: torch.nn.Linear and Linear4bit, with or without LoRA in its plain form"
                )
            self.layers.append(layer)
        first = self.layers[0]
        self.out_features, self.in_features = [layer.out_features for layer in self.layers], first.in_features
        self.dtype = dtype
        if isinstance(first, bnb.nn.Linear4bit) and dtype == torch.float32:
            self.dtype = first.compute_dtype  # as in bitsandbytes
        self.bias = self._concatenate_biases()
        self.lora_layers = [module for module in modules if isinstance(module, LoraLayer)]
        self.zeros: dict[int, torch.Tensor] = {}
        self.weight: torch.Tensor | None = None
        self.b_in_weight = False
        if self.lora_layers:
            self._read_lora_options()
            self.lora_slices = self._output_slices(modules)
            n, lora_rank, device = len(self.lora_layers), padded_rank(self.r), first.weight.device
            self.a = torch.zeros((n, lora_rank, self.in_features), dtype=dtype, device=device)
            self.b = torch.zeros((sum(self.out_features), n * lora_rank), dtype=dtype, device=device)

    def count_weight_bytes(self) -> int:
        """Bytes that `keep_weight` adds."""
        return sum(self.out_features) * self.in_features * self.dtype.itemsize

    def keep_weight(self, keep: bool = True) -> None:
        """Choose whether a dequantized copy of W is kept. If B has its dtype, both are one matrix, and one product."""
        if keep == (self.weight is not None):
            return
        if not keep:
            if self.b_in_weight:
                self.b, self.b_in_weight = self.b.clone(memory_format=torch.contiguous_format), False
            self.weight = None
            return
        width = 0
        if self.lora_layers and self.dtype == self.b.dtype:
            self.b_in_weight, width = True, self.b.shape[1]
        shape = (sum(self.out_features), self.in_features + width)
        weight = torch.empty(shape, dtype=self.dtype, device=self.layers[0].weight.device)
        for rows, layer in zip(weight.split(self.out_features), self.layers, strict=True):
            rows[:, : self.in_features] = _dequantize(layer, self.dtype)
        if self.b_in_weight:
            weight[:, self.in_features :] = self.b
            self.b = weight[:, self.in_features :]
        self.weight = weight

    def _concatenate_biases(self) -> torch.Tensor | None:
        if all(layer.bias is None for layer in self.layers):
            return None
        device = self.layers[0].weight.device
        zeros = [torch.zeros(out, device=device) for out in self.out_features]
        biases = [layer.bias if layer.bias is not None else z for layer, z in zip(self.layers, zeros, strict=True)]
        return torch.cat([bias.detach().to(self.dtype) for bias in biases])

    def _read_lora_options(self) -> None:
        """Read rank, scaling and dropout. The kernels need the same rank and scaling in all modules."""
        first = self.lora_layers[0]
        self.r, self.scaling = first.r["default"], first.scaling["default"]
        if any(layer.r["default"] != self.r for layer in self.lora_layers):
            raise StepUnavailable("LoRA modules with one input differ in rank")
        if any(layer.scaling["default"] != self.scaling for layer in self.lora_layers):
            raise StepUnavailable("LoRA modules with one input differ in alpha / r")
        dropout = first.lora_dropout["default"]
        self.p = dropout.p if isinstance(dropout, torch.nn.Dropout) else 0.0

    def _output_slices(self, modules: Sequence[torch.nn.Module]) -> list[slice]:
        """The output columns of each LoRA module."""
        firsts = [sum(self.out_features[:i]) for i in range(len(modules))]
        slices = [slice(first, first + out) for first, out in zip(firsts, self.out_features, strict=True)]
        return [s for s, module in zip(slices, modules, strict=True) if isinstance(module, LoraLayer)]

    def list_copies(self) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """(LoRA's weight, its place in `a` or `b`, factor) for `MultiTensorCopy`."""
        copies = []
        for i, layer in enumerate(self.lora_layers):
            a, b = get_lora_weights(layer)
            copies.append((a.detach(), self.a[i, : self.r], 1.0))
            copies.append((b.detach(), self.b_block(self.b, i), self.scaling))
        return copies

    def b_block(self, b: torch.Tensor, i: int) -> torch.Tensor:
        """The block of LoRA module i, [out_i, r], in a matrix of b's shape."""
        first = i * self.a.shape[1]
        return b[self.lora_slices[i], first : first + self.r]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """y [..., sum of outs] for x [..., in], under autograd."""
        return _Product.apply(x, self.dummy_input, self)

    @property
    def dummy_input(self) -> torch.Tensor | None:
        """See `LoraGrads`."""
        return None if self.grads is None else self.grads.dummy_input

    def forward(self, x: torch.Tensor, gelu: bool = False) -> tuple[torch.Tensor, Saved]:
        """y for f = x or gelu(x), and what `backward` needs; x: [tokens, in], rows of any stride."""
        if not self.lora_layers:
            f = torch.nn.functional.gelu(x, approximate="tanh") if gelu else x
            return self.multiply(f), (None, Dropout(0.0, self.masks.seed))
        p = self.p if self.lora_layers[0].training else 0.0
        dropout = self.masks.make_dropout(p, len(self.a), len(x))
        fu = down_project(x.to(self.a.dtype), self.a, *dropout, gelu)
        return self.multiply(fu), (fu, dropout)

    def backward(
        self, dy: torch.Tensor, saved: Saved, gelu: bool = False, x: torch.Tensor | None = None,
        out: torch.Tensor | None = None, needs_dx: bool = True,
    ) -> torch.Tensor | None:  # fmt: skip
        """Write LoRA's gradients into their buffer and return x's.

        Args:
            dy: [tokens, sum of outs], contiguous.
            saved: from `forward`.
            gelu, x: the arguments of `forward`; x is needed only with gelu.
            out: where to write x's gradient.
            needs_dx: False for the first layer: nothing before it is trained.
        """
        fu, dropout = saved
        if fu is None:
            df = self.multiply_backward(dy)
            if gelu:
                df = torch.ops.aten.gelu_backward(df, x, approximate="tanh")
            return df if out is None else out.copy_(df)
        assert self.grads is not None, "a backward outside training"
        dfu = self.multiply_backward(dy) if needs_dx else None
        du = dy @ self.b.to(dy.dtype) if dfu is None else dfu[:, self.in_features :]
        write_grads = functools.partial(self._write_lora_grads, self.grads, dy, du, fu, dropout, self.grads.is_written)
        self.grads.side_stream.run(write_grads, tokens=len(dy))
        self.grads.is_written = True
        return None if dfu is None else compute_input_grad(dfu, self.a, *dropout, gelu, x, out)

    def _write_lora_grads(
        self, grads: LoraGrads, dy: torch.Tensor, du: torch.Tensor, fu: torch.Tensor, dropout: Dropout, add: bool
    ) -> None:
        """Write the gradients of A and B.

        Args:
            add: add to the values there, because the forward used this layer twice.
        """
        f, u = fu[:, : self.in_features], fu[:, self.in_features :]
        write_a_grads(grads.buffer, grads.a_offsets, self.r, du, f, *dropout, add=add)
        if add:
            grads.b.addmm_(dy.t(), u)
        else:
            torch.mm(dy.t(), u, out=grads.b)

    def dequantize(self) -> torch.Tensor:
        """W, [sum of outs, in]."""
        if self.weight is not None:
            return self.weight[:, : self.in_features]
        if len(self.layers) == 1:
            return _dequantize(self.layers[0], self.dtype)
        device = self.layers[0].weight.device
        out = torch.empty((sum(self.out_features), self.in_features), dtype=self.dtype, device=device)
        for rows, layer in zip(out.split(self.out_features), self.layers, strict=True):
            state = getattr(layer.weight, "quant_state", None)
            if state is not None and layer.weight.is_cuda and state.dtype == self.dtype:
                bnb.functional.dequantize_4bit(layer.weight.data, state, out=rows)
            else:  # on a CPU bitsandbytes does not support `out`
                rows.copy_(_dequantize(layer, self.dtype))
        return out

    def multiply(self, xu: torch.Tensor) -> torch.Tensor:
        """[x | u] [W | B]' + bias; without LoRA x W' + bias."""
        linear = torch.nn.functional.linear
        if self.weight is not None and self.b_in_weight:
            return linear(xu.to(self.dtype), self.weight, self.zeros.get(len(xu), self.bias)).to(xu.dtype)
        y = linear(xu[:, : self.in_features].to(self.dtype), self.dequantize(), self.bias).to(xu.dtype)
        return y.addmm_(xu[:, self.in_features :], self.b.t()) if self.lora_layers else y

    def multiply_backward(self, dy: torch.Tensor) -> torch.Tensor:
        """dy [W | B], the gradient of [x | u]; without LoRA dy W."""
        if not self.lora_layers:
            return (dy.to(self.dtype) @ self.dequantize()).to(dy.dtype)
        # LoRA's columns may begin another tile of cuBLAS, which costs time where the tiles fill the GPU. On an H200,
        # phi-2's widest product and 8,448 tokens take 1,223 us for all 2,624 columns, 1,116 for W's 2,560. The few
        # columns of one module do not pay for a product of their own.
        begins_tile = -(-self.in_features // TILE) < -(-(self.in_features + self.b.shape[1]) // TILE)
        splits_product = begins_tile and len(dy) >= MANY_TOKENS and len(self.out_features) > 1
        if self.weight is not None and self.b_in_weight and not splits_product:
            return (dy.to(self.dtype) @ self.weight).to(dy.dtype)
        out = torch.empty((len(dy), self.in_features + self.b.shape[1]), dtype=dy.dtype, device=dy.device)
        assert self.grads is not None, "a backward outside training"
        product_of_b = functools.partial(torch.mm, dy, self.b, out=out[:, self.in_features :])
        self.grads.side_stream.run(product_of_b, tokens=len(dy))
        if self.dtype == dy.dtype:
            torch.mm(dy, self.dequantize(), out=out[:, : self.in_features])
        else:
            out[:, : self.in_features] = dy.to(self.dtype) @ self.dequantize()
        self.grads.side_stream.join()
        return out


class FusedProjections:
    """The fused linear layers of a model, found by the modules that they replace.

    Args:
        fused_linears: {modules that share an input: their `FusedLinear`}.
        masks: of all dropouts of the model.
    """

    def __init__(self, fused_linears: dict[tuple[torch.nn.Module, ...], FusedLinear], masks: DropoutMasks) -> None:
        self.fused_linears, self.masks = fused_linears, masks

    def __call__(self, modules: Sequence[torch.nn.Module], x: torch.Tensor) -> torch.Tensor:
        """The outputs of the modules for x [..., in], as columns of one tensor; its gradient is one tensor too."""
        return self.fused_linears[tuple(modules)](x)

    def select(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """These tokens of x, [1, selected, hidden]. The rest of the layer computes no others: they get their masks."""
        self.masks.select(tokens)
        # The backward adds in any order. It still gives the same bytes: only empty rows share a token, and they add 0.
        return x.index_select(1, tokens)


class _Product(torch.autograd.Function):
    """`FusedLinear` under autograd. It saves x and u; W is kept, or dequantized again in the backward."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, dummy_input: torch.Tensor | None, fused: FusedLinear) -> torch.Tensor:
        y, (fu, ctx.dropout) = fused.forward(x.reshape(-1, fused.in_features))
        ctx.fused = fused
        ctx.save_for_backward(fu)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (fu,) = ctx.saved_tensors
        flat = dy.reshape(-1, dy.shape[-1]).contiguous()
        dx = ctx.fused.backward(flat, (fu, ctx.dropout), needs_dx=ctx.needs_input_grad[0])
        return None if dx is None else dx.view(*dy.shape[:-1], -1), None, None


def _dequantize(layer: torch.nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    weight = layer.weight
    if isinstance(weight, bnb.nn.Params4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    return weight.detach().to(dtype)
