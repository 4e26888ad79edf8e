"""Each family of causal models from loading to prediction; what is no such model is refused in one line."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import small_classifier
from helpers.families import FAMILIES, GROUPED, SIZE, quantization_of, save, save_family
from helpers.parameters import manifest_of
from helpers.project import CPU, ROOT
from helpers.small_classifier import as_inputs, batch, distance, eager, gradients
from helpers.tables import CLASSES
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    Gemma3Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    Qwen2VLConfig,
    T5Config,
)

from stages.data.tokenization import load_tokenizer
from stages.kernels.errors import StepUnavailable
from stages.model.adapter import add_lora, save_adapter
from stages.model.base import load_base
from stages.model.classifier import Classifier
from stages.model.verify_saved import AdapterSnapshot, verify_saved_adapter
from stages.runtime.errors import UserError
from stages.training.trainer import make_trainer

DOCUMENT = ROOT / "docs/new-architecture.md"
LENGTHS = (23, 5, 14, 3, 9, 17, 2, 11)  # some longer than the models' windows
rng = np.random.default_rng(0)
ROWS = [{"input_ids": rng.integers(1, 900, length), "labels": i % 3} for i, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return SimpleNamespace(
        name=request.param,
        quantization=quantization_of(request.param),
        manifest=manifest_of(save_family(request.param, tmp_path_factory.mktemp(request.param))),
    )


@pytest.fixture
def parameters(make_params, family):
    return make_params(
        model__hidden_act=None, model__quantization=family.quantization, train__epochs=2, train__batch_size=4,
        train__learning_rate=0.01, train__keep="last",
    )  # fmt: skip


def test_from_loading_to_prediction(family, parameters, tmp_path):
    """Trained by the Trainer, saved, read back by plain transformers and PEFT, and asked for each row, alone or not."""
    p, tokenizer = parameters, load_tokenizer(family.manifest)
    base = load_base(family.manifest, p.model, CLASSES, CPU, p.seed, tokenizer)
    model = add_lora(base, p.lora, p.seed)
    trainer = make_trainer(model, ROWS, ROWS, p, tokenizer.pad_token_id, tmp_path / "checkpoints", SimpleNamespace())
    trainer.train()
    losses = [entry["step_loss"] for entry in trainer.state.log_history if "step_loss" in entry]
    assert np.mean(losses[-2:]) < np.mean(losses[:2]), "it learns its few rows"
    trained = AdapterSnapshot.take(model, ROWS)
    save_adapter(model, tokenizer, family.manifest, {}, tmp_path / "adapter")
    verify_saved_adapter(tmp_path / "adapter", trained, family.manifest, p.model, CPU)

    classifier = Classifier.load(family.manifest, p, CLASSES, CPU, tmp_path / "adapter")
    alone, together = classifier.predict(ROWS, 1), classifier.predict(ROWS, len(ROWS))
    assert abs(alone - together).max() < 1e-4
    assert np.ptp(alone, axis=0).max() > 0.05, "the rows are too much alike"
    by_length = np.argsort(LENGTHS)
    assert abs(torch.softmax(trained.logits, dim=-1).numpy() - alone[by_length]).max() < 1e-4


def test_the_captured_step_is_the_eager_one_or_says_why_not(family, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")

    how = {"freeze": False, "precision": "fp32", "quantization": family.quantization, "hidden_act": None}
    pair = batch(length=24)
    loss, grads = eager(small_classifier.classifier(family.manifest, **how), *pair)
    lora = small_classifier.classifier(family.manifest, **how)
    if family.name == "falcon":
        with pytest.raises(StepUnavailable, match="FalconLinear"):
            small_classifier.make_eager_step(monkeypatch, lora, longest=24)
        return
    step = small_classifier.make_eager_step(monkeypatch, lora, longest=24)
    assert step(as_inputs(*pair), 0).item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if torch.cuda.is_available() else 1e-5)


def test_gpt2_that_is_not_quantised_has_layers_without_a_fast_form(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
    from stages.training.captured_step import CapturedStep

    manifest = manifest_of(save_family("gpt2", tmp_path))
    lora = small_classifier.classifier(manifest, freeze=False, precision="fp32", quantization="none", hidden_act=None)
    with pytest.raises(StepUnavailable, match="no fast form of Linear on Conv1D"):
        CapturedStep(lora, 4, 24, 42, 0, dequantize_once=False)


def test_the_documents_table_has_these_families_and_says_which_layers_are_fused():
    pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
    from stages.kernels.registry import find_architecture

    lines = re.findall(r"^\| (\w+) \|.*\| (yes|no) \| (.*) \| *(yes)? *\|$", DOCUMENT.read_text(), re.M)
    found = {family: (quantised == "yes", fused == "yes") for family, quantised, _, fused in lines}
    expected = {}
    for family, config in FAMILIES.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        expected[family] = (quantization_of(family) == "nf4", any(map(find_architecture, model.modules())))
    assert found == expected


# --- what is refused ---

BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
ENCODER = SIZE | {"intermediate_size": 64}
REFUSED = {
    "bert": (AutoModelForMaskedLM, BertConfig(**ENCODER), "BertForSequenceClassification has no linear head"),
    "deberta": (AutoModelForMaskedLM, DebertaV2Config(**ENCODER), "has no linear head"),
    "t5": (
        AutoModelForSeq2SeqLM, T5Config(vocab_size=1000, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4),
        r"is an encoder-decoder \(t5\); allowed: a causal",
    ),
    "bart": (AutoModelForSeq2SeqLM, BartConfig(vocab_size=1000, d_model=64, **BART), r"encoder-decoder \(bart\)"),
    "gemma 3 that sees": (
        AutoModelForImageTextToText,
        Gemma3Config(
            text_config=GROUPED | {"head_dim": 16},
            vision_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "image_size": 28, "patch_size": 14},
        ),
        r"reads more than text \(gemma3\); allowed: a causal",
    ),
    "qwen that sees": (
        AutoModelForImageTextToText,
        Qwen2VLConfig(
            text_config=GROUPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                       "mrope_section": [2, 3, 3]}},
            vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        ),
        r"reads more than text \(qwen2_vl\)",
    ),
    "mamba": (
        AutoModelForCausalLM, MambaConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=1, state_size=8),
        "transformers has no classifier for mamba; allowed: a causal",
    ),
    "granite": (AutoModelForCausalLM, GraniteConfig(**GROUPED), "transformers has no classifier for granite"),
    "experts": (
        AutoModelForCausalLM, MixtralConfig(**GROUPED, num_local_experts=4),
        r"model\.quantization: nf4: bitsandbytes leaves 8\d% .*MixtralExperts\); allowed: none",
    ),
    "experts with other names": (
        AutoModelForCausalLM, GptOssConfig(**GROUPED, head_dim=16, num_local_experts=4),
        r"bitsandbytes leaves .*GptOssExperts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_not_be_right_is_refused(load_nano, tmp_path, kind):
    loader, config, said = REFUSED[kind]
    save(loader.from_config(config), tmp_path)
    with pytest.raises(UserError, match=said):
        load_nano(tmp_path, hidden_act=None)


def test_falcon_is_refused_in_4_bits_which_it_would_not_be_in(load_nano, tmp_path):
    save_family("falcon", tmp_path)
    with pytest.raises(UserError, match=r"nf4: bitsandbytes leaves 100% .*FalconLinear.*allowed: none"):
        load_nano(tmp_path, hidden_act=None)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_weights_that_are_quantised_already_are_refused(load_nano, tmp_path, method):
    """transformers would take the checkpoint's own quantisation for the one that params.yaml asks for."""
    save(AutoModelForCausalLM.from_config(LlamaConfig(**GROUPED)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    said = {"quant_method": method, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    with pytest.raises(UserError, match=rf"is quantised already \({method}\); allowed: a causal .* in 32 or 16 bits"):
        load_nano(tmp_path, hidden_act=None)
