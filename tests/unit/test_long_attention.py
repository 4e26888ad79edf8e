"""Attention of rows of several blocks, whose tokens after the last row hold NaN."""

import pytest
import torch
from helpers.families import save_family
from helpers.parameters import manifest_of
from helpers.reference_attention import attend_by_row
from helpers.small_classifier import (
    DEVICE,
    PAD,
    as_rows,
    batch,
    classifier,
    distance,
    eager,
    gradients,
    make_eager_step,
)

from stages.data.batching import pack_rows

pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")

from stages.kernels import attention
from stages.kernels.attention import (
    AttentionConfig,
    RowLayout,
    attention_backward,
    attention_constants,
    attention_forward,
    choose_tiles,
)
from stages.kernels.head_vectors import split_head

NAN = float("nan")
CONFIGS = {
    "partial rotation": (AttentionConfig(2, 2, 24, 0.3), 12),
    "grouped heads": (AttentionConfig(4, 2, 16, 0.25), 16),
    "one head of keys, window": (AttentionConfig(3, 1, 32, 0.2, window=5), 32),
    "rotation of few dimensions": (AttentionConfig(1, 1, 40, 0.2, window=1), 6),
}


def packed(lengths, unused_tokens, rotary, generator):
    """The layout of packed rows, with angles by token."""
    tokens = sum(lengths) + unused_tokens
    angles = torch.rand(tokens, rotary // 2, generator=generator).repeat(1, 2).to(DEVICE)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
    return RowLayout(cu_seqlens, max(lengths), angles.cos(), angles.sin())


def padded(rows, length, rotary, generator):
    """The layout of padded rows, with angles by position."""
    angles = torch.rand(length, rotary // 2, generator=generator).repeat(1, 2).to(DEVICE)
    return RowLayout.from_layer_inputs(
        torch.empty(rows, length, 1, device=DEVICE), (angles.cos()[None], angles.sin()[None]), None, None, None
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("is_packed", [True, False])
def test_output_and_gradient_are_those_of_the_reference(name, is_packed):
    """Packed: rows of several lengths, two of them empty, then tokens that belong to no row and hold NaN.

    Columns after queries, keys and values are neither read nor written.
    """
    (config, rotary), generator = CONFIGS[name], torch.Generator().manual_seed(0)
    layout = packed([70, 0, 1, 9, 0], 50, rotary, generator) if is_packed else padded(3, 30, rotary, generator)
    tokens, end = (130, 80) if is_packed else (90, 90)
    columns = sum(config.qkv_widths)
    qkv = torch.randn(tokens, columns + 8, generator=generator).to(DEVICE)
    dout = torch.randn(tokens, config.qkv_widths[0], generator=generator).to(DEVICE)
    for tensor in (qkv, dout):
        tensor[end:] = NAN
    expected = attend_by_row(qkv.requires_grad_(), config, layout)
    (expected_grad,) = torch.autograd.grad(expected[:end], qkv, dout[:end])
    original = qkv.detach().clone()

    qkv = qkv.detach()
    out, lse = attention_forward(qkv, config, layout)
    dqkv = torch.full_like(qkv, 7)
    attention_backward(qkv, out, lse, dout, dqkv, config, layout)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(dqkv[:, :columns], expected_grad[:, :columns], rtol=0, atol=1e-5)
    assert (dqkv[:, columns:] == 7).all()
    values_and_rest = slice(sum(config.qkv_widths[:2]), None)
    assert torch.equal(qkv[:end, values_and_rest], original[:end, values_and_rest])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["phi", "qwen3", "gemma3_text"])
def test_gradients_of_a_model_are_the_eager_ones(family, checkpointing, tmp_path, monkeypatch):
    """Queries and keys are rotated in place, and nothing else reads them: neither a norm nor a recomputed layer."""
    manifest, (ids, labels) = manifest_of(save_family(family, tmp_path)), batch(length=40)
    options = {"freeze": True, "precision": "fp32", "quantization": "none", "hidden_act": None}
    loss, grads = eager(classifier(manifest, **options), ids, labels)
    lora = classifier(manifest, checkpointing=checkpointing, **options)
    packed_batch = pack_rows(as_rows(ids, labels), PAD, rows=4, tokens=176)
    step = make_eager_step(monkeypatch, lora, longest=40)
    step([{name: value.to(DEVICE) for name, value in packed_batch.items()}], 0)
    assert step.lora.loss.item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if DEVICE.type == "cuda" else 1e-5)


def test_a_window_as_long_as_the_rows_is_no_window():
    """The kernels then need no mask for it."""
    layout = padded(2, 20, 16, torch.Generator())
    windows = [attention_constants(AttentionConfig(1, 1, 16, 1.0, n), layout)["WINDOW"] for n in (None, 20, 19)]
    assert windows == [0, 0, 19]


@pytest.mark.parametrize(
    ("head_dim", "parts"),
    [(8, (16, 0)), (16, (16, 0)), (24, (32, 0)), (40, (32, 16)), (64, (64, 0)), (80, (64, 16)), (96, (64, 32)),
     (100, (128, 0)), (160, (128, 32)), (256, (256, 0))],
)  # fmt: skip
def test_a_head_has_the_smallest_blocks_that_hold_it(head_dim, parts):
    assert split_head(head_dim) == parts


@pytest.mark.parametrize("kilobytes", [64, 99, 163, 227])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256, 512])
@pytest.mark.parametrize("kernel", ["forward", "short", "queries", "keys"])
def test_tiles_fit_the_shared_memory(kernel, head_dim, kilobytes, monkeypatch):
    """Two blocks of each of two tensors are in it while others are loaded."""
    monkeypatch.setattr(attention, "shared_memory", lambda _: kilobytes * 1024)
    tiles = choose_tiles(kernel, torch.empty(1, dtype=torch.bfloat16), head_dim)
    rows = tiles.kept * (1 if kernel == "forward" else 4 if kernel == "short" else 2) + 4 * tiles.looped
    smallest = max(tiles[:2]) == 16
    assert rows * sum(split_head(head_dim)) * 2 <= kilobytes * 1024 or smallest
    assert tiles.kept >= 16 and (tiles.looped >= 16) == (kernel != "short")
