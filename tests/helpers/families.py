"""Small models of many families with random weights, each saved with the nano model's tokenizer."""

import shutil
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

from helpers.project import NANO

SIZE = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GQA_SIZE = SIZE | {"intermediate_size": 128, "num_key_value_heads": 2}
GPT2_SIZE = {"vocab_size": 1000, "n_layer": 2, "n_head": 4}
WINDOW = {"sliding_window": 8}  # shorter than the tests' rows
GEMMA = GQA_SIZE | {"head_dim": 16, "query_pre_attn_scalar": 16} | WINDOW

# All but falcon load in 4 bits: bitsandbytes does not quantize falcon's class of linear layers.
FAMILIES: dict[str, PreTrainedConfig] = {
    # Two heads: Triton's interpreter runs the attention kernels once for each head of each row.
    "phi": PhiConfig(**SIZE | {"num_attention_heads": 2}, intermediate_size=128, partial_rotary_factor=0.5),
    "phi3": Phi3Config(**GQA_SIZE, **WINDOW, pad_token_id=0),
    "llama": LlamaConfig(**GQA_SIZE),
    "mistral": MistralConfig(**GQA_SIZE, **WINDOW),
    "qwen2": Qwen2Config(**GQA_SIZE, **WINDOW, use_sliding_window=True, max_window_layers=1),
    "qwen3": Qwen3Config(**GQA_SIZE, head_dim=16),
    "gemma": GemmaConfig(**GQA_SIZE, head_dim=16),
    "gemma2": Gemma2Config(**GEMMA),
    "gemma3_text": Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "olmo2": Olmo2Config(**GQA_SIZE),
    "smollm3": SmolLM3Config(**GQA_SIZE, pad_token_id=0),
    "stablelm": StableLmConfig(**GQA_SIZE),
    "gpt_neox": GPTNeoXConfig(**SIZE, intermediate_size=128),
    "gpt2": GPT2Config(**GPT2_SIZE, n_embd=64),
    "opt": OPTConfig(**SIZE, ffn_dim=128, word_embed_proj_dim=64, dropout=0.0),
    "bloom": BloomConfig(**GPT2_SIZE, hidden_size=64),
    "mpt": MptConfig(vocab_size=1000, d_model=64, n_layers=2, n_heads=4),
    "falcon": FalconConfig(**SIZE, multi_query=True),
}


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model with large random weights and the nano model's tokenizer.

    The weights are large so that the logits of two rows differ. Biases and norms are random too, so that a forward
    which leaves one out computes other logits.
    """
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.15 + (weight.data if weight.ndim == 1 else 0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, folder)
    return folder


def save_family(family: str, folder: Path) -> Path:
    """Save a model of a family in `FAMILIES`."""
    return save(AutoModelForCausalLM.from_config(FAMILIES[family]), folder)


def quantization_of(family: str) -> str:
    """The value of `model.quantization` with which the tests load a family."""
    return "none" if family == "falcon" else "nf4"
