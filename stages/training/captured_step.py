"""The training step on a GPU: forward and backward as one CUDA graph for each batch shape.

An eager step of a 2.6-billion-weight model on short rows waits for the host. It consists of thousands of kernels of a
few microseconds, each launched from Python. Here the step is captured once for each shape, and then one launch replays
it. `stages/kernels` makes the kernels themselves fewer. On several GPUs each rank replays its own graph, and one
all-reduce sums the gradients. The Trainer does everything else: the gradients are in `.grad` as after
`loss.backward()`.
"""

import time
from typing import Literal

import torch
from peft import PeftModel

from stages.data.batching import IGNORE_INDEX
from stages.kernels import packed_rows
from stages.kernels.dropout import DropoutMasks
from stages.kernels.errors import StepUnavailable
from stages.kernels.fusion import (
    dequantized_weights_fit,
    fuse_for_training,
    takes_packed_rows,
    unwrap_peft,
    uses_gradient_checkpointing,
)
from stages.runtime import distributed

SEED_STRIDE = 0x5851F42D  # between the ranks' seeds: larger than the distance of any two seeds that users set

Capture = tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor]]  # a graph and its input buffers


class CapturedStep:
    """Forward and backward of one batch.

    Args:
        model: a PEFT LoRA classifier in training mode, on a CUDA device.
        rows: rows of a full batch, or of a rank's part. A smaller batch is filled up with rows that the loss ignores.
        longest: tokens of the longest row.
        seed: of the dropout masks.
        pad_id: the token in the added rows.
        dequantize_once: keep a dequantized copy of the 4-bit weights, or dequantize them at each use. "auto" keeps
            the copy if it fits the memory (`fusion.dequantized_weights_fit`) and no layer is checkpointed, which would
            mean that memory is short.

    Attributes:
        parameters: the trained parameters in few tensors: the first holds all of LoRA's weights.
        takes_packed_rows: whether a batch may come from `data.batching.pack_rows`.

    Raises:
        StepUnavailable: names the reason why this model cannot be captured.
    """

    def __init__(
        self, model: PeftModel, rows: int, longest: int, seed: int, pad_id: int,
        dequantize_once: bool | Literal["auto"],
    ) -> None:  # fmt: skip
        self.model, self.rows, self.longest, self.pad_id = model, rows, longest, pad_id
        self.seed = seed + distributed.rank() * SEED_STRIDE
        device = next(model.parameters()).device
        self.masks = DropoutMasks(device)
        self.generator = (
            torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
        )
        if getattr(model.get_base_model().config, "layerdrop", 0) > 0:
            raise StepUnavailable("layerdrop: each step runs other layers")
        checkpointing = uses_gradient_checkpointing(model)
        if checkpointing and (names := functional_dropouts(model)):
            raise StepUnavailable(f"{', '.join(names)}: dropout masks cannot be replayed when layers are checkpointed")
        if dequantize_once == "auto":
            dequantize_once = not checkpointing and dequantized_weights_fit(model, rows * longest)
        self.takes_packed_rows = takes_packed_rows(model)
        self.lora = fuse_for_training(model, self.masks, dequantize_once)
        self.parameters = [self.lora.flat_param, *self.lora.other_parameters]
        self.graphs: dict[tuple[int, ...], Capture | None] = {}
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self.capturable = True  # until a capture fails
        self.capture_seconds = 0.0

    def __call__(self, batch: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        """Put the batch's gradients into `.grad` and return its mean loss. Both are summed over the ranks' parts.

        Args:
            batch: int64 `input_ids` [rows or fewer, length] and `labels` [rows or fewer]; or the result of
                `data.batching.pack_rows`, filled up. With several ranks also `weight`, fp32 scalar: the share of the
                batch's rows that this rank computes.
            step: number of the step in the whole run; selects the dropout masks.
        """
        if "starts" not in batch:
            batch = self._fill_up(batch)
        shape = tuple(batch["input_ids"].shape)
        if shape not in self.graphs:
            self.graphs[shape] = self._capture(batch) if self.capturable else None
        self._select_masks(step)
        if capture := self.graphs[shape]:
            graph, inputs = capture
            for name, value in inputs.items():
                value.copy_(batch[name])
            graph.replay()
        else:
            self.run(batch)
        distributed.all_reduce(self.lora.buffer)
        self.lora.assign_grads()
        return self.lora.loss.clone()

    def _select_masks(self, step: int) -> None:
        """Let all dropout masks depend only on seed, rank and step.

        Attention's dropout reads PyTorch's generator, which each capture advances. A resumed training captures at other
        steps, and only rank 0's generator is in the checkpoint.
        """
        self.masks.set_step(self.seed, step)
        self.generator.manual_seed(((self.seed << 32) + step) & 0x7FFFFFFFFFFFFFFF)

    def run(self, batch: dict[str, torch.Tensor]) -> None:
        """Run the step eagerly: put gradients and loss into the buffer."""
        self.lora.start_step()
        loss = self._compute_loss(batch)
        if "weight" in batch:
            loss = loss * batch["weight"]
        # The backward of the dummy input puts LoRA's gradients into the buffer. LoRA's weights are in the list only to
        # check that they get no gradient.
        others = self.lora.other_parameters
        inputs = [*others, self.lora.dummy_input, *self.lora.lora_weights]
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        if any(grad is not None for grad in grads[len(others) + 1 :]):  # otherwise training would go on wrongly
            raise RuntimeError("a LoRA layer computed by PEFT's own forward: its gradients are not in the buffer")
        self.lora.finish_backward()
        for buffer, grad in zip(self.lora.other_grads, grads[: len(others)], strict=True):
            if grad is None:  # the forward does not use this weight, so no change of it can change a prediction
                buffer.zero_()
            else:
                buffer.copy_(grad)
        self.lora.loss.copy_(loss.detach())

    def _compute_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if "starts" not in batch:
            return self.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        base = unwrap_peft(self.model)
        logits = packed_rows.compute_logits(self.model, batch, self.longest)
        return base.loss_function(logits=logits, labels=batch["labels"], pooled_logits=logits, config=base.config)

    def _fill_up(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids, labels = batch["input_ids"], batch["labels"]
        missing = self.rows - len(labels)
        if not missing:
            return batch
        pad = torch.nn.functional.pad
        ids, labels = pad(ids, (0, 0, 0, missing), value=self.pad_id), pad(labels, (0, missing), value=IGNORE_INDEX)
        return batch | {"input_ids": ids, "labels": labels}

    def _capture(self, batch: dict[str, torch.Tensor]) -> Capture | None:
        """Capture the step for batches of this shape. None: it cannot be captured, and runs eagerly."""
        start, current_stream = time.perf_counter(), torch.cuda.current_stream()
        inputs = {name: value.clone() for name, value in batch.items()}
        self.stream.wait_stream(current_stream)
        with torch.cuda.stream(self.stream):
            self.run(inputs)  # compiles and loads kernels, which is not allowed in a capture
        current_stream.wait_stream(self.stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph allocates memory from its own pool
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                self.run(inputs)
        except torch.OutOfMemoryError as error:
            tokens, reason = batch["input_ids"].numel(), str(error).splitlines()[0]
            print(f"no CUDA graph for batches of {tokens} tokens, their steps run eagerly: {reason}")
            print("to leave it more memory, set train.dequantize_once: false or a smaller train.batch_size")
            return None
        except RuntimeError as error:  # an operation that waits for the GPU
            leave_broken_capture(current_stream)
            self.capturable = False
            print(f"no CUDA graphs, steps run eagerly: {str(error.__context__ or error).splitlines()[0]}")
            return None
        self.capture_seconds += time.perf_counter() - start
        return graph, inputs


def leave_broken_capture(stream: torch.cuda.Stream) -> None:
    """Return to `stream` and reset the random generator: after a failed capture PyTorch leaves both capturing."""
    torch.cuda.set_stream(stream)
    generator = torch.cuda.default_generators[stream.device_index]
    generator.graphsafe_set_state(generator.clone_state())


def functional_dropouts(model: PeftModel) -> list[str]:
    """List the config's dropouts that no `torch.nn.Dropout` module applies. Attention's dropout never has a module."""
    base = unwrap_peft(model)
    modules = [module for name, module in base.named_modules() if "lora_" not in name]
    rates_of_modules = {module.p for module in modules if isinstance(module, torch.nn.Dropout)}
    return [
        name
        for name, p in base.config.get_text_config().to_dict().items()
        if "drop" in name and not name.startswith("classifier")  # a dropout of other heads
        if isinstance(p, float) and p > 0 and ("att" in name or p not in rates_of_modules)
    ]
