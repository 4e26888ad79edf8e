"""`tokenize.max_length` is at most the number of the model's positions."""

import json

import pytest
from helpers.parameters import manifest_of
from transformers import FalconConfig, GPT2Config, LlamaConfig, MptConfig, OPTConfig

from stages.data import max_length
from stages.runtime.errors import UserError

POSITIONS = {
    "phi-2": (LlamaConfig(max_position_embeddings=2048), 2048),
    "n_positions": (GPT2Config(n_positions=1024), 1024),
    "OPT's table has two more rows": (OPTConfig(max_position_embeddings=512), 512),
    "MPT limits its ALiBi biases": (MptConfig(max_seq_len=512), 512),
    "Falcon with ALiBi": (FalconConfig(alibi=True), None),
    "Falcon": (FalconConfig(), 2048),
    "scaled RoPE, length before scaling": (
        LlamaConfig(
            max_position_embeddings=2048, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
        ),
        8192,
    ),
    "scaled RoPE, length after scaling": (
        LlamaConfig(
            max_position_embeddings=4096,
            rope_parameters={
                "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 1024,
            },
        ),
        4096,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), POSITIONS.values(), ids=POSITIONS)
def test_the_config_tells_the_number_of_positions(config, expected):
    assert max_length.count_positions(config) == expected


def test_a_max_length_beyond_the_models_positions_is_rejected(nano_copy):
    manifest = manifest_of(nano_copy)
    max_length.check_max_length(manifest, 256)
    with pytest.raises(UserError) as caught:
        max_length.check_max_length(manifest, 257)
    message = f"params.yaml: tokenize.max_length: 257: {nano_copy} has 256 positions; allowed: 8 to 256"
    assert str(caught.value) == message


def test_a_model_without_a_limit_of_positions_has_no_maximum(nano_copy):
    (nano_copy / "config.json").write_text(json.dumps({"model_type": "bloom", "hidden_size": 64, "n_head": 4}))
    max_length.check_max_length(manifest_of(nano_copy), 8192)
