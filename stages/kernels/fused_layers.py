"""The layers of a LoRA classifier with fewer kernels: same mathematics, for a GPU; phi's layers in evaluation too.

- `LoraLinears` computes LoRA layers that share their input (phi's q, k, v and fc1) in one autograd function, in the
  activations' precision, where PEFT casts every input to fp32 and back; `Rotary` turns phi's queries and keys in one
  kernel instead of a dozen.
- Dropout masks are a hash of (step, place in the model, element), so that they need no memory, are the same when a
  checkpointed layer is computed again, and go on as before when a run is resumed.
"""

import functools
import math
from types import MappingProxyType

import bitsandbytes as bnb
import torch
import triton
import triton.language as tl
from peft.tuners.lora import LoraLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from stages.runtime.errors import StepUnavailable, UserError

SITES_PER_LAYER = 64  # more dropouts than one decoder layer has


class Masks:
    """Where a dropout mask comes from: `seed` on the device, one a step, and the number of the place in the model."""

    def __init__(self, device):
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.site = 0

    def set(self, seed, step):
        self.seed.fill_((seed * 0x9E3779B1 + step * 0x85EBCA77) & 0x7FFFFFFF)

    def next_sites(self, count):
        """The first of `count` places that follow one another."""
        self.site += count
        return self.site - count

    def start_layer(self, number):
        """Called at the start of each decoder layer, so that one computed again by checkpointing finds its masks."""
        self.site = number * SITES_PER_LAYER


class LoraCopies:
    """LoRA's weights in the precision of the activations, in one buffer, and their gradients in another.

    The products use the copies, the optimizer the fp32 weights. B's copy is scaled by alpha / r, which spares a kernel
    at each use. One buffer for all makes a cast two kernels instead of two for each of 384 weights.
    """

    def __init__(self, groups, dtype):
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
    def refresh(self):
        """Copy the weights as they are now."""
        now = torch.cat([w.view(-1) for w in self.weights])
        now[self.count_a :] *= self.scaling
        self.buffer.copy_(now)

    @torch.no_grad()
    def take_grads(self, grads):
        """Take the copies' gradients as the weights' own."""
        self.grad_buffer.copy_(torch.cat([g.reshape(-1) for g in grads]))
        self.grad_buffer[self.count_a :] *= self.scaling

    def hand_out_grads(self):
        """Put the gradients where the optimizer looks for them."""
        for weight, grad in zip(self.weights, self.grads, strict=True):
            weight.grad = grad


def _views(buffer, shapes):
    """`buffer` cut into tensors of these shapes."""
    pieces = buffer.split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def layers_by_input(model):
    """The LoRA layers in groups that share their input: q, k, v and fc1 of a phi layer; every other one alone."""
    groups = []
    for layer in model.modules():
        if _is_fused_phi_layer(layer):
            groups.append([module for module in _phi_shared(layer) if isinstance(module, LoraLayer)])
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
        if _is_fused_phi_layer(module):
            group = next((group_of[shared] for shared in _phi_shared(module) if shared in group_of), None)
            _set_forward(module, functools.partialmethod(_phi_layer_forward, group))


class LoraGroup:
    """LoRA layers that share their input, as one call.

    Args:
        a: copies of their A, [n, r, in]; b: copies of their B, n of [out_i, r], scaled.
    """

    def __init__(self, layers, a, b, masks, dequantize_once):
        self.layers, self.a, self.b, self.masks = layers, a, b, masks
        self.frozen = [Frozen(layer.base_layer, a.dtype, dequantize_once) for layer in layers]
        dropout = layers[0].lora_dropout["default"]
        self.p = dropout.p if isinstance(dropout, torch.nn.Dropout) else 0.0

    def __call__(self, x):
        """{layer: its output} for x [..., in]."""
        site = self.masks.next_sites(len(self.layers))
        outputs = LoraLinears.apply(x, self.a, self.frozen, self.p, self.masks.seed, site, *self.b)
        return dict(zip(self.layers, outputs, strict=True))


