"""The gradients of all trained weights, in one buffer."""

from collections.abc import Sequence

import torch

from stages.kernels.fused_linear import FusedLinear
from stages.kernels.multi_tensor_copy import MultiTensorCopy


class GradientBuffer:
    """The gradients of all that is trained, and the loss, fp32, in one buffer: ranks add it up at one go.

    The backward of each `FusedLinear` writes those of its LoRA weights.

    The weights themselves come to lie in one buffer too, so that an optimizer has one tensor for all of them.

    Args:
        fused_linears: those that have LoRA, not None.
        other_parameters: what is trained besides LoRA's weights, fp32: the head.

    Attributes:
        lora_weights: LoRA's, fp32; lora_grads: their gradients; both views of buffers.
        other_grads: gradients of `other_parameters`; loss: a scalar; views of the same buffer.
        flat_param: the weights' buffer as one parameter, for an optimizer.
        dummy_input: a leaf of the autograd graph that stands for all of them. Its own gradient means nothing.
        written: the groups whose backward has run since `start_step`.
    """

    def __init__(self, fused_linears: Sequence[FusedLinear], other_parameters: Sequence[torch.nn.Parameter]) -> None:
        device = fused_linears[0].a.device
        self.fused_linears, self.other_parameters, self.written = fused_linears, other_parameters, set()
        self.dummy_input = torch.zeros((), device=device, requires_grad=True)
        a = [layer.lora_A["default"].weight for group in fused_linears for layer in group.lora_layers]
        b = [layer.lora_B["default"].weight for group in fused_linears for layer in group.lora_layers]
        self.lora_weights, counts = a + b, [weight.numel() for weight in a + b]
        self.flat_param = torch.nn.Parameter(torch.cat([weight.detach().flatten() for weight in self.lora_weights]))
        for weight, piece in zip(self.lora_weights, self.flat_param.detach().split(counts), strict=True):
            weight.data = piece.view(weight.shape)
        sizes = [*counts, *(parameter.numel() for parameter in other_parameters), 1]
        self.buffer = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
        *pieces, loss = self.buffer.split(sizes)
        trained = [*self.lora_weights, *other_parameters]
        shaped = [piece.view(weight.shape) for piece, weight in zip(pieces, trained, strict=True)]
        self.lora_grads, self.other_grads, self.loss = shaped[: len(counts)], shaped[len(counts) :], loss[0]
        offsets = torch.tensor([0, *counts]).cumsum(0)
        pairs, first = [], 0
        for group in fused_linears:
            last = first + len(group.lora_layers)
            group.gradients, group.offsets = self, offsets[first:last].to(device)
            # In one product for all modules of the group: of its blocks only the diagonal ones are gradients.
            group.a_grads = self.lora_grads[first:last]
            group.b_grad = torch.zeros_like(group.b, memory_format=torch.contiguous_format)
            blocks = [group.b_block(group.b_grad, i) for i in range(last - first)]
            targets = self.lora_grads[len(a) + first : len(a) + last]
            pairs += [(source, target, group.scaling) for source, target in zip(blocks, targets, strict=True)]
            first = last
        self.copies = MultiTensorCopy(pairs)

    def start_step(self) -> None:
        """Called before a forward whose gradients are wanted."""
        self.written.clear()

    def finish_backward(self) -> None:
        """Called after the backward: zeros for a layer that the forward did not use."""
        for group in self.fused_linears:
            if group not in self.written:
                for grad in (group.b_grad, *group.a_grads):
                    grad.zero_()
        self.copies.run()

    def assign_grads(self) -> None:
        """Put the gradients where the optimizer looks for them."""
        self.flat_param.grad = self.buffer[: self.flat_param.numel()]
        parameters, grads = [*self.lora_weights, *self.other_parameters], [*self.lora_grads, *self.other_grads]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
