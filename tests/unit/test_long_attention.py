"""Attention of rows of several blocks, whose tokens after the last row hold NaN."""

import contextlib
import dataclasses

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
    Attention,
    AttentionConfig,
    RowLayout,
    attention_backward,
    attention_constants,
    attention_forward,
    choose_tiles,
)
from stages.kernels.head_vectors import split_head
from stages.runtime.errors import UserError

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


@pytest.fixture
def nan_in_new_memory(monkeypatch):
    """New tensors of the kernels hold NaN, so that a value that no kernel writes shows."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, make=make, **options: make(*args, **options).fill_(NAN))


@pytest.mark.usefixtures("nan_in_new_memory")
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


@pytest.mark.usefixtures("nan_in_new_memory")
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_the_tiles_of_16_bits_give_the_reference(head_dim):
    """They differ from those of fp32: blocks of queries and keys of different sizes, rows of up to 64 tokens apart."""
    config, lengths = AttentionConfig(2, 1, head_dim, head_dim**-0.5), [130, 64, 0, 65, 1]
    layout, end = packed(lengths, 70, 16, torch.Generator().manual_seed(0)), sum(lengths)
    layout = dataclasses.replace(layout, cos=layout.cos.half(), sin=layout.sin.half())
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(end + 70, 4 * head_dim, generator=generator).half().to(DEVICE)
    dout = torch.randn(end + 70, 2 * head_dim, generator=generator).half().to(DEVICE)
    exact = qkv.float().requires_grad_()
    expected = attend_by_row(exact, config, layout)
    (expected_grad,) = torch.autograd.grad(expected, exact, dout.float())
    out, lse = attention_forward(qkv, config, layout)
    dqkv = torch.empty_like(qkv)
    attention_backward(qkv, out, lse, dout, dqkv, config, layout)
    assert (out.float() - expected).norm() < 2e-3 * expected.norm()
    assert (dqkv.float() - expected_grad).norm() < 2e-3 * expected_grad.norm()


@pytest.mark.parametrize("read_before", [True, False])
def test_autograd_notices_that_queries_and_keys_are_overwritten(read_before):
    layout, x = packed([9], 0, 16, torch.Generator()), torch.randn(9, 48, device=DEVICE, requires_grad=True)
    qkv = torch.tanh(x) if read_before else 2 * x  # tanh saves its output for the backward
    loss = Attention.apply(qkv, AttentionConfig(1, 1, 16, 1.0), layout).sum()
    with pytest.raises(RuntimeError, match="inplace") if read_before else contextlib.nullcontext():
        loss.backward()


def test_a_batch_beyond_32_bit_indices_is_rejected():
    qkv = torch.empty(1, device=DEVICE).expand(2**18, 3 * 4096)  # uses no memory
    with pytest.raises(UserError, match="must be smaller"):
        attention_forward(qkv, AttentionConfig(1, 1, 4096, 1.0), packed([2**18], 0, 16, torch.Generator()))


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


@pytest.mark.parametrize("kernel", ["forward", "short", "queries", "keys"])
def test_tiles_shrink_with_the_shared_memory(kernel, monkeypatch):
    """tests/unit/test_kernel_compile.py shows for two GPUs that they fit."""
    sizes = []
    for kilobytes in (64, 99, 163, 227):
        monkeypatch.setattr(attention, "shared_memory", lambda _, kilobytes=kilobytes: kilobytes * 1024)
        tiles = choose_tiles(kernel, torch.empty(1, dtype=torch.bfloat16), 256)
        assert tiles.kept >= 16 and (tiles.looped >= 16) == (kernel != "short")
        sizes.append(tiles.kept + tiles.looped)
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
