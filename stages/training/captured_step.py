"""The training step on a GPU: forward and backward as one CUDA graph for each size of a batch.

An eager step of a 2.6-billion-weight model on short rows waits for the host: it is thousands of kernels of a few
microseconds, each launched from Python. Here the step is captured once for each size and then replayed by one launch.
`stages/kernels` makes the kernels themselves fewer. On several GPUs each rank replays its graph, and one all-reduce
adds up the gradients. The Trainer does everything else: the gradients are in `.grad` as after `loss.backward()`.
"""

import time
from typing import Literal

import torch
from peft import PeftModel

from stages.data.batching import IGNORE_INDEX
from stages.kernels import packed
from stages.kernels.dropout import DropoutMasks
from stages.kernels.errors import StepUnavailable
from stages.kernels.fusion import (
    dequantized_weights_fit,
    fuse_for_training,
    takes_packed_rows,
    uses_gradient_checkpointing,
)
from stages.runtime import distributed

SEEDS_APART = 0x5851F42D  # of the ranks' dropout masks: no seed that anyone would set is so far from another


class CapturedStep:
    """Forward and backward of one batch.

    Args:
        model: a PEFT LoRA classifier in training mode, on a CUDA device.
        rows: rows of a whole batch, or of a rank's part; a smaller one is filled up with rows that the loss ignores.
        longest: no row has more tokens.
        seed: of the dropout masks.
        pad_id: token of these filling rows.
        dequantize_once: keep a dequantized copy of the 4-bit weights, or dequantize them at each use; "auto" keeps
            the copy where there is room for it (`fusion.dequantized_weights_fit`) and no checkpointing says that
            memory is short.

    Attributes:
        parameters: what is trained, in few tensors: all of LoRA's weights lie in the first.
        takes_packed_rows: whether a batch may come from `task.batching.pack_rows`.

    Raises:
        StepUnavailable: why this model can't have such a step.
    """

    def __init__(
        self, model: PeftModel, rows: int, longest: int, seed: int, pad_id: int,
        dequantize_once: bool | Literal["auto"],
    ) -> None:  # fmt: skip
        self.model, self.rows, self.longest, self.pad_id = model, rows, longest, pad_id
        self.seed = seed + distributed.rank() * SEEDS_APART
        device = next(model.parameters()).device
        self.masks = DropoutMasks(device)
        if getattr(model.get_base_model().config, "layerdrop", 0) > 0:
            raise StepUnavailable("layerdrop: each step has layers of its own")
        checkpointing = uses_gradient_checkpointing(model)
        if checkpointing and (names := functional_dropouts(model)):
            raise StepUnavailable(f"{', '.join(names)}: a checkpointed layer would not find its masks again")
        if dequantize_once == "auto":
            dequantize_once = not checkpointing and dequantized_weights_fit(model, rows * longest)
        self.takes_packed_rows = takes_packed_rows(model)
        self.lora = fuse_for_training(model, self.masks, dequantize_once)
        self.parameters = [self.lora.flat_param, *self.lora.other_parameters]
        self.graphs, self.pool, self.stream = {}, torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self.capturable = True  # until a capture says otherwise
        self.capture_seconds = 0.0

    def __call__(self, batch: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        """Put the batch's gradients into `.grad` and return its mean loss, both those of all ranks' parts together.

        Args:
            batch: int64 `input_ids` [rows or fewer, length] and `labels` [rows or fewer], or one of
                `task.batching.pack_rows`, filled up; `weight`, the share of the batch's rows that are in this
                rank's part, fp32 scalar, where there are several ranks.
            step: number of the step in the whole run; it chooses the dropout masks.
        """
        if "starts" not in batch:
            batch = self._filled(batch)
        shape = tuple(batch["input_ids"].shape)
        if shape not in self.graphs:
            self.graphs[shape] = self._capture(batch) if self.capturable else None
        self.masks.set_step(self.seed, step)
        if self.graphs[shape]:
            graph, inputs = self.graphs[shape]
            for name, value in inputs.items():
                value.copy_(batch[name])
            graph.replay()
        else:
            self.run(batch)
        distributed.all_reduce(self.lora.buffer)
        self.lora.assign_grads()
        return self.lora.loss.clone()

    def run(self, batch: dict[str, torch.Tensor]) -> None:
        """The step itself, eager: put gradients and loss into the buffer."""
        self.lora.start_step()
        loss = self._loss(batch)
        if "weight" in batch:
            loss = loss * batch["weight"]
        # Of LoRA's weights only to see that there are none: they are in the buffer when the anchor's is known.
        others = self.lora.other_parameters
        wanted = [*others, self.lora.dummy_input, *self.lora.lora_weights]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        if any(grad is not None for grad in grads[len(others) + 1 :]):  # training would go on, and wrongly
            raise RuntimeError("a LoRA layer computed by PEFT's own forward: its gradients are not in the buffer")
        self.lora.finish_backward()
        for place, grad in zip(self.lora.other_grads, grads[: len(others)], strict=True):
            # Zeros for a weight that the forward does not use: however the optimizer changes it, no answer changes.
            place.zero_() if grad is None else place.copy_(grad)
        self.lora.loss.copy_(loss.detach())

    def _loss(self, batch):
        if "starts" not in batch:
            return self.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        base = self.model.get_base_model()
        logits = packed.compute_logits(self.model, batch, self.longest)
        return base.loss_function(logits=logits, labels=batch["labels"], pooled_logits=logits, config=base.config)

    def _filled(self, batch):
        ids, labels = batch["input_ids"], batch["labels"]
        missing = self.rows - len(labels)
        if not missing:
            return batch
        pad = torch.nn.functional.pad
        ids, labels = pad(ids, (0, 0, 0, missing), value=self.pad_id), pad(labels, (0, missing), value=IGNORE_INDEX)
        return batch | {"input_ids": ids, "labels": labels}

    def _capture(self, batch: dict[str, torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, dict[str, torch.Tensor]] | None:
        """The step on a batch of this shape as (graph, its inputs), or None where it can't be captured."""
        start, before = time.perf_counter(), torch.cuda.current_stream()
        inputs = {name: value.clone() for name, value in batch.items()}
        self.stream.wait_stream(before)
        with torch.cuda.stream(self.stream):
            self.run(inputs)  # compiles and loads kernels, which a capture must not
        before.wait_stream(self.stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph keeps memory of its own
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                self.run(inputs)
        except torch.OutOfMemoryError as error:
            tokens, why = batch["input_ids"].numel(), str(error).splitlines()[0]
            print(f"no CUDA graph for batches of {tokens} tokens, their steps run eagerly: {why}")
            print("train.dequantize_once: false, or a smaller train.batch_size, would leave it more memory")
            return None
        except RuntimeError as error:  # an operation that waits for the GPU
            leave_broken_capture(before)
            self.capturable = False
            print(f"no CUDA graphs, steps run eagerly: {str(error.__context__ or error).splitlines()[0]}")
            return None
        self.capture_seconds += time.perf_counter() - start
        return graph, inputs


def leave_broken_capture(stream: torch.cuda.Stream) -> None:
    """Go back to `stream`, with a random generator that captures nothing: PyTorch leaves both as they were inside."""
    torch.cuda.set_stream(stream)
    generator = torch.cuda.default_generators[stream.device_index]
    generator.graphsafe_set_state(generator.clone_state())


def functional_dropouts(model: PeftModel) -> list[str]:
    """Names in the model's config of the dropouts that no module carries; attention's dropout never has a module."""
    base = model.get_base_model()
    modules = {name: module for name, module in base.named_modules() if "lora_" not in name}
    carried = {module.p for module in modules.values() if isinstance(module, torch.nn.Dropout)}
    return [
        name
        for name, p in base.config.get_text_config().to_dict().items()
        if "drop" in name and not name.startswith("classifier")  # another head's
        if isinstance(p, float) and p > 0 and ("att" in name or p not in carried)
    ]
