"""The last layer computes only the tokens that are classified: on a GPU if there is one, else in Triton's interpreter.

`test_fused_families` and `test_kernels` compare its loss, gradients and logits with those of PEFT and transformers.
"""

import dataclasses
import functools

import pytest
import torch
from helpers import small_classifier
from helpers.families import save_family
from helpers.parameters import manifest_of
from helpers.small_classifier import DEVICE, PAD, as_rows, batch, distance, gradients

from stages.data.batching import pack_rows

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
pytestmark = [pytest.mark.gpu] if ON_GPU else []

ROWS, TOKENS = 4, 48


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """{family: manifest of a small model}."""
    names = ("phi", "qwen3", "gemma3_text")
    return {name: manifest_of(save_family(name, tmp_path_factory.mktemp(name))) for name in names}


def classifier(manifest, **changes):
    """A LoRA classifier in fp32 with a frozen head."""
    defaults = {"freeze": True, "precision": "fp32", "quantization": "none", "hidden_act": None}
    return small_classifier.classifier(manifest, **defaults | changes)


@pytest.fixture
def make_step(monkeypatch):
    return functools.partial(small_classifier.make_eager_step, monkeypatch, longest=12)


def packed():
    """Three rows of 10 to 12 tokens, the second with a pad token at its end; then one row and tokens that fill up."""
    ids, labels = batch(3, length=12)
    rows = as_rows(ids, labels)
    rows[1]["input_ids"] = ids[1].cpu().numpy()
    return {name: value.to(DEVICE) for name, value in pack_rows(rows, PAD, rows=ROWS, tokens=TOKENS).items()}


@pytest.mark.parametrize("family", ["phi", "qwen3", "gemma3_text"])
def test_only_keys_and_values_are_computed_for_all_tokens(manifests, make_step, monkeypatch, family):
    from stages.kernels.fused_linear import FusedLinear

    counts, forward = {}, FusedLinear.forward

    def count(self, x, *args, **kwargs):
        counts[id(self)] = len(x)
        return forward(self, x, *args, **kwargs)

    lora = classifier(manifests[family])
    step = make_step(lora)
    monkeypatch.setattr(FusedLinear, "forward", count)
    step([packed()], 0)
    tokens = {}
    for linear in step.lora.fused_linears:
        for name, module in lora.named_modules():
            if module in linear.lora_layers:
                tokens[name.split("layers.")[1]] = counts[id(linear)]
    assert {name for name, count in tokens.items() if count == TOKENS and name.startswith("1.")} == {
        "1.self_attn.k_proj", "1.self_attn.v_proj"
    }  # fmt: skip
    assert {count for name, count in tokens.items() if name.startswith("0.")} == {TOKENS}
    assert set(tokens.values()) == {TOKENS, ROWS}


@pytest.mark.parametrize("family", ["phi", "gemma3_text"])
def test_its_dropout_masks_are_those_of_the_tokens_among_all_tokens(manifests, make_step, monkeypatch, family):
    """A last layer that computes all tokens has the same loss and gradients, with dropout."""
    from stages.kernels import registry

    results = []
    for computes_all in (False, True):
        if computes_all:  # linear modules are grouped as before, so their masks have the same numbers
            architectures = [
                dataclasses.replace(a, last=dataclasses.replace(a.last, forward=all_tokens(a.last.forward)))
                for a in registry.ARCHITECTURES
            ]
            monkeypatch.setattr(registry, "ARCHITECTURES", architectures)
        lora = classifier(manifests[family], dropout=0.2)
        loss = make_step(lora)([packed()], 5).item()
        results.append((loss, gradients(lora)))
    (loss, grads), (expected, expected_grads) = results
    assert loss == pytest.approx(expected, rel=1e-5)
    assert distance(grads, expected_grads) < (1e-3 if ON_GPU else 1e-5)


def all_tokens(forward):
    """A last layer's forward for all tokens, of which the classified ones are selected at its end."""

    def forward_all(layer, project, x, layout):
        return forward(layer, project, x, dataclasses.replace(layout, last=None))[:, layout.last]

    return forward_all


@pytest.mark.parametrize("family", ["phi", "qwen3"])
def test_its_gradients_include_the_dropout_masks_of_the_forward(manifests, make_step, family):
    """Compared with central differences of the loss, along a random direction of all weights, with fixed masks."""
    lora = classifier(manifests[family], dropout=0.2)
    step, inputs = make_step(lora), packed()
    step([inputs], 5)
    weights = [p for p in lora.parameters() if p.requires_grad]
    grads, start = [p.grad.clone() for p in weights], [p.detach().clone() for p in weights]
    generator, losses = torch.Generator().manual_seed(0), []
    shifts = [torch.randn(p.shape, generator=generator).to(DEVICE) * p.std() * 0.03 for p in start]
    for sign in (1, -1):
        for weight, first, shift in zip(weights, start, shifts, strict=True):
            weight.data.copy_(first + sign * shift)
        losses.append(step([inputs], 5).item())
    slope = sum((grad * shift).sum().item() for grad, shift in zip(grads, shifts, strict=True))
    assert (losses[0] - losses[1]) / 2 == pytest.approx(slope, rel=0.01)


def test_a_second_step_of_the_same_batch_is_byte_equal(manifests, make_step):
    """Rows that only fill up the batch add zeros, not NaN, to the first token, which they name as their last."""
    step, buffers = make_step(classifier(manifests["phi"], dropout=0.2)), []
    for _ in range(2):
        step([packed()], 5)
        buffers.append(step.lora.buffer.clone())
    assert torch.isfinite(buffers[0]).all() and torch.equal(*buffers)


def test_a_family_without_a_last_layer_of_its_own_has_the_same_logits(manifests, monkeypatch):
    from stages.kernels import registry
    from stages.kernels.fusion import fuse_for_evaluation
    from stages.kernels.packed_rows import compute_logits

    logits = []
    for is_own in (True, False):
        if not is_own:
            without = [dataclasses.replace(a, last=None) for a in registry.ARCHITECTURES]
            monkeypatch.setattr(registry, "ARCHITECTURES", without)
        model = classifier(manifests["gemma3_text"]).eval()
        fuse_for_evaluation(model, dequantize_once=True)
        with torch.inference_mode():
            logits.append(compute_logits(model, packed(), 12))
    assert logits[0].shape == (ROWS, 3)
    assert torch.allclose(*(value[:3] for value in logits), atol=1e-3 if ON_GPU else 1e-5)
