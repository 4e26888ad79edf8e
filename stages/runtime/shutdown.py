"""Graceful shutdown: on SIGTERM, Ctrl-C or the end of `dvc`, a training saves a checkpoint before its process ends.

Slurm and spot instances send SIGTERM some seconds before they kill. A thread reads the signals. Python's own handlers
wait until the main thread returns from its current call, and loading a model or waiting for another rank takes longer.

The Trainer's `enable_jit_checkpoint` is not used, for four reasons. Each rank decides by itself, so ranks would save
different steps. It first waits 3 seconds. It calls no `on_save`, which marks a checkpoint as whole. After it, the
Trainer validates before it ends.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

from stages.runtime import distributed

GRACE_SECONDS = 25.0  # torchrun kills its ranks 30 s after it has passed on SIGTERM
REPEAT_SECONDS = 2.0  # Slurm signals torchrun and its ranks, and torchrun passes the signal on: they get it twice
PRINT_SECONDS = 2.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Request = tuple[str, int]  # why a process has to end, and its exit code


@dataclass
class _Shutdown:
    """State of a process that shuts down gracefully.

    Attributes:
        stage: its name.
        describe_next_run: returns what the next run will do, for the line that the process ends with.
        request: (reason, exit code) with which the process has to end; None: nothing has asked for it.
        deferred: whether the main thread ends the process itself as soon as it can.
        ending: held by the thread that ends the process.
    """

    stage: str
    describe_next_run: Callable[[], str]
    request: Request | None = None
    deferred: bool = False
    ending: threading.Lock = field(default_factory=threading.Lock)


_shutdown: _Shutdown | None = None


@contextmanager
def graceful(stage: str, describe_next_run: Callable[[], str]) -> Iterator[None]:
    """Within this block SIGTERM and Ctrl-C end the process with one line, and with exit code 128 + the signal.

    The process ends immediately, or as soon as it can after `defer`. A second signal always ends it immediately.
    Outside the main thread, Python allows no signal handlers, and the block changes nothing.

    Args:
        describe_next_run: returns what the next run will do.
    """
    global _shutdown
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _shutdown = _Shutdown(stage, describe_next_run)
    threading.Thread(target=_read_signals, args=[reader], daemon=True).start()
    try:
        yield
    finally:
        _shutdown = None
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()  # ends the thread


def _read_signals(reader: socket.socket) -> None:
    first = None
    while received := reader.recv(1):
        number = received[0]  # of any signal that has a handler in Python
        if number not in SIGNALS:
            continue
        if first is None:
            first = time.monotonic()
            arguments = (signal.Signals(number).name, 128 + number)
            threading.Thread(target=request, args=arguments, daemon=True).start()
        elif time.monotonic() > first + REPEAT_SECONDS:
            os._exit(128 + number)
    reader.close()


def request(reason: str, exit_code: int) -> None:
    """End the process, or after `defer` wait until it ends itself, but not longer than GRACE_SECONDS.

    Outside a `graceful` block this returns immediately. The main thread must not call it.
    """
    if not _shutdown:
        return
    _shutdown.request = (reason, exit_code)
    deadline = time.monotonic() + GRACE_SECONDS
    while _shutdown and _shutdown.deferred and time.monotonic() < deadline:
        time.sleep(0.05)
    if _shutdown:
        end(reason, exit_code)


def describe_next_run_by(describe_next_run: Callable[[], str]) -> None:
    """From here on the last line says what this returns, instead of what was given to `graceful`."""
    if _shutdown:
        _shutdown.describe_next_run = describe_next_run


def requested() -> Request | None:
    """What has asked this process to end, a signal or the end of `dvc`; or None."""
    return _shutdown.request if _shutdown else None


def defer() -> None:
    """From here on the main thread ends the process itself: it asks for `requested`, saves and calls `end`."""
    if _shutdown:
        _shutdown.deferred = True


def stop_deferring() -> None:
    """From here on a signal ends the process immediately. End it now if a signal has come."""
    if _shutdown:
        _shutdown.deferred = False
        if _shutdown.request:
            end(*_shutdown.request)


def end(reason: str, exit_code: int) -> NoReturn:
    """End the process. Rank 0 prints why, and what the next run will do."""
    assert _shutdown
    _shutdown.ending.acquire()  # never released: two threads may come here
    if distributed.is_main():
        # In a thread: a pipe that nobody reads blocks, and the thread that ends the process must not wait or fail.
        printing = threading.Thread(target=_print_last_line, args=[_shutdown, reason], daemon=True)
        printing.start()
        printing.join(PRINT_SECONDS)
    else:
        time.sleep(1)  # a launcher ends all ranks when one has ended, and rank 0 has to print first
    os._exit(exit_code)


def _print_last_line(ended: _Shutdown, reason: str) -> None:
    with suppress(Exception):  # `dvc`, the terminal or the checkpoints may be gone
        line = f"{ended.stage}: {reason}: {ended.describe_next_run()}"
        sys.stdout.flush()
        print("\n" * sys.stderr.isatty() + line, file=sys.stderr, flush=True)  # on a terminal after its bar
