"""Attention of long rows on a GPU: `pytest -m gpu`."""

import pytest
import torch
from helpers.families import save_family
from helpers.parameters import manifest_of
from helpers.reference_attention import attend_by_row
from helpers.small_classifier import DEVICE, PAD, as_rows, batch, classifier, distance, eager, gradients

from stages.data.batching import pack_rows
from stages.kernels.attention import AttentionConfig, RowLayout, attention_backward, attention_forward

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
CONFIGS = {  # the attention, and how many dimensions of a head are rotated
    "phi-2": (AttentionConfig(32, 32, 80, 80**-0.5), 32),
    "llama-8b": (AttentionConfig(32, 8, 128, 128**-0.5), 128),
    "gemma-270m": (AttentionConfig(4, 1, 256, 256**-0.5, window=512), 256),
    "window": (AttentionConfig(6, 2, 64, 0.2, window=100), 64),
    "96": (AttentionConfig(4, 4, 96, 0.1, window=3), 48),
}
LENGTHS, UNUSED_TOKENS = (1045, 3, 0, 300, 64, 0, 1, 129), 90


@pytest.fixture(params=CONFIGS)
def inputs(request):
    """qkv, the output's gradient, config and layout. Tokens after the last row hold NaN."""
    (config, rotary), generator = CONFIGS[request.param], torch.Generator(DEVICE).manual_seed(0)
    tokens = sum(LENGTHS) + UNUSED_TOKENS
    angles = 6 * torch.rand(tokens, rotary // 2, device=DEVICE, generator=generator).repeat(1, 2)
    cu_seqlens = torch.tensor([0, *LENGTHS], device=DEVICE).cumsum(0).int()
    layout = RowLayout(cu_seqlens, max(LENGTHS), angles.cos().bfloat16(), angles.sin().bfloat16())
    columns = sum(config.qkv_widths) + 64
    qkv = torch.randn(tokens, columns, device=DEVICE, generator=generator).bfloat16()
    dout = torch.randn(tokens, config.qkv_widths[0], device=DEVICE, generator=generator).bfloat16()
    qkv[sum(LENGTHS) :] = dout[sum(LENGTHS) :] = float("nan")
    return qkv, dout, config, layout


def attend(qkv, dout, config, layout):
    """Output and gradient of qkv, which is left as it was."""
    fill_free_memory_with_nan()
    qkv, dqkv = qkv.clone(), torch.full_like(qkv, 7)
    out, lse = attention_forward(qkv, config, layout)
    attention_backward(qkv, out, lse, dout, dqkv, config, layout)
    return out, dqkv


def fill_free_memory_with_nan():
    """So that memory left uninitialized shows, in PyTorch's cache of freed blocks."""
    blocks = [torch.full((2**size,), float("nan"), device=DEVICE) for size in range(10, 26) for _ in range(2)]
    del blocks


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def test_output_and_gradient_are_those_of_float64(inputs):
    """For rows of several lengths, two of them empty. Other columns are not written."""
    qkv, dout, config, layout = inputs
    end, columns = sum(LENGTHS), sum(config.qkv_widths)

    def split(gradient):
        return gradient[:, :columns].split(config.qkv_widths, dim=1)

    out, dqkv = attend(qkv, dout, config, layout)
    exact = qkv.double().requires_grad_()
    expected = attend_by_row(exact, config, layout)
    (expected_grad,) = torch.autograd.grad(expected[:end], exact, dout[:end].double())
    assert relative_error(out[:end], expected[:end]) < 1e-2
    for actual, gradient in zip(split(dqkv), split(expected_grad), strict=True):
        assert relative_error(actual[:end], gradient[:end]) < 1e-2
    assert (out[end:] == 0).all() and (dqkv[end:, :columns] == 0).all()
    assert (dqkv[:, columns:] == 7).all()


def test_runs_are_equal_in_all_bytes(inputs):
    first = attend(*inputs)
    for _ in range(5):
        for again, expected in zip(attend(*inputs), first, strict=True):
            assert torch.equal(again, expected)


def test_a_captured_graph_computes_the_same(inputs):
    qkv, dout, config, layout = inputs
    expected = attend(*inputs)
    static, dqkv = qkv.clone(), torch.full_like(qkv, 7)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = attention_forward(static, config, layout)
        attention_backward(static, out, lse, dout, dqkv, config, layout)
    for _ in range(2):
        static.copy_(qkv)
        graph.replay()
        assert torch.equal(out, expected[0]) and torch.equal(dqkv, expected[1])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["phi", "llama", "qwen3", "gemma3_text"])
def test_gradients_of_a_captured_step_are_the_eager_ones(family, checkpointing, tmp_path):
    from stages.training.captured_step import CapturedStep

    length = 164
    manifest, (ids, labels) = manifest_of(save_family(family, tmp_path)), batch(length=length)
    options = {"freeze": True, "precision": "bf16", "quantization": "none", "hidden_act": None}
    exact = classifier(manifest, **options | {"precision": "fp32"})
    loss, grads = eager(exact, ids, labels)
    _, eager_grads = eager(classifier(manifest, **options), ids, labels)
    lora = classifier(manifest, checkpointing=checkpointing, **options)
    step = CapturedStep(lora, 4, length, 42, PAD)
    packed = pack_rows(as_rows(ids, labels), PAD, rows=4, tokens=4 * length + 40)
    packed = {name: value.to(DEVICE) for name, value in packed.items()}
    for number in range(2):
        assert step([packed], number).item() == pytest.approx(loss, rel=0.05)
        assert distance(gradients(lora), grads) < max(0.03, 1.5 * distance(eager_grads, grads))
    assert all(step.graphs.values()), "the step ran eagerly"
