"""The architectures that compute in fewer kernels. To add one, write a file like `phi.py` and list it here."""

import torch

from stages.kernels import gemma3, llama, phi
from stages.kernels.architecture import Architecture

ARCHITECTURES: tuple[Architecture, ...] = (phi.PHI, *llama.LLAMAS, gemma3.GEMMA3)


def find_architecture(module: torch.nn.Module) -> Architecture | None:
    """The architecture of a decoder layer; None for any other module and for a layer that cannot be fused."""
    return next((a for a in ARCHITECTURES if isinstance(module, a.layer) and a.can_fuse(module)), None)
