"""A cached base: models share its frozen weights, and nothing else."""

import weakref

import bitsandbytes as bnb
import pytest
import torch

from stages.model import base
from stages.model.base_cache import cache_base, compute_checksums

IDS = torch.arange(10, 34).view(2, 12)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def loads(monkeypatch):
    """A list that grows by one at each loading of weights."""
    calls, load = [], base.AutoModelForSequenceClassification.from_pretrained
    replaced = staticmethod(lambda *args, **kwargs: (calls.append(1), load(*args, **kwargs))[1])
    monkeypatch.setattr(base.AutoModelForSequenceClassification, "from_pretrained", replaced)
    return calls


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_model_from_the_cache_equals_one_loaded_without_it(load_nano, loads, quantization):
    uncached = [load_nano(seed=seed, quantization=quantization)[0] for seed in (1, 2)]
    loads.clear()
    with cache_base():
        cached = [load_nano(seed=seed, quantization=quantization)[0] for seed in (1, 2)]
    assert len(loads) == 1
    for one, other in zip(uncached, cached, strict=True):
        assert torch.equal(logits(one), logits(other))
        assert [name for name, _ in one.named_parameters()] == [name for name, _ in other.named_parameters()]
        assert not any(parameter.requires_grad for parameter in other.parameters())
        assert [len(m._forward_pre_hooks) for m in one.modules()] == [
            len(m._forward_pre_hooks) for m in other.modules()
        ]
    assert not torch.equal(logits(cached[0]), logits(cached[1]))


def test_models_share_the_weights_and_nothing_else(load_nano):
    with cache_base():
        one, other = load_nano()[0], load_nano()[0]
    weights = {name: weight for name, weight in one.named_parameters() if not name.startswith("score.")}
    assert all(dict(other.named_parameters())[name] is weight for name, weight in weights.items())
    assert not {*one.modules()} & {*other.modules()}
    assert not {*one.buffers()} & {*other.buffers()}
    assert one.config is not other.config
    assert one.score.weight is not other.score.weight


@pytest.mark.parametrize(
    "change",
    [{"quantization": "none"}, {"hidden_act": None}, {"precision": "bf16"}],
    ids=lambda change: next(iter(change)),
)
def test_a_base_with_other_settings_is_loaded_anew(load_nano, loads, change):
    uncached = load_nano(**change)[0]
    loads.clear()
    with cache_base():
        load_nano()
        assert torch.equal(logits(load_nano(**change)[0]), logits(uncached))
        assert len(loads) == 2
        load_nano(**change, head_init="random")
        assert len(loads) == 2, "the head is not part of the key"


def test_a_replaced_base_is_freed_before_the_next_one_is_loaded(load_nano, monkeypatch):
    left, plain = [], base.AutoModelForSequenceClassification.from_pretrained

    def load(*args, **kwargs):
        left.append(first() is not None)
        return plain(*args, **kwargs)

    with cache_base():
        weights = load_nano(quantization="nf4")[0].parameters()
        first = weakref.ref(next(weight for weight in weights if isinstance(weight, bnb.nn.Params4bit)))
        del weights
        assert first() is not None
        monkeypatch.setattr(base.AutoModelForSequenceClassification, "from_pretrained", staticmethod(load))
        load_nano(precision="bf16")
    assert left == [False]


def test_outside_the_block_each_model_is_loaded_anew(load_nano, loads):
    with cache_base():
        load_nano()
    one, other = load_nano()[0], load_nano()[0]
    assert len(loads) == 3
    assert not {*one.parameters()} & {*other.parameters()}


@pytest.mark.parametrize("changed", ["weight", "scales", "bias"])
def test_changed_weights_are_an_error_and_never_used_again(load_nano, changed):
    with cache_base() as cached:
        model = load_nano()[0]
        cached.check()
        layer = next(module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit))
        tensor = {"weight": layer.weight.data, "scales": layer.weight.quant_state.absmax, "bias": layer.bias.data}[
            changed
        ]
        tensor.view(-1)[3] += 1
        with pytest.raises(RuntimeError, match="weights of the cached base have changed"):
            cached.check()
        cached.check()
        assert compute_checksums(load_nano()[0].base_model) != compute_checksums(model.base_model)


def test_a_block_inside_another_one_uses_its_cache():
    with cache_base() as outer:
        with cache_base() as inner:
            assert inner is outer
        with cache_base() as inner:
            assert inner is outer
    with cache_base() as another:
        assert another is not outer
