"""Linear modules that share their input, as one product: their frozen weights and LoRA's beside them.

PEFT computes a LoRA layer in a dozen kernels and in fp32. Here W and LoRA's B stand in one matrix [W | B], so that
[x | u] [W | B]' is a layer's output, and dy [W | B] the gradient of its input and of u in one more.
"""

from collections.abc import Sequence

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer

from stages.kernels import lora_kernels
from stages.kernels.dropout import DropoutMasks
from stages.kernels.errors import StepUnavailable


def get_frozen_layer(module: torch.nn.Module) -> torch.nn.Module:
    """The layer below LoRA, or the module itself."""
    return module.base_layer if isinstance(module, LoraLayer) else module


def can_fuse_linear(module: torch.nn.Module) -> bool:
    """Whether `FusedLinear` computes all that a module does."""
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


class FusedProjections:
    """The linear modules of a model, in groups that share their input.

    Args:
        groups: {modules of a group: their `FusedLinear`}.

    Attributes:
        masks: of all dropouts.
    """

    def __init__(self, groups: dict[tuple[torch.nn.Module, ...], "FusedLinear"], masks: DropoutMasks) -> None:
        self.groups, self.masks = groups, masks

    def __call__(self, modules: Sequence[torch.nn.Module], x: torch.Tensor) -> torch.Tensor:
        """The outputs of a group for x [..., in], side by side in one tensor; its gradient is one too."""
        return self.groups[tuple(modules)](x)


