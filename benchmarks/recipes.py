"""What is compared: the notebook's recipe, an ordinary Trainer with good settings, and ours."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from clock import DEVICE
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from stages.model.adapter import add_lora
from stages.model.base import exchange_activation, load_base
from stages.runtime.errors import UserError
from stages.runtime.params import Params
from stages.sources.fetch import fetch
from stages.task import batching, dataset, source, tokens
from stages.task.task import Task
from stages.training.trainer import make_trainer

OUT = str(Path(tempfile.gettempdir()) / "benchmark")  # Trainers want a folder; nothing is saved


@dataclass(frozen=True)
class Inputs:
    """Model and rows of all recipes.

    Attributes:
        folder: of the model.
        manifest: of this folder, as `download` writes it.
        rows: {name: examples}; training and test rows, as the notebook and as ours reads them.
        params: params.yaml's; `model.hidden_act` is null where the model's own is no GELU.
    """

    folder: Path
    manifest: dict
    tokenizer: PreTrainedTokenizerBase
    task: Task
    rows: dict[str, list[dict]]
    params: Params


def load_inputs(model_folder: Path, data_folder: Path, p: Params) -> Inputs:
    """1,000 training rows, evenly spaced as published, and all test rows."""
    manifest = manifest_of(model_folder, "model")
    tokenizer = tokens.load_tokenizer(manifest)
    splits = source.read_splits(data_folder, manifest_of(data_folder, "data")["files"], p.data)
    task, rows = dataset.take_rows(splits, p.data, tokens.columns_of(p.tokenize.template))
    train = dataset.resolve_unlabelled(dataset.choose(rows["train"], 1000), "drop", task)
    test = dataset.resolve_unlabelled(rows["test"], "drop", task)

    def examples(rows, template):
        return batching.as_examples(tokens.tokenize(rows, tokenizer, template, p.tokenize.max_length))

    glued = "{premise}{hypothesis}"
    rows = {
        "notebook": [
            {"input_ids": r["input_ids"].tolist(), "labels": r["labels"]} for r in examples(train, glued)
        ],  # as the DataCollator wants them
        "notebook test": examples(test, glued),
        "ours": examples(train, p.tokenize.template),
        "test": examples(test, p.tokenize.template),
    }
    return Inputs(model_folder, manifest, tokenizer, task, rows, with_its_activation(p, model_folder))


def with_its_activation(p: Params, folder: Path) -> Params:
    """The parameters, `model.hidden_act` null where the model in `folder` computes another function (Llama: silu)."""
    try:
        if p.model.hidden_act:
            exchange_activation(AutoConfig.from_pretrained(folder), p.model.hidden_act, folder.name)
        return p
    except UserError:
        return p.model_copy(update={"model": p.model.model_copy(update={"hidden_act": None})})


def manifest_of(folder: Path, key: str) -> dict:
    """The manifest of a folder; key: what it holds, "model" or "data"."""
    return fetch(SimpleNamespace(name=str(folder), revision=""), key, str(folder))[1]


def notebook_base(inputs: Inputs) -> PreTrainedModel:
    """As published: NF4 with float16 products, all else fp32, reentrant checkpointing."""
    return prepare_model_for_kbit_training(quantized(inputs, torch.float16), use_gradient_checkpointing=True)


def notebook_model(inputs: Inputs) -> PeftModel:
    """As published: LoRA on it, the head frozen."""
    lora = get_peft_model(notebook_base(inputs), lora_config())
    for name, parameter in lora.named_parameters():
        parameter.requires_grad_("lora" in name)
    return lora


def peer_model(inputs: Inputs) -> PeftModel:
    """What a user would write today: NF4 with bf16 products, bf16 weights, no checkpointing."""
    return get_peft_model(quantized(inputs, torch.bfloat16), lora_config())


def our_base(inputs: Inputs) -> PreTrainedModel:
    """Ours, as params.yaml has it."""
    return load_base(
        inputs.manifest, inputs.params.model, inputs.task.classes, DEVICE, inputs.params.seed, inputs.tokenizer
    )


def our_model(inputs: Inputs, base: PreTrainedModel) -> PeftModel:
    """LoRA on `our_base`, the head trained."""
    return add_lora(base, inputs.params.lora, inputs.params.seed)


def quantized(inputs: Inputs, dtype: torch.dtype) -> PreTrainedModel:
    """The base in NF4, its products and its other weights in `dtype`, as transformers makes it."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
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
    """LoRA as published."""
    return LoraConfig(
        task_type=TaskType.SEQ_CLS, r=16, lora_alpha=64, lora_dropout=0.05, bias="none", target_modules="all-linear"
    )


