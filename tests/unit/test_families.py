"""Each family of causal models, from loading to prediction; unsupported models are rejected with one line."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import small_classifier
from helpers.families import FAMILIES, GQA_SIZE, SIZE, quantization_of, save, save_family
from helpers.parameters import manifest_of
from helpers.project import CPU, ROOT
from helpers.small_classifier import as_inputs, batch, distance, eager, gradients
from helpers.tables import CLASSES, LABELS
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

from stages.data.labels import MultiLabel
from stages.data.tokenization import load_tokenizer
from stages.kernels.errors import StepUnavailable
from stages.model.adapter import add_lora, save_adapter
from stages.model.base import load_base
from stages.model.classifier import Classifier
from stages.model.verify_saved import AdapterSnapshot, verify_saved_adapter
from stages.runtime.errors import UserError
from stages.training.loss import set_loss
from stages.training.trainer import make_trainer

DOCUMENT = ROOT / "docs/new-architecture.md"
LENGTHS = (23, 5, 14, 3, 9, 17, 2, 11)  # some exceed the models' sliding windows
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


def check_from_loading_to_prediction(manifest, p, rows, labels, tmp_path):
    tokenizer = load_tokenizer(manifest)
    tokens = np.unique(np.concatenate([[tokenizer.pad_token_id], *(row["input_ids"] for row in rows)]))
    base = load_base(manifest, p.model, labels, CPU, p.seed, tokenizer, tokens)
    model = add_lora(base, p.lora, p.seed)
    set_loss(base, labels, np.array([row["labels"] for row in rows]), balanced=False)
    trainer = make_trainer(model, rows, rows, p, tokenizer.pad_token_id, tmp_path / "checkpoints", SimpleNamespace())
    trainer.train()
    losses = [entry["step_loss"] for entry in trainer.state.log_history if "step_loss" in entry]
    assert np.mean(losses[-2:]) < np.mean(losses[:2]), "the loss did not fall"
    trained = AdapterSnapshot.take(model, rows)
    save_adapter(model, tokenizer, manifest, {}, tmp_path / "adapter")
    verify_saved_adapter(tmp_path / "adapter", trained, manifest, p.model, CPU)

    classifier = Classifier.load(manifest, p, p.tokenize.max_length, labels, CPU, tmp_path / "adapter")
    one_by_one, in_one_batch = classifier.predict(rows, 1), classifier.predict(rows, len(rows))
    assert abs(one_by_one - in_one_batch).max() < 1e-4
    assert np.ptp(one_by_one, axis=0).max() > 0.05, "the rows are too similar to test anything"
    by_length = np.argsort(LENGTHS)
    expected = trained.logits.sigmoid() if labels.multi_label else trained.logits.softmax(dim=-1)
    assert abs(expected.numpy() - one_by_one[by_length]).max() < 1e-4


def test_from_loading_to_prediction(family, parameters, tmp_path):
    """Train, save and load an adapter: its probabilities stay the same, in a batch of any size."""
    check_from_loading_to_prediction(family.manifest, parameters, ROWS, LABELS, tmp_path)


def test_several_labels_from_loading_to_prediction(make_params, tmp_path):
    """GPT-2's own forward ignores the loss that training sets; checkpointing computes it twice."""
    rows = [row | {"labels": np.array([i % 3 == 0, i % 2 == 0, i == 5])} for i, row in enumerate(ROWS)]
    p = make_params(
        model__hidden_act=None, train__epochs=2, train__batch_size=4, train__learning_rate=0.01, train__keep="last",
        train__gradient_checkpointing=True,
    )  # fmt: skip
    manifest = manifest_of(save_family("gpt2", tmp_path / "gpt2"))
    check_from_loading_to_prediction(manifest, p, rows, MultiLabel(CLASSES), tmp_path)


def test_the_captured_step_equals_the_eager_one(family, monkeypatch):
    """Only Falcon has none, and the error names its class of linear layers."""
    pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")

    options = {"freeze": False, "precision": "fp32", "quantization": family.quantization, "hidden_act": None}
    pair = batch(length=12)
    loss, grads = eager(small_classifier.classifier(family.manifest, **options), *pair)
    lora = small_classifier.classifier(family.manifest, **options)
    if family.name == "falcon":
        with pytest.raises(StepUnavailable, match="FalconLinear"):
            small_classifier.make_eager_step(monkeypatch, lora, longest=12)
        return
    step = small_classifier.make_eager_step(monkeypatch, lora, longest=12)
    assert step(as_inputs(*pair), 0).item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if torch.cuda.is_available() else 1e-5)


