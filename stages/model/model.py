"""The quantised base, its classification head, and the LoRA adapter on it."""

import contextlib
import json

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig, set_seed

from stages.runtime.errors import UserError
from stages.runtime.files import new_folder, read_json, write_json
from stages.sources import hub
from stages.task.labels import LABELS

ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")  # what configs call it
TANH_GELUS = frozenset(["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])  # transformers' names of one function


def pick_device(name, threads):
    """The torch device of params.yaml's `device`; one line where there is no such GPU.

    Args:
        name: "cuda" or "cpu".
        threads: CPU threads that PyTorch may use, or None for its own choice.
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "params.yaml: device: cuda, but PyTorch sees no CUDA GPU on this machine; "
            "`make demo` runs the same pipeline at CPU size"
        )
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")


def pick_precision(group, device):
    """What `auto` means on a device: bf16 where the GPU has it, else fp16 for 4-bit products; fp32 on a CPU.

    Args:
        group: the group `model` of params.yaml.
    """
    if group.precision != "auto":
        return group.precision
    if device.type == "cpu":
        return "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if group.quantization == "nf4" else "fp32"


@contextlib.contextmanager
def out_of_memory_means(message):
    """Running out of the GPU's memory inside is the user's mistake, told by `message`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(message) from error


def load_base(manifest, group, device, seed, tokenizer):
    """The base with a classification head, quantised, frozen, in evaluation mode.

    Args:
        manifest: what `download` wrote.
        group: the group `model` of params.yaml.
        device: torch.device.
        seed: seeds the head, on the CPU, so that every device and every stage gets the same.
        tokenizer: its pad token tells where a row ends; its size must fit the embedding.

    Returns:
        a transformers `...ForSequenceClassification`; products in `group.precision`, the head in fp32.
    """
    folder = hub.model_folder(manifest)
    precision = pick_precision(group, device)
    product_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    # fp16 is kept to the 4-bit products: phi-2's attention overflows in float16 activations.
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype=product_dtype,
    )
    try:
        config = AutoConfig.from_pretrained(
            folder,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={name: code for code, name in enumerate(LABELS)},
            problem_type="single_label_classification",  # a training step would set it, a resumed run may have none
        )
        if config.vocab_size < len(tokenizer):
            raise UserError(
                f"model.name: {manifest['name']}: "
                f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}"
            )
        if group.hidden_act:
            exchange_activation(config, group.hidden_act, manifest["name"])
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            **({"quantization_config": quantization} if group.quantization == "nf4" else {}),
        )
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"model.name: {manifest['name']} does not fit this GPU's memory ({_first_line(error)})"
        ) from error
    except Exception as error:  # a truncated shard, an unknown architecture, a pickled checkpoint: a dozen kinds
        raise UserError(f"model.name: {manifest['name']}: not loadable as a model ({_first_line(error)})") from error
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # else one evaluation repacks the weights and training fails
            if module.bias is not None:
                module.bias.data = module.bias.data.to(product_dtype)  # bitsandbytes does so at the first use
    _make_head(model, seed if group.head == "seeded" else None)
    model.requires_grad_(False)
    _check_causal(model.eval(), manifest["name"])
    return model


def exchange_activation(config, wanted, name):
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


def _make_head(model, seed):
    """Draw the head anew, in fp32: the checkpoint is a language model and has none."""
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise UserError(
            f"model.name: {type(model).__name__} has no linear head `score` on the last token, "
            "as classifiers made of causal language models have"
        )
    if isinstance(model.score, bnb.nn.Linear4bit):
        raise UserError("model.quantization: the classification head came out quantised; it has to be trained")
    generator = torch.Generator("cpu")
    generator.manual_seed(seed) if seed is not None else generator.seed()
    weight = torch.empty(model.score.weight.shape, dtype=torch.float32)
    weight.normal_(std=getattr(model.config, "initializer_range", 0.02), generator=generator)
    model.score.weight = torch.nn.Parameter(weight.to(model.score.weight.device))
    model.score.register_forward_pre_hook(_to_head_dtype)


def _to_head_dtype(module, inputs):
    return (inputs[0].to(module.weight.dtype),)


def add_lora(model, group, seed, head):
    """Put a fresh LoRA adapter on the base.

    Args:
        model: from `load_base`.
        group: the group `lora` of params.yaml.
        seed: seeds LoRA's A matrices.
        head: "trained", or "frozen" as published.
    """
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
        model = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"params.yaml: lora.target_modules: {group.target_modules}: {_first_line(error)}") from error
    if head == "frozen":
        for name, parameter in model.named_parameters():
            if "lora" not in name:
                parameter.requires_grad_(False)
    return model


def save_adapter(model, tokenizer, manifest, reading, folder):
    """Save adapter, head, labels and tokenizer: all but the base that is needed to predict.

    `config.json` is the base's, with the labels' names, so that plain transformers and peft load the adapter too.

    Args:
        reading: what else `stages.predict` needs, kept as `classifier.json`: the seed, and the groups model, tokenize
            and batches.
    """
    with new_folder(folder) as temporary:
        adapter = model.peft_config["default"]
        adapter.base_model_name_or_path, adapter.revision = manifest["name"], manifest["revision"]
        model.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty card
        written = json.loads((temporary / "adapter_config.json").read_text())
        if isinstance(written["target_modules"], list):
            written["target_modules"].sort()  # a set's order differs from run to run
        _write_sorted(temporary / "adapter_config.json", written)
        config = model.get_base_model().config.to_dict()
        for key in ("quantization_config", "_name_or_path", "transformers_version"):
            config.pop(key, None)
        _write_sorted(temporary / "config.json", config)
        tokenizer.save_pretrained(temporary)
        settings = json.loads((temporary / "tokenizer_config.json").read_text())
        for key in ("is_local", "local_files_only"):  # where this machine found it, and whether HF_HUB_OFFLINE was set
            settings.pop(key, None)
        _write_sorted(temporary / "tokenizer_config.json", settings)
        write_json(temporary / "base.json", manifest)
        write_json(temporary / "classifier.json", reading)


def _write_sorted(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def load_adapter(model, folder, manifest):
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
        raise UserError(f"{folder}: not loadable as an adapter ({_first_line(error)}); run `dvc repro`") from error
    weights = folder / "adapter_model.safetensors"
    with safe_open(weights, "pt") as saved:  # PEFT only warns, and leaves what is missing as it was drawn
        missing = sorted(set(get_peft_model_state_dict(model)) - set(saved.keys()))
    if missing:
        raise UserError(f"{weights}: lacks {len(missing)} of the adapter's weights ({missing[0]}); run `dvc repro`")
    return model


def count_parameters(model):
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


def _first_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
