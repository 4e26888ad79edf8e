"""The recipes that benchmarks/compare.py measures: the notebook's, the HF Trainer with good settings, and ours."""

import contextlib
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import torch
from gpu_timing import DEVICE
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from random_model import draw_weights
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.integrations.liger import apply_liger_kernel
from transformers.trainer_utils import TrainOutput
from transformers.utils import is_liger_kernel_available

from stages.data import batching, dataset, split_files, tokenization
from stages.data.sampling import sample_evenly
from stages.data.task import Task
from stages.model.adapter import add_lora
from stages.model.base import load_base, replace_activation
from stages.runtime.errors import UserError
from stages.runtime.params import Params
from stages.sources.manifest import build_manifest
from stages.training.trainer import make_trainer

OUT = str(Path(tempfile.gettempdir()) / "benchmark")  # a Trainer requires a folder; it saves nothing


@dataclass(frozen=True)
class Inputs:
    """The model and the rows of all recipes.

    Attributes:
        folder: the model's folder.
        manifest: its manifest, as `download` writes it.
        rows: {name: examples}: training and test rows, with the notebook's template and with ours.
        params: the parameters; `model.hidden_act` is null if the model's activation is no GELU.
    """

    folder: Path
    manifest: dict
    tokenizer: PreTrainedTokenizerBase
    task: Task
    rows: dict[str, list[dict]]
    params: Params


def load_inputs(model_folder: Path, data_folder: Path, p: Params) -> Inputs:
    """Load 1,000 training rows, evenly spaced as in the notebook, and all test rows."""
    manifest = manifest_of(model_folder, "model")
    tokenizer = tokenization.load_tokenizer(manifest)
    splits = split_files.read_splits(data_folder, manifest_of(data_folder, "data")["files"], p.data)
    task, rows = dataset.prepare_rows(splits, p.data, p.tokenize.template)
    train = dataset.resolve_unlabelled(sample_evenly(rows["train"], 1000), "drop", task)
    test = dataset.resolve_unlabelled(rows["test"], "drop", task)

    def tokenize_rows(rows: pd.DataFrame, template: str) -> batching.TokenizedRows:
        tokenized = tokenization.tokenize_rows(rows, tokenizer, template, p.tokenize.max_length)
        return batching.TokenizedRows.from_lists(tokenized["input_ids"], tokenized["label"])

    notebook_template = "{premise}{hypothesis}"
    rows = {
        "notebook": [
            {"input_ids": r["input_ids"].tolist(), "labels": r["labels"]}
            for r in tokenize_rows(train, notebook_template)
        ],  # the format of DataCollatorWithPadding
        "notebook test": tokenize_rows(test, notebook_template),
        "ours": tokenize_rows(train, p.tokenize.template),
        "test": tokenize_rows(test, p.tokenize.template),
    }
    return Inputs(model_folder, manifest, tokenizer, task, rows, match_activation(p, model_folder))


def with_long_texts(inputs: Inputs, longest: int, rows: int) -> Inputs:
    """Replace the training and test rows of "ours" by `rows` longer ones, of SNLI's tokens.

    Their lengths are evenly spaced from 2 % of `longest` to `longest`, so their mean is 51 % of it.
    """
    short = inputs.rows["ours"]
    lengths = np.linspace(0.02 * longest, longest, rows).round().astype(int)
    np.random.default_rng(0).shuffle(lengths)
    ends = lengths.cumsum()
    texts = np.split(np.resize(short.tokens, ends[-1]), ends[:-1])
    long = batching.TokenizedRows.from_lists(texts, np.resize(short.labels, rows))
    p = inputs.params
    p = p.model_copy(update={"tokenize": p.tokenize.model_copy(update={"max_length": longest})})
    return replace(inputs, rows={"ours": long, "test": long}, params=p)


