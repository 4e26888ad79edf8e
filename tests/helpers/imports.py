"""Which slow libraries each stage may import, at its start or later."""

from collections.abc import Iterable
from pathlib import Path

# An import takes 0.2 s or more by `python -X importtime` on a CPU of 2024, or it imports many of the others.
SLOW = frozenset([
    "IPython", "accelerate", "bitsandbytes", "datasets", "dvc", "matplotlib", "networkx", "pandas", "peft", "scipy",
    "scipy.stats", "sklearn", "sympy", "tensorboard", "torch", "torch._dynamo", "torch._functorch.aot_autograd",
    "torch._inductor.compile_fx", "torchvision", "transformers", "transformers.trainer", "triton", "wandb",
])  # fmt: skip

TOKENIZER = {"pandas", "torch", "transformers"}
# transformers imports the last three, for torch.compile's masks and a loss of object detection.
MODEL = TOKENIZER | {"accelerate", "bitsandbytes", "peft", "triton", "torch._dynamo", "sympy", "scipy"}
ALLOWED = {
    "download": {"datasets", "pandas", "scipy"},  # `datasets` imports `scipy` for one of its file formats
    "tokenize": TOKENIZER | {"datasets"},
    "eval_base": MODEL | {"sklearn", "scipy.stats"},  # for the probe; `sklearn` imports `scipy.stats`
    "train_qlora": MODEL | {"transformers.trainer", "datasets"},  # `transformers.trainer` imports `datasets`
    "eval_lora": MODEL,
    "analyze": {"pandas", "matplotlib", "scipy", "scipy.stats", "sklearn"},  # a hypothesis-only classifier
}


def too_many(stage: str, modules: Iterable[str]) -> set[str]:
    """Slow libraries among a stage's imported modules that the stage may not import."""
    return (SLOW & set(modules)) - ALLOWED[stage]


def modules_of(files: Iterable[str]) -> set[str]:
    """Dotted names of the installed modules in a list of files that Python has opened."""
    modules = set()
    for file in files:
        path = Path(file)
        if "site-packages" not in path.parts or path.suffix not in (".py", ".pyc"):
            continue
        place = len(path.parts) - path.parts[::-1].index("site-packages")
        parts = [part for part in path.parts[place:-1] if part != "__pycache__"]
        name = path.name.partition(".")[0]
        modules.add(".".join(parts if name == "__init__" else [*parts, name]))
    return modules
