"""`python -m helpers.forked_torchrun` is torchrun, but its ranks are forks: a new Python needs 4 s to import PyTorch.

Agent, rendezvous, signals and reports are those of torchrun.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from typing import IO

from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.run import main

from helpers.rendezvous import leave_names_out


class ForkedRank:
    """A rank, with the attributes and methods of `subprocess.Popen` that torchrun uses."""

    def __init__(self, command: tuple[str, ...], env: dict[str, str], streams: dict[int, IO | None]):
        self.process = multiprocessing.get_context("fork").Process(target=run_rank, args=(command, env, streams))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("rank", timeout)
        return self.process.exitcode


def run_rank(command: tuple[str, ...], env: dict[str, str], streams: dict[int, IO | None]) -> None:
    """Do what a new Python does with a command, `PYTHON -u -m MODULE` or `PYTHON -u FILE`."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # torchrun handles them itself
        signal.signal(number, signal.SIG_DFL)
    for number, stream in streams.items():
        if stream:
            os.dup2(stream.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [word for word in command[1:] if word not in ("-u", "-m")]
    run = runpy.run_module if "-m" in command else runpy.run_path
    run(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    leave_names_out()
    SubprocessHandler._popen = lambda self, command, env: ForkedRank(command, env, {1: self._stdout, 2: self._stderr})
    main()
