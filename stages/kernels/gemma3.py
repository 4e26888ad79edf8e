"""Gemma 3's decoder layer in fewer kernels: Llama's with a norm behind attention and MLP as well."""

import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer

from stages.kernels import attention, llama
from stages.kernels.architecture import Architecture
from stages.kernels.fused_linear import FusedProjections
from stages.kernels.norm import RMSNorm, add_norm


def can_fuse(layer: Gemma3DecoderLayer) -> bool:
    """Whether `forward` computes all that this layer does."""
    return llama.can_fuse(layer) and layer.self_attn.attn_logit_softcapping is None


def forward(
    layer: Gemma3DecoderLayer, project: FusedProjections, x: torch.Tensor, rows: attention.RowLayout
) -> torch.Tensor:
    """transformers' Gemma3DecoderLayer.forward."""
    before, after, before_mlp, after_mlp = (
        RMSNorm.from_module(module)
        for module in (
            layer.input_layernorm,
            layer.post_attention_layernorm,
            layer.pre_feedforward_layernorm,
            layer.post_feedforward_layernorm,
        )
    )
    normed, x = add_norm(x, norm=before)
    normed, x = add_norm(x, llama.attend(layer, project, normed, rows), norm_y=after, norm=before_mlp)
    return add_norm(x, llama.grow(layer, project, normed), norm_y=after_mlp)[1]


GEMMA3 = Architecture(Gemma3DecoderLayer, can_fuse, llama.linears_by_input, forward)
