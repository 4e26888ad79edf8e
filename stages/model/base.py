"""The quantised base: loaded from its pinned files, frozen, checked."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import bitsandbytes as bnb
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from stages.model import base_cache
from stages.model.devices import pick_precision
from stages.model.head import check_head, draw_head
from stages.runtime import params
from stages.runtime.errors import UserError, type_and_first_line
from stages.sources.fetch import find_model_folder

ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")  # what configs call it
TANH_GELUS = frozenset(["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])  # transformers' names of one function


def load_base(
    manifest: dict,
    group: params.Model,
    classes: Sequence[str],
    device: torch.device,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel:
    """The base with a classification head, quantised, frozen, in evaluation mode.

    Within `base_cache.cache_base()` the weights are read and quantised once. Every call returns its own model around
    them.

    Args:
        manifest: what `download` wrote.
        group: the group `model` of params.yaml.
        classes: names, in the order of their numbers; the head has one output for each.
        device: torch.device.
        seed: seeds the head, on the CPU, so that every device and every stage gets the same.
        tokenizer: its pad token tells where a row ends; its size must fit the embedding.

    Returns:
        a transformers `...ForSequenceClassification`; products in `group.precision`, the head in fp32.
    """
    folder = find_model_folder(manifest)
    settings = group.model_dump(exclude={"name", "revision", "head_init"})  # the digest stands for the first two
    model = base_cache.share_model(
        (manifest["digest"], settings, tuple(classes), device),
        lambda: _frozen(folder, manifest, group, classes, device, tokenizer),
    )
    draw_head(model, seed if group.head_init == "seeded" else None)
    return model.requires_grad_(False)


def _frozen(folder, manifest, group, classes, device, tokenizer):
    """The base as it is read from its files: all of it that no seed changes. Its head is any."""
    logging.disable_progress_bar()  # weights load in a second, and the bar would stay in every log
    try:
        config = classifier_config(folder, manifest, group, classes, tokenizer)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            device_map={"": device},
            use_safetensors=True,
            **precision_arguments(group, device),
        )
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"model.name: {manifest['name']} does not fit this GPU's memory ({type_and_first_line(error)})"
        ) from error
    except Exception as error:  # a truncated shard, an unknown architecture, a pickled checkpoint: a dozen kinds
        raise UserError(
            f"model.name: {manifest['name']}: not loadable as a model ({type_and_first_line(error)})"
        ) from error
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):  # it does so unasked
        raise UserError(
            f"model.name: {manifest['name']}: transformers loaded an adapter with the base; "
            f"remove adapter_config.json from {folder}"
        )
    stabilize_4_bit_layers(model)
    check_head(model)
    if group.quantization == "nf4":
        _check_quantised(model, manifest["name"])
    _check_causal(model.requires_grad_(False).eval(), manifest["name"])
    return model


def classifier_config(
    folder: Path,
    manifest: dict,
    group: params.Model,
    classes: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedConfig:
    """The configuration of a base as a classifier: its labels' names, its activation, the token that pads its rows.

    Args:
        folder: of the base.
        manifest, group, classes, tokenizer: as `load_base` takes them.
    """
    config = AutoConfig.from_pretrained(
        folder,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: code for code, name in enumerate(classes)},
        problem_type="single_label_classification",  # a training step would set it, a resumed run may have none
    )
    _check_family(config, manifest["name"])
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"model.name: {manifest['name']}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}"
        )
    if group.hidden_act:
        replace_activation(config, group.hidden_act, manifest["name"])
    config.pad_token_id, config.use_cache = tokenizer.pad_token_id, False
    return config


def precision_arguments(group: params.Model, device: torch.device) -> dict:
    """How transformers' `from_pretrained` is to quantise and in which precision the model computes: its arguments.

    Args:
        group: the group `model` of params.yaml.
    """
    precision = pick_precision(group, device)
    # fp16 is kept to the 4-bit products: phi-2's attention overflows in float16 activations.
    arguments = {"dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    if group.quantization == "nf4":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=False,
            bnb_4bit_compute_dtype={"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision],
        )
    return arguments


def stabilize_4_bit_layers(model: torch.nn.Module) -> None:
    """Let bitsandbytes' layers stay as they are from the first use on, in place."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # else one evaluation repacks the weights and training fails
            if module.bias is not None:
                module.bias.data = module.bias.data.to(module.compute_dtype)  # bitsandbytes does so at the first use


def replace_activation(config: PreTrainedConfig, wanted: str, name: str) -> None:
    """Set a model's activation to another form of the same function, in place; refuse to make it another function.

    Args:
        config: of the model; its activation has one of the names `ACTIVATION_KEYS`.
        wanted: one of `TANH_GELUS`.
        name: of the model, for the error.
    """
    own = {key: getattr(config, key, None) for key in ACTIVATION_KEYS}
    own = {key: value for key, value in own.items() if value}
    if not own or not TANH_GELUS.issuperset(own.values()):
        raise UserError(
            f"params.yaml: model.hidden_act: {wanted}, but {name} computes "
            f"{', '.join(own.values()) or 'an activation that its config does not name'}; allowed: null (its own)"
        )
    for key in own:
        setattr(config, key, wanted)


def _check_family(config, name):
    """Refuse, before its weights are read, what can't be a classifier of the last token."""
    allowed = "allowed: a causal language model of text alone, in 32 or 16 bits, such as Llama, Qwen3 or Phi"
    if config.is_encoder_decoder:
        raise UserError(f"model.name: {name} is an encoder-decoder ({config.model_type}); {allowed}")
    if config.get_text_config() is not config:
        raise UserError(f"model.name: {name} reads more than text ({config.model_type}); {allowed}")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"model.name: {name}: transformers has no classifier for {config.model_type}; {allowed}")
    if quantised := getattr(config, "quantization_config", None):  # it would go before model.quantization, unsaid
        raise UserError(f"model.name: {name} is quantised already ({dict(quantised).get('quant_method')}); {allowed}")


def _check_quantised(model, name):
    """Refuse a model that 4 bits are asked for and that is hardly in 4 bits: transformers says no word of it.

    bitsandbytes takes modules that are `torch.nn.Linear` itself, and no matrices of other modules (experts, Falcon's).
    """
    left, packed = Counter(), 0
    for module_name, module in model.named_modules():
        if module_name != "score" and not isinstance(module, torch.nn.Embedding):
            for weight in module.parameters(recurse=False):
                if isinstance(weight, bnb.nn.Params4bit):
                    packed += 2 * weight.numel() * weight.element_size()
                elif weight.ndim > 1:
                    left[type(module).__name__] += weight.numel()
    share = left.total() / max(left.total() + packed, 1)
    if share > 0.1:
        raise UserError(
            f"params.yaml: model.quantization: nf4: bitsandbytes leaves {share:.0%} of {name}'s weights in 16 bits or "
            f"more ({', '.join(left)}); allowed: none"
        )


@torch.no_grad()
def _check_causal(model, name):
    """Refuse a model whose tokens see those after them.

    Batches carry no attention mask, so its answers would change with the padding, which is a neighbour's length. Tried
    on the model itself, since configs name this in many ways: other tokens at the end must not change the first states.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (2, 8), generator=generator)
    ids[1, :4] = ids[0, :4]
    one, other = (model.base_model(input_ids=row[None].to(model.device)).last_hidden_state[:, :4] for row in ids)
    if (one - other).abs().max() > 0.01 * one.abs().max():  # rounding: under 1e-6; a bidirectional model: over 0.3
        raise UserError(
            f"model.name: {name} is bidirectional: a token sees those after it, padding too; allowed: a causal model"
        )
