"""The fused layers of all families but Phi: on a GPU if there is one, else in Triton's CPU interpreter."""

import functools
import json

import pytest
import torch
from helpers import small_classifier
from helpers.families import GEMMA, GQA_SIZE, save_family
from helpers.parameters import manifest_of
from helpers.small_classifier import DEVICE, PAD, as_rows, batch, distance, eager, gradients
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from stages.data.batching import pack_rows

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
pytestmark = [pytest.mark.gpu] if ON_GPU else []

FUSED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")


@pytest.fixture(scope="module", params=FUSED_FAMILIES)
def manifest(request, tmp_path_factory):
    return manifest_of(save_family(request.param, tmp_path_factory.mktemp(request.param)))


def classifier(manifest, **changes):
    """A LoRA classifier in fp32 with a frozen head."""
    defaults = {"freeze": True, "precision": "fp32", "quantization": "none", "hidden_act": None}
    return small_classifier.classifier(manifest, **defaults | changes)


@pytest.fixture
def make_step(monkeypatch):
    return functools.partial(small_classifier.make_eager_step, monkeypatch, dequantize_once=True)


def pack_batch(ids, labels):
    """Four rows, the second with a pad token at its end, which is not classified; then one row that only fills up."""
    rows = as_rows(ids, labels)
    rows[1]["input_ids"] = ids[1].cpu().numpy()
    batch = pack_rows(rows, PAD, rows=5, tokens=48)
    return {name: value.to(DEVICE) for name, value in batch.items()}


def test_loss_and_gradients_equal_the_eager_ones(manifest, make_step):
    """With packed rows and gradient checkpointing; `test_families` tests padded rows without.

    Rows are longer than the models' sliding windows. Biases and norms have random weights.
    """
    ids, labels = batch(length=12)
    loss, grads = eager(classifier(manifest, checkpointing=True), ids, labels)
    lora = classifier(manifest, checkpointing=True)
    step = make_step(lora, longest=12)
    assert step.takes_packed_rows
    assert step([pack_batch(ids, labels)], 0).item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)  # a GPU may multiply in tf32


def test_a_layer_recomputed_by_checkpointing_has_the_same_dropout_masks(make_step, tmp_path):
    manifest, grads = manifest_of(save_family("gemma3_text", tmp_path)), []
    for checkpointing in (False, True):
        lora = classifier(manifest, dropout=0.2, checkpointing=checkpointing)
        make_step(lora, longest=12)([pack_batch(*batch(length=12))], 5)
        grads.append(gradients(lora))
    assert distance(*grads) < 1e-6


def test_a_sliding_window_that_transformers_ignores_is_ignored(tmp_path):
    """The config of a Llama converted from another model may still have the key."""
    folder = save_family("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 8}))
    test_logits_equal_those_of_transformers(manifest_of(folder))


def test_logits_equal_those_of_transformers(manifest):
    from stages.kernels.fusion import fuse_for_evaluation
    from stages.kernels.packed_rows import compute_logits

    model, (ids, labels) = classifier(manifest).get_base_model().eval(), batch(length=12)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        fuse_for_evaluation(model, dequantize_once=True)
        for logits in (model(input_ids=ids).logits, compute_logits(model, pack_batch(ids, labels), 12)[: len(ids)]):
            assert torch.allclose(logits, expected, atol=1e-3 if ON_GPU else 1e-5)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**GQA_SIZE, attention_dropout=0.1),
        LlamaConfig(**GQA_SIZE, hidden_act="gelu"),
        Gemma3TextConfig(**GEMMA, attn_logit_softcapping=50.0),
        Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True),
    ],
    ids=["attention dropout", "exact gelu", "softcapping", "bidirectional"],
)
def test_a_layer_with_an_unsupported_option_is_not_fused(config):
    from stages.kernels.registry import find_architecture

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert not any(map(find_architecture, model.modules()))
