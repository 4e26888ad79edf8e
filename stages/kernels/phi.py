"""Phi's decoder layer in fewer kernels."""

import torch
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from stages.kernels.architecture import Architecture, Project
from stages.kernels.rotary import Rotary


def can_fuse(layer: PhiDecoderLayer) -> bool:
    """Whether `forward` computes all that this layer does."""
    return not layer.self_attn.qk_layernorm and layer.self_attn.attention_dropout == 0


def shared_inputs(layer: PhiDecoderLayer) -> list[tuple[torch.nn.Module, ...]]:
    """One group: the modules that read the normed input."""
    attention = layer.self_attn
    return [(attention.q_proj, attention.k_proj, attention.v_proj, layer.mlp.fc1)]


def forward(
    layer: PhiDecoderLayer,
    project: Project,
    x: torch.Tensor,
    *_,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **__,
) -> torch.Tensor:
    """transformers' PhiDecoderLayer.forward, with q, k, v and fc1 computed together and rotary embedding in one kernel.

    The attention mask is not looked at: batches have none, and the causal one that transformers makes under a capture
    says no more than `is_causal`.

    Args:
        x: [batch, length, hidden].
        position_embeddings: cos and sin, each [1, length, rotated].
    """
    attention = layer.self_attn
    (modules,) = shared_inputs(layer)
    q, k, v, up = project(modules, layer.input_layernorm(x))
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


PHI = Architecture(PhiDecoderLayer, can_fuse, shared_inputs, forward)
