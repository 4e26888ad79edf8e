"""Calls at the same time, each in a fork of this process."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends
MOST_SECONDS = 300.0  # for a call


def call_in_forks(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """Call functions that do not depend on one another, as many at a time as this process may use cores.

    For short calls that use neither the GPU nor threads. A fork has everything in its memory already, and ends after
    one call. `multiprocessing.Pool` and `concurrent.futures` would pickle the calls, wait forever for a process that
    the system has killed, or leave theirs behind if this one is killed.

    Returns:
        the results, in the order of the calls. They are pickled.

    Raises:
        Exception: the first that a call raises.
        RuntimeError: a fork ended without a result, or none ends. A lock that another thread held stays locked in them.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1  # macOS's libraries do not survive a fork
    if cores == 1:
        return [call() for call in calls]
    waiting = list(enumerate(calls))
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    results: dict[int, Result] = {}
    try:
        while waiting or running:
            while waiting and len(running) < cores:
                number, call = waiting.pop(0)
                receiver, process = _start(call)
                running[receiver] = number, process
            if not (ready := wait(list(running), timeout=MOST_SECONDS)):
                raise RuntimeError(f"no forked process has ended for {MOST_SECONDS:.0f} seconds")
            for receiver in cast(list[Connection], ready):
                number, process = running.pop(receiver)
                results[number] = _receive(receiver, process)
    finally:
        for receiver in running:
            receiver.close()
    return [results[number] for number in range(len(calls))]


def _start(call: Callable[[], object]) -> tuple[Connection, BaseProcess]:
    """Start a fork that makes a call. `_receive` gets its result."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call_and_send, args=(call, receiver, sender), daemon=True)
    process.start()
    sender.close()
    return receiver, process


def _call_and_send(call: Callable[[], object], receiver: Connection, sender: Connection) -> None:
    receiver.close()  # otherwise sending would never fail if the other process is killed
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # and a call that hangs would never end
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # otherwise Ctrl-C prints a traceback of each fork
    try:
        answer: tuple[object, Exception | None] = call(), None
    except Exception as error:
        error.add_note(traceback.format_exc())  # pickling drops the traceback
        answer = None, error
    with contextlib.suppress(BrokenPipeError):  # another call has failed, or the process was killed
        sender.send(answer)


def _receive(receiver: Connection, process: BaseProcess) -> Any:
    with receiver:
        try:
            result, error = receiver.recv()
        except (EOFError, OSError):  # it has sent nothing, or a part
            raise RuntimeError("a forked process ended without a result; is the memory full?") from None
        finally:
            process.join()
    if error is not None:  # an error may be false, as one with a length of 0
        raise error
    return result
