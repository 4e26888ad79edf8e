"""Make a model with random weights, to measure time and memory. Its accuracy means nothing.

    python benchmarks/random_model.py SHAPE OUT [--tokenizer FOLDER] [--layers 2] [--no-weights]

SHAPE is a folder with config.json and a tokenizer, such as phi-2's, or one of the shapes below, which need a tokenizer
from elsewhere. The script writes config.json and the tokenizer to OUT, with the weights in bf16: 5.6 GB for phi-2, 16
GB for 8B, 30 GB for 14B.

`--no-weights` leaves the weights out. benchmarks/recipes.py then draws them at each load, which takes less time than
reading them. All layers get the same random matrices, and each is quantised on its own, as from a file.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

# The published configs; everything that they leave out does not change time or memory.
SHAPES = {
    "llama-3-8b": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "qwen3-14b": Qwen3Config(
        vocab_size=151936, hidden_size=5120, intermediate_size=17408, num_hidden_layers=40, num_attention_heads=40,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rms_norm_eps=1e-6,
        tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
}  # fmt: skip
TOKENIZER_FILES = ("*token*.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja")


def draw_weights(config: PreTrainedConfig, device: str | torch.device) -> dict[str, torch.Tensor]:
    """Draw the weights of a causal language model, bf16 on the CPU.

    Matrices of equal names in different layers are the same tensor: 8B weights then take 1.5 GB, and no time.

    Args:
        device: draws the numbers.
    """
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    generator, drawn = torch.Generator(device).manual_seed(0), {}

    def draw(shape: torch.Size) -> torch.Tensor:
        values = torch.empty(shape, dtype=torch.bfloat16, device=device)
        return values.normal_(0, 0.02, generator=generator).cpu()

    weights = {}
    for name, weight in shapes.items():
        if weight.ndim == 1:  # biases and norms
            weights[name] = torch.full(weight.shape, float(not name.endswith("bias")), dtype=torch.bfloat16)
        else:
            key = re.sub(r"\.\d+\.", ".", name)
            drawn.setdefault(key, None)
            if drawn[key] is None:
                drawn[key] = draw(weight.shape)
            weights[name] = drawn[key]
    return weights


def save_weights(weights: dict[str, torch.Tensor], config: PreTrainedConfig, folder: Path) -> None:
    """Write a shard for each layer, and one for the rest."""
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in weights.items():
        if not (name.startswith("lm_head") and config.tie_word_embeddings):
            layer = re.search(r"\.\d+\.", name)
            shards.setdefault(layer[0] if layer else "", {})[name] = weight
    files = {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards.values(), 1)}
    for file, shard in files.items():
        save_file(shard, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, shard in files.items() for name in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", help=f"folder with config.json and the tokenizer's files, or {', '.join(SHAPES)}")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, help="folder with the tokenizer's files; default: SHAPE")
    parser.add_argument("--layers", type=int, help="number of layers; default: that of the shape")
    parser.add_argument("--no-weights", action="store_true", help="the benchmarks draw the weights when they load it")
    arguments = parser.parse_args()
    if arguments.shape in SHAPES and not arguments.tokenizer:
        parser.error(f"--tokenizer: {arguments.shape} has none; give a folder that has one, such as phi-2's")

    config = SHAPES.get(arguments.shape) or AutoConfig.from_pretrained(arguments.shape)
    if arguments.layers:
        config.num_hidden_layers = arguments.layers
    config.dtype = torch.bfloat16
    config.save_pretrained(arguments.out)
    tokenizer = arguments.tokenizer or Path(arguments.shape)
    for file in (file for pattern in TOKENIZER_FILES for file in tokenizer.glob(pattern)):
        shutil.copy(file, arguments.out)
    if not arguments.no_weights:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        save_weights(draw_weights(config, device), config, arguments.out)


if __name__ == "__main__":
    main()
