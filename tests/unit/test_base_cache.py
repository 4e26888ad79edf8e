"""A kept base: models around the same weights, and nothing of one in the next."""

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
def reads(monkeypatch):
    """Grows by one where weights are read."""
    found, read = [], base.AutoModelForSequenceClassification.from_pretrained
    replaced = staticmethod(lambda *args, **kwargs: (found.append(1), read(*args, **kwargs))[1])
    monkeypatch.setattr(base.AutoModelForSequenceClassification, "from_pretrained", replaced)
    return found


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_each_model_is_the_one_that_is_loaded_alone(load_nano, reads, quantization):
    alone = [load_nano(seed=seed, quantization=quantization)[0] for seed in (1, 2)]
    reads.clear()
    with cache_base():
        kept = [load_nano(seed=seed, quantization=quantization)[0] for seed in (1, 2)]
    assert len(reads) == 1
    for one, other in zip(alone, kept, strict=True):
        assert torch.equal(logits(one), logits(other))
        assert [name for name, _ in one.named_parameters()] == [name for name, _ in other.named_parameters()]
        assert not any(parameter.requires_grad for parameter in other.parameters())
        assert [len(m._forward_pre_hooks) for m in one.modules()] == [
            len(m._forward_pre_hooks) for m in other.modules()
        ]
    assert not torch.equal(logits(kept[0]), logits(kept[1]))


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
def test_a_variant_of_the_model_loads_its_own(load_nano, reads, change):
    alone = load_nano(**change)[0]
    reads.clear()
    with cache_base():
        load_nano()
        assert torch.equal(logits(load_nano(**change)[0]), logits(alone))
        assert len(reads) == 2
        load_nano(**change, head_init="random")
        assert len(reads) == 2, "the head is no part of it"


def test_outside_of_the_block_each_model_is_read_anew(load_nano, reads):
    with cache_base():
        load_nano()
    one, other = load_nano()[0], load_nano()[0]
    assert len(reads) == 3
    assert not {*one.parameters()} & {*other.parameters()}


@pytest.mark.parametrize("what", ["weight", "scales", "bias"])
def test_changed_weights_are_told_and_never_used_again(load_nano, what):
    with cache_base() as kept:
        model = load_nano()[0]
        kept.check()
        layer = next(module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit))
        tensor = {"weight": layer.weight.data, "scales": layer.weight.quant_state.absmax, "bias": layer.bias.data}[what]
        tensor.view(-1)[3] += 1
        with pytest.raises(RuntimeError, match="weights of the cached base have changed"):
            kept.check()
        kept.check()
        assert compute_checksums(load_nano()[0].base_model) != compute_checksums(model.base_model)