def test_gpt2_has_no_captured_step_unless_it_is_quantized(tmp_path):
    """Its layers are Conv1D; quantized ones are Linear4bit."""
    pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
    from stages.training.captured_step import CapturedStep

    manifest = manifest_of(save_family("gpt2", tmp_path))
    lora = small_classifier.classifier(manifest, freeze=False, precision="fp32", quantization="none", hidden_act=None)
    with pytest.raises(StepUnavailable, match="do not support Linear on Conv1D"):
        CapturedStep(lora, 4, 24, 42, 0)


def test_the_table_of_families_in_the_docs_is_complete_and_right():
    pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
    from stages.kernels.registry import find_architecture

    lines = re.findall(r"^\| (\w+) \|.*\| (yes|no) \| (.*) \| *(yes)? *\|$", DOCUMENT.read_text(), re.M)
    documented = {family: (in_4_bits == "yes", fused == "yes") for family, in_4_bits, _, fused in lines}
    expected = {}
    for family, config in FAMILIES.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        expected[family] = (quantization_of(family) == "nf4", any(map(find_architecture, model.modules())))
    assert documented == expected


# --- models that are rejected ---

BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
ENCODER = SIZE | {"intermediate_size": 64}
UNSUPPORTED = {
    "bert": (AutoModelForMaskedLM, BertConfig(**ENCODER), "BertForSequenceClassification has no linear head"),
    "deberta": (AutoModelForMaskedLM, DebertaV2Config(**ENCODER), "has no linear head"),
    "t5": (
        AutoModelForSeq2SeqLM, T5Config(vocab_size=1000, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4),
        r"is an encoder-decoder \(t5\); allowed: a causal",
    ),
    "bart": (AutoModelForSeq2SeqLM, BartConfig(vocab_size=1000, d_model=64, **BART), r"encoder-decoder \(bart\)"),
    "gemma 3 with vision": (
        AutoModelForImageTextToText,
        Gemma3Config(
            text_config=GQA_SIZE | {"head_dim": 16},
            vision_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "image_size": 28, "patch_size": 14},
        ),
        r"reads more than text \(gemma3\); allowed: a causal",
    ),
    "qwen with vision": (
        AutoModelForImageTextToText,
        Qwen2VLConfig(
            text_config=GQA_SIZE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                       "mrope_section": [2, 3, 3]}},
            vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        ),
        r"reads more than text \(qwen2_vl\)",
    ),
    "mamba": (
        AutoModelForCausalLM, MambaConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=1, state_size=8),
        "transformers has no classifier for mamba; allowed: a causal",
    ),
    "granite": (AutoModelForCausalLM, GraniteConfig(**GQA_SIZE), "transformers has no classifier for granite"),
    "experts of mixtral": (
        AutoModelForCausalLM, MixtralConfig(**GQA_SIZE, num_local_experts=4),
        r"model\.quantization: nf4: bitsandbytes leaves 8\d% .*MixtralExperts\); allowed: none",
    ),
    "experts of gpt-oss": (
        AutoModelForCausalLM, GptOssConfig(**GQA_SIZE, head_dim=16, num_local_experts=4),
        r"bitsandbytes leaves .*GptOssExperts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_an_unsupported_model_is_rejected(load_nano, tmp_path, kind):
    loader, config, message = UNSUPPORTED[kind]
    save(loader.from_config(config), tmp_path)
    with pytest.raises(UserError, match=message):
        load_nano(tmp_path, hidden_act=None)


def test_falcon_in_4_bits_is_rejected(load_nano, tmp_path):
    """bitsandbytes would silently leave its linear layers unquantized."""
    save_family("falcon", tmp_path)
    with pytest.raises(UserError, match=r"nf4: bitsandbytes leaves 100% .*FalconLinear.*allowed: none"):
        load_nano(tmp_path, hidden_act=None)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_a_quantized_checkpoint_is_rejected(load_nano, tmp_path, method):
    """transformers would silently use the checkpoint's quantization instead of that of params.yaml."""
    save(AutoModelForCausalLM.from_config(LlamaConfig(**GQA_SIZE)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    quantization = {"quant_method": method, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    with pytest.raises(UserError, match=rf"is quantised already \({method}\); allowed: a causal .* in 32 or 16 bits"):
        load_nano(tmp_path, hidden_act=None)
