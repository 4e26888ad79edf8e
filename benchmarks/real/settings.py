"""What is compared on real weights: our recipe, and the same with one thing otherwise."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Setting:
    """A recipe: root's params.yaml with some values changed.

    Attributes:
        says: what it is, for the table.
        changes: {parameter: value}.
        seeds: how many of the seeds it is run with.
    """

    says: str
    changes: dict[str, object] = field(default_factory=dict)
    seeds: int = 5


# What the notebook does, each fix of docs/notebook.md taken back alone.
FIXES = {
    "unlabelled": Setting("rows without a gold label are neutral", {"data.unlabelled": "neutral"}),
    "template": Setting("`{premise}{hypothesis}`", {"tokenize.template": "{premise}{hypothesis}"}),
    "padding": Setting(
        "every row padded to 128 tokens, in random order",
        {"batches.padding": "max_length", "batches.order": "random"},
    ),
    "frozen head": Setting("head left as it was drawn", {"train.freeze_head": True}),
    "random head": Setting("another head at each load", {"model.head_init": "random"}),
    "one row at a time": Setting("evaluated one row at a time", {"eval.batch_size": 1}, seeds=1),
    "fp32": Setting(
        "fp32 activations, gradient checkpointing",
        {"model.precision": "fp16", "train.gradient_checkpointing": True},
    ),
    "gelu_new": Setting("`gelu_new`", {"model.hidden_act": "gelu_new"}),
    "eager": Setting("eager steps", {"train.cuda_graphs": False}),
}
# Evaluated in batches: answers differ by rounding alone, and one row at a time takes minutes.
NOTEBOOK = {key: value for fix in FIXES.values() for key, value in fix.changes.items()} | {"eval.batch_size": 256}

SETTINGS = {
    "ours": Setting("1,000 training rows, as published, with our fixes"),
    "notebook": Setting("the same as the notebook has it, all its values together", NOTEBOOK),
    "best epoch": Setting("the epoch of lowest validation loss is kept", {"train.keep": "best"}),
    "not quantised": Setting("the base in bf16 instead of NF4", {"model.quantization": "none"}),
    "all rows": Setting(
        "26,282 training rows, 3 epochs, batch 32, learning rate 3e-4",
        {"data.train_rows": None, "train.epochs": 3, "train.batch_size": 32, "train.learning_rate": 3e-4},
        seeds=3,
    ),
    **FIXES,
}
