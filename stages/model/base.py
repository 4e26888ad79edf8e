"""Load the quantised base from its pinned files, freeze it, and check that it suits this project."""

from collections import Counter
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
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

from stages.data.labels import Labels
from stages.model import base_cache
from stages.model.devices import pick_precision
from stages.model.embedding import keep_embeddings
from stages.model.head import check_head, draw_head
from stages.runtime import params
from stages.runtime.errors import UserError, type_and_first_line
from stages.sources.fetch import find_model_folder

ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")  # its names in models' configs
TANH_GELUS = frozenset(["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])  # transformers' names for one function


def load_base(
    manifest: dict,
    model_params: params.ModelSettings,
    labels: Labels,
    device: torch.device,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    tokens: np.ndarray | None = None,
) -> PreTrainedModel:
    """Load the base with a classification head: quantised, frozen, in evaluation mode.

    Within `base_cache.cache_base()` the weights are read and quantised once. Every call returns a new model around
    them.

    Args:
        manifest: what `download` wrote.
        model_params: the section `model` of params.yaml.
        labels: the head has one output for each class.
        seed: seeds the head. It is drawn on the CPU, so every device and every stage gets the same one.
        tokenizer: its pad token marks the end of a row; it may not have more tokens than the embedding.
        tokens: all that the model will read, as for `keep_embeddings`; None: any.

    Returns:
        a transformers `...ForSequenceClassification`; products in `model_params.precision`, the head in fp32.
    """
    folder = find_model_folder(manifest)
    settings = model_params.model_dump(include=set(params.ModelSettings.model_fields) - {"head_init"})  # drawn below
    model = base_cache.share_model(
        (manifest["digest"], settings, labels, device, None if tokens is None else tokens.tobytes()),
        lambda: _load_frozen(folder, manifest, model_params, labels, device, tokenizer, tokens),
    )
    draw_head(model, seed if model_params.head_init == "seeded" else None)
    return model.requires_grad_(False)


def _load_frozen(
    folder: Path,
    manifest: dict,
    model_params: params.ModelSettings,
    labels: Labels,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
    tokens: np.ndarray | None,
) -> PreTrainedModel:
    """Load and check the part of the base that depends on no seed. Its head is random."""
    logging.disable_progress_bar()  # loading lasts a second, and the bar would stay in every log
    try:
        config = load_classifier_config(folder, manifest, model_params, labels, tokenizer)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            device_map={"": device},
            use_safetensors=True,
            **make_precision_arguments(model_params, device),
        )
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"model: {manifest['name']} does not fit this GPU's memory ({type_and_first_line(error)})"
        ) from error
    except Exception as error:  # many types: a truncated shard, an unknown architecture, a pickled checkpoint
        raise UserError(f"model: {manifest['name']}: not loadable as a model ({type_and_first_line(error)})") from error
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):  # transformers does so unasked
        raise UserError(
            f"model: {manifest['name']}: transformers loaded an adapter with the base; "
            f"remove adapter_config.json from {folder}"
        )
    stabilize_4_bit_layers(model)
    check_head(model)
    if model_params.quantization == "nf4":
        _check_quantised(model, manifest["name"])
    _check_causal(model.requires_grad_(False).eval(), manifest["name"])
    if tokens is not None:
        keep_embeddings(model, tokens)
    return model


def load_classifier_config(
    folder: Path,
    manifest: dict,
    model_params: params.ModelSettings,
    labels: Labels,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedConfig:
    """Read the config of a base and set what a classifier needs: names of labels, activation, pad token.

    Args:
        folder: of the base.
        manifest, model_params, labels, tokenizer: as in `load_base`.
    """
    config = AutoConfig.from_pretrained(
        folder,
        num_labels=len(labels.classes),
        id2label=dict(enumerate(labels.classes)),
        label2id={name: code for code, name in enumerate(labels.classes)},
        problem_type=labels.problem_type,  # by which transformers' pipeline and loss know what the outputs mean
    )
    _check_family(config, manifest["name"])
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"model: {manifest['name']}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}"
        )
    if model_params.hidden_act:
        replace_activation(config, model_params.hidden_act, manifest["name"])
    config.pad_token_id, config.use_cache = tokenizer.pad_token_id, False
    return config


