"""The LoRA adapter: add it to the base, save it with the head, load it again, count its parameters."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.pytorch_utils import Conv1D

from stages.model.embedding import count_freed_weights
from stages.runtime import params
from stages.runtime.errors import UserError, type_and_first_line
from stages.runtime.files import read_json, write_json


def add_lora(model: PreTrainedModel, lora_params: params.Lora, seed: int) -> PeftModel:
    """Add a new LoRA adapter to the base. Training then changes the adapter and the head.

    Args:
        model: from `load_base`.
        lora_params: the section `lora` of params.yaml.
        seed: seeds LoRA's A matrices.

    Raises:
        UserError: the model lacks one of `lora.target_modules`.
    """
    _check_target_modules(model, lora_params.target_modules)
    set_seed(seed)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,  # keeps LoRA off the head, and saves the head with the adapter
        r=lora_params.r,
        lora_alpha=lora_params.alpha,  # type: ignore[arg-type]  # hinted int, but PEFT only divides it by r
        lora_dropout=lora_params.dropout,
        bias="none",
        target_modules=lora_params.target_modules,
    )
    try:
        return cast(PeftModel, get_peft_model(model, config))  # a PeftMixedModel only with mixed=True
    except ValueError as error:
        raise UserError(
            f"params.yaml: lora.target_modules: {lora_params.target_modules}: {type_and_first_line(error)}"
        ) from error


def _check_target_modules(model: PreTrainedModel, targets: str | list[str]) -> None:
    """Reject a name or an expression that matches no layer except the head: PEFT would ignore it silently."""
    names = [name for name, _ in model.named_modules()]

    def match_a_layer(targets: str | list[str]) -> bool:
        config = LoraConfig(target_modules=targets, modules_to_save=["score"])  # as PEFT adds the head
        return any(check_target_module_exists(config, name) for name in names)

    if isinstance(targets, str):
        if targets.lower() == "all-linear" or match_a_layer(targets):
            return
        unknown = f"that match the regular expression {targets} (names go into a list)"
    else:
        missing = [name for name in targets if not match_a_layer([name])]
        if not missing:
            return
        unknown = f"named {', '.join(missing)}"
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    allowed = sorted({name.rpartition(".")[2] for name in linears} - {"score"})
    raise UserError(
        f"params.yaml: lora.target_modules: this model has no layers for LoRA {unknown}. It has: {', '.join(allowed)}."
    )


def adapts_embedding(model: PreTrainedModel, targets: str | list[str]) -> bool:
    """Whether `lora.target_modules` names the embedding. LoRA then has weights for each of its tokens."""
    config, embedding = LoraConfig(target_modules=targets), model.get_input_embeddings()
    names = [name for name, module in model.named_modules() if module is embedding]
    return any(check_target_module_exists(config, name) for name in names)


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, manifest: dict, settings: dict, folder: Path
) -> None:
    """Save adapter, head, labels and tokenizer: everything a prediction needs except the base.

    `config.json` is the base's with the names of the labels. Plain transformers and PEFT need it to load the adapter.

    Args:
        settings: the content of `classifier.json`, which `tools.predict` reads: the classes, the seed, and the sections
            model, tokenize and batches of params.yaml.
        folder: an empty folder, or one to create.
    """
    lora_config = model.peft_config["default"]
    lora_config.base_model_name_or_path, lora_config.revision = manifest["name"], manifest["revision"]
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    adapter_config = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(adapter_config["target_modules"], list):
        adapter_config["target_modules"].sort()  # PEFT writes a set, whose order differs between runs
    _write_sorted(folder / "adapter_config.json", adapter_config)
    base_config = get_base(model).config.to_dict()
    for key in ("quantization_config", "_name_or_path", "transformers_version"):
        base_config.pop(key, None)
    _write_sorted(folder / "config.json", base_config)
    save_tokenizer(tokenizer, folder)
    write_json(folder / "base.json", manifest)
    write_json(folder / "classifier.json", settings)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer without the keys that describe this machine."""
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("is_local", "local_files_only"):  # its folder here, and whether HF_HUB_OFFLINE was set
        config.pop(key, None)
    _write_sorted(folder / "tokenizer_config.json", config)


def _write_sorted(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def load_adapter(model: PreTrainedModel, folder: Path, manifest: dict) -> PeftModel:
    """Add a saved adapter and its head to the base, for prediction.

    Raises:
        UserError: the adapter was trained on another base, or is incomplete.
    """
    trained_on = read_json(folder / "base.json")
    if trained_on["digest"] != manifest["digest"]:
        raise UserError(
            f"{folder}: trained on another base ({trained_on['name']} {trained_on['digest'][:12]}); run `dvc repro`"
        )
    try:
        tuned = PeftModel.from_pretrained(model, str(folder)).eval()
    except Exception as error:  # missing or truncated weights, shapes of another base
        raise UserError(
            f"{folder}: not loadable as an adapter ({type_and_first_line(error)}); run `dvc repro`"
        ) from error
    missing = _list_missing_weights(tuned, folder / "adapter_model.safetensors")
    if missing:
        raise UserError(
            f"{folder / 'adapter_model.safetensors'}: lacks {len(missing)} of the adapter's weights ({missing[0]}); "
            "run `dvc repro`"
        )
    return tuned


def _list_missing_weights(model: PeftModel, path: Path) -> Sequence[str]:
    """Names of the adapter's weights that its file lacks. PEFT only warns, and leaves them random."""
    with safe_open(path, "pt") as weights:
        return sorted(set(get_peft_model_state_dict(model)) - set(weights.keys()))


def get_base(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return transformers' classifier: the model itself, or the one inside PEFT's."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Count the parameters of a model.

    Returns:
        {"stored": as `numel` counts, where one byte holds two 4-bit weights (the notebook counts so),
        "total": weights, each counted once, "trainable": weights that training changes}
    """
    stored = total = trainable = 0
    for parameter in model.parameters():
        stored += parameter.numel()
        in_4_bits = isinstance(parameter, bnb.nn.Params4bit)
        total += parameter.numel() * (2 * parameter.element_size() if in_4_bits else 1)
        trainable += parameter.numel() if parameter.requires_grad else 0
    freed = count_freed_weights(model)
    return {"stored": stored + freed, "total": total + freed, "trainable": trainable}
