"""What the fused layers need to know about a model family's decoder layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Architecture:
    """A decoder layer that can compute in fewer kernels. `phi.py` is an example; `registry.py` lists them all.

    Attributes:
        layer: the layer's class in transformers.
        can_fuse: can_fuse(layer) says whether `forward` supports all options of this layer.
        linears_by_input: linears_by_input(layer) returns all linear modules of the layer, as one tuple for each input
            tensor that they read.
        forward: forward(layer, project, x, layout) replaces the layer's forward. project: the model's
            `fused_linear.FusedProjections`. x: [1, tokens, hidden] of packed rows, or [rows, length, hidden] of padded
            ones. layout: their `attention.RowLayout`.
        last: the same layer as the last one of a model. Its forward returns [1, rows, hidden] of the tokens
            `layout.last`, or all tokens if that is None, so it may leave out what no classified token reads. None: it
            computes all tokens as the other layers do.
    """

    layer: type[torch.nn.Module]
    can_fuse: Callable[..., bool]
    linears_by_input: Callable[..., Sequence[tuple[torch.nn.Module, ...]]]
    forward: Callable[..., torch.Tensor]
    last: "Architecture | None" = None
