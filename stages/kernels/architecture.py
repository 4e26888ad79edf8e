"""What a family of models tells this room about its decoder layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Architecture:
    """A decoder layer that can compute in fewer kernels. `phi.py` is an example, `registry.py` lists them all.

    Attributes:
        layer: the layer's class in transformers.
        can_fuse: can_fuse(layer) says whether a layer of this class, with its own options, can compute by `forward`.
        linears_by_input: linears_by_input(layer) gives all linear modules of the layer, those that read the same
            tensor together.
        forward: forward(layer, project, x, rows) replaces the forward of `layer`. project: the model's
            `fused_linear.FusedProjections`. x: [1, tokens, hidden] of packed rows, or [rows, length, hidden]. rows:
            their `attention.RowLayout`.
    """

    layer: type[torch.nn.Module]
    can_fuse: Callable[[torch.nn.Module], bool]
    linears_by_input: Callable[[torch.nn.Module], Sequence[Sequence[torch.nn.Module]]]
    forward: Callable[..., torch.Tensor]