class FusedLinear:
    """y = [x W_1' + bias_1 + LoRA_1(x) | x W_2' + … ] of modules with the input x.

    LoRA_i(x) = alpha / r * dropout_i(x) A_i' B_i' (Hu et al. 2021), nothing where module i has no LoRA.

    Args:
        modules: plain linear layers, quantized (Dettmers et al. 2023) or not, some or all of them with LoRA.
        dtype: of the activations.
        masks: of the dropouts.
        keep: keep a copy of the weights, dequantized and side by side, or make it at each use.

    Attributes:
        a: copies of A, [n, R, in] (`lora_kernels.padded_rank`).
        b: copies of alpha / r times B, block by block, [sum of outs, n * R]. None where no module has LoRA.
        gradients: where the gradients of LoRA's weights go; None where there is no training.

    Raises:
        StepUnavailable: where a layer does more than this formula.
    """

    def __init__(self, modules: Sequence[torch.nn.Module], dtype: torch.dtype, masks: DropoutMasks, keep: bool) -> None:
        for module in modules:
            if not can_fuse_linear(module):
                below = get_frozen_layer(module)
                raise StepUnavailable(f"no fast form of {type(module).__name__} on {type(below).__name__}")
        self.modules, self.masks, self.layers = modules, masks, [get_frozen_layer(module) for module in modules]
        self.lora_layers = [module for module in modules if isinstance(module, LoraLayer)]
        self.outs = [layer.out_features for layer in self.layers]
        self.columns = self.layers[0].in_features
        device, quantized = self.layers[0].weight.device, isinstance(self.layers[0], bnb.nn.Linear4bit)
        # As in bitsandbytes: with fp32 activations the quantized products have a precision of their own.
        self.dtype = self.layers[0].compute_dtype if quantized and dtype == torch.float32 else dtype
        self.bias = self._bias()
        self.weight = self.a = self.b = self.gradients = None
        width = 0
        if self.lora_layers:
            self._read_lora(dtype, device)
            width = self.a.shape[0] * self.a.shape[1]
        # W and B in one matrix where both have one precision.
        self.joined = keep and width > 0 and self.dtype == dtype
        if keep:
            columns = self.columns + (width if self.joined else 0)
            self.weight = torch.zeros((sum(self.outs), columns), dtype=self.dtype, device=device)
            for rows, layer in zip(self.weight.split(self.outs), self.layers, strict=True):
                rows[:, : self.columns] = _dense(layer, self.dtype)
        if self.joined:
            self.b = self.weight[:, self.columns :]
        elif width:
            self.b = torch.zeros((sum(self.outs), width), dtype=dtype, device=device)

    def _bias(self):
        if all(layer.bias is None for layer in self.layers):
            return None
        zeros = [torch.zeros(out, device=self.layers[0].weight.device) for out in self.outs]
        given = [layer.bias if layer.bias is not None else z for layer, z in zip(self.layers, zeros, strict=True)]
        return torch.cat([bias.detach().to(self.dtype) for bias in given])

    def _read_lora(self, dtype, device):
        first = self.lora_layers[0]
        self.r = first.r["default"]
        if any(layer.r["default"] != self.r for layer in self.lora_layers):
            raise StepUnavailable("LoRA layers of several ranks on one input")
        dropout = first.lora_dropout["default"]
        self.p = dropout.p if isinstance(dropout, torch.nn.Dropout) else 0.0
        self.scaling = first.scaling["default"]
        if any(layer.scaling["default"] != self.scaling for layer in self.lora_layers):
            raise StepUnavailable("LoRA layers of several scalings on one input")
        ranks = lora_kernels.padded_rank(self.r)
        firsts = [sum(self.outs[: self.modules.index(m)]) for m in self.lora_layers]
        self.a = torch.zeros((len(self.lora_layers), ranks, self.columns), dtype=dtype, device=device)
        self.lora_slices = [slice(n, n + m.out_features) for n, m in zip(firsts, self.lora_layers, strict=True)]

    def copies(self) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """What `lora.MultiTensorCopy` takes: LoRA's weights, their places in `a` and `b`, their factors."""
        pairs = []
        for i, layer in enumerate(self.lora_layers):
            pairs.append((layer.lora_A["default"].weight.detach(), self.a[i, : self.r], 1.0))
            pairs.append((layer.lora_B["default"].weight.detach(), self.b_block(self.b, i), self.scaling))
        return pairs

    def b_block(self, b: torch.Tensor, i: int) -> torch.Tensor:
        """The block of LoRA layer i in a matrix like `b`, [out_i, r]."""
        first = i * self.a.shape[1]
        return b[self.lora_slices[i], first : first + self.r]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., sum of outs] for x [..., in]."""
        return _Product.apply(x, self.dummy_input, self)

    @property
    def dummy_input(self) -> torch.Tensor | None:
        """What an autograd function takes beside x, so that its backward runs where only LoRA's weights are trained."""
        return None if self.gradients is None else self.gradients.dummy_input

    def forward(self, x: torch.Tensor, gelu: bool = False) -> tuple[torch.Tensor, tuple]:
        """The product for x or gelu(x), x [tokens, in] with rows of any stride; and what `backward` wants of it."""
        if self.a is None:
            f = torch.nn.functional.gelu(x, approximate="tanh") if gelu else x
            return self.product(f), (None, 0.0, None, 0)
        p = self.p if self.lora_layers[0].training else 0.0
        masked = (p, self.masks.seed, self.masks.next_sites(len(self.a)))
        fu = lora_kernels.down_project(x.to(self.a.dtype), self.a, *masked, gelu)
        return self.product(fu), (fu, *masked)

    def backward(
        self, dy: torch.Tensor, saved: tuple, gelu: bool = False, x: torch.Tensor | None = None,
        out: torch.Tensor | None = None, wanted: bool = True,
    ) -> torch.Tensor | None:  # fmt: skip
        """Add LoRA's gradients to their buffer and return the one of x.

        Args:
            dy: [tokens, sum of outs], contiguous.
            saved: from `forward`.
            gelu, x: as `forward` took them; x only with gelu.
            out: where to write the gradient of x.
            wanted: whether there is to be one.
        """
        fu, *masked = saved
        if fu is None:
            df = self.input_product(dy)
            if gelu:
                df = torch.ops.aten.gelu_backward(df, x, approximate="tanh")
            return df if out is None else out.copy_(df)
        f, u = fu[:, : self.columns], fu[:, self.columns :]
        if wanted:
            dfu = self.input_product(dy)
            du = dfu[:, self.columns :]
        else:  # before the first layer nothing is trained
            du = dy @ self.b.to(dy.dtype)
        again = self in self.gradients.written  # a layer that the forward used twice
        lora_kernels.write_a_grads(self.gradients.buffer, self.offsets, self.r, du, f, *masked, again)
        if again:
            self.b_grad.addmm_(dy.t(), u)
        else:
            torch.mm(dy.t(), u, out=self.b_grad)
        self.gradients.written.add(self)
        return lora_kernels.compute_input_grad(dfu, self.a, *masked, gelu, x, out) if wanted else None

    def dense(self) -> torch.Tensor:
        """W, [sum of outs, in]."""
        if self.weight is not None:
            return self.weight[:, : self.columns]
        if len(self.layers) == 1:
            return _dense(self.layers[0], self.dtype)
        out = torch.empty((sum(self.outs), self.columns), dtype=self.dtype, device=self.layers[0].weight.device)
        for rows, layer in zip(out.split(self.outs), self.layers, strict=True):
            state = getattr(layer.weight, "quant_state", None)
            if state is not None and layer.weight.is_cuda and state.dtype == self.dtype:
                bnb.functional.dequantize_4bit(layer.weight.data, state, out=rows)
            else:  # on a CPU bitsandbytes takes no place to write to
                rows.copy_(_dense(layer, self.dtype))
        return out

    def product(self, xu: torch.Tensor) -> torch.Tensor:
        """[x | u] [W | B]' + bias; without LoRA x W' + bias."""
        linear = torch.nn.functional.linear
        if self.b is None or self.joined:
            return linear(xu.to(self.dtype), self.dense() if self.b is None else self.weight, self.bias).to(xu.dtype)
        y = linear(xu[:, : self.columns].to(self.dtype), self.dense(), self.bias).to(xu.dtype)
        return y.addmm_(xu[:, self.columns :], self.b.t())

    def input_product(self, dy: torch.Tensor) -> torch.Tensor:
        """dy [W | B], the gradient of [x | u]; without LoRA dy W."""
        # cuBLAS is slow where both the rows and these columns fill its tiles only in part: on an H100, 576 tokens and
        # 2,624 columns took 103 microseconds, without LoRA's 64 columns 76, and those alone 14.
        ragged = len(dy) % 128 and len(self.outs) > 1
        if self.b is None or (self.joined and not ragged):
            return (dy.to(self.dtype) @ (self.dense() if self.b is None else self.weight)).to(dy.dtype)
        out = torch.empty((len(dy), self.columns + self.b.shape[1]), dtype=dy.dtype, device=dy.device)
        if self.dtype == dy.dtype:
            torch.mm(dy, self.dense(), out=out[:, : self.columns])
        else:
            out[:, : self.columns] = dy.to(self.dtype) @ self.dense()
        torch.mm(dy, self.b, out=out[:, self.columns :])
        return out


class _Product(torch.autograd.Function):
    """`FusedLinear` under autograd. Saved: x and u; W is kept, or dequantized again."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, dummy_input: torch.Tensor | None, group: FusedLinear) -> torch.Tensor:
        y, (fu, *masked) = group.forward(x.reshape(-1, group.columns))
        ctx.group, ctx.masked = group, masked
        ctx.save_for_backward(fu)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        flat, saved = dy.reshape(-1, dy.shape[-1]).contiguous(), (*ctx.saved_tensors, *ctx.masked)
        dx = ctx.group.backward(flat, saved, wanted=ctx.needs_input_grad[0])
        return None if dx is None else dx.view(*dy.shape[:-1], -1), None, None


def _dense(layer, dtype):
    weight = layer.weight
    if isinstance(weight, bnb.nn.Params4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    return weight.detach().to(dtype)
