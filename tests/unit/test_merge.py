"""A merged model, compared with the adapter on its base: small models of several families, random weights."""

import json

import bitsandbytes as bnb
import pytest
import safetensors.torch
import torch
from helpers.parameters import manifest_of
from helpers.project import CPU, NANO
from helpers.tables import CLASSES, LABELS
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig

from stages.data.classifier_settings import ClassifierSettings
from stages.data.task import Task
from stages.data.tokenization import load_tokenizer
from stages.model.adapter import add_lora, load_adapter, save_adapter
from stages.model.adapter_files import make_settings, read_adapter
from stages.model.base import load_base
from stages.model.merge import DTYPE, load_unquantised, merge
from stages.model.verify_saved import relative_distance

SIZE = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "phi": None,  # the nano model, in float16
    "llama": LlamaConfig(**SIZE, intermediate_size=128, num_key_value_heads=2),
    "gemma": Gemma3TextConfig(**SIZE, intermediate_size=128, num_key_value_heads=2, head_dim=16),  # tied embeddings
    "gpt2": GPT2Config(vocab_size=1000, n_embd=64, n_layer=2, n_head=4),  # Conv1D: weights [in, out]
}
ROWS = [[11, 12, 13, 14, 15], [21, 22, 23, 24, 25], [31, 32, 33, 34, 35]]


@pytest.fixture
def trained(nano_copy, make_params, tmp_path):
    """make(family, **changes of the section lora) -> (adapter's folder, classifier.json, manifest, tokenizer)."""

    def make(family, quantization="nf4", **lora):
        if config := FAMILIES[family]:
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(nano_copy)
        p = make_params(model__hidden_act="gelu_pytorch_tanh" if family == "phi" else None)
        p = p.model_copy(update={"model": p.model.model_copy(update={"quantization": quantization})})
        manifest = manifest_of(nano_copy)
        tokenizer = load_tokenizer(manifest)
        model = add_lora(load_base(manifest, p.model, LABELS, CPU, 42, tokenizer), p.lora.model_copy(update=lora), 42)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path / "adapter"
        save_adapter(model, tokenizer, manifest, make_settings(p, Task(CLASSES, p.tokenize.template, None)), folder)
        return (
            folder,
            ClassifierSettings.model_validate(json.loads((folder / "classifier.json").read_text())),
            manifest,
            tokenizer,
        )

    return make


def quantised_base(settings, manifest, tokenizer):
    return load_base(manifest, settings.model, LABELS, CPU, 42, tokenizer)


def merged(folder, settings, manifest, tokenizer, into):
    quantised = quantised_base(settings, manifest, tokenizer) if into == "dequantised" else None
    return merge(load_adapter(load_unquantised(manifest, settings, CPU, tokenizer), folder, manifest), quantised)


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.tensor(ROWS)).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_into_the_dequantised_weights_predicts_as_the_adapter_on_4_bits(trained, family):
    """Computed in fp32, so only the rounding of the weights differs."""
    saved_adapter = trained(family)
    folder, settings, manifest, tokenizer = saved_adapter
    expected = logits(load_adapter(quantised_base(settings, manifest, tokenizer), folder, manifest))
    near, far = (
        relative_distance(logits(merged(*saved_adapter, into).float()), expected)
        for into in ("dequantised", "original")
    )
    assert near < 0.02 < far  # 0.004 to 0.009, and 0.05 to 0.17


@pytest.mark.parametrize("family", FAMILIES)
def test_each_weight_merged_into_the_original_is_the_sum_rounded_once(trained, family):
    """This test computes the sums itself, from the files."""
    folder, _, manifest, _ = saved_adapter = trained(family, r=4, alpha=6)
    model = merged(*saved_adapter, "original")
    saved = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    original = AutoModelForCausalLM.from_pretrained(manifest["name"], dtype="auto").base_model.state_dict()
    merged_weights = model.base_model.state_dict()
    assert set(merged_weights) == set(original)
    tuned = 0
    for name, weight in original.items():
        start = f"base_model.model.{model.base_model_prefix}.{name.removesuffix('.weight')}"
        if f"{start}.lora_A.weight" in saved:
            product = saved[f"{start}.lora_B.weight"] @ saved[f"{start}.lora_A.weight"] * (6 / 4)
            weight = weight.float() + (product.T if family == "gpt2" else product)
            tuned += 1
        assert torch.equal(merged_weights[name], weight.to(DTYPE)), name
    assert 2 * tuned == sum("lora" in name for name in saved) > 0
    (head,) = (weight for name, weight in saved.items() if "score" in name)
    assert torch.equal(model.score.weight, head.to(DTYPE))


def test_a_layer_without_lora_is_dequantised_too(trained):
    """Training uses all layers in 4 bits."""
    _, settings, manifest, tokenizer = saved_adapter = trained("phi", target_modules=["q_proj"])
    model, base = merged(*saved_adapter, "dequantised"), quantised_base(settings, manifest, tokenizer)
    layers = {name: layer for name, layer in base.named_modules() if isinstance(layer, bnb.nn.Linear4bit)}
    others = {name for name in layers if not name.endswith("q_proj")}
    assert len(others) == 15
    for name in others:
        weight = bnb.functional.dequantize_4bit(layers[name].weight.data, layers[name].weight.quant_state)
        assert torch.equal(model.get_submodule(name).weight, weight.to(DTYPE))


@pytest.mark.parametrize("into", ["original", "dequantised"])
def test_the_merged_model_is_a_plain_one_with_its_buffers(trained, into):
    """A rotary embedding's frequencies stay in fp32, as transformers loads them."""
    model = merged(*trained("phi"), into)
    assert {parameter.dtype for parameter in model.parameters()} == {DTYPE}
    assert not any(isinstance(module, LoraLayer | bnb.nn.Linear4bit) for module in model.modules())
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    assert model.config.pad_token_id == 0 and model.config.hidden_act == "gelu_pytorch_tanh"
    assert model.config.id2label == dict(enumerate(CLASSES))


def test_the_unquantised_base_is_not_rounded_before_the_merge(trained):
    _, settings, manifest, tokenizer = trained("phi")
    model = load_unquantised(manifest, settings, CPU, tokenizer)
    saved = safetensors.torch.load_file(NANO / "model.safetensors")
    assert torch.equal(model.model.layers[0].mlp.fc1.weight, saved["model.layers.0.mlp.fc1.weight"])
    assert model.score.weight.dtype == torch.float32


def test_read_adapter_returns_settings_and_manifest(trained):
    folder, settings, manifest, _ = trained("phi")
    assert read_adapter(folder) == (settings, manifest)