class Frozen:
    """A frozen base layer: its weight [out, in] in the precision of its products, kept or dequantized at each use."""

    def __init__(self, layer, dtype, keep):
        quantized = isinstance(layer, bnb.nn.Linear4bit)
        # As in bitsandbytes: under fp32 activations the quantised products have a precision of their own.
        self.dtype = layer.compute_dtype if quantized and dtype == torch.float32 else dtype
        self.layer = layer
        self.bias = None if layer.bias is None else layer.bias.detach().to(self.dtype)
        self.kept = self._dense() if keep or not quantized else None

    def _dense(self):
        weight = self.layer.weight
        if isinstance(weight, bnb.nn.Params4bit):
            return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).to(self.dtype)
        return weight.detach().to(self.dtype)

    def weight(self):
        return self._dense() if self.kept is None else self.kept

    def add_input_grad(self, dx, dy):
        """dx + dy W, in dy's precision; `dx` is None before the first, and may be changed."""
        if dx is not None and self.dtype == dy.dtype:
            return dx.addmm_(dy, self.weight())
        grad = (dy.to(self.dtype) @ self.weight()).to(dy.dtype)
        return grad if dx is None else dx.add_(grad)


def _is_plain(module):
    base = module.base_layer
    return (
        type(base) in (bnb.nn.Linear4bit, torch.nn.Linear)
        and list(module.lora_A) == ["default"]
        and not module.lora_variant
        and not module.merged
        and module.lora_A["default"].bias is None
        and module.lora_B["default"].bias is None
    )


def _lora_forward(layer, original, group, x, *args, **kwargs):
    if not (layer.training and torch.is_grad_enabled()):
        return original(x, *args, **kwargs)
    return group(x)[layer]


def _dropout_forward(module, original, masks, x):
    if not (module.training and torch.is_grad_enabled()):
        return original(x)
    return SeededDropout.apply(x, module.p, masks.seed, masks.next_sites(1))


def _is_fused_phi_layer(module):
    if not isinstance(module, PhiDecoderLayer):
        return False
    return not module.self_attn.qk_layernorm and module.self_attn.attention_dropout == 0


def _phi_shared(layer):
    """The modules that read the normed input of a phi layer."""
    attention = layer.self_attn
    return attention.q_proj, attention.k_proj, attention.v_proj, layer.mlp.fc1


def _phi_layer_forward(layer, group, x, *_, position_embeddings, **__):
    """transformers' PhiDecoderLayer.forward, `group` computed together and rotary embedding in one kernel.

    The attention mask is not looked at: batches have none, and the causal one that transformers makes under a capture
    says no more than `is_causal`.
    """
    attention, normed = layer.self_attn, layer.input_layernorm(x)
    together = group(normed) if group and layer.training and torch.is_grad_enabled() else {}
    q, k, v, up = (together[module] if module in together else module(normed) for module in _phi_shared(layer))
    cos, sin = (t.contiguous() for t in position_embeddings)
    heads = (*x.shape[:-1], -1, attention.head_dim)
    attended = torch.nn.functional.scaled_dot_product_attention(
        Rotary.apply(q.view(heads), cos, sin).transpose(1, 2),
        Rotary.apply(k.view(heads), cos, sin).transpose(1, 2),
        v.view(heads).transpose(1, 2),
        is_causal=True,
        scale=attention.scaling,
        enable_gqa=attention.num_key_value_groups > 1,
    )
    attended = attention.dense(attended.transpose(1, 2).reshape(*x.shape[:-1], -1))
    grown = layer.mlp.fc2(layer.mlp.activation_fn(up))
    return layer.resid_dropout(attended) + layer.resid_dropout(grown) + x


class LoraLinears(torch.autograd.Function):
    """y_i = x W_i' + bias_i + dropout_i(x) A_i' B_i', i = 1 to n, with W frozen and B scaled by alpha / r.

    Shapes: x [..., in], a [n, r, in], b_i [out_i, r]. Saved for the backward: x and dropout(x) A'; W is kept, or
    dequantized again. Source: Hu et al. 2021 (LoRA), Dettmers et al. 2023 (QLoRA).
    """

    @staticmethod
    def forward(ctx, x, a, frozen, p, seed, site, *b):
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
    def backward(ctx, *dys):
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


class SeededDropout(torch.autograd.Function):
    """Dropout whose mask is drawn anew in the backward instead of being saved."""

    @staticmethod
    def forward(ctx, x, p, seed, site):
        ctx.p, ctx.seed, ctx.site = p, seed, site
        return dropped(x.contiguous(), 1, p, seed, site)[0]

    @staticmethod
    def backward(ctx, dy):
        return dropped(dy.contiguous(), 1, ctx.p, ctx.seed, ctx.site)[0], None, None, None


