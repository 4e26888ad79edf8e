"""Llama's decoder layer in fewer kernels. Mistral, Qwen 2, Qwen 3 and Gemma share it and differ only in options."""

import functools

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
from stages.kernels.last_token_attention import attend_last
from stages.kernels.norm import Norm, add_norm, norm_heads

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


def last_linears_by_input(layer: Layer) -> list[tuple[torch.nn.Module, ...]]:
    """In a last layer fewer tokens have queries than keys and values."""
    (q, k, v), *others = linears_by_input(layer)
    return [(q,), (k, v), *others]


def forward(
    layer: Layer, project: FusedProjections, x: torch.Tensor, layout: RowLayout, is_last: bool = False
) -> torch.Tensor:
    """The forward of these layers in transformers."""
    attended, x = compute_attention(layer, project, x, layout, is_last)
    normed, x = add_norm(x, attended, norm=Norm.from_module(layer.post_attention_layernorm))
    return x + compute_mlp(layer, project, normed)


def compute_attention(
    layer: Layer, project: FusedProjections, x: torch.Tensor, layout: RowLayout, is_last: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's attention of its input x, input norm included, and x. In a last layer both are of `layout.last`."""
    attention, input_norm = layer.self_attn, Norm.from_module(layer.input_layernorm)
    heads = attention.config.num_attention_heads
    kv_heads = attention.config.num_key_value_heads or heads

    def project_heads(linears: tuple[torch.nn.Module, ...], heads: int, kv_heads: int) -> torch.Tensor:
        projected = project(linears, normed)
        if not hasattr(attention, "q_norm"):
            return projected
        q_norm, k_norm = Norm.from_module(attention.q_norm), Norm.from_module(attention.k_norm)
        return norm_heads(projected, q_norm, k_norm, heads, kv_heads)

    # Mistral's window is in the model's config, Qwen's and Gemma 3's in each layer. Llama and Gemma have none, even if
    # their config names one.
    if isinstance(attention, MistralAttention):
        window = attention.config.sliding_window
    else:
        window = getattr(attention, "sliding_window", None)
    config = AttentionConfig(heads, kv_heads, attention.head_dim, attention.scaling, window)
    normed, x = add_norm(x, norm=input_norm)
    if is_last:
        q_linear, kv_linears, output_linear, *_ = last_linears_by_input(layer)
        kv = project_heads(kv_linears, 0, kv_heads)
        if layout.last is not None:
            normed, x = add_norm(project.select(x, layout.last), norm=input_norm)
        attended = attend_last(project_heads(q_linear, heads, 0), kv, config, layout)
    else:
        qkv_linears, output_linear, *_ = linears_by_input(layer)
        attended = Attention.apply(project_heads(qkv_linears, heads, kv_heads), config, layout)
    return project(output_linear, attended), x


def compute_mlp(layer: Layer, project: FusedProjections, x: torch.Tensor) -> torch.Tensor:
    """The layer's MLP of the normed x: [..., hidden] to [..., hidden]."""
    _, _, gate_up_linears, down_linear = linears_by_input(layer)
    return project(down_linear, GatedActivation.apply(project(gate_up_linears, x), IS_GELU[type(layer.mlp.act_fn)]))


last_forward = functools.partial(forward, is_last=True)
LLAMAS = tuple(
    Architecture(
        layer, can_fuse, linears_by_input, forward, Architecture(layer, can_fuse, last_linears_by_input, last_forward)
    )
    for layer in (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer, GemmaDecoderLayer)
)
