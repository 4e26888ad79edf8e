"""Clipping and AdamW as one CUDA graph, so that the host launches one graph instead of some twenty kernels."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class CapturedAdamW(torch.optim.AdamW):
    """AdamW that clips the gradients first, by `clip_grad_norm_`.

    The first step runs eagerly, which loads the kernels. The second is captured, and later ones replay it. `.grad` of
    all parameters must be set, and stay at the same addresses; otherwise the step is captured again.

    A schedule sets `param_groups[i]["lr"]`, a float, so checkpoints are AdamW's own. The graph reads the learning rate
    from a tensor, where it is rounded to fp32. This is all that differs from AdamW.

    Args:
        groups: as for AdamW.
        max_grad_norm: the largest norm of all gradients together.
        settings: further arguments of AdamW.

    Attributes:
        grad_norm: scalar on the device, the norm before clipping. `step` overwrites it.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], max_grad_norm: float, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.max_grad_norm = max_grad_norm
        self.parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        device = self.parameters[0].device
        self.grad_norm = torch.zeros((), device=device)
        self.learning_rates = [torch.zeros((), device=device) for _ in self.param_groups]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.grad_addresses: list[int] = []  # of the last step

    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]  # no closure, no loss
        """Clip the gradients and update the parameters."""
        for tensor, group in zip(self.learning_rates, self.param_groups, strict=True):
            tensor.fill_(group["lr"])
        addresses = [parameter.grad.data_ptr() for parameter in self.parameters]
        if not (self.grad_norm.is_cuda and addresses == self.grad_addresses):
            self.grad_addresses, self.graph = addresses, None
            self._clip_and_update()
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._clip_and_update()
        self.graph.replay()

    def _clip_and_update(self) -> None:
        self.grad_norm.copy_(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        capturing = self.grad_norm.is_cuda and torch.cuda.is_current_stream_capturing()
        rates = [group["lr"] for group in self.param_groups]
        for tensor, group in zip(self.learning_rates, self.param_groups, strict=True):
            group.update(lr=tensor, capturable=capturing)
        try:
            super().step()
        finally:
            for rate, group in zip(rates, self.param_groups, strict=True):
                group.update(lr=rate, capturable=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint. Its tensors are new ones, so the next step runs eagerly and the one after is captured."""
        super().load_state_dict(state_dict)
        self.graph, self.grad_addresses = None, []
