"""The activation function of an MLP, for use inside other kernels."""

import triton
import triton.language as tl
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation, SiLUActivation

# {class of transformers that `activation` computes: whether it is GELU's tanh form, which has three classes}
IS_GELU = {SiLUActivation: False, GELUTanh: True, NewGELUActivation: True, FastGELUActivation: True}


@triton.jit
def activation(x, GELU: tl.constexpr) -> tuple:
    """The activation of x and its derivative, in fp32: SiLU, or GELU's tanh form (Hendrycks and Gimpel 2016).

    GELU's tanh form is x * sigmoid(2u), where u is the argument of tanh.
    """
    inner, inner_slope = x, 1.0
    if GELU:
        root: tl.constexpr = 1.5957691216057308  # 2 sqrt(2 / pi)
        inner, inner_slope = root * (x + 0.044715 * x * x * x), root * (1 + 0.134145 * x * x)
    sigmoid = tl.sigmoid(inner)
    return x * sigmoid, sigmoid + x * sigmoid * (1 - sigmoid) * inner_slope
