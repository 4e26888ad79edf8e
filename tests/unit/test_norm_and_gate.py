"""Fused norms and gates against transformers' own modules: on a GPU if there is one, else interpreted on the CPU."""

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

EPS = 1e-2  # large enough to be seen when it is left out
NORMS = {"llama": (LlamaRMSNorm, 0.0), "gemma": (Gemma3RMSNorm, 1.0)}
DTYPES = [torch.float32, torch.bfloat16 if ON_GPU else torch.float16]  # the interpreter cuts bf16, and rounds fp16


def drawn(*shape, seed):
    """Numbers that 16 bits hold too."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2).bfloat16().float()


def frozen_norm(kind, columns, seed):
    module = NORMS[kind][0](columns, eps=EPS)
    module.weight.data = drawn(columns, seed=seed)
    return module.requires_grad_(False)


def fused(module, kind):
    from stages.kernels.norm import RMSNorm

    return RMSNorm(module.weight, EPS, NORMS[kind][1])


def outputs_and_gradients(compute, inputs):
    """What `compute` gives for `inputs`, and their gradients for random ones of its outputs; all in float64."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = compute(*inputs)
    weights = [drawn(*y.shape, seed=100 + i).to(y) for i, y in enumerate(outputs)]
    grads = torch.autograd.grad(outputs, inputs, weights)
    return [t.detach().double().cpu() for t in (*outputs, *grads)]


def check(ours, theirs, inputs, dtype):
    """`ours` against transformers' way in fp32; in 16 bits it may be as far from that as transformers' own is."""
    exact = outputs_and_gradients(theirs(torch.float32), [x.to(DEVICE, dtype).float() for x in inputs])
    inputs = [x.to(DEVICE, dtype) for x in inputs]
    got, plain = outputs_and_gradients(ours(dtype), inputs), outputs_and_gradients(theirs(dtype), inputs)
    assert len(got) == len(exact)
    for mine, other, right in zip(got, plain, exact, strict=True):
        bound = 1e-5 if dtype == torch.float32 else 1.1 * ((other - right).norm() / right.norm()).item()
        assert mine.shape == right.shape
        assert ((mine - right).norm() / right.norm()).item() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("columns", [64, 1100])
@pytest.mark.parametrize(("with_y", "y_normed", "sum_normed"), [(0, 0, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1)])
def test_a_norm_and_the_additions_around_it_are_those_of_transformers(
    kind, columns, with_y, y_normed, sum_normed, dtype
):
    from stages.kernels.norm import add_norm

    of_y, of_sum = (frozen_norm(kind, columns, seed).to(DEVICE) for seed in (1, 2))

    def theirs(dtype):
        of_y.to(dtype), of_sum.to(dtype)

        def compute(x, *y):
            for added in y:
                x = x + (of_y(added) if y_normed else added)
            return (of_sum(x), x) if sum_normed else (x,)

        return compute

    def ours(dtype):
        of_y.to(dtype), of_sum.to(dtype)
        norm_y, norm = fused(of_y, kind) if y_normed else None, fused(of_sum, kind) if sum_normed else None

        def compute(x, y=None):
            normed, total = add_norm(x, y, norm_y, norm)
            return (normed, total) if sum_normed else (total,)

        return compute

    check(ours, theirs, [drawn(2, 9, columns, seed=3 + i) for i in range(1 + with_y)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 16), (3, 1, 40)])
def test_the_heads_of_queries_and_keys_are_normed_inside_the_projected_tensor(kind, heads, kv_heads, head_dim, dtype):
    from stages.kernels.norm import norm_heads

    q_norm, k_norm = (frozen_norm(kind, head_dim, seed).to(DEVICE) for seed in (1, 2))

    def theirs(dtype):
        q_norm.to(dtype), k_norm.to(dtype)

        def compute(x):
            q, k, v = x.unflatten(-1, (-1, head_dim)).split([heads, kv_heads, kv_heads], dim=-2)
            return (torch.cat([q_norm(q), k_norm(k), v], dim=-2).flatten(-2),)

        return compute

    def ours(dtype):
        q_norm.to(dtype), k_norm.to(dtype)
        return lambda x: (norm_heads(x, fused(q_norm, kind), fused(k_norm, kind), heads, kv_heads),)

    check(ours, theirs, [drawn(2, 9, (heads + 2 * kv_heads) * head_dim, seed=3)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast"])
def test_a_gate_is_that_of_transformers(name, dtype):
    from stages.kernels.activation import IS_GELU
    from stages.kernels.gated_mlp import GatedActivation

    activation = ACT2FN[name]

    def theirs(_):
        def compute(x):
            gate, up = x.chunk(2, dim=-1)
            return (activation(gate) * up,)

        return compute

    far = drawn(2, 9, 2 * 300, seed=3) * torch.linspace(0.1, 20, 600)  # where tanh and sigmoid are flat, too
    check(lambda _: lambda x: (GatedActivation.apply(x, IS_GELU[type(activation)]),), theirs, [far], dtype)


def test_norms_give_no_gradient_of_a_weight_that_is_not_frozen():
    from stages.kernels.norm import RMSNorm, add_norm, norm_heads

    x = drawn(4, 64, seed=1).to(DEVICE).requires_grad_()
    free = RMSNorm(torch.ones(64, device=DEVICE, requires_grad=True), EPS, 0.0)
    frozen = RMSNorm(torch.ones(64, device=DEVICE), EPS, 0.0)
    small = [RMSNorm(norm.weight[:16], EPS, 0.0) for norm in (frozen, free)]
    outputs = [add_norm(x, norm=free)[0], add_norm(x, x, free, frozen)[0], norm_heads(x, *small, 2, 1)]
    for output in outputs:
        with pytest.raises(RuntimeError, match="not frozen"):
            output.sum().backward()


def test_more_elements_than_the_kernels_count_are_refused():
    from stages.kernels.gated_mlp import GatedActivation
    from stages.kernels.norm import RMSNorm, add_norm

    x = torch.empty(2**18, 128, 64, device=DEVICE, dtype=torch.bfloat16)  # nobody writes to it
    norm = RMSNorm(torch.ones(64, device=DEVICE), EPS, 0.0)
    for compute in (lambda: add_norm(x, norm=norm), lambda: GatedActivation.apply(x, False)):
        with pytest.raises(UserError, match="batch_size must be smaller"):
            compute()
