"""The LoRA adapter: put on the base, saved with the head, loaded again, counted."""

import json
from pathlib import Path

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.pytorch_utils import Conv1D

from stages.runtime import params
from stages.runtime.errors import UserError, type_and_first_line
from stages.runtime.files import read_json, write_json


def add_lora(model: PreTrainedModel, group: params.Lora, seed: int) -> PeftModel:
    """Put a fresh LoRA adapter on the base; the adapter and the head are what training changes.

    Args:
        model: from `load_base`.
        group: the group `lora` of params.yaml.
        seed: seeds LoRA's A matrices.

    Raises:
        UserError: where the model lacks one of `lora.target_modules`.
    """
    _check_targets(model, group.target_modules)
    set_seed(seed)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,  # keeps LoRA off the head, and saves the head with the adapter
        r=group.r,
        lora_alpha=group.alpha,
        lora_dropout=group.dropout,
        bias="none",
        target_modules=group.target_modules,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"params.yaml: lora.target_modules: {group.target_modules}: {type_and_first_line(error)}"
        ) from error


def _check_targets(model, wanted):
    """Refuse what PEFT would leave out without a word: a name or an expression that no layer but the head has."""
    names = [name for name, _ in model.named_modules()]

    def matches(targets):
        config = LoraConfig(target_modules=targets, modules_to_save=["score"])  # as PEFT adds the head
        return any(check_target_module_exists(config, name) for name in names)

    if isinstance(wanted, str):
        unknown = (
            ""
            if wanted.lower() == "all-linear" or matches(wanted)
            else f"that match the regular expression {wanted} (names go into a list)"
        )
    else:
        missing = [name for name in wanted if not matches([name])]
        unknown = missing and f"named {', '.join(missing)}"
    if unknown:
        linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
        has = sorted({name.rpartition(".")[2] for name in linears} - {"score"})
        raise UserError(
            f"params.yaml: lora.target_modules: this model has no layers for LoRA {unknown}. It has: {', '.join(has)}."
        )


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, manifest: dict, reading: dict, folder: Path
) -> None:
    """Save adapter, head, labels and tokenizer: all but the base that is needed to predict.

    `config.json` is the base's, with the labels' names, so that plain transformers and peft load the adapter too.

    Args:
        reading: what else `tools.predict` needs, kept as `classifier.json`: the classes, the seed, and the groups
            model, tokenize and batches.
        folder: an empty one, or one to make.
    """
    adapter = model.peft_config["default"]
    adapter.base_model_name_or_path, adapter.revision = manifest["name"], manifest["revision"]
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    written = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(written["target_modules"], list):
        written["target_modules"].sort()  # a set's order differs from run to run
    _write_sorted(folder / "adapter_config.json", written)
    config = model.get_base_model().config.to_dict()
    for key in ("quantization_config", "_name_or_path", "transformers_version"):
        config.pop(key, None)
    _write_sorted(folder / "config.json", config)
    save_tokenizer(tokenizer, folder)
    write_json(folder / "base.json", manifest)
    write_json(folder / "classifier.json", reading)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer, without what it knows of this machine."""
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("is_local", "local_files_only"):  # where this machine found it, and whether HF_HUB_OFFLINE was set
        settings.pop(key, None)
    _write_sorted(folder / "tokenizer_config.json", settings)


def _write_sorted(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def load_adapter(model: PreTrainedModel, folder: Path, manifest: dict) -> PeftModel:
    """Put a saved adapter and its head on the base, for prediction.

    Raises:
        UserError: where the adapter was trained on another base, or is not whole.
    """
    trained_on = read_json(folder / "base.json")
    if trained_on["digest"] != manifest["digest"]:
        raise UserError(
            f"{folder}: trained on another base ({trained_on['name']} {trained_on['digest'][:12]}); run `dvc repro`"
        )
    try:
        model = PeftModel.from_pretrained(model, str(folder)).eval()
    except Exception as error:  # missing or truncated weights, shapes of another base
        raise UserError(
            f"{folder}: not loadable as an adapter ({type_and_first_line(error)}); run `dvc repro`"
        ) from error
    weights = folder / "adapter_model.safetensors"
    with safe_open(weights, "pt") as saved:  # PEFT only warns, and leaves what is missing as it was drawn
        missing = sorted(set(get_peft_model_state_dict(model)) - set(saved.keys()))
    if missing:
        raise UserError(f"{weights}: lacks {len(missing)} of the adapter's weights ({missing[0]}); run `dvc repro`")
    return model


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Parameter counts.

    Returns:
        {"stored": as `numel` counts, where a byte holds two 4-bit weights (the published way of counting),
        "total": true weights, "trainable": weights that training changes}
    """
    stored = total = trainable = 0
    for parameter in model.parameters():
        stored += parameter.numel()
        packed = isinstance(parameter, bnb.nn.Params4bit)
        total += parameter.numel() * (2 * parameter.element_size() if packed else 1)
        trainable += parameter.numel() if parameter.requires_grad else 0
    return {"stored": stored, "total": total, "trainable": trainable}
