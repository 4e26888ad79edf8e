"""The progress of a long loop: lines where there is no terminal, a bar where there is one."""

import os
import pty
import sys
import termios

import pytest

from stages.runtime import progress
from stages.runtime.progress import ProgressLines, format_rate, format_seconds, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves: `clock.now` in seconds."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    moved = Clock()
    monkeypatch.setattr(progress, "time", moved)
    return moved


def run(bar, clock, units, seconds, n=1):
    """Update a bar `units` times, `seconds` apart."""
    for _ in range(units):
        clock.now += seconds
        bar.update(n)


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_line_comes_after_10_seconds_and_then_every_30(clock, capsys):
    bar = progress_bar(1000, "predict", "row")
    run(bar, clock, 9, 1.0, n=2)
    assert lines(capsys) == []
    run(bar, clock, 1, 1.0, n=2)
    assert lines(capsys) == ["predict: row 20 of 1,000, 2 rows/s, about 8 min 10 s left"]
    run(bar, clock, 29, 1.0, n=4)
    assert lines(capsys) == []
    run(bar, clock, 31, 1.0, n=4)
    assert lines(capsys) == [
        "predict: row 140 of 1,000, 4 rows/s, about 3 min 35 s left",
        "predict: row 260 of 1,000, 4 rows/s, about 3 min 5 s left",
    ]


def test_slow_units_have_a_line_each(clock, capsys):
    run(progress_bar(10, "predict", "row"), clock, 3, 40.0)
    assert len(lines(capsys)) == 3


def test_a_run_that_has_ended_or_is_short_has_no_line(clock, capsys):
    with progress_bar(100, "predict", "row") as bar:
        run(bar, clock, 1, 60.0, n=100)
    with progress_bar(100, "predict", "row") as bar:
        run(bar, clock, 99, 0.1)
    assert lines(capsys) == []


def test_units_of_an_earlier_run_count_as_done_but_not_in_the_rate(clock, capsys):
    run(progress_bar(1000, "train", "step", initial=800), clock, 10, 1.0)
    assert lines(capsys) == ["train: step 810 of 1,000, 1 steps/s, about 3 min 10 s left"]


def test_a_pause_does_not_count_in_the_rate(clock, capsys):
    bar = progress_bar(1000, "train", "step")
    run(bar, clock, 5, 1.0)
    clock.now += 600
    bar.unpause()
    run(bar, clock, 1, 1.0)
    assert lines(capsys) == ["train: step 6 of 1,000, 1 steps/s, about 16 min 34 s left"]


def test_a_text_replaces_the_rate(clock, capsys):
    bar = progress_bar(100, "train", "step")
    bar.set_postfix_str("loss 0.4312")
    run(bar, clock, 10, 1.0)
    assert lines(capsys) == ["train: step 10 of 100, loss 0.4312, about 1 min 30 s left"]


def test_other_ranks_print_nothing(clock, capsys):
    run(progress_bar(100, "predict", "row", disable=True), clock, 10, 60.0)
    assert lines(capsys) == []


def test_a_terminal_has_a_bar(monkeypatch):
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress_bar(100, "predict", "row", initial=20) as bar:
            assert not isinstance(bar, ProgressLines)
            bar.update(30)
        shown = os.read(controller, 10_000).decode()
    os.close(controller)
    assert "predict:  50%" in shown and "50/100" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.7, "1 min"), (760, "12 min 40 s"), (3600, "1 h"), (3605, "1 h"), (11100, "3 h 5 min"),
     (86400, "1 day"), (190000, "2 days 4 h")],
)  # fmt: skip
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert format_seconds(seconds) == text


def test_a_rate_has_two_digits_that_count():
    assert [format_rate(rate) for rate in (1234.5, 56.4, 9.99, 7.84, 0.123)] == ["1,234", "56", "10", "7.8", "0.12"]
