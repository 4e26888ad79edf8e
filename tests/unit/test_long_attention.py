"""Attention of long rows, with a reference in place of PyTorch's flash attention, which runs only on a GPU.

tests/gpu/test_long_attention.py tests it there. Where flash attention leaves memory uninitialized, there is NaN.
"""

import dataclasses
import functools
import types

import pytest
import torch
from helpers.families import save_family
from helpers.parameters import manifest_of
from helpers.reference_attention import attend_by_row, attend_without_rotation
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
    LONGEST_AMONG_SHORT,
    SHORT,
    AttentionConfig,
    RowLayout,
    backward_by_flash,
    forward_by_flash,
    takes_flash,
)
from stages.kernels.flash_attention import supports_flash

NAN = float("nan")
CONFIGS = {
    "partial rotation": (AttentionConfig(2, 2, 24, 0.3), 12),
    "grouped heads": (AttentionConfig(4, 2, 16, 0.25), 16),
    "one head of keys, window": (AttentionConfig(3, 1, 32, 0.2, window=5), 32),
    "rotation of few dimensions": (AttentionConfig(1, 1, 40, 0.2, window=1), 6),
}


def attend(q, k, v, cu_seqlens, max_seqlen, scale, window):
    assert cu_seqlens.dtype == torch.int32 and max_seqlen >= cu_seqlens.diff().max()
    out = torch.full_like(q, NAN, memory_format=torch.contiguous_format)
    out[: cu_seqlens[-1]] = attend_without_rotation(q, k, v, cu_seqlens, scale, window)
    return out, torch.empty(0)


def attend_backward(dout, q, k, v, out, lse, cu_seqlens, max_seqlen, scale, window):
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    end = cu_seqlens[-1]
    with torch.enable_grad():
        out = attend_without_rotation(*inputs, cu_seqlens, scale, window)
    grads = torch.autograd.grad(out, inputs, dout[:end])
    for grad in grads:
        grad[end:] = NAN
    return tuple(grad.contiguous() for grad in grads)


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
    out, lse = forward_by_flash(qkv, config, layout, attend)
    dqkv = torch.full_like(qkv, 7)
    backward_by_flash(qkv, out, lse, dout, dqkv, config, layout, attend_backward)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(dqkv[:, :columns], expected_grad[:, :columns], rtol=0, atol=1e-5)
    assert (dqkv[:, columns:] == 7).all()
    values_and_rest = slice(sum(config.qkv_widths[:2]), None)
    assert torch.equal(qkv[:end, values_and_rest], original[:end, values_and_rest])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["phi", "qwen3", "gemma3_text"])
def test_gradients_of_a_model_are_the_eager_ones(family, checkpointing, tmp_path, monkeypatch):
    """Queries and keys are rotated in place, and nothing else reads them: neither a norm nor a recomputed layer."""
    monkeypatch.setattr(attention, "takes_flash", lambda *_: True)
    monkeypatch.setattr(attention, "forward_by_flash", functools.partial(forward_by_flash, attend=attend))
    monkeypatch.setattr(
        attention, "backward_by_flash", functools.partial(backward_by_flash, attend_backward=attend_backward)
    )
    manifest, (ids, labels) = manifest_of(save_family(family, tmp_path)), batch(length=12)
    options = {"freeze": True, "precision": "fp32", "quantization": "none", "hidden_act": None}
    loss, grads = eager(classifier(manifest, **options), ids, labels)
    lora = classifier(manifest, checkpointing=checkpointing, **options)
    packed_batch = pack_rows(as_rows(ids, labels), PAD, rows=4, tokens=64)
    step = make_eager_step(monkeypatch, lora, longest=12)
    step([{name: value.to(DEVICE) for name, value in packed_batch.items()}], 0)
    assert step.lora.loss.item() == pytest.approx(loss, rel=1e-5)
    assert distance(gradients(lora), grads) < (1e-3 if DEVICE.type == "cuda" else 1e-5)


def test_a_window_as_long_as_the_rows_is_no_window():
    """Flash attention has a faster kernel without one."""
    layout, windows = padded(2, 20, 16, torch.Generator()), []

    def record_window(q, *others):
        windows.append(others[-1])
        return torch.zeros_like(q, memory_format=torch.contiguous_format), None

    for window in (None, 20, 19):
        qkv = torch.zeros(40, 48, device=DEVICE)
        forward_by_flash(qkv, AttentionConfig(1, 1, 16, 1.0, window), layout, record_window)
    assert windows == [None, None, 19]


@pytest.mark.parametrize(
    ("lengths", "longest", "is_chosen"),
    [
        ([SHORT] * 4, SHORT, False),
        ([SHORT + 1] * 4, SHORT + 1, True),
        ([20, 30, 40], SHORT + 1, False),  # short rows, and longer ones elsewhere
        ([20, 30, 40, 120], 120, False),  # short on average
        ([20, 30, 400, 120], 400, True),
        ([20, 30, 40], LONGEST_AMONG_SHORT + 1, True),
    ],
)
def test_flash_attention_is_for_rows_that_are_long_on_average(lengths, longest, is_chosen, monkeypatch):
    monkeypatch.setattr(attention, "supports_flash", lambda *_: True)
    layout = dataclasses.replace(packed(lengths, 0, 16, torch.Generator()), max_seqlen=longest)
    assert takes_flash(torch.empty(sum(lengths), 48), AttentionConfig(1, 1, 16, 1.0), layout) is is_chosen


@pytest.mark.parametrize(
    ("changes", "is_supported"),
    [
        ({}, True),
        ({"dtype": torch.float16, "head_dim": 256}, True),
        ({"dtype": torch.float32}, False),
        ({"head_dim": 264}, False),
        ({"head_dim": 100}, False),
        ({"columns": 3 * 64 + 4}, False),
        ({"capability": (7, 5)}, False),
        ({"is_built": False}, False),
    ],
)
def test_flash_attention_runs_where_pytorch_has_it(changes, is_supported, monkeypatch):
    gpu = {"dtype": torch.bfloat16, "head_dim": 64, "columns": 3 * 64, "capability": (8, 0), "is_built": True} | changes
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: gpu["capability"])
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: gpu["is_built"])
    x = torch.empty(2, gpu["columns"], dtype=gpu["dtype"])
    on_gpu = types.SimpleNamespace(is_cuda=True, dtype=x.dtype, stride=x.stride, device=None)
    assert supports_flash(on_gpu, gpu["head_dim"]) is is_supported


def test_without_a_gpu_our_kernels_compute_long_rows_too():
    layout, config = padded(1, SHORT + 1, 16, torch.Generator()), AttentionConfig(1, 1, 16, 1.0)
    assert not takes_flash(torch.empty(SHORT + 1, 48, dtype=torch.bfloat16), config, layout)
