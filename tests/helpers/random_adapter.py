"""An adapter with random weights on the nano model."""

from pathlib import Path

import torch

from helpers.parameters import manifest_of, set_key, unpinned_params
from helpers.project import CPU, NANO
from helpers.tables import CLASSES
from stages.data.task import Task
from stages.data.tokenization import load_configured_tokenizer
from stages.model.adapter import add_lora, save_adapter
from stages.model.adapter_files import make_settings
from stages.model.base import load_base
from stages.runtime import params


def make_adapter(
    folder: Path,
    classes: tuple[str, ...] = CLASSES,
    template: str | None = None,
    multi_label: bool = False,
    **model_settings: object,
) -> Path:
    """Write an adapter as `train_qlora` does. Its weights are random, so it predicts other probabilities than the base.

    Args:
        template: instead of the demo pipeline's.
        multi_label: whether a row may have several labels.
        model_settings: keys of the section `model` of params.yaml.
    """
    raw = unpinned_params()
    for key, value in model_settings.items():
        set_key(raw, f"model.{key}", value)
    if template:
        set_key(raw, "tokenize.template", template)
    p = params.Params.model_validate(raw)
    manifest = manifest_of(NANO)
    tokenizer = load_configured_tokenizer(manifest, p.tokenize.template)
    task = Task(tuple(classes), p.tokenize.template, None, multi_label)
    base = load_base(manifest, p.model, task.labels, CPU, p.seed, tokenizer)
    classifier = add_lora(base, p.lora, p.seed)
    torch.manual_seed(0)
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(classifier, tokenizer, manifest, make_settings(p, task), folder)
    return folder
