"""Phi's decoder layer in fewer kernels."""

import torch
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from stages.kernels.activation import IS_GELU
from stages.kernels.architecture import Architecture
from stages.kernels.attention import (
    AttentionConfig,
    RowLayout,
    attention_backward,
    attention_forward,
    fits_shared_memory,
)
from stages.kernels.dropout import DropoutMasks, apply_dropout, apply_two_masks
from stages.kernels.fused_linear import FusedLinear, FusedProjections


def can_fuse(layer: PhiDecoderLayer) -> bool:
    """Whether `forward` supports all options of this layer."""
    attention, activation = layer.self_attn, type(layer.mlp.activation_fn)
    supported = not attention.qk_layernorm and attention.attention_dropout == 0 and IS_GELU.get(activation, False)
    return supported and fits_shared_memory(attention.head_dim, layer.input_layernorm.weight.dtype)


def linears_by_input(layer: PhiDecoderLayer) -> list[tuple[torch.nn.Module, ...]]:
    """First the modules that read the normed input, then attention's output and the MLP's."""
    attention, mlp = layer.self_attn, layer.mlp
    return [(attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc1), (attention.dense,), (mlp.fc2,)]


def forward(layer: PhiDecoderLayer, project: FusedProjections, x: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """transformers' PhiDecoderLayer.forward."""
    qkv_fc1, dense, fc2 = (project.fused_linears[modules] for modules in linears_by_input(layer))
    attention, dropout = layer.self_attn, layer.resid_dropout
    heads = attention.config.num_attention_heads
    kv_heads = attention.config.num_key_value_heads or heads
    config = AttentionConfig(heads, kv_heads, attention.head_dim, attention.scaling)
    p = dropout.p if dropout.training else 0.0
    dummy_input = fc2.dummy_input if dense.dummy_input is None else dense.dummy_input
    qkv_up = qkv_fc1(layer.input_layernorm(x))
    return _AttentionAndMLP.apply(qkv_up, x, dummy_input, dense, fc2, config, layout, p, project.masks)


class _AttentionAndMLP(torch.autograd.Function):
    """x + dropout(dense(attention(qkv))) + dropout(fc2(gelu(up))) for the projected [qkv | up].

    One function for both, so that its backward writes the gradients of qkv and up into one tensor, without a copy.
    """

    @staticmethod
    def forward(
        ctx, qkv_up: torch.Tensor, x: torch.Tensor, dummy_input: torch.Tensor | None, dense: FusedLinear,
        fc2: FusedLinear, config: AttentionConfig, layout: RowLayout, p: float, masks: DropoutMasks,
    ) -> torch.Tensor:  # fmt: skip
        flat = qkv_up.reshape(-1, qkv_up.shape[-1])
        out, lse = attention_forward(flat, config, layout)
        dense_out, (dense_fu, ctx.dense_dropout) = dense.forward(out)
        fc2_out, (fc2_fu, ctx.fc2_dropout) = fc2.forward(flat[:, sum(config.qkv_widths) :], gelu=True)
        ctx.dropout = masks.make_dropout(p, 2, len(flat))
        ctx.dense, ctx.fc2, ctx.config, ctx.layout = dense, fc2, config, layout
        ctx.save_for_backward(flat, out, lse, dense_fu, fc2_fu)
        residual = x.reshape(dense_out.shape).contiguous()
        return apply_dropout([dense_out, fc2_out], *ctx.dropout, residual=residual).view(x.shape)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, out, lse, dense_fu, fc2_fu = ctx.saved_tensors
        qkv_width, dflat = sum(ctx.config.qkv_widths), torch.empty_like(flat)
        up, dup = flat[:, qkv_width:], dflat[:, qkv_width:]
        d_dense, d_fc2 = apply_two_masks(dy.reshape(len(flat), -1).contiguous(), *ctx.dropout)
        ctx.fc2.backward(d_fc2, (fc2_fu, ctx.fc2_dropout), gelu=True, x=up, out=dup)
        dout = ctx.dense.backward(d_dense, (dense_fu, ctx.dense_dropout))
        attention_backward(flat, out, lse, dout, dflat, ctx.config, ctx.layout)
        return dflat.view(*dy.shape[:-1], -1), dy, *[None] * 7


PHI = Architecture(PhiDecoderLayer, can_fuse, linears_by_input, forward)
