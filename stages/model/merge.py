"""Merge a trained adapter into its base: a classifier in 16 bits that plain transformers loads."""

from typing import cast

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from stages.data.classifier_settings import ClassifierSettings
from stages.model.base import load_classifier_config
from stages.runtime.errors import UserError, type_and_first_line
from stages.sources.fetch import find_model_folder

DTYPE = torch.bfloat16  # of any merged model: in float16 phi-2's attention overflows


def load_unquantised(
    manifest: dict, settings: ClassifierSettings, device: torch.device, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Load the base in its checkpoint's dtype. Nothing is rounded before the merge.

    Args:
        manifest: of the base.
        settings: the adapter's classifier.json.
        tokenizer: as in `load_base`.

    Returns:
        a transformers `...ForSequenceClassification`; its head is random, in fp32.
    """
    folder = find_model_folder(manifest)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=load_classifier_config(folder, manifest, settings.model, settings.labels, tokenizer),
            dtype="auto",
            device_map={"": device},
            use_safetensors=True,
        )
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # many types, as in `load_base`
        raise UserError(f"{manifest['name']}: not loadable as a model ({type_and_first_line(error)})") from error
    model.score.float()
    return model.requires_grad_(False).eval()


@torch.no_grad()
def merge(model: PeftModel, quantised: torch.nn.Module | None) -> PreTrainedModel:
    """Add each LoRA product to its layer's weight in fp32, and round the sum once, to `DTYPE`. Round all other weights.

    PEFT's `merge_and_unload` would round the product first. On a 4-bit layer it would quantise the sum again.
    The layers are merged one after another, so only one weight at a time is in 32 bits. Buffers keep their dtype:
    a rotary embedding's frequencies are not weights.

    Args:
        model: the adapter on the result of `load_unquantised`; is changed.
        quantised: the base in 4 bits, as in training; its weights replace those of `model`. None: keep `model`'s.

    Returns:
        a transformers `...ForSequenceClassification`.
    """
    layers = dict(model.get_base_model().named_modules())
    all_quantised = {} if quantised is None else dict(quantised.named_modules())
    in_4_bits = {name: layer for name, layer in all_quantised.items() if isinstance(layer, bnb.nn.Linear4bit)}
    for name in sorted({*in_4_bits, *(name for name, layer in layers.items() if isinstance(layer, LoraLayer))}):
        layer = layers[name]
        linear = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        if name in in_4_bits:
            linear.weight.data = to_stored_layout(dequantize(in_4_bits[name]), linear)
        if isinstance(layer, LoraLayer):
            linear.weight.data = linear.weight.data.float()
            layer.merge()
        linear.weight.data = linear.weight.data.to(DTYPE)
    classifier = model.unload()
    for parameter in classifier.parameters():
        parameter.data = parameter.data.to(DTYPE)
    classifier.config.dtype = DTYPE
    return classifier.requires_grad_(False).eval()


def dequantize(layer: bnb.nn.Linear4bit) -> torch.Tensor:
    """Return the weight [out, in] of a 4-bit layer in the dtype that it had before quantisation."""
    weight = cast(bnb.nn.Params4bit, layer.weight)
    return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)


def to_stored_layout(weight: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """Lay out a weight [out, in] as its layer stores it: GPT-2's Conv1D stores [in, out]."""
    return weight.T.contiguous() if isinstance(layer, Conv1D) else weight
