"""Phi's decoder layer in fewer kernels."""

import torch
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from stages.kernels.rotary import Rotary


def is_fused_phi_layer(module):
    if not isinstance(module, PhiDecoderLayer):
        return False
    return not module.self_attn.qk_layernorm and module.self_attn.attention_dropout == 0


def phi_shared(layer):
    """The modules that read the normed input of a phi layer."""
    attention = layer.self_attn
    return attention.q_proj, attention.k_proj, attention.v_proj, layer.mlp.fc1


def phi_layer_forward(layer, group, x, *_, position_embeddings, **__):
    """transformers' PhiDecoderLayer.forward, `group` computed together and rotary embedding in one kernel.

    The attention mask is not looked at: batches have none, and the causal one that transformers makes under a capture
    says no more than `is_causal`.
    """
    attention, normed = layer.self_attn, layer.input_layernorm(x)
    together = group(normed) if group and layer.training and torch.is_grad_enabled() else {}
    q, k, v, up = (together[module] if module in together else module(normed) for module in phi_shared(layer))
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