class Rotary(torch.autograd.Function):
    """Rotary position embedding of the first dimensions of each head (Su et al. 2021), as transformers' phi has it.

    Shapes: x [batch, length, heads, head_dim]; cos, sin [1, length, rotated]; the rest of head_dim is passed through.
    """

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return rotated(x.contiguous(), cos, sin, sign=1.0)

    @staticmethod
    def backward(ctx, dy):
        return rotated(dy.contiguous(), *ctx.saved_tensors, sign=-1.0), None, None  # the transposed rotation


def rotated(x, cos, sin, sign):
    """x with the first cos.shape[-1] dimensions of each head rotated; `sign` -1 rotates back."""
    out = torch.empty_like(x)
    _, length, heads, head_dim = x.shape
    _rotary_kernel[_grid(x.numel(), x.numel(), 1024)](
        x, out, cos, sin, sign, x.numel(), length, heads, head_dim, cos.shape[-1], BLOCK=1024
    )
    return out


@triton.jit
def _rotary_kernel(x, out, cos, sin, sign, n, length, heads, head_dim, rotated, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    dim = index % head_dim
    turns = inside & (dim < rotated)
    angle = index // (heads * head_dim) % length * rotated + dim
    first = dim < rotated // 2
    partner = index + tl.where(first, rotated // 2, -(rotated // 2))
    value = tl.load(x + index, inside).to(tl.float32)
    other = tl.load(x + partner, turns, 0).to(tl.float32) * tl.where(first, -sign, sign)
    turned = value * tl.load(cos + angle, turns, 0).to(tl.float32) + other * tl.load(sin + angle, turns, 0).to(
        tl.float32
    )
    tl.store(out + index, tl.where(turns, turned, value).to(out.dtype.element_ty), inside)


def dropped(x, count, p, seed, site):
    """dropout(x) by `count` masks, [count, *x.shape], for a contiguous x.

    The masks are functions of `seed` (a tensor on the device) and of the places `site`, `site` + 1, … alone.
    """
    if p == 0:
        return x.expand(count, *x.shape)
    out = torch.empty((count, *x.shape), dtype=x.dtype, device=x.device)
    _launch(_dropout_kernel, x, out, x.numel(), count, p, seed, site)
    return out


def add_dropped_(out, x, p, seed, site):
    """out += the sum of dropout(x[i]), in place, x [count, *out.shape], with the masks that `dropped` has."""
    _launch(_add_dropped_kernel, x, out, out.numel(), len(x), p, seed, site)
    return out


def _launch(kernel, x, out, n, count, p, seed, site):
    kernel[_grid(n, count * n, 2048)](
        x, out, seed, n, int(p * 2**32), 1 / (1 - p), site, COUNT=count, BLOCK=2048, num_warps=8
    )


def _grid(n, elements, block):
    """Blocks for n of `elements` that a kernel counts by 32-bit indices."""
    if elements >= 2**31:
        raise UserError("a batch is too large for 32-bit indices: train.batch_size or eval.batch_size must be smaller")
    return (triton.cdiv(n, block),)


@triton.jit(do_not_specialize=["site", "threshold"])
def _dropout_kernel(x, out, seed, n, threshold, scale, site, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    value = tl.load(x + index, inside).to(tl.float32) * scale
    for i in tl.static_range(COUNT):
        kept = tl.where(_keeps(index, seed, site + i, threshold), value, 0.0)
        tl.store(out + i * n + index, kept.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["site", "threshold"])
def _add_dropped_kernel(x, out, seed, n, threshold, scale, site, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    total = tl.load(out + index, inside).to(tl.float32)
    for i in tl.static_range(COUNT):
        value = tl.load(x + i * n + index, inside).to(tl.float32) * scale
        total += tl.where(_keeps(index, seed, site + i, threshold), value, 0.0)
    tl.store(out + index, total.to(out.dtype.element_ty), inside)


@triton.jit
def _keeps(index, seed, site, threshold):
    """Whether dropout keeps an element."""
    key = _mix(tl.load(seed).to(tl.uint32) ^ _mix(site.to(tl.uint32)))
    return _mix(index.to(tl.uint32) ^ key) >= threshold.to(tl.uint32)


@triton.jit
def _mix(h):
    """A 32-bit integer hash of low bias: «lowbias32», Wellons 2018. A tenth of the cost of Philox."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)
