"""Gemma 3's decoder layer in fewer kernels: Llama's, with two more norms, after attention and after the MLP."""

import functools

import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer

from stages.kernels import llama
from stages.kernels.architecture import Architecture
from stages.kernels.attention import RowLayout
from stages.kernels.fused_linear import FusedProjections
from stages.kernels.norm import Norm, add_norm, add_normed


def can_fuse(layer: Gemma3DecoderLayer) -> bool:
    """Whether `forward` supports all options of this layer."""
    return llama.can_fuse(layer) and layer.self_attn.attn_logit_softcapping is None


def forward(
    layer: Gemma3DecoderLayer, project: FusedProjections, x: torch.Tensor, layout: RowLayout, is_last: bool = False
) -> torch.Tensor:
    """transformers' Gemma3DecoderLayer.forward."""
    post_attention_norm, pre_mlp_norm, post_mlp_norm = (
        Norm.from_module(module)
        for module in (
            layer.post_attention_layernorm,
            layer.pre_feedforward_layernorm,
            layer.post_feedforward_layernorm,
        )
    )
    attended, x = llama.compute_attention(layer, project, x, layout, is_last)
    normed, x = add_norm(x, attended, norm_y=post_attention_norm, norm=pre_mlp_norm)
    return add_normed(x, llama.compute_mlp(layer, project, normed), post_mlp_norm)


last_forward = functools.partial(forward, is_last=True)
LAST_GEMMA3 = Architecture(Gemma3DecoderLayer, can_fuse, llama.last_linears_by_input, last_forward)
GEMMA3 = Architecture(Gemma3DecoderLayer, can_fuse, llama.linears_by_input, forward, LAST_GEMMA3)
