"""What a family of models tells this room about its decoder layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Project = Callable[[Sequence[torch.nn.Module], torch.Tensor], list[torch.Tensor]]


@dataclass(frozen=True)
class Architecture:
    """A decoder layer that can compute in fewer kernels. `phi.py` is an example, `registry.py` lists them all.

    Attributes:
        layer: the layer's class in transformers.
        can_fuse: can_fuse(layer) says whether a layer of this class, with its own options, can compute by `forward`.
        shared_inputs: shared_inputs(layer) gives the layer's linear modules in groups that read the same tensor.
            A module that reads a tensor of its own is left out.
        forward: forward(layer, project, *args, **kwargs) replaces the forward of `layer`. project(modules, x) gives
            the outputs of one group of `shared_inputs` for its input x: LoRA layers among them compute together.
    """

    layer: type[torch.nn.Module]
    can_fuse: Callable[[torch.nn.Module], bool]
    shared_inputs: Callable[[torch.nn.Module], Sequence[Sequence[torch.nn.Module]]]
    forward: Callable[..., torch.Tensor]
