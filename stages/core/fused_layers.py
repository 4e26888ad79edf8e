"""The layers of a LoRA classifier with fewer kernels: same mathematics, for training on a GPU.

- `LoraLinear` computes a LoRA layer in one autograd function, in the activations' precision, where PEFT casts every
  input to fp32 and back; `Rotary` turns phi's queries and keys in one kernel instead of a dozen.
- Dropout masks are a hash of (step, place in the model, element), so that they need no memory, are the same when a
  checkpointed layer is computed again, and go on as before when a run is resumed.
"""

import functools

import bitsandbytes as bnb
import torch
import triton
import triton.language as tl
from peft.tuners.lora import LoraLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.phi.modeling_phi import PhiAttention

from stages.core.errors import StepUnavailable

SITES_PER_LAYER = 64  # more dropouts than one decoder layer has


class Masks:
    """Where a dropout mask comes from: `seed` on the device, one a step, and the number of the place in the model."""

    def __init__(self, device):
        self.seed = torch.zeros((), dtype=torch.int64, device=device)
        self.site = 0

    def set(self, seed, step):
        self.seed.fill_((seed * 0x9E3779B1 + step * 0x85EBCA77) & 0x7FFFFFFF)

    def next_site(self):
        self.site += 1
        return self.site

    def start_layer(self, number, *_):
        """Called before each decoder layer, so that the layer computed again by checkpointing finds its masks."""
        self.site = number * SITES_PER_LAYER


class LoraCopies:
    """LoRA's weights in the precision of the activations, in one buffer, and their gradients in another.

    The products use the copies, the optimizer the fp32 weights. B's copy is scaled by alpha / r, which spares a kernel
    at each use. One buffer for all makes a cast two kernels instead of two for each of 384 weights.
    """

    def __init__(self, model):
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        for module in layers:
            if not _is_plain(module):
                raise StepUnavailable(f"no fast form of {type(module).__name__} on {type(module.base_layer).__name__}")
        scalings = {module.scaling["default"] for module in layers}
        if len(scalings) != 1:
            raise StepUnavailable("LoRA layers of several scalings")
        self.scaling = scalings.pop()
        a = [module.lora_A["default"].weight for module in layers]
        b = [module.lora_B["default"].weight for module in layers]
        self.weights, self.count_a = a + b, sum(w.numel() for w in a)
        count = sum(w.numel() for w in self.weights)
        dtype, device = model.get_base_model().dtype, a[0].device
        self.buffer = torch.empty(count, dtype=dtype, device=device)
        self.grad_buffer = torch.empty(count, dtype=torch.float32, device=device)
        self.copies = [view.requires_grad_() for view in self._views(self.buffer)]
        self.grads = self._views(self.grad_buffer)
        self.copy_of = dict(zip(self.weights, self.copies, strict=True))

    def _views(self, buffer):
        pieces = buffer.split([w.numel() for w in self.weights])
        return [piece.view(w.shape) for piece, w in zip(pieces, self.weights, strict=True)]

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


def use_fused_layers(model, masks, lora, dequantize_once):
    """Let LoRA layers, dropouts and phi's attention in `model` compute as below while it trains."""
    in_lora = {module for layer in model.modules() if isinstance(layer, LoraLayer) for module in layer.modules()}
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    model.register_forward_pre_hook(functools.partial(masks.start_layer, 0))
    for number, layer in enumerate(layers, start=1):
        layer.register_forward_pre_hook(functools.partial(masks.start_layer, number))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            a = lora.copy_of[module.lora_A["default"].weight]
            b = lora.copy_of[module.lora_B["default"].weight]
            frozen = Frozen(module.base_layer, a.dtype, dequantize_once)
            module.forward = functools.partial(_lora_forward, module, module.forward, a, b, frozen, masks)
        elif isinstance(module, torch.nn.Dropout) and module.p > 0 and module not in in_lora:
            module.forward = functools.partial(_dropout_forward, module, module.forward, masks)
        elif isinstance(module, PhiAttention) and not module.qk_layernorm and module.attention_dropout == 0:
            module.forward = functools.partial(_phi_attention_forward, module, module.forward)


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


def _lora_forward(module, original, a, b, frozen, masks, x, *args, **kwargs):
    if not (module.training and torch.is_grad_enabled()):
        return original(x, *args, **kwargs)
    dropout = module.lora_dropout["default"]
    p = dropout.p if isinstance(dropout, torch.nn.Dropout) else 0.0
    return LoraLinear.apply(x, a, b, frozen, p, masks.seed, masks.next_site())


def _dropout_forward(module, original, masks, x):
    if not (module.training and torch.is_grad_enabled()):
        return original(x)
    return SeededDropout.apply(x, module.p, masks.seed, masks.next_site())


