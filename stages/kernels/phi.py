"""Phi's decoder layer in fewer kernels."""

import torch
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from stages.kernels import attention
from stages.kernels.activation import IS_GELU
from stages.kernels.architecture import Architecture
from stages.kernels.dropout import DropoutMasks, apply_dropout, apply_two_masks
from stages.kernels.fused_linear import FusedLinear, FusedProjections


def can_fuse(layer: PhiDecoderLayer) -> bool:
    """Whether `forward` computes all that this layer does."""
    own = layer.self_attn
    plain = not own.qk_layernorm and own.attention_dropout == 0 and IS_GELU.get(type(layer.mlp.activation_fn), False)
    return plain and attention.fits_shared_memory(own.head_dim, layer.input_layernorm.weight.dtype)


def linears_by_input(layer: PhiDecoderLayer) -> list[tuple[torch.nn.Module, ...]]:
    """First the modules that read the normed input."""
    own = layer.self_attn
    return [(own.q_proj, own.k_proj, own.v_proj, layer.mlp.fc1), (own.dense,), (layer.mlp.fc2,)]


def forward(
    layer: PhiDecoderLayer, project: FusedProjections, x: torch.Tensor, rows: attention.RowLayout
) -> torch.Tensor:
    """transformers' PhiDecoderLayer.forward."""
    first, dense, fc2 = (project.groups[modules] for modules in linears_by_input(layer))
    config, own, dropout = layer.self_attn.config, layer.self_attn, layer.resid_dropout
    heads = attention.AttentionConfig(config.num_attention_heads, config.num_key_value_heads, own.head_dim, own.scaling)
    p, qkv_up = dropout.p if dropout.training else 0.0, first(layer.input_layernorm(x))
    return _Rest.apply(
        qkv_up,
        x,
        fc2.dummy_input if dense.dummy_input is None else dense.dummy_input,
        dense,
        fc2,
        heads,
        rows,
        p,
        project.masks,
    )


class _Rest(torch.autograd.Function):
    """x + dropout(dense(attention(qkv))) + dropout(fc2(gelu(up))) for [qkv | up], whose gradient is written once."""

    @staticmethod
    def forward(
        ctx, qkv_up: torch.Tensor, x: torch.Tensor, dummy_input: torch.Tensor | None, dense: FusedLinear,
        fc2: FusedLinear, heads: attention.AttentionConfig, rows: attention.RowLayout, p: float,
        masks: DropoutMasks,
    ) -> torch.Tensor:  # fmt: skip
        flat = qkv_up.reshape(-1, qkv_up.shape[-1])
        out, lse = attention.attention_forward(flat, heads, rows)
        attended, (fu_dense, *ctx.dense_masked) = dense.forward(out)
        grown, (fu_fc2, *ctx.fc2_masked) = fc2.forward(flat[:, sum(heads.widths) :], gelu=True)
        ctx.site = masks.next_sites(2)
        ctx.dense, ctx.fc2, ctx.heads, ctx.rows, ctx.p, ctx.seed = dense, fc2, heads, rows, p, masks.seed
        ctx.save_for_backward(flat, out, lse, fu_dense, fu_fc2)
        residual = x.reshape(attended.shape).contiguous()
        return apply_dropout([attended, grown], p, masks.seed, ctx.site, residual).view(x.shape)

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, out, lse, fu_dense, fu_fc2 = ctx.saved_tensors
        columns, dflat = sum(ctx.heads.widths), torch.empty_like(flat)
        dattended, dgrown = apply_two_masks(dy.reshape(len(flat), -1).contiguous(), ctx.p, ctx.seed, ctx.site)
        ctx.fc2.backward(dgrown, (fu_fc2, *ctx.fc2_masked), True, flat[:, columns:], dflat[:, columns:])
        dout = ctx.dense.backward(dattended, (fu_dense, *ctx.dense_masked))
        attention.attention_backward(flat, out, lse, dout, dflat, ctx.heads, ctx.rows)
        return dflat.view(*dy.shape[:-1], -1), dy, *[None] * 7


PHI = Architecture(PhiDecoderLayer, can_fuse, linears_by_input, forward)
