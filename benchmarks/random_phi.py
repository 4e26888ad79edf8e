"""Make a model of phi-2's shape with random weights, to measure time and memory. Its accuracy means nothing.

    python benchmarks/random_phi.py SHAPE OUT [--layers 2]

SHAPE is a folder with phi-2's config.json and tokenizer. The script writes them to OUT, with the weights (5.3 GB in
bf16 at full size).
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", type=Path, help="folder with config.json and the tokenizer's files")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--layers", type=int, help="number of layers; default: that of the shape")
    arguments = parser.parse_args()

    config = AutoConfig.from_pretrained(arguments.shape)
    if arguments.layers:
        config.num_hidden_layers = arguments.layers
    set_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(arguments.out)
    for file in arguments.shape.iterdir():
        if file.suffix in (".json", ".txt") and file.name != "config.json":
            shutil.copy(file, arguments.out)


if __name__ == "__main__":
    main()
