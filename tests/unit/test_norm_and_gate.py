"""Fused norms and gates compute what transformers does: on a GPU if there is one, else in Triton's CPU interpreter."""

import pytest
import torch
from helpers.small_classifier import DEVICE
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from stages.runtime.errors import UserError

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch for CUDA")
pytestmark = [pytest.mark.gpu] if ON_GPU else []

EPS = 1e-2  # large enough that leaving it out fails the tests
NORMS = {"llama": (LlamaRMSNorm, 0.0), "gemma": (Gemma3RMSNorm, 1.0), "layer norm": (torch.nn.LayerNorm, 0.0)}
RMS_NORMS = ["llama", "gemma"]
DTYPES = [torch.float32, torch.bfloat16 if ON_GPU else torch.float16]  # the interpreter truncates bf16 and rounds fp16


def random_tensor(*shape, seed):
    """Random numbers that are exact in 16 bits too."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2).bfloat16().float()


def frozen_norm(kind, columns, seed):
    module = NORMS[kind][0](columns, eps=EPS)
    module.weight.data = random_tensor(columns, seed=seed)
    if kind == "layer norm":
        module.bias.data = random_tensor(columns, seed=seed + 50)
    return module.requires_grad_(False)


def as_norm(module, kind):
    from stages.kernels.norm import Norm

    return Norm(module.weight, EPS, NORMS[kind][1], getattr(module, "bias", None))


def outputs_and_gradients(compute, inputs):
    """The outputs of compute(*inputs), and the inputs' gradients for random gradients of the outputs, in float64."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = compute(*inputs)
    weights = [random_tensor(*y.shape, seed=100 + i).to(y) for i, y in enumerate(outputs)]
    grads = torch.autograd.grad(outputs, inputs, weights)
    return [t.detach().double().cpu() for t in (*outputs, *grads)]


def check(make_fused, make_reference, inputs, dtype):
    """Compare a fused function with transformers' in fp32. In 16 bits its error may be as large as transformers' own.

    Args:
        make_fused, make_reference: make_fused(dtype) and make_reference(dtype) return the functions.
    """
    expected = outputs_and_gradients(make_reference(torch.float32), [x.to(DEVICE, dtype).float() for x in inputs])
    inputs = [x.to(DEVICE, dtype) for x in inputs]
    fused = outputs_and_gradients(make_fused(dtype), inputs)
    reference = outputs_and_gradients(make_reference(dtype), inputs)
    assert len(fused) == len(expected)
    for value, reference_value, expected_value in zip(fused, reference, expected, strict=True):
        error, reference_error = (
            ((x - expected_value).norm() / expected_value.norm()).item() for x in (value, reference_value)
        )
        assert value.shape == expected_value.shape
        assert error <= (1e-5 if dtype == torch.float32 else 1.1 * reference_error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("columns", [64, 1100])
@pytest.mark.parametrize(("with_y", "y_normed", "sum_normed"), [(0, 0, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1)])
def test_a_norm_and_the_additions_around_it_equal_those_of_transformers(
    kind, columns, with_y, y_normed, sum_normed, dtype
):
    from stages.kernels.norm import add_norm, add_normed

    kind_of_y = kind if kind in RMS_NORMS else "llama"
    norm_of_y, norm_of_sum = frozen_norm(kind_of_y, columns, 1).to(DEVICE), frozen_norm(kind, columns, 2).to(DEVICE)

    def make_reference(dtype):
        norm_of_y.to(dtype), norm_of_sum.to(dtype)

        def compute(x, *y):
            for term in y:
                x = x + (norm_of_y(term) if y_normed else term)
            return (norm_of_sum(x), x) if sum_normed else (x,)

        return compute

    def make_fused(dtype):
        norm_of_y.to(dtype), norm_of_sum.to(dtype)
        norm_y = as_norm(norm_of_y, kind_of_y) if y_normed else None

        def compute(x, y=None):
            if not sum_normed:
                return (add_normed(x, y, norm_y),)
            return add_norm(x, y, norm=as_norm(norm_of_sum, kind), norm_y=norm_y)

        return compute

    check(make_fused, make_reference, [random_tensor(2, 9, columns, seed=3 + i) for i in range(1 + with_y)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RMS_NORMS)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 16), (3, 1, 40)])
