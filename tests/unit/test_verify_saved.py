"""A saved adapter is loaded as a user loads it. Each known way in which saving fails is tried here."""

import contextlib
import functools
import math

import pytest
import torch
from helpers.damage import edit_json, edit_weights
from helpers.project import CPU
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.model.adapter import add_lora, save_adapter
from stages.model.base_cache import cache_base
from stages.model.verify_saved import ROWS, AdapterSnapshot, verify_saved_adapter
from stages.runtime.errors import UserError

EXAMPLES = [{"input_ids": list(range(50 + i, 53 + i + i * 2))} for i in range(20)]


@pytest.fixture(params=[False, True], ids=["loaded again", "cached base"], autouse=True)
def cache(request):
    """The cache of bases that a training has; None: the base is loaded again."""
    with cache_base() if request.param else contextlib.nullcontext() as cache:
        yield cache


@pytest.fixture
def verify(cache):
    return functools.partial(verify_saved_adapter, device=CPU, cache=cache)


@pytest.fixture
def saved(load_nano, make_params, tmp_path):
    """save(**changes of the section model) -> (folder, snapshot, manifest, section); LoRA and head are changed."""

    def save(**changes):
        model_params = make_params().model.model_copy(update=changes)
        base, tokenizer, manifest = load_nano(**changes)
        model = add_lora(base, make_params().lora, 42)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        snapshot = AdapterSnapshot.take(model, EXAMPLES)
        save_adapter(model, tokenizer, manifest, {}, tmp_path / "adapter")
        return tmp_path / "adapter", snapshot, manifest, model_params

    return save


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_complete_adapter_passes_and_stays_as_it_is(saved, verify, quantization, precision):
    folder, snapshot, manifest, model_params = saved(quantization=quantization, precision=precision)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    verify(folder, snapshot, manifest, model_params)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_rows_have_different_lengths_the_longest_and_the_shortest_included(saved):
    _, snapshot, _, _ = saved()
    lengths = [len(row["input_ids"]) for row in snapshot.examples]
    assert len(set(lengths)) == ROWS == len(snapshot.logits)
    assert (lengths[0], lengths[-1]) == (3, 41)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_weights(f, "score", lambda w: None), r"not loadable \(KeyError.*score"),
        (lambda f: edit_weights(f, "score", torch.zeros_like), r"another \S*score\.weight"),
        (lambda f: edit_weights(f, "lora_A", lambda w: None), r"another \S*lora_A"),
        (lambda f: edit_weights(f, "lora_B", lambda w: None), r"another \S*lora_B"),
        (lambda f: edit_weights(f, "lora_B", lambda w: 1.01 * w), r"another \S*lora_B"),
        (lambda f: edit_json(f, "adapter_config.json", lora_alpha=32), "predicts otherwise"),
        (lambda f: edit_json(f, "adapter_config.json", use_rslora=True), "predicts otherwise"),
        (lambda f: edit_json(f, "adapter_config.json", target_modules=["q_proj"]), r"another \S*k_proj"),
        (lambda f: edit_json(f, "config.json", pad_token_id=5), "predicts otherwise"),
        (lambda f: (f / "config.json").unlink(), "not loadable"),
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_rejected(saved, verify, damage, message, precision):
    folder, snapshot, manifest, model_params = saved(precision=precision)
    damage(folder)
    with pytest.raises(UserError, match=rf"outs/adapter: not saved: loaded .*({message})"):
        verify(folder, snapshot, manifest, model_params)


def test_another_activation_is_rejected(saved, verify):
    """In fp32, because rounding to bf16 changes a nano model's logits more than the activation does."""
    folder, snapshot, manifest, model_params = saved()
    edit_json(folder, "config.json", hidden_act="relu")
    with pytest.raises(UserError, match="predicts otherwise"):
        verify(folder, snapshot, manifest, model_params)


def test_a_tokenizer_with_another_pad_token_is_rejected(saved, verify):
    folder, snapshot, manifest, model_params = saved()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(7)
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="predicts otherwise"):
        verify(folder, snapshot, manifest, model_params)


def test_no_batch_has_more_than_two_rows_and_each_has_padding(saved, verify):
    """8 rows of 2,048 tokens at once may need more memory than a training step."""
    folder, snapshot, manifest, model_params = saved()
    sizes = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: sizes.append(inputs[0].shape) if isinstance(module, torch.nn.Embedding) else None
    )
    with hook:
        verify(folder, snapshot, manifest, model_params)
    assert sizes[1 - ROWS :] == [(2, len(snapshot.examples[-1]["input_ids"]))] * (ROWS - 1)


def test_nan_logits_are_rejected(saved, verify):
    folder, snapshot, manifest, model_params = saved()
    snapshot.logits[0, 0] = math.nan
    with pytest.raises(UserError, match="predicts otherwise"):
        verify(folder, snapshot, manifest, model_params)


def test_a_cached_base_is_not_loaded_again_and_a_changed_one_is(saved, verify, cache, monkeypatch):
    if cache is None:
        pytest.skip("no cache")
    loads, plain = [], AutoModelForSequenceClassification.from_pretrained
    folder, snapshot, manifest, model_params = saved()
    monkeypatch.setattr(
        AutoModelForSequenceClassification, "from_pretrained", lambda *a, **named: loads.append(a) or plain(*a, **named)
    )
    verify(folder, snapshot, manifest, model_params)
    assert loads == []
    next(parameter for name, parameter in cache.model.named_parameters() if "layernorm" in name).data.mul_(1.5)
    verify(folder, snapshot, manifest, model_params)
    assert len(loads) == 1
