"""`call_in_forks`: results in order, errors with their traceback, and no process left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing.connection import Connection

import pytest
from helpers.project import ROOT

from stages.runtime import forks
from stages.runtime.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")


@pytest.fixture
def cores(monkeypatch):
    """Function that sets how many cores the process may use."""
    return lambda count: monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))


def end_by(number):
    os.kill(os.getpid(), number)


def end_while_sending():
    """Send a fourth of the result, then end."""

    def send(connection, data):
        os.write(connection.fileno(), data[: len(data) // 4])
        end_by(signal.SIGKILL)

    Connection._send = send
    return b"x" * 1000


class FalseError(UserError):
    def __len__(self):
        return 0


def refuse_falsely():
    raise FalseError("no")


def refuse():
    raise UserError("params.yaml: no")


def test_results_have_the_order_of_the_calls(cores):
    cores(2)
    seconds = [0.3, 0.0, 0.1, 0.0, 0.0]
    results = forks.call_in_forks([lambda i=i, s=s: (time.sleep(s), i, os.getpid())[1:] for i, s in enumerate(seconds)])
    assert [number for number, _ in results] == list(range(5))
    assert len({process for _, process in results} - {os.getpid()}) == 5
    assert not multiprocessing.active_children()


def test_as_many_run_at_a_time_as_there_are_cores(cores, tmp_path):
    cores(2)

    def count(number):
        (tmp_path / str(number)).touch()
        time.sleep(0.3)
        running = len(list(tmp_path.iterdir()))
        (tmp_path / str(number)).unlink()
        return running

    assert max(forks.call_in_forks([partial(count, number) for number in range(5)])) == 2


def test_one_core_needs_no_fork(cores):
    cores(1)
    assert forks.call_in_forks([os.getpid, os.getpid]) == [os.getpid()] * 2


def test_an_error_is_raised_as_it_is(cores):
    cores(2)
    with pytest.raises(UserError) as caught:
        forks.call_in_forks([os.getpid, refuse, os.getpid])
    assert str(caught.value) == "params.yaml: no" and "in refuse" in caught.value.__notes__[0]


def test_a_killed_fork_is_an_error(cores):
    cores(2)
    with pytest.raises(RuntimeError, match="ended without a result"):
        forks.call_in_forks([os.getpid, partial(end_by, signal.SIGKILL)])


def test_a_fork_killed_while_it_sends_is_the_same_error(cores):
    cores(2)
    with pytest.raises(RuntimeError, match="ended without a result"):
        forks.call_in_forks([os.getpid, end_while_sending])


def test_an_error_that_is_false_is_raised(cores):
    cores(2)
    with pytest.raises(FalseError):
        forks.call_in_forks([os.getpid, refuse_falsely])


def test_forks_that_never_end_are_an_error(cores, monkeypatch):
    cores(2)
    monkeypatch.setattr(forks, "MOST_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match="no forked process has ended"):
        forks.call_in_forks([partial(time.sleep, 2)] * 2)


@pytest.mark.parametrize("seconds", [1, 3600])
def test_forks_of_a_killed_process_end(tmp_path, seconds):
    """They end though nobody reads the result, and though their call goes on."""
    code = (
        "import os, signal, time\n"
        "from stages.runtime import forks\n"
        "os.sched_getaffinity = lambda _: {0, 1}\n"
        f"def call(): open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w'); time.sleep({seconds}); return b'x' * 10**7\n"
        "forks.call_in_forks([call] * 4)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(is_running(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(process):
    try:
        return open(f"/proc/{process}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