def test_heads_of_queries_and_keys_are_normed_inside_the_projected_tensor(kind, heads, kv_heads, head_dim, dtype):
    from stages.kernels.norm import norm_heads

    q_norm, k_norm = (frozen_norm(kind, head_dim, seed).to(DEVICE) for seed in (1, 2))

    def make_reference(dtype):
        q_norm.to(dtype), k_norm.to(dtype)

        def compute(x):
            q, k, v = x.unflatten(-1, (-1, head_dim)).split([heads, kv_heads, kv_heads], dim=-2)
            return (torch.cat([q_norm(q), k_norm(k), v], dim=-2).flatten(-2),)

        return compute

    def make_fused(dtype):
        q_norm.to(dtype), k_norm.to(dtype)
        return lambda x: (norm_heads(x, as_norm(q_norm, kind), as_norm(k_norm, kind), heads, kv_heads),)

    check(make_fused, make_reference, [random_tensor(2, 9, (heads + 2 * kv_heads) * head_dim, seed=3)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast"])
def test_a_gated_activation_equals_that_of_transformers(name, dtype):
    from stages.kernels.activation import IS_GELU
    from stages.kernels.gated_mlp import GatedActivation

    activation = ACT2FN[name]

    def make_reference(_):
        def compute(x):
            gate, up = x.chunk(2, dim=-1)
            return (activation(gate) * up,)

        return compute

    gate_up = random_tensor(2, 9, 2 * 300, seed=3) * torch.linspace(0.1, 20, 600)  # up to where sigmoid is flat
    check(lambda _: lambda x: (GatedActivation.apply(x, IS_GELU[type(activation)]),), make_reference, [gate_up], dtype)


def test_a_norm_whose_weight_is_not_frozen_is_an_error():
    from stages.kernels.norm import Norm, add_norm, norm_heads

    x = random_tensor(4, 64, seed=1).to(DEVICE).requires_grad_()
    trainable = Norm(torch.ones(64, device=DEVICE, requires_grad=True), EPS, 0.0)
    frozen = Norm(torch.ones(64, device=DEVICE), EPS, 0.0)
    with_trainable_bias = frozen._replace(bias=trainable.weight)
    small = [Norm(norm.weight[:16], EPS, 0.0) for norm in (frozen, trainable)]
    outputs = [
        add_norm(x, norm=trainable)[0],
        add_norm(x, norm=with_trainable_bias)[0],
        add_norm(x, x, norm=frozen, norm_y=trainable)[0],
        norm_heads(x, *small, 2, 1),
    ]
    for output in outputs:
        with pytest.raises(RuntimeError, match="not frozen"):
            output.sum().backward()


def test_a_layer_norm_without_a_bias_subtracts_the_mean_too():
    from stages.kernels.norm import Norm, add_norm

    module, x = torch.nn.LayerNorm(64, bias=False, device=DEVICE), random_tensor(4, 64, seed=1).to(DEVICE) + 3
    torch.testing.assert_close(add_norm(x, norm=Norm.from_module(module))[0], module(x))


def test_tensors_beyond_32_bit_indices_are_rejected():
    from stages.kernels.gated_mlp import GatedActivation
    from stages.kernels.norm import Norm, add_norm

    x = torch.empty(2**18, 128, 64, device=DEVICE, dtype=torch.bfloat16)  # never written, so it uses no memory
    norm = Norm(torch.ones(64, device=DEVICE), EPS, 0.0)
    for compute in (lambda: add_norm(x, norm=norm), lambda: GatedActivation.apply(x, False)):
        with pytest.raises(UserError, match="batch_size must be smaller"):
            compute()
