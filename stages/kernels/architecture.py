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
        shared_inputs: shared_inputs(layer) gives all linear modules of the layer, in groups that read the same tensor.
        forward: forward(layer, project, x, rows) replaces the forward of `layer`. project: the model's
            `linears.Projections`. x: [1, tokens, hidden] of rows end to end, or [rows, length, hidden]. rows: their
            `attention.Rows`.
    """

    layer: type[torch.nn.Module]
    can_fuse: Callable[[torch.nn.Module], bool]
    shared_inputs: Callable[[torch.nn.Module], Sequence[Sequence[torch.nn.Module]]]
    forward: Callable[..., torch.Tensor]
