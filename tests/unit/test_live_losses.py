"""The points of the live curves: which steps each has, and that the host does not wait for them."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from stages.training import live_losses
from stages.training.live_losses import LiveLosses

ROWS, BATCH = 625, 10  # 63 steps, the last with 5 rows


class Training:
    """Calls the callback as the Trainer does. The loss of step n is n, its learning rate 1 / n."""

    def __init__(self, rows=ROWS, batch_size=BATCH, epochs=1, seconds_per_step=0.0, clock=None):
        self.steps, self.epochs = -(-rows // batch_size), epochs
        self.step_losses, self.points = [], []
        self.callback = LiveLosses(self.step_losses, rows, batch_size, [self.points.append])
        self.args = SimpleNamespace(device=torch.device("cpu"))
        self.state = SimpleNamespace(global_step=0, epoch=0.0, max_steps=self.steps * epochs)
        self.clock, self.seconds_per_step = clock, seconds_per_step

    def call(self, event):
        rate = 1 / (self.state.global_step + 1)
        scheduler = SimpleNamespace(get_last_lr=lambda: [rate])
        getattr(self.callback, event)(self.args, self.state, None, lr_scheduler=scheduler)

    def run_epoch(self, first=0):
        """Run the rest of an epoch, of which `first` steps were done before a resume."""
        self.state.global_step += first
        self.call("on_epoch_begin")
        for _ in range(first, self.steps):
            self.call("on_step_begin")
            self.state.global_step += 1
            self.state.epoch = self.state.global_step / self.steps
            self.step_losses.append(torch.tensor(float(self.state.global_step)))
            if self.clock:
                self.clock.now += self.seconds_per_step
            self.call("on_step_end")
        self.call("on_epoch_end")
        self.step_losses.clear()


@pytest.fixture
def clock(monkeypatch):
    moved = SimpleNamespace(now=100.0)
    moved.monotonic = moved.perf_counter = lambda: moved.now
    monkeypatch.setattr(live_losses, "time", moved)
    return moved


def test_each_step_is_in_one_point_and_an_epoch_ends_with_a_point():
    training = Training(epochs=2)
    training.run_epoch()
    training.run_epoch()
    ends = [point.step for point in training.points]
    assert ends == [11, 21, 32, 42, 53, 63, 74, 84, 95, 105, 116, 126]
    begins = [0, *ends[:-1]]
    assert [point.loss for point in training.points] == [
        pytest.approx((begin + 1 + end) / 2) for begin, end in zip(begins, ends, strict=True)
    ]
    assert [point.learning_rate for point in training.points] == [1 / end for end in ends]
    assert [point.epoch for point in training.points] == [end / 63 for end in ends]


def test_the_first_point_after_a_resume_has_only_the_steps_after_it():
    training = Training()
    training.run_epoch(first=40)
    assert [(point.step, point.loss) for point in training.points] == [(42, 41.5), (53, 48), (63, 58.5)]


def test_the_speed_is_that_of_the_steps_and_counts_the_rows_of_a_smaller_last_batch(clock):
    training = Training(rows=25, epochs=2, seconds_per_step=0.5, clock=clock)
    training.run_epoch()
    clock.now += 1000  # validation
    training.run_epoch()
    assert [point.rows_per_second for point in training.points] == [pytest.approx(25 / 1.5)] * 2


def test_slow_steps_have_a_point_every_few_seconds(clock):
    training = Training(seconds_per_step=3.0, clock=clock)
    training.run_epoch()
    ends = [point.step for point in training.points]
    assert max(end - begin for begin, end in pairwise([0, *ends])) == 2, "3 seconds are too few, 6 are enough"


def test_a_long_training_has_a_few_thousand_points():
    training = Training(rows=100_000, epochs=4)
    training.run_epoch()
    assert len(training.points) == 10_000 // (40_000 // live_losses.POINTS)


def test_a_loss_is_passed_on_when_it_has_arrived_and_no_step_waits_for_it(monkeypatch):
    arrived, waited = [], []

    class Event(live_losses._HostEvent):
        def query(self):
            return self in arrived

        def synchronize(self):
            waited.append(self)

    monkeypatch.setattr(live_losses, "_record_event", lambda device: Event())
    training, seen = Training(), []
    call = training.call

    def call_and_look(event):
        if (event, training.state.global_step) == ("on_step_end", 30):
            arrived.append(training.callback.unread[0].end)  # of the steps up to 11
        call(event)
        if event == "on_step_end":
            seen.append(len(training.points))
            assert waited == []

    monkeypatch.setattr(training, "call", call_and_look)
    training.run_epoch()
    assert seen == 29 * [0] + 34 * [1]
    assert len(training.points) == 6 and len(waited) == 5, "the end of the epoch waits for the others"
