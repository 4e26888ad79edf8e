"""The recipes that benchmarks/real compares: ours, and ours with one change."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """The root's params.yaml with some values changed.

    Attributes:
        title: its line in the tables.
        changes: {parameter: value}.
        seeds: the number of seeds it is trained with.
    """

    title: str
    changes: dict[str, object] = field(default_factory=dict)
    seeds: int = 5


# The notebook's value of each fix in docs/notebook.md, one at a time.
FIXES = {
    "unlabelled": Variant("rows without a gold label are neutral", {"data.unlabelled": "neutral"}),
    "template": Variant("`{premise}{hypothesis}`", {"tokenize.template": "{premise}{hypothesis}"}),
    "padding": Variant(
        "rows padded to 128 tokens, in random order",
        {"batches.padding": "max_length", "batches.order": "random"},
    ),
    "frozen head": Variant("frozen head", {"train.freeze_head": True}),
    "random head": Variant("another head at each load", {"model.head_init": "random"}),
    "one row at a time": Variant("evaluated one row at a time", {"eval.batch_size": 1}, seeds=1),
    "fp32": Variant(
        "fp32 activations, gradient checkpointing",
        {"model.precision": "fp16", "train.gradient_checkpointing": True},
    ),
    "gelu_new": Variant("`gelu_new`", {"model.hidden_act": "gelu_new"}),
    "eager": Variant("eager steps", {"train.cuda_graphs": False}),
    "not calibrated": Variant("no temperature", {"train.calibrate": False}),
}
# Evaluated in batches, because one row at a time takes minutes and changes answers only by rounding.
NOTEBOOK = {key: value for fix in FIXES.values() for key, value in fix.changes.items()} | {"eval.batch_size": 256}

VARIANTS = {
    "ours": Variant("ours: 1,000 training rows, the notebook's recipe with our fixes"),
    "notebook": Variant("the notebook's recipe, all its values together", NOTEBOOK),
    "best epoch": Variant("the epoch of lowest validation loss is kept", {"train.keep": "best"}),
    "not quantised": Variant("the base in bf16 instead of NF4", {"model.quantization": "none"}),
    "all rows": Variant(
        "26,282 training rows, 3 epochs, batch 32, learning rate 3e-4",
        {"data.train_rows": None, "train.epochs": 3, "train.batch_size": 32, "train.learning_rate": 3e-4},
        seeds=3,
    ),
    **FIXES,
}
