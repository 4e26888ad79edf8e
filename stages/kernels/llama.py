"""Llama's decoder layer in fewer kernels. Mistral, Qwen 2, Qwen 3 and Gemma share it and differ only in options."""

import torch
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from stages.kernels.activation import IS_GELU
from stages.kernels.architecture import Architecture
from stages.kernels.attention import Attention, AttentionConfig, RowLayout, fits_shared_memory
from stages.kernels.fused_linear import FusedProjections
from stages.kernels.gated_mlp import GatedActivation
from stages.kernels.norm import RMSNorm, add_norm, norm_heads

Layer = (
    LlamaDecoderLayer
    | MistralDecoderLayer
    | Qwen2DecoderLayer
    | Qwen3DecoderLayer
    | GemmaDecoderLayer
    | Gemma3DecoderLayer  # for `gemma3.py`
)


def can_fuse(layer: Layer) -> bool:
    """Whether `forward` supports all options of this layer."""
    attention = layer.self_attn
    supported = attention.is_causal and attention.attention_dropout == 0 and type(layer.mlp.act_fn) in IS_GELU
    return supported and fits_shared_memory(attention.head_dim, layer.input_layernorm.weight.dtype)


def linears_by_input(layer: Layer) -> list[tuple[torch.nn.Module, ...]]:
    """In the order in which the layer computes: queries, keys and values; output; gate and up; down."""
    attention, mlp = layer.self_attn, layer.mlp
    return [
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    ]


def forward(layer: Layer, project: FusedProjections, x: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """The forward of these layers in transformers."""
    normed, x = add_norm(x, norm=RMSNorm.from_module(layer.input_layernorm))
    attended = compute_attention(layer, project, normed, layout)
    normed, x = add_norm(x, attended, norm=RMSNorm.from_module(layer.post_attention_layernorm))
    return x + compute_mlp(layer, project, normed)


def compute_attention(layer: Layer, project: FusedProjections, x: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """The layer's attention of the normed x: [..., hidden] to [..., hidden]."""
    attention, (qkv_linears, output_linear, _, _) = layer.self_attn, linears_by_input(layer)
    heads = attention.config.num_attention_heads
    kv_heads = attention.config.num_key_value_heads or heads
    qkv = project(qkv_linears, x)
    if hasattr(attention, "q_norm"):
        q_norm, k_norm = RMSNorm.from_module(attention.q_norm), RMSNorm.from_module(attention.k_norm)
        qkv = norm_heads(qkv, q_norm, k_norm, heads, kv_heads)
    # Mistral's window is in the model's config, Qwen's and Gemma 3's in each layer. Llama and Gemma have none, even if
    # their config names one.
    if isinstance(attention, MistralAttention):
        window = attention.config.sliding_window
    else:
        window = getattr(attention, "sliding_window", None)
    config = AttentionConfig(heads, kv_heads, attention.head_dim, attention.scaling, window)
    return project(output_linear, Attention.apply(qkv, config, layout))


def compute_mlp(layer: Layer, project: FusedProjections, x: torch.Tensor) -> torch.Tensor:
    """The layer's MLP of the normed x: [..., hidden] to [..., hidden]."""
    _, _, gate_up_linears, down_linear = linears_by_input(layer)
    return project(down_linear, GatedActivation.apply(project(gate_up_linears, x), IS_GELU[type(layer.mlp.act_fn)]))


LLAMAS = tuple(
    Architecture(layer, can_fuse, linears_by_input, forward)
    for layer in (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer, GemmaDecoderLayer)
)
