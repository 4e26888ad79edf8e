"""The architectures that compute in fewer kernels. A new one is a file like `phi.py` and its line here."""

import torch

from stages.kernels import gemma3, llama, phi
from stages.kernels.architecture import Architecture

ARCHITECTURES: tuple[Architecture, ...] = (phi.PHI, *llama.LLAMAS, gemma3.GEMMA3)


def find_architecture(module: torch.nn.Module) -> Architecture | None:
    """The architecture whose decoder layer `module` is; None for another module, or where the layer can't be fused."""
    return next((a for a in ARCHITECTURES if isinstance(module, a.layer) and a.can_fuse(module)), None)
