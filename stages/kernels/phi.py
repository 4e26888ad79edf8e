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
from stages.kernels.last_token_attention import last_token_backward, last_token_forward
from stages.kernels.norm import Norm, add_norm


def can_fuse(layer: PhiDecoderLayer) -> bool:
    """Whether `forward` supports all options of this layer."""
    attention, activation = layer.self_attn, type(layer.mlp.activation_fn)
    supported = not attention.qk_layernorm and attention.attention_dropout == 0 and IS_GELU.get(activation, False)
    return supported and fits_shared_memory(attention.head_dim, layer.input_layernorm.weight.dtype)


def linears_by_input(layer: PhiDecoderLayer) -> list[tuple[torch.nn.Module, ...]]:
    """First the modules that read the normed input, then attention's output and the MLP's."""
    attention, mlp = layer.self_attn, layer.mlp
    return [(attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc1), (attention.dense,), (mlp.fc2,)]


def last_linears_by_input(layer: PhiDecoderLayer) -> list[tuple[torch.nn.Module, ...]]:
    """In a last layer fewer tokens have queries and an MLP than keys and values."""
    (q, k, v, fc1), *others = linears_by_input(layer)
    return [(k, v), (q, fc1), *others]


def forward(layer: PhiDecoderLayer, project: FusedProjections, x: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """transformers' PhiDecoderLayer.forward."""
    qkv_fc1, dense, fc2 = linears_by_input(layer)
    normed, x = add_norm(x, norm=Norm.from_module(layer.input_layernorm))
    return _attend_and_add_mlp(layer, project, project(qkv_fc1, normed), None, x, layout, dense, fc2)


def last_forward(layer: PhiDecoderLayer, project: FusedProjections, x: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """`forward` of a last layer: for the tokens `layout.last`, or for all if that is None."""
    kv_linears, q_fc1, dense, fc2 = last_linears_by_input(layer)
    norm = Norm.from_module(layer.input_layernorm)
    normed, x = add_norm(x, norm=norm)
    kv = project(kv_linears, normed)
    if layout.last is not None:
        normed, x = add_norm(project.select(x, layout.last), norm=norm)
        return _attend_and_add_mlp(layer, project, project(q_fc1, normed), kv, x, layout, dense, fc2)
    q, up = project(q_fc1, normed).tensor_split([layer.self_attn.q_proj.out_features], dim=-1)
    return _attend_and_add_mlp(layer, project, torch.cat([q, kv, up], dim=-1), None, x, layout, dense, fc2)


def _attend_and_add_mlp(
    layer: PhiDecoderLayer, project: FusedProjections, qkv_up: torch.Tensor, kv: torch.Tensor | None, x: torch.Tensor,
    layout: RowLayout, *linears: tuple[torch.nn.Module, ...],
) -> torch.Tensor:  # fmt: skip
    attention, dropout = layer.self_attn, layer.resid_dropout
    heads = attention.config.num_attention_heads
    kv_heads = attention.config.num_key_value_heads or heads
    config = AttentionConfig(heads, kv_heads, attention.head_dim, attention.scaling)
    p = dropout.p if dropout.training else 0.0
    dense, fc2 = (project.fused_linears[modules] for modules in linears)
    dummy_input = fc2.dummy_input if dense.dummy_input is None else dense.dummy_input
    return _AttentionAndMLP.apply(qkv_up, kv, x, dummy_input, dense, fc2, config, layout, p, project.masks)


class _AttentionAndMLP(torch.autograd.Function):
    """x + dropout(dense(attention(qkv))) + dropout(fc2(gelu(up))) for the projected [qkv | up].

    With kv, the keys and values of all tokens, the first argument is [q | up] of the tokens `layout.last` only.
    One function for both, so that its backward writes the gradients of qkv and up into one tensor, without a copy.
    """

    @staticmethod
    def forward(
        ctx, qkv_up: torch.Tensor, kv: torch.Tensor | None, x: torch.Tensor, dummy_input: torch.Tensor | None,
        dense: FusedLinear, fc2: FusedLinear, config: AttentionConfig, layout: RowLayout, p: float, masks: DropoutMasks,
    ) -> torch.Tensor:  # fmt: skip
        flat = qkv_up.detach().reshape(-1, qkv_up.shape[-1])
        if kv is None:
            out, lse = attention_forward(flat, config, layout)
        else:
            kv = kv.detach().reshape(-1, kv.shape[-1])
            out, lse = last_token_forward(flat, kv, config, layout)
        dense_out, (dense_fu, ctx.dense_dropout) = dense.forward(out)
        fc2_out, (fc2_fu, ctx.fc2_dropout) = fc2.forward(flat[:, -fc2.in_features :], gelu=True)
        ctx.dropout = masks.make_dropout(p, 2, len(flat))
        ctx.dense, ctx.fc2, ctx.config, ctx.layout = dense, fc2, config, layout
        ctx.save_for_backward(flat, kv, out, lse, dense_fu, fc2_fu)
        residual = x.reshape(dense_out.shape).contiguous()
        return apply_dropout([dense_out, fc2_out], *ctx.dropout, residual=residual).view(x.shape)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, kv, out, lse, dense_fu, fc2_fu = ctx.saved_tensors
        dflat = torch.empty_like(flat)
        up, dup = flat[:, -ctx.fc2.in_features :], dflat[:, -ctx.fc2.in_features :]
        d_dense, d_fc2 = apply_two_masks(dy.reshape(len(flat), -1).contiguous(), *ctx.dropout)
        ctx.fc2.backward(d_fc2, (fc2_fu, ctx.fc2_dropout), gelu=True, x=up, out=dup)
        dout = ctx.dense.backward(d_dense, (dense_fu, ctx.dense_dropout))
        dkv = None
        if kv is None:
            attention_backward(flat, out, lse, dout, dflat, ctx.config, ctx.layout)
        else:
            dkv = last_token_backward(flat, kv, out, lse, dout, dflat, ctx.config, ctx.layout)[None]
        return dflat.view(*dy.shape[:-1], -1), dkv, dy, *[None] * 7


LAST_PHI = Architecture(PhiDecoderLayer, can_fuse, last_linears_by_input, last_forward)
PHI = Architecture(PhiDecoderLayer, can_fuse, linears_by_input, forward, LAST_PHI)