def long_batch_size(longest: int) -> int:
    """Rows of a batch of texts of up to `longest` tokens: 16, or as many as have 16,384 tokens at most."""
    return max(1, min(16, 16384 // longest))


def match_activation(p: Params, folder: Path) -> Params:
    """Set `model.hidden_act` to null if the model in `folder` computes another function (Llama: silu)."""
    try:
        if p.model.hidden_act:
            replace_activation(AutoConfig.from_pretrained(folder), p.model.hidden_act, folder.name)
        return p
    except UserError:
        return p.model_copy(update={"model": p.model.model_copy(update={"hidden_act": None})})


def manifest_of(folder: Path, key: str) -> dict:
    """The manifest of a folder that holds a "model" or "data" (`key`)."""
    return build_manifest(folder, str(folder), None, key)


def notebook_base(inputs: Inputs) -> PreTrainedModel:
    """The notebook's base: NF4 with float16 products, all else fp32, reentrant checkpointing."""
    return prepare_model_for_kbit_training(load_quantized(inputs, torch.float16), use_gradient_checkpointing=True)


def notebook_model(inputs: Inputs) -> PeftModel:
    """The notebook's model: LoRA on its base, with a frozen head."""
    lora = get_peft_model(notebook_base(inputs), lora_config())
    for name, parameter in lora.named_parameters():
        parameter.requires_grad_("lora" in name)
    return lora


def peer_model(inputs: Inputs) -> PeftModel:
    """The model that a user would build today: NF4 with bf16 products, bf16 weights, no checkpointing."""
    return get_peft_model(load_quantized(inputs, torch.bfloat16), lora_config())


@contextlib.contextmanager
def weights_of(folder: Path) -> Iterator[None]:
    """Within this block transformers loads random weights if `folder` has none (`random_model.py --no-weights`)."""
    if any(folder.glob("*.safetensors")):
        yield
        return
    load = PreTrainedModel.from_pretrained.__func__

    def from_drawn(cls: type, _: Path, *args: object, config: PreTrainedConfig, **settings: object) -> PreTrainedModel:
        return load(cls, None, *args, config=config, state_dict=draw_decoder(folder), **settings)

    with mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(from_drawn)):
        yield


def draw_decoder(folder: Path) -> dict[str, torch.Tensor]:
    """The random weights of a model without its language model's head."""
    return {name: weight for name, weight in _draw_once(folder).items() if not name.startswith("lm_head")}


@functools.lru_cache(maxsize=1)
def _draw_once(folder: Path) -> dict[str, torch.Tensor]:
    return draw_weights(AutoConfig.from_pretrained(folder), DEVICE)


def our_base(inputs: Inputs, tokens: np.ndarray | None = None) -> PreTrainedModel:
    """Our base, with the settings of params.yaml; tokens: as for `load_base`."""
    p = inputs.params
    with weights_of(inputs.folder):
        return load_base(inputs.manifest, p.model, inputs.task.labels, DEVICE, p.seed, inputs.tokenizer, tokens)


def our_model(inputs: Inputs, base: PreTrainedModel) -> PeftModel:
    """Our model: LoRA on `our_base`, with a trained head."""
    return add_lora(base, inputs.params.lora, inputs.params.seed)


def load_quantized(inputs: Inputs, dtype: torch.dtype) -> PreTrainedModel:
    """Load the base in NF4 with transformers; its products and its other weights have `dtype`."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    with weights_of(inputs.folder):
        base = AutoModelForSequenceClassification.from_pretrained(
            inputs.folder,
            num_labels=len(inputs.task.classes),
            quantization_config=config,
            device_map={"": DEVICE},
            dtype=dtype,
        )
    base.config.pad_token_id = inputs.tokenizer.pad_token_id
    return base


def lora_config() -> LoraConfig:
    """The notebook's LoRA."""
    return LoraConfig(
        task_type=TaskType.SEQ_CLS, r=16, lora_alpha=64, lora_dropout=0.05, bias="none", target_modules="all-linear"
    )


def frozen_weights(folder: Path) -> int:
    """The number of weights in a model's linear layers without the head, which LoRA leaves unchanged."""
    with torch.device("meta"):
        shape = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    linear = (module for module in shape.base_model.modules() if isinstance(module, torch.nn.Linear))
    return sum(module.weight.numel() for module in linear)


def ordinary_trainer(
    peft_model: PeftModel,
    rows: list[dict],
    inputs: Inputs,
    batch_size: int,
    steps: int,
    padding: dict,
    trainer: type[Trainer] = Trainer,
    **settings: object,
) -> Trainer:
    """Hugging Face's Trainer without changes."""
    arguments = TrainingArguments(
        output_dir=OUT,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-4,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        **settings,
    )
    collator = DataCollatorWithPadding(inputs.tokenizer, **padding)
    return trainer(model=peft_model, args=arguments, train_dataset=rows, data_collator=collator)


def train_notebook(inputs: Inputs, batch_size: int, steps: int) -> Trainer:
    """The notebook's Trainer."""
    return ordinary_trainer(
        notebook_model(inputs), inputs.rows["notebook"], inputs, batch_size, steps,
        padding={"padding": "max_length", "max_length": 128}, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )  # fmt: skip


def train_peer(inputs: Inputs, batch_size: int, steps: int, **settings: object) -> Trainer:
    """The HF Trainer with fast settings, except `torch_compile`, whose first step takes minutes."""
    return ordinary_trainer(
        peer_model(inputs), inputs.rows["ours"], inputs, batch_size, steps,
        padding={"padding": "longest", "pad_to_multiple_of": 8}, bf16=True, optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length", dataloader_pin_memory=True, **settings,
    )  # fmt: skip


# With `torch_compile` the Trainer enables TF32, which would stay enabled for the recipes after it.
train_compiled = functools.partial(train_peer, torch_compile=True, tf32=False)


class NotApplicable(Exception):
    """A recipe cannot train this model, or cannot run on this machine."""


class LigerTrainer(Trainer):
    """Trains with Liger Kernel's norms, rotary embedding and gated MLP.

    `train` applies Liger to the decoder only. The Trainer's own `use_liger_kernel` gives a classifier the forward of a
    language model, and rejects Gemma 3. Liger also patches the family's module, for every later model; `train` undoes
    this at its end.
    """

    def train(self, *args: object, **kwargs: object) -> TrainOutput:
        decoder = self.model.get_base_model().base_model
        with mock.patch.dict(vars(sys.modules[type(decoder).__module__])):
            apply_liger_kernel(decoder, {"fused_linear_cross_entropy": False})  # a classifier has no such loss
            return super().train(*args, **kwargs)


def train_liger(inputs: Inputs, batch_size: int, steps: int) -> Trainer:
    """`train_peer` with Liger Kernel.

    Raises:
        NotApplicable: Liger Kernel is not installed, or does not support this family.
    """
    if not is_liger_kernel_available():
        raise NotApplicable("liger-kernel is not installed")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    family = AutoConfig.from_pretrained(inputs.folder).model_type
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:  # transformers would silently train without it
        raise NotApplicable(f"Liger Kernel does not support {family}")
    return train_peer(inputs, batch_size, steps, trainer=LigerTrainer)


def train_ours(inputs: Inputs, batch_size: int, steps: int, **changes: object) -> Trainer:
    """The Trainer of `train_qlora`; `changes` are keys of `train` in params.yaml."""
    train = inputs.params.train.model_copy(update={"batch_size": batch_size, "keep": "last", **changes})
    p = inputs.params.model_copy(update={"train": train})
    rows, recorder = inputs.rows["ours"], SimpleNamespace()  # the Trainer only sets its phase
    pad_id = inputs.tokenizer.pad_token_id
    model = our_model(inputs, our_base(inputs, batching.list_tokens(pad_id, rows)))
    trainer = make_trainer(model, rows, rows[:100], p, pad_id, OUT, recorder)
    trainer.args.max_steps, trainer.args.eval_strategy, trainer.args.save_strategy = steps, "no", "no"
    return trainer


@dataclass(frozen=True)
class Recipe:
    """A way to train, and how it is measured.

    Attributes:
        name: its name in the results.
        make_trainer: (inputs, batch size, steps) -> Trainer; may raise `NotApplicable`.
        warm_up: passes over the training rows before the timing starts.
        batch_sizes: the default batch sizes.
        on_request: whether it runs only with its name in `--only` or with `--torch-compile`.
    """

    name: str
    make_trainer: Callable[[Inputs, int, int], Trainer]
    warm_up: float = 0.25
    batch_sizes: tuple[int, ...] = (16, 128)
    on_request: bool = False


CAPTURE_PASSES = 3  # after so many passes every shape of a batch has occurred, and its graph is captured
RECIPES = [
    Recipe("notebook", train_notebook),
    Recipe("trainer at its best", train_peer),
    Recipe("trainer with Liger Kernel", train_liger),
    Recipe("ours, eager", functools.partial(train_ours, cuda_graphs=False), batch_sizes=(16,)),
    Recipe("ours", train_ours, CAPTURE_PASSES),
    Recipe("ours, dequantizing each", functools.partial(train_ours, dequantize_once=False), CAPTURE_PASSES),
    Recipe("ours, checkpointing", functools.partial(train_ours, gradient_checkpointing=True), CAPTURE_PASSES, (16,)),
    Recipe("trainer, compiled", train_compiled, warm_up=1, batch_sizes=(16,), on_request=True),
]


@torch.no_grad()
def one_by_one(classifier: torch.nn.Module, batches: list) -> None:
    """Evaluate as the notebook does: one row, its answer, the next row."""
    for batch in batches:
        classifier(**batch.to(DEVICE)).logits.argmax().item()
