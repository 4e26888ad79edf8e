"""A trained adapter merged into its base: a classifier in 16 bits, which plain transformers loads."""

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from stages.model.adapter_files import ClassifierSettings
from stages.model.base import classifier_config
from stages.runtime.errors import UserError, type_and_first_line
from stages.sources.fetch import find_model_folder

DTYPE = torch.bfloat16  # whatever the checkpoint has: in float16 phi-2's attention overflows


def load_unquantised(
    manifest: dict, reading: ClassifierSettings, device: torch.device, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The base as its checkpoint has it, in the checkpoint's dtype, so that nothing is rounded before the merge.

    Args:
        manifest: of the base.
        reading: the adapter's classifier.json.
        tokenizer: as `load_base` takes it.

    Returns:
        a transformers `...ForSequenceClassification`; its head is any, in fp32.
    """
    folder = find_model_folder(manifest)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=classifier_config(folder, manifest, reading.model, reading.classes, tokenizer),
            dtype="auto",
            device_map={"": device},
            use_safetensors=True,
        )
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a dozen kinds
        raise UserError(f"{manifest['name']}: not loadable as a model ({type_and_first_line(error)})") from error
    model.score.float()
    return model.requires_grad_(False).eval()


@torch.no_grad()
def merge(model: PeftModel, quantised: torch.nn.Module | None) -> PreTrainedModel:
    """Add each LoRA product to its layer's weight, in fp32, and round the sum once, to `DTYPE`; round all else too.

    PEFT's own `merge_and_unload` would round the product first, and on a 4-bit layer it would quantise the sum again.
    Layer by layer, so that one weight at a time takes 32 bits. Buffers stay: a rotary embedding's are no weights.

    Args:
        model: the adapter on `load_unquantised`; it is used up.
        quantised: the base in 4 bits, whose weights training saw; they take the place of `model`'s. None: they don't.

    Returns:
        a transformers `...ForSequenceClassification`.
    """
    layers = dict(model.get_base_model().named_modules())
    in_4_bits = {} if quantised is None else dict(quantised.named_modules())
    in_4_bits = {name: layer for name, layer in in_4_bits.items() if isinstance(layer, bnb.nn.Linear4bit)}
    for name in sorted({*in_4_bits, *(name for name, layer in layers.items() if isinstance(layer, LoraLayer))}):
        tuned = isinstance(layers[name], LoraLayer)
        plain = layers[name].get_base_layer() if tuned else layers[name]
        if name in in_4_bits:
            plain.weight.data = to_stored_layout(dequantize(in_4_bits[name]), plain)
        if tuned:
            plain.weight.data = plain.weight.data.float()
            layers[name].merge()
        plain.weight.data = plain.weight.data.to(DTYPE)
    whole = model.unload()
    for parameter in whole.parameters():
        parameter.data = parameter.data.to(DTYPE)
    whole.config.dtype = DTYPE
    return whole.requires_grad_(False).eval()


def dequantize(layer: bnb.nn.Linear4bit) -> torch.Tensor:
    """The weight that a 4-bit layer multiplies by, [out, in], in the dtype in which it was quantised."""
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def to_stored_layout(weight: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """A weight [out, in] as a layer of the checkpoint keeps it: GPT-2's Conv1D keeps [in, out]."""
    return weight.T.contiguous() if isinstance(layer, Conv1D) else weight
