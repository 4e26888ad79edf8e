"""A saved adapter is read back as a user reads it. Each way in which saving is known to fail is tried here."""

import math

import pytest
import torch
from helpers.damage import edit_json, edit_weights
from helpers.project import CPU
from transformers import AutoTokenizer

from stages.model.adapter import add_lora, save_adapter
from stages.model.verify_saved import ROWS, AdapterSnapshot, verify_saved_adapter
from stages.runtime.errors import UserError

EXAMPLES = [{"input_ids": list(range(50 + i, 53 + i + i * 2))} for i in range(20)]


@pytest.fixture
def saved(load_nano, make_params, tmp_path):
    """save(**changes of the group model) -> (folder, what the model was, manifest, group); LoRA and head have moved."""

    def save(**changes):
        group = make_params().model.model_copy(update=changes)
        base, words, manifest = load_nano(**changes)
        model = add_lora(base, make_params().lora, 42)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        trained = AdapterSnapshot.take(model, EXAMPLES)
        save_adapter(model, words, manifest, {}, tmp_path / "adapter")
        return tmp_path / "adapter", trained, manifest, group

    return save


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_saved_adapter_is_what_the_model_was(saved, quantization, precision):
    folder, trained, manifest, group = saved(quantization=quantization, precision=precision)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    verify_saved_adapter(folder, trained, manifest, group, CPU)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_rows_are_of_different_lengths_with_the_longest_and_the_shortest(saved):
    _, trained, _, _ = saved()
    lengths = [len(row["input_ids"]) for row in trained.examples]
    assert len(set(lengths)) == ROWS == len(trained.logits)
    assert (lengths[0], lengths[-1]) == (3, 41)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("damage", "said"),
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
def test_an_adapter_that_was_not_saved_well_is_refused(saved, damage, said, precision):
    folder, trained, manifest, group = saved(precision=precision)
    damage(folder)
    with pytest.raises(UserError, match=rf"outs/adapter: not saved: loaded .*({said})"):
        verify_saved_adapter(folder, trained, manifest, group, CPU)


def test_another_activation_is_refused(saved):
    """In fp32: a nano model's answers depend less on it than on the rounding of bf16."""
    folder, trained, manifest, group = saved()
    edit_json(folder, "config.json", hidden_act="relu")
    with pytest.raises(UserError, match="predicts otherwise"):
        verify_saved_adapter(folder, trained, manifest, group, CPU)


def test_a_tokenizer_that_pads_with_another_token_is_refused(saved):
    folder, trained, manifest, group = saved()
    words = AutoTokenizer.from_pretrained(folder)
    words.pad_token = words.convert_ids_to_tokens(7)
    words.save_pretrained(folder)
    with pytest.raises(UserError, match="predicts otherwise"):
        verify_saved_adapter(folder, trained, manifest, group, CPU)


def test_logits_that_are_no_numbers_are_refused(saved):
    folder, trained, manifest, group = saved()
    trained.logits[0, 0] = math.nan
    with pytest.raises(UserError, match="predicts otherwise"):
        verify_saved_adapter(folder, trained, manifest, group, CPU)