def frozen_weights(folder: Path) -> int:
    """The weights of a model that LoRA leaves as they are: those of its linear layers, without the head."""
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
    **settings,
) -> Trainer:
    """Hugging Face's Trainer as it is."""
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
    return Trainer(model=peft_model, args=arguments, train_dataset=rows, data_collator=collator)


def train_notebook(inputs: Inputs, batch_size: int, steps: int) -> Trainer:
    """The notebook's training."""
    return ordinary_trainer(
        notebook_model(inputs), inputs.rows["notebook"], inputs, batch_size, steps,
        padding={"padding": "max_length", "max_length": 128}, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )  # fmt: skip


def train_peer(inputs: Inputs, batch_size: int, steps: int) -> Trainer:
    """The Trainer with what makes it fast, but for `torch_compile`, whose first step takes minutes."""
    return ordinary_trainer(
        peer_model(inputs), inputs.rows["ours"], inputs, batch_size, steps,
        padding={"padding": "longest", "pad_to_multiple_of": 8}, bf16=True, optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length", dataloader_pin_memory=True,
    )  # fmt: skip


def train_ours(inputs: Inputs, batch_size: int, steps: int, **changes) -> Trainer:
    """The stage `train_qlora`'s training; `changes` are of params.yaml's group `train`."""
    group = inputs.params.train.model_copy(update={"batch_size": batch_size, "keep": "last", **changes})
    p = inputs.params.model_copy(update={"train": group})
    rows, recorder = inputs.rows["ours"], SimpleNamespace()  # only the name of the phase is set on it
    trainer = make_trainer(
        our_model(inputs, our_base(inputs)), rows, rows[:100], p, inputs.tokenizer.pad_token_id, OUT, recorder
    )
    trainer.args.max_steps, trainer.args.eval_strategy, trainer.args.save_strategy = steps, "no", "no"
    return trainer


@dataclass(frozen=True)
class Recipe:
    """One way to train, as it is timed.

    Attributes:
        name: of its lines in a result.
        make_trainer: (inputs, batch size, steps) -> Trainer.
        warm_up: passes over the training rows before it is timed.
        batch_sizes: those at which it is timed where no others are asked for.
    """

    name: str
    make_trainer: Callable[[Inputs, int, int], Trainer]
    warm_up: float = 0.25
    batch_sizes: tuple[int, ...] = (16, 128)


CAPTURES = 3  # passes in which each shape of a batch has come, and its graph is captured
RECIPES = [
    Recipe("notebook", train_notebook),
    Recipe("trainer at its best", train_peer),
    Recipe("ours, eager", functools.partial(train_ours, cuda_graphs=False), batch_sizes=(16,)),
    Recipe("ours", train_ours, CAPTURES),
    Recipe("ours, dequantizing each", functools.partial(train_ours, dequantize_once=False), CAPTURES),
    Recipe("ours, checkpointing", functools.partial(train_ours, gradient_checkpointing=True), CAPTURES, (16,)),
]


@torch.no_grad()
def one_by_one(classifier: torch.nn.Module, batches: list) -> None:
    """As the notebook evaluates: a row, its answer, the next row."""
    for batch in batches:
        classifier(**batch.to(DEVICE)).logits.argmax().item()
