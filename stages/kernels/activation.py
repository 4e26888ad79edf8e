"""Activations of an MLP as parts of other kernels."""

import triton
import triton.language as tl

ACTIVATIONS = {None: 0, "gelu": 1}  # gelu: the tanh form (Hendrycks and Gimpel 2016)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr) -> tl.tensor:
    """activation(x), in x's precision."""
    if ACTIVATION == 1:
        value = x.to(tl.float32)
        return (value * _gate(value)).to(x.dtype)
    return x


@triton.jit
def slope(x, ACTIVATION: tl.constexpr) -> tl.tensor:
    """The derivative of activation(x), fp32."""
    value = x.to(tl.float32)
    gate = _gate(value)
    # The gate is 1 / (1 + exp(-2 z)), z as in `_gate`; its derivative is 2 gate (1 - gate) dz/dx.
    return gate + value * 2 * gate * (1 - gate) * 0.7978845608028654 * (1 + 3 * 0.044715 * value * value)


@triton.jit
def _gate(x):
    """(1 + tanh(z)) / 2 with z = sqrt(2 / pi) (x + 0.044715 x^3): what gelu multiplies x by."""
    return tl.sigmoid(2 * 0.7978845608028654 * (x + 0.044715 * x * x * x))
