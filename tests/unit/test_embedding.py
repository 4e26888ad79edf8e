"""A base with the embeddings of few tokens computes what the whole one does; its other tokens have none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.families import save_family
from helpers.parameters import manifest_of
from helpers.project import CPU
from helpers.tables import LABELS

from stages.data.batching import TokenizedRows
from stages.data.tokenization import load_tokenizer
from stages.model import base as base_module
from stages.model.adapter import adapts_embedding, count_parameters
from stages.model.base import load_base
from stages.model.base_cache import cache_base, is_caching
from stages.train_qlora import Inputs, load_training_base

TOKENS = np.array([0, 3, 40, 41, 700])


@pytest.fixture
def load(tmp_path, make_params):
    """load(tokens, family) -> a base."""

    def load(tokens=None, family="llama"):
        folder = tmp_path / family
        manifest = manifest_of(folder if folder.exists() else save_family(family, folder))
        settings = make_params(model__hidden_act=None, model__quantization="none", model__precision="fp32").model
        return load_base(manifest, settings, LABELS, CPU, 42, load_tokenizer(manifest), tokens)

    return load


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_the_kept_tokens_have_the_states_of_the_whole_base(load, family):
    """Gemma 3 scales its embedding, GPT-2 adds one of positions."""
    ids = torch.tensor([[700, 3, 41, 3, 40]])
    whole, few = load(family=family), load(TOKENS, family)
    with torch.no_grad():
        expected, states = (model.base_model(input_ids=ids).last_hidden_state for model in (whole, few))
    assert torch.equal(states, expected)
    assert len(few.get_input_embeddings().weight) == len(TOKENS) + 1
    assert count_parameters(few) == count_parameters(whole)


def test_a_row_with_another_token_has_nan_and_no_other_row(load):
    with torch.no_grad():
        states = load(TOKENS).base_model(input_ids=torch.tensor([[3, 39, 3], [3, 40, 3]])).last_hidden_state
    assert states[0, -1].isnan().all() and states[1].isfinite().all()


def test_a_cached_base_is_shared_by_trainings_with_the_same_tokens(load, monkeypatch):
    loads, plain = [], base_module._load_frozen
    monkeypatch.setattr(base_module, "_load_frozen", lambda *arguments: loads.append(arguments) or plain(*arguments))
    with cache_base():
        first, second = load(TOKENS), load(TOKENS.copy())
        assert second.get_input_embeddings().weight is first.get_input_embeddings().weight and len(loads) == 1
        other, whole = load(TOKENS[:3]), load()
    assert [len(model.get_input_embeddings().weight) for model in (other, whole)] == [4, whole.config.vocab_size]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", False),
        (["q_proj", "v_proj"], False),
        (["q_proj", "embed_tokens"], True),
        (r".*\.(q_proj|embed_tokens)", True),
    ],
)
def test_lora_on_the_embedding_is_known_by_its_name(load, targets, expected):
    for tokens in (None, TOKENS):
        assert adapts_embedding(load(tokens), targets) == expected


@pytest.mark.parametrize(("whole", "loads"), [(True, 1), (False, 2)])
def test_a_sweep_loads_one_base_for_training_and_evaluation(tmp_path, make_params, monkeypatch, whole, loads):
    calls, plain = [], base_module._load_frozen
    monkeypatch.setattr(base_module, "_load_frozen", lambda *arguments: calls.append(arguments) or plain(*arguments))
    manifest = manifest_of(save_family("llama", tmp_path / "llama"))
    p = make_params(model__hidden_act=None, model__quantization="none", model__precision="fp32")
    rows = TokenizedRows.from_lists([[3, 40], [41]], [0, 1])
    inputs = Inputs(manifest, SimpleNamespace(labels=LABELS), rows, rows, load_tokenizer(manifest))
    with cache_base():
        model = load_training_base(p, inputs, CPU, whole)
        load_base(manifest, p.model, LABELS, CPU, p.seed, inputs.tokenizer)
    assert len(calls) == loads
    assert whole or len(model.get_input_embeddings().weight) <= 5, "three tokens, the pad token and the row of NaN"


def test_training_knows_that_it_runs_in_a_sweep():
    assert not is_caching()
    with cache_base():
        assert is_caching()
    assert not is_caching()
