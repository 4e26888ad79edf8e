"""The decoder layers of Llama, Mistral, Qwen 2, Qwen 3 and Gemma in fewer kernels: they differ in options alone."""

import torch
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from stages.kernels import attention
from stages.kernels.activation import IS_GELU
from stages.kernels.architecture import Architecture
from stages.kernels.fused_linear import FusedProjections
from stages.kernels.gated_mlp import GatedActivation
from stages.kernels.norm import RMSNorm, add_norm, norm_heads


def can_fuse(layer: torch.nn.Module) -> bool:
    """Whether `forward` computes all that this layer does."""
    own = layer.self_attn
    plain = own.is_causal and own.attention_dropout == 0 and type(layer.mlp.act_fn) in IS_GELU
    return plain and attention.fits_shared_memory(own.head_dim, layer.input_layernorm.weight.dtype)


def linears_by_input(layer: torch.nn.Module) -> list[tuple[torch.nn.Module, ...]]:
    """In the order in which the layer computes."""
    own, mlp = layer.self_attn, layer.mlp
    return [(own.q_proj, own.k_proj, own.v_proj), (own.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,)]


def forward(
    layer: torch.nn.Module, project: FusedProjections, x: torch.Tensor, rows: attention.RowLayout
) -> torch.Tensor:
    """transformers' forward of these layers."""
    normed, x = add_norm(x, norm=RMSNorm.from_module(layer.input_layernorm))
    normed, x = add_norm(
        x, attend(layer, project, normed, rows), norm=RMSNorm.from_module(layer.post_attention_layernorm)
    )
    return x + grow(layer, project, normed)


def attend(
    layer: torch.nn.Module, project: FusedProjections, x: torch.Tensor, rows: attention.RowLayout
) -> torch.Tensor:
    """The layer's attention: of the normed x, [..., hidden] to [..., hidden]."""
    own, (qkv, output, _, _) = layer.self_attn, linears_by_input(layer)
    heads, kv_heads = own.config.num_attention_heads, own.config.num_key_value_heads
    projected = project(qkv, x)
    if hasattr(own, "q_norm"):
        projected = norm_heads(
            projected, RMSNorm.from_module(own.q_norm), RMSNorm.from_module(own.k_norm), heads, kv_heads
        )
    # Mistral's layers have their model's window, Qwen's and Gemma 3's their own. Llama's and Gemma's have none, even
    # where one stands in the config.
    window = own.config.sliding_window if isinstance(own, MistralAttention) else getattr(own, "sliding_window", None)
    shape = attention.AttentionConfig(heads, kv_heads, own.head_dim, own.scaling, window)
    return project(output, attention.Attention.apply(projected, shape, rows))


def grow(layer: torch.nn.Module, project: FusedProjections, x: torch.Tensor) -> torch.Tensor:
    """The layer's MLP: of the normed x, [..., hidden] to [..., hidden]."""
    _, _, gate_up, down = linears_by_input(layer)
    return project(down, GatedActivation.apply(project(gate_up, x), IS_GELU[type(layer.mlp.act_fn)]))


LLAMAS = tuple(
    Architecture(layer, can_fuse, linears_by_input, forward)
    for layer in (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer, GemmaDecoderLayer)
)
