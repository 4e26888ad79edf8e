"""Which of the libraries that take long to import a stage may import, its imports of later included."""

from collections.abc import Iterable
from pathlib import Path

# By `python -X importtime`, from a fifth of a second up on a CPU of 2024; those that bring many others along too.
SLOW = frozenset([
    "IPython", "accelerate", "bitsandbytes", "datasets", "dvc", "matplotlib", "networkx", "pandas", "peft", "scipy",
    "scipy.stats", "sklearn", "sympy", "tensorboard", "torch", "torch._dynamo", "torch._functorch.aot_autograd",
    "torch._inductor.compile_fx", "torchvision", "transformers", "transformers.trainer", "triton", "wandb",
])  # fmt: skip

TOKENIZER = {"pandas", "torch", "transformers"}
# Transformers' own files import the last three: masks for torch.compile, a loss for object detection.
MODEL = TOKENIZER | {"accelerate", "bitsandbytes", "peft", "triton", "torch._dynamo", "sympy", "scipy"}
ALLOWED = {
    "download": {"datasets", "pandas", "scipy"},  # `datasets` imports `scipy` to read a file format of its own
    "tokenize": TOKENIZER | {"datasets"},
    "eval_base": MODEL,
    "train_qlora": MODEL | {"transformers.trainer", "datasets"},  # `transformers.trainer` imports `datasets`
    "eval_lora": MODEL,
    "analyze": {"pandas", "matplotlib", "scipy", "scipy.stats", "sklearn"},  # a hypothesis-only classifier
}


def too_many(stage: str, modules: Iterable[str]) -> set[str]:
    """Which of the modules that a stage has imported it should not have."""
    return (SLOW & set(modules)) - ALLOWED[stage]


def modules_of(files: Iterable[str]) -> set[str]:
    """Dotted names of the modules whose source or bytecode is among files that Python opened."""
    found = set()
    for file in files:
        path = Path(file)
        if "site-packages" not in path.parts or path.suffix not in (".py", ".pyc"):
            continue
        place = len(path.parts) - path.parts[::-1].index("site-packages")
        parts = [part for part in path.parts[place:-1] if part != "__pycache__"]
        name = path.name.partition(".")[0]
        found.add(".".join(parts if name == "__init__" else [*parts, name]))
    return found
