"""The gradients of all trained weights and the loss, in one buffer."""

from collections.abc import Sequence

import torch

from stages.kernels.fused_linear import FusedLinear, LoraGrads, get_lora_weights
from stages.kernels.multi_tensor_copy import MultiTensorCopy
from stages.kernels.side_stream import SideStream


class GradientBuffer:
    """The gradients of all trained weights and the loss, in one fp32 buffer, so that one all-reduce adds them up.

    The backward of each `FusedLinear` writes the gradients of its LoRA weights. LoRA's weights are moved into one
    tensor too, `flat_param`, so that the optimizer updates one parameter instead of hundreds.

    Args:
        fused_linears: those with LoRA.
        other_parameters: what is trained besides LoRA, fp32: the head.

    Attributes:
        buffer: fp32, flat: the gradients of all A, of all B, of `other_parameters`, then the loss.
        lora_weights: LoRA's weights, fp32, views of `flat_param`.
        lora_grads, other_grads: views of `buffer`.
        loss: a scalar, a view of `buffer`.
        flat_param: all of LoRA's weights as one parameter.
        dummy_input: see `LoraGrads`. Its own gradient has no meaning.
    """

    def __init__(self, fused_linears: Sequence[FusedLinear], other_parameters: Sequence[torch.nn.Parameter]) -> None:
        device = fused_linears[0].a.device
        self.fused_linears, self.other_parameters = fused_linears, other_parameters
        self.dummy_input = torch.zeros((), device=device, requires_grad=True)
        self.side_stream = SideStream(device)
        pairs = [get_lora_weights(layer) for fused in fused_linears for layer in fused.lora_layers]
        self.lora_weights = [a for a, _ in pairs] + [b for _, b in pairs]
        sizes = [weight.numel() for weight in self.lora_weights]
        self.flat_param = torch.nn.Parameter(torch.cat([weight.detach().flatten() for weight in self.lora_weights]))
        for weight, view in zip(self.lora_weights, self.flat_param.detach().split(sizes), strict=True):
            weight.data = view.view(weight.shape)

        parameters = [*self.lora_weights, *other_parameters]
        buffer_sizes = [*(weight.numel() for weight in parameters), 1]
        self.buffer = torch.zeros(sum(buffer_sizes), dtype=torch.float32, device=device)
        *views, loss = self.buffer.split(buffer_sizes)
        grads = [view.view(weight.shape) for view, weight in zip(views, parameters, strict=True)]
        self.lora_grads, self.other_grads, self.loss = grads[: len(sizes)], grads[len(sizes) :], loss[0]
        self.b_copy = MultiTensorCopy(self._assign_lora_grads(torch.tensor([0, *sizes]).cumsum(0)))

    def _assign_lora_grads(self, offsets: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """Give each `FusedLinear` its `LoraGrads`; returns the copies of B's gradients into `buffer`.

        Args:
            offsets: int64, where in `buffer` the gradient of each of LoRA's weights begins.
        """
        copies, first, modules = [], 0, len(self.lora_weights) // 2
        for fused in self.fused_linears:
            last = first + len(fused.lora_layers)
            b_grad = torch.zeros_like(fused.b, memory_format=torch.contiguous_format)
            fused.grads = LoraGrads(
                self.buffer, offsets[first:last].to(self.buffer.device), self.lora_grads[first:last], b_grad,
                self.dummy_input, self.side_stream,
            )  # fmt: skip
            for i in range(last - first):
                copies.append((fused.b_block(b_grad, i), self.lora_grads[modules + first + i], fused.scaling))
            first = last
        return copies

    def start_step(self) -> None:
        """Call before the forward."""
        self.side_stream.start()
        for grads in self._all_lora_grads():
            grads.is_written = False

    def finish_backward(self) -> None:
        """Call after the backward: copy B's gradients, with zeros for a layer that the forward did not use."""
        self.side_stream.join()
        for grads in self._all_lora_grads():
            if not grads.is_written:
                for grad in (grads.b, *grads.a):
                    grad.zero_()
        self.b_copy.run()

    def assign_grads(self) -> None:
        """Set `.grad` of all trained parameters, where the optimizer and the Trainer read it."""
        self.flat_param.grad = self.buffer[: self.flat_param.numel()]
        parameters, grads = [*self.lora_weights, *self.other_parameters], [*self.lora_grads, *self.other_grads]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad

    def _all_lora_grads(self) -> list[LoraGrads]:
        return [fused.grads for fused in self.fused_linears if fused.grads]
