"""The activation of an MLP, as a part of other kernels."""

import triton
import triton.language as tl
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation, SiLUActivation

# Transformers' classes of what `activation` computes: three names of one GELU.
IS_GELU = {SiLUActivation: False, GELUTanh: True, NewGELUActivation: True, FastGELUActivation: True}


@triton.jit
def activation(x, GELU: tl.constexpr) -> tuple:
    """The activation at x and its slope there, fp32: SiLU, or GELU in its form with tanh (Hendrycks and Gimpel 2016).

    GELU with tanh(u) is x * sigmoid(2u).
    """
    inner, inner_slope = x, 1.0
    if GELU:
        root: tl.constexpr = 1.5957691216057308  # 2 sqrt(2 / pi)
        inner, inner_slope = root * (x + 0.044715 * x * x * x), root * (1 + 0.134145 * x * x)
    sigmoid = tl.sigmoid(inner)
    return x * sigmoid, sigmoid + x * sigmoid * (1 - sigmoid) * inner_slope