def _phi_attention_forward(module, original, hidden_states, position_embeddings, attention_mask=None, **kwargs):
    """transformers' PhiAttention.forward, rotary embedding in one kernel.

    `attention_mask` is not looked at: batches have none, and the causal one that transformers makes under a capture
    says no more than `is_causal`.
    """
    if not (module.training and torch.is_grad_enabled()):
        return original(hidden_states, position_embeddings, attention_mask, **kwargs)
    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    cos, sin = (t.contiguous() for t in position_embeddings)
    q = Rotary.apply(module.q_proj(hidden_states).view(shape), cos, sin).transpose(1, 2)
    k = Rotary.apply(module.k_proj(hidden_states).view(shape), cos, sin).transpose(1, 2)
    v = module.v_proj(hidden_states).view(shape).transpose(1, 2)
    groups = module.num_key_value_groups
    y = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=module.scaling, enable_gqa=groups > 1
    )
    return module.dense(y.transpose(1, 2).reshape(*shape[:-2], -1)), None


class LoraLinear(torch.autograd.Function):
    """y = x W' + bias + dropout(x) A' B', with W frozen and B scaled by alpha / r.

    Shapes: x [..., in], A [r, in], B [out, r]. Saved for the backward: x and dropout(x) A'; W is dequantized again.
    Source: Hu et al. 2021 (LoRA), Dettmers et al. 2023 (QLoRA).
    """

    @staticmethod
    def forward(ctx, x, a, b, frozen, p, seed, site):
        ctx.frozen, ctx.p, ctx.site = frozen, p, site
        rows = x.reshape(-1, x.shape[-1])
        y = torch.nn.functional.linear(rows.to(frozen.dtype), frozen.weight(), frozen.bias).to(x.dtype)
        u = dropped(rows, p, seed, site) @ a.t()
        y.addmm_(u, b.t())
        ctx.save_for_backward(rows, a, b, u, seed)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy):
        x, a, b, u, seed = ctx.saved_tensors
        frozen, shape, dy = ctx.frozen, dy.shape, dy.reshape(-1, dy.shape[-1])
        du = dy @ b
        db = dy.t() @ u
        da = du.t() @ dropped(x, ctx.p, seed, ctx.site)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy.to(frozen.dtype) @ frozen.weight()).to(x.dtype)
            dx = add_dropped_(dx, du @ a, ctx.p, seed, ctx.site).view(*shape[:-1], -1)
        return dx, da, db, None, None, None, None


class SeededDropout(torch.autograd.Function):
    """Dropout whose mask is drawn anew in the backward instead of being saved."""

    @staticmethod
    def forward(ctx, x, p, seed, site):
        ctx.p, ctx.seed, ctx.site = p, seed, site
        return dropped(x.contiguous(), p, seed, site)

    @staticmethod
    def backward(ctx, dy):
        return dropped(dy.contiguous(), ctx.p, ctx.seed, ctx.site), None, None, None


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
        return (
            rotated(dy.contiguous(), *ctx.saved_tensors, sign=-1.0),
            None,
            None,
        )  # a rotation's transpose is its inverse


def rotated(x, cos, sin, sign):
    """x with the first cos.shape[-1] dimensions of each head rotated; `sign` -1 rotates back."""
    out = torch.empty_like(x)
    _, length, heads, head_dim = x.shape
    grid = (triton.cdiv(x.numel(), 1024),)
    _rotary_kernel[grid](x, out, cos, sin, sign, x.numel(), length, heads, head_dim, cos.shape[-1], BLOCK=1024)
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


def dropped(x, p, seed, site):
    """dropout(x) for a contiguous x; the mask is a function of `seed` (a tensor on the device) and `site` alone."""
    if p == 0:
        return x
    out = torch.empty_like(x)
    _launch(x, out, p, seed, site, add=False)
    return out


def add_dropped_(out, x, p, seed, site):
    """out += dropout(x), in place, with the mask that `dropped` has for the same seed and site."""
    if p == 0:
        return out.add_(x)
    _launch(x, out, p, seed, site, add=True)
    return out


def _launch(x, out, p, seed, site, add):
    grid = (triton.cdiv(x.numel(), 2048),)
    _dropout_kernel[grid](x, out, seed, x.numel(), int(p * 2**32), 1 / (1 - p), site, ADD=add, BLOCK=2048, num_warps=8)


@triton.jit(do_not_specialize=["site", "threshold"])
def _dropout_kernel(x, out, seed, n, threshold, scale, site, ADD: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    key = _mix(tl.load(seed).to(tl.uint32) ^ _mix(site.to(tl.uint32)))
    keep = _mix(index.to(tl.uint32) ^ key) >= threshold.to(tl.uint32)
    value = tl.where(keep, tl.load(x + index, inside).to(tl.float32) * scale, 0.0)
    if ADD:
        value += tl.load(out + index, inside).to(tl.float32)
    tl.store(out + index, value.to(out.dtype.element_ty), inside)


@triton.jit
def _mix(h):
    """A 32-bit integer hash of low bias: «lowbias32», Wellons 2018. A tenth of the cost of Philox."""
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)
