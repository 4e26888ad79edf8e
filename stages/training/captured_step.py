"""The training step on a GPU: forward and backward as one CUDA graph for each batch shape.

An eager step of a 2.6-billion-weight model on short rows waits for the host. It consists of thousands of kernels of a
few microseconds, each launched from Python. Here the step is captured once for each shape, and then one launch replays
it. `stages/kernels` makes the kernels themselves fewer. On several GPUs each rank replays its own graph, and one
all-reduce sums the gradients. The Trainer does everything else: the gradients are in `.grad` as after
`loss.backward()`.
"""

import contextlib
import functools
import gc
import os
import time
from collections.abc import Iterator

import torch
from peft import PeftModel

from stages.data.batching import IGNORE_INDEX
from stages.kernels import packed_rows
from stages.kernels.dropout import DropoutMasks
from stages.kernels.errors import StepUnavailable
from stages.kernels.fusion import FusedTraining, takes_packed_rows, unwrap_peft, uses_gradient_checkpointing
from stages.runtime import distributed
from stages.training.epoch_batches import Part
from stages.training.loss import compute_loss
from stages.training.memory_plan import Plan

SEED_STRIDE = 0x5851F42D  # between the ranks' seeds: larger than the distance of any two seeds that users set

Capture = tuple[torch.cuda.CUDAGraph, Part]  # a graph and its input buffers


@contextlib.contextmanager
def prefer_cublaslt() -> Iterator[None]:
    """Compute products by cuBLASLt instead of cuBLAS.

    It chooses faster kernels for few tokens. The graph of phi-2's step for 560 tokens, on an H200: 14.10 -> 13.84 ms.
    With 8,192 tokens, as in evaluation, it is no faster.
    """
    if not torch.cuda.is_available():
        yield
        return
    preferred = torch.backends.cuda.preferred_blas_library()
    _choose_cublaslt_silently()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(preferred)