def make_precision_arguments(model_params: params.ModelSettings, device: torch.device) -> dict:
    """Arguments of transformers' `from_pretrained` for quantisation and precision.

    Args:
        model_params: the section `model` of params.yaml.
    """
    precision = pick_precision(model_params, device)
    # Only the 4-bit products compute in fp16: phi-2's attention overflows in float16 activations.
    arguments: dict[str, Any] = {"dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    if model_params.quantization == "nf4":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=False,
            bnb_4bit_compute_dtype={"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision],
        )
    return arguments


def stabilize_4_bit_layers(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from changing its layers when they are first used, in place."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # Otherwise one evaluation repacks the weights, and training fails.
            module.support_avx512bf16_for_cpu = False
            if module.bias is not None:
                module.bias.data = module.bias.data.to(module.compute_dtype)  # as bitsandbytes does at the first use


def replace_activation(config: PreTrainedConfig, activation: str, name: str) -> None:
    """Set a model's activation to another implementation of the same function, in place.

    Args:
        config: of the model; its activation has one of the keys `ACTIVATION_KEYS`.
        activation: one of `TANH_GELUS`.
        name: of the model, for the error.

    Raises:
        UserError: the model's activation is another function.
    """
    original: dict[str, str] = {key: getattr(config, key) for key in ACTIVATION_KEYS if getattr(config, key, None)}
    if not original or not TANH_GELUS.issuperset(original.values()):
        raise UserError(
            f"params.yaml: model.hidden_act: {activation}, but {name} computes "
            f"{', '.join(original.values()) or 'an activation that its config does not name'}; "
            "allowed: null (the model's own)"
        )
    for key in original:
        setattr(config, key, activation)


def _check_family(config: PreTrainedConfig, name: str) -> None:
    """Reject a model that cannot classify by its last token, before its weights are read."""
    allowed = "allowed: a causal language model that reads only text, in 32 or 16 bits, such as Llama, Qwen3 or Phi"
    if config.is_encoder_decoder:
        raise UserError(f"model: {name} is an encoder-decoder ({config.model_type}); {allowed}")
    if config.get_text_config() is not config:
        raise UserError(f"model: {name} reads more than text ({config.model_type}); {allowed}")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"model: {name}: transformers has no classifier for {config.model_type}; {allowed}")
    if quantised := getattr(config, "quantization_config", None):  # it would silently override model.quantization
        raise UserError(f"model: {name} is quantised already ({dict(quantised).get('quant_method')}); {allowed}")


def _check_quantised(model: PreTrainedModel, name: str) -> None:
    """Reject a model most of whose weights bitsandbytes did not quantise: transformers does not report it.

    bitsandbytes quantises only modules of the class `torch.nn.Linear` itself. It leaves the matrices of other modules
    (experts, Falcon's) as they are.
    """
    unquantised: Counter[str] = Counter()
    weights_in_4_bits = 0
    for module_name, module in model.named_modules():
        if module_name != "score" and not isinstance(module, torch.nn.Embedding):
            for weight in module.parameters(recurse=False):
                if isinstance(weight, bnb.nn.Params4bit):
                    weights_in_4_bits += 2 * weight.numel() * weight.element_size()
                elif weight.ndim > 1:
                    unquantised[type(module).__name__] += weight.numel()
    share = unquantised.total() / max(unquantised.total() + weights_in_4_bits, 1)
    if share > 0.1:
        raise UserError(
            f"params.yaml: model.quantization: nf4: bitsandbytes leaves {share:.0%} of {name}'s weights in 16 bits or "
            f"more ({', '.join(unquantised)}); allowed: none"
        )


@torch.no_grad()
def _check_causal(model: PreTrainedModel, name: str) -> None:
    """Reject a model in which a token attends to later tokens.

    Batches carry no attention mask. The predictions of such a model would depend on the padding, and so on the length
    of other rows. Configs describe this in many ways, so the model itself is tried: other tokens at the end must not
    change the first hidden states.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (2, 8), generator=generator)
    ids[1, :4] = ids[0, :4]
    first, second = (model.base_model(input_ids=row[None].to(model.device)).last_hidden_state[:, :4] for row in ids)
    if (first - second).abs().max() > 0.01 * first.abs().max():  # rounding: under 1e-6; a bidirectional model: over 0.3
        raise UserError(
            f"model: {name} is bidirectional: a token attends to later ones, padding too; allowed: a causal model"
        )
