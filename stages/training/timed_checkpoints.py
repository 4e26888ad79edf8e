"""Checkpoints in the middle of an epoch: by the clock, and before the process has to end."""

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.runtime import distributed, shutdown

QUESTION_SECONDS = 5.0  # several ranks agree this often: for each agreement the host waits for the GPU


class TimedCheckpoints(TrainerCallback):
    """Saves a checkpoint when the last one is some minutes old, and one before the process ends on request.

    All ranks must save after the same step. They agree whether to save, and after which step they will ask again. A
    single process asks after each step.

    After an epoch's last step the Trainer saves in any case, before the validation. So a kill loses at most the
    interval, a step, and the validation that was running.

    - on_train_begin: starts the clocks.
    - on_epoch_begin: a signal waits for the next checkpoint from here on.
    - on_step_end: decides whether to save.
    - on_save: restarts the interval; ends the process on request. After an epoch's last step a signal ends the process
      immediately from here on. All other callbacks must come before it.
    - on_train_end: a signal ends the process immediately from here on.

    Args:
        minutes: `train.checkpoint_minutes`. None: only before the process ends.
    """

    def __init__(self, minutes: float | None) -> None:
        self.interval = math.inf if minutes is None else 60 * minutes
        self.request: shutdown.Request | None = None  # of any rank

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.saved = self.asked = time.monotonic()
        self.asked_step, self.next_question = state.global_step, state.global_step + 1

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shutdown.defer()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        if step < self.next_question or _ends_epoch(state):
            return
        now = time.monotonic()
        seconds_per_step = (now - self.asked) / (step - self.asked_step)
        self.asked, self.asked_step = now, step
        wait = max(1, int(QUESTION_SECONDS / max(seconds_per_step, 1e-6))) if distributed.world_size() > 1 else 1
        answers = distributed.all_gather((now - self.saved >= self.interval, wait, shutdown.requested()))
        is_due, wait, _ = answers[0]
        self.request = next((request for *_, request in answers if request), None)
        self.next_question = step + wait
        control.should_save = control.should_save or is_due or self.request is not None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = time.monotonic()
        if self.request or _ends_epoch(state):
            distributed.all_gather(None)  # when a rank ends, the launcher ends rank 0, which writes the checkpoint
        if self.request:
            shutdown.end(*self.request)
        if _ends_epoch(state):
            shutdown.stop_deferring()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        shutdown.stop_deferring()


def _ends_epoch(state: TrainerState) -> bool:
    """Whether the newest step is the last one of its epoch."""
    return state.global_step % (state.max_steps // round(state.num_train_epochs)) == 0
