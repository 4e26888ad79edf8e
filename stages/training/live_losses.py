"""The loss and the speed of recent steps, read while a training runs, without waiting for the GPU."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STEPS = 10  # between two points of a curve, as in most examples of the Trainer
POINTS = 3000  # of a long training, whose points are further apart
SECONDS = 5.0  # between two points if steps are slow


@dataclass(frozen=True)
class RecentSteps:
    """The steps since the last point of the curves.

    Attributes:
        step: number of the last of these steps, from 1.
        epoch: epochs that this step completes, such as 0.5.
        loss: mean of the steps' losses.
        learning_rate: of the last of these steps.
        rows_per_second: of these steps, without validation.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    rows_per_second: float


class LiveLosses(TrainerCallback):
    """Computes the mean of recent losses on the device, and passes it on when it has arrived on the host.

    The host launches the steps of a captured training ahead of the GPU. If it waited for a loss, the GPU would be idle
    until the next launch. So the copy of a loss is launched as well, and a later step looks whether it has arrived.

    - on_epoch_begin: starts the clock.
    - on_step_begin: reads the learning rate, which the scheduler changes before `on_step_end`.
    - on_step_end: launches the copy if a point is due, passes on those that have arrived.
    - on_epoch_end: passes on all others; `History` waits for the GPU here.

    Args:
        step_losses: the Trainer's list, to which each step appends its loss. Only the newest is read.
        rows: number of training rows.
        batch_size: rows of a batch, on all ranks together.
        receivers: are called with each point.
    """

    def __init__(
        self, step_losses: Sequence[torch.Tensor], rows: int, batch_size: int,
        receivers: Sequence[Callable[[RecentSteps], None]],
    ) -> None:  # fmt: skip
        self.step_losses, self.rows, self.batch_size, self.receivers = step_losses, rows, batch_size, receivers
        self.losses: list[torch.Tensor] = []  # since the last point
        self.unread: deque[_Point] = deque()
        self.rows_since = 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.last_read, self.begin = time.monotonic(), _record_event(args.device)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.learning_rate = float(kwargs["lr_scheduler"].get_last_lr()[0])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        steps = -(-self.rows // self.batch_size)  # of an epoch
        number = (state.global_step - 1) % steps  # of this step in its epoch, from 0
        self.losses.append(self.step_losses[-1])
        self.rows_since += min(self.batch_size, self.rows - number * self.batch_size)
        points = max(1, steps // max(STEPS, state.max_steps // POINTS))  # of an epoch, the last one at its end
        is_due = (number + 1) * points // steps > number * points // steps
        if is_due or time.monotonic() - self.last_read > SECONDS:
            self._launch_copy(args.device, state)
        while self.unread and self.unread[0].end.query():
            self._pass_on()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.losses:
            self._launch_copy(args.device, state)
        while self.unread:
            self.unread[0].end.synchronize()
            self._pass_on()

    def _launch_copy(self, device: torch.device, state: TrainerState) -> None:
        loss = torch.stack(self.losses).float().mean().to("cpu", non_blocking=True)  # to pinned memory
        end = _record_event(device)
        epoch = float(state.epoch or 0)
        self.unread.append(_Point(self.begin, end, loss, state.global_step, epoch, self.learning_rate, self.rows_since))
        self.losses, self.rows_since = [], 0
        self.begin, self.last_read = end, time.monotonic()

    def _pass_on(self) -> None:
        point = self.unread.popleft()
        seconds = point.begin.elapsed_time(point.end) / 1e3
        recent = RecentSteps(
            point.step, point.epoch, point.loss.item(), point.learning_rate, point.rows / max(seconds, 1e-9)
        )
        for receive in self.receivers:
            receive(recent)


class _HostEvent:
    """The methods of `torch.cuda.Event` for a device on which nothing runs ahead."""

    def __init__(self) -> None:
        self.time = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "_HostEvent") -> float:
        """Milliseconds until `end`."""
        return (end.time - self.time) * 1e3


def _record_event(device: torch.device) -> Any:
    if device.type != "cuda":
        return _HostEvent()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@dataclass(frozen=True)
class _Point:
    """A point whose loss may still be on its way to the host."""

    begin: Any
    end: Any
    loss: torch.Tensor
    step: int
    epoch: float
    learning_rate: float
    rows: int