@functools.cache
def _choose_cublaslt_silently() -> None:
    """Let the first call be silent: PyTorch then writes to file descriptor 2 that the function is experimental."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        torch.backends.cuda.preferred_blas_library("cublaslt")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


class CapturedStep:
    """Forward and backward of one batch, in one or more parts.

    Args:
        model: a PEFT LoRA classifier in training mode, on a CUDA device.
        rows: rows of a full part. A smaller part is filled up with rows that the loss ignores.
        longest: tokens of the longest row.
        seed: of the dropout masks.
        pad_id: the token in the added rows.

    Attributes:
        parameters: the trained parameters in few tensors: the first holds all of LoRA's weights.
        takes_packed_rows: whether a part may come from `data.batching.pack_rows`.
        can_checkpoint: whether gradient checkpointing would replay all dropout masks.
        plan: how batches are computed; None until `apply`.

    Raises:
        StepUnavailable: names the reason why this model cannot be captured.
    """

    def __init__(self, model: PeftModel, rows: int, longest: int, seed: int, pad_id: int) -> None:
        self.model, self.rows, self.longest, self.pad_id, self.seed = model, rows, longest, pad_id, seed
        device = next(model.parameters()).device
        self.masks = DropoutMasks(device)
        self.generator = (
            torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
        )
        if getattr(model.get_base_model().config, "layerdrop", 0) > 0:
            raise StepUnavailable("layerdrop: each step runs other layers")
        names = functional_dropouts(model)
        self.can_checkpoint = not names
        if names and uses_gradient_checkpointing(model):
            raise StepUnavailable(f"{', '.join(names)}: dropout masks cannot be replayed when layers are checkpointed")
        self.takes_packed_rows = takes_packed_rows(model)
        self.layers = FusedTraining(model, self.masks)
        self.lora = self.layers.gradients
        self.parameters = [self.lora.flat_param, *self.lora.other_parameters]
        self.plan: Plan | None = None
        self.graphs: dict[tuple[int, ...], Capture | None] = {}
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self.capturable = True  # until a capture fails
        self.capture_seconds = 0.0

    def apply(self, plan: Plan) -> None:
        """Compute batches as planned from here on."""
        self.layers.keep_weights(plan.keep_weights)
        self.layers.set_checkpointing(plan.checkpointing)
        self.plan = plan

    def count_optimizer_bytes(self) -> int:
        """Bytes of AdamW's two averages."""
        return 2 * self.lora.buffer.nbytes

    def count_sum_bytes(self) -> int:
        """Bytes of the sum of a batch's gradients, if it has several parts."""
        return self.lora.buffer.nbytes

    def __call__(self, parts: list[Part], step: int) -> torch.Tensor:
        """Put the batch's gradients into `.grad` and return its mean loss. Both are summed over the ranks' parts.

        Args:
            parts: of the batch, on the device or in pinned memory. Each has int64 `input_ids` [rows or fewer, length]
                and `labels`, a label array, or is the result of `data.batching.pack_rows`, filled up. Both may have
                `batch_positions`, int32, the position in the batch of each of `input_ids`, and `weight`, fp32 scalar,
                the part's share of the batch's rows.
            step: number of the step in the whole run; selects the dropout masks.
        """
        # If the graph exists, its input buffers are filled from the host's memory, without a copy on the device.
        parts = [part if self.graphs.get(shape_of(part)) else self._fill_up(self._move(part)) for part in parts]
        if new := {shape_of(part): part for part in parts if shape_of(part) not in self.graphs}:
            self.capture(list(new.values()))
        self._select_masks(step)
        for number, part in enumerate(parts):
            self._compute(part)
            if number == 0 and len(parts) > 1:
                total = self.lora.buffer.clone()
            elif number > 0:
                total += self.lora.buffer
        if len(parts) > 1:
            self.lora.buffer.copy_(total)
        distributed.all_reduce(self.lora.buffer)
        self.lora.assign_grads()
        return self.lora.loss.clone()

    def _compute(self, part: Part) -> None:
        """Put the gradients and the loss of one part into the buffer."""
        if capture := self.graphs[shape_of(part)]:
            graph, inputs = capture
            for name, value in inputs.items():
                value.copy_(part[name], non_blocking=True)
            graph.replay()
        else:
            self.run(part)

    def _select_masks(self, step: int) -> None:
        """Let all dropout masks depend only on seed and step; those of attention on the rank too.

        Attention's dropout reads PyTorch's generator, which each capture advances. A resumed training captures at other
        steps, and only rank 0's generator is in the checkpoint.
        """
        self.masks.set_step(self.seed, step)
        seed = self.seed + distributed.rank() * SEED_STRIDE
        self.generator.manual_seed(((seed << 32) + step) & 0x7FFFFFFFFFFFFFFF)

    @prefer_cublaslt()
    def run(self, batch: Part) -> None:
        """Run one part eagerly: put gradients and loss into the buffer."""
        positions = batch.get("batch_positions")
        self.masks.positions = None if positions is None else positions.flatten()
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
        self.masks.positions = None  # validation has other tokens

    def _compute_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if "starts" in batch:
            logits = packed_rows.compute_logits(self.model, batch, self.longest)
        else:
            logits = self.model(input_ids=batch["input_ids"]).logits
        return compute_loss(self.model, logits, batch["labels"])

    def _move(self, part: Part) -> Part:
        return {name: value.to(self.masks.seed.device, non_blocking=True) for name, value in part.items()}

    def _fill_up(self, part: Part) -> Part:
        """Fill a padded part up with rows that the loss ignores."""
        missing = 0 if "starts" in part else self.rows - len(part["labels"])
        if not missing:
            return part
        fillers = {"input_ids": self.pad_id, "labels": IGNORE_INDEX, "batch_positions": 0}
        pad, filled = torch.nn.functional.pad, dict(part)
        for name in fillers.keys() & part.keys():
            of_rows = (0, 0) * (part[name].ndim - 1) + (0, missing)  # the first dimension is the last pair
            filled[name] = pad(part[name], of_rows, value=fillers[name])
        return filled

    def capture(self, parts: list[Part]) -> None:
        """Capture the step for parts of these shapes. If it cannot be captured, it runs eagerly.

        All shapes run eagerly first, because afterwards the graphs hold the memory that this needs.

        Raises:
            torch.OutOfMemoryError: the memory is too small.
        """
        start, parts = time.perf_counter(), [self._fill_up(part) for part in parts]
        if self.capturable:
            for part in parts:
                with prefer_cublaslt():
                    self.layers.choose_products(part["input_ids"].numel())
                self.warm_up(part)
            torch.cuda.empty_cache()  # graphs allocate memory from their own pool
        for part in parts:
            self.graphs[shape_of(part)] = self._capture(part) if self.capturable else None
        self.capture_seconds += time.perf_counter() - start

    def _capture(self, part: Part) -> Capture | None:
        graph, inputs = torch.cuda.CUDAGraph(), {name: value.clone() for name, value in part.items()}
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                try:
                    self.run(inputs)
                except torch.OutOfMemoryError:
                    self.lora.side_stream.join()  # otherwise the capture's end raises another error
                    raise
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation that waits for the GPU
            leave_broken_capture(stream)
            if "out of memory" in str(error).lower():  # CUDA's own error, as where it builds the graph
                raise torch.OutOfMemoryError(str(error)) from error
            self.capturable = False
            print(f"no CUDA graphs, steps run eagerly: {str(error.__context__ or error).splitlines()[0]}")
            return None
        return graph, inputs

    def warm_up(self, part: Part) -> None:
        """Run a part eagerly on the stream of captures. It compiles and loads kernels, which a capture may not."""
        current_stream = torch.cuda.current_stream()
        self.stream.wait_stream(current_stream)
        with torch.cuda.stream(self.stream):
            self.run(part)
        current_stream.wait_stream(self.stream)
        torch.cuda.synchronize()

    def forget_graphs(self) -> None:
        """Free the memory of all graphs, and of a capture that failed."""
        self.graphs.clear()
        gc.collect()
        self.pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # the peak of a plan that did not fit is not the training's


def shape_of(part: Part) -> tuple[int, ...]:
    """A graph is captured for each shape of a part."""
    return tuple(part["input_ids"].shape)


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
