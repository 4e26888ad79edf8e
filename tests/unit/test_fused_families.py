"""The fused layers of the families that have them: on a GPU if there is one, else interpreted on the CPU."""

import functools
import json

import pytest
import torch
from helpers import small_classifier
from helpers.families import GEMMA, GROUPED, save_family
from helpers.parameters import manifest_of
from helpers.small_classifier import DEVICE, PAD, as_rows, batch, distance, eager, gradients
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from stages.data.batching import pack_rows

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
pytestmark = [pytest.mark.gpu] if ON_GPU else []

LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")


@pytest.fixture(scope="module", params=LIKE_LLAMA)
def manifest(request, tmp_path_factory):
    return manifest_of(save_family(request.param, tmp_path_factory.mktemp(request.param)))


def classifier(manifest, **changes):
    """In fp32, the head frozen."""
    how = {"freeze": True, "precision": "fp32", "quantization": "none", "hidden_act": None}
    return small_classifier.classifier(manifest, **how | changes)


@pytest.fixture
def step_of(monkeypatch):
    return functools.partial(small_classifier.make_eager_step, monkeypatch, dequantize_once=True)


def laid(ids, labels):
    batch = pack_rows(as_rows(ids, labels), PAD, rows=4, tokens=96)
    return {name: value.to(DEVICE) for name, value in batch.items()}


def test_loss_and_gradients_are_the_eager_ones(manifest, step_of):
    """With rows end to end and checkpointing; `test_families` has rows side by side without.

    Rows are longer than the windows of the models that have one; biases and norms have random weights.
    """
    ids, labels = batch(length=24)
    loss, grads = eager(classifier(manifest, checkpointing=True), ids, labels)
    lora = classifier(manifest, checkpointing=True)
    step = step_of(lora, longest=24)
    assert step.takes_packed_rows
    assert step(laid(ids, labels), 0).item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if ON_GPU else 1e-5)  # a GPU may take its products in tf32


def test_a_layer_computed_again_by_checkpointing_finds_its_masks(step_of, tmp_path):
    manifest, grads = manifest_of(save_family("gemma3_text", tmp_path)), []
    for checkpointing in (False, True):
        lora = classifier(manifest, dropout=0.2, checkpointing=checkpointing)
        step_of(lora, longest=24)(laid(*batch(length=24)), 5)
        grads.append(gradients(lora))
    assert distance(*grads) < 1e-6


def test_a_window_that_transformers_does_not_read_is_not_used(tmp_path):
    """A Llama made of another model's weights may keep the key in its config."""
    folder = save_family("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 8}))
    test_answers_are_those_of_transformers(manifest_of(folder))


def test_answers_are_those_of_transformers(manifest):
    from stages.kernels.fusion import fuse_for_evaluation
    from stages.kernels.packed import compute_logits

    model, (ids, labels) = classifier(manifest).get_base_model().eval(), batch(length=24)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        fuse_for_evaluation(model, keep=True)
        for answer in (model(input_ids=ids).logits, compute_logits(model, laid(ids, labels), 24)):
            assert torch.allclose(answer, expected, atol=1e-3 if ON_GPU else 1e-5)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**GROUPED, attention_dropout=0.1),
        LlamaConfig(**GROUPED, hidden_act="gelu"),
        Gemma3TextConfig(**GEMMA, attn_logit_softcapping=50.0),
        Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True),
    ],
    ids=["attention dropout", "exact gelu", "softcapping", "bidirectional"],
)
def test_a_layer_that_does_more_is_left_to_transformers(config):
    from stages.kernels.registry import find_architecture

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert not any(map(find_architecture, model.modules()))
