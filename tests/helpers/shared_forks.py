"""One process of stage_forks.py for all workers of `pytest -n 3`, which are forks of it too.

Else each worker imports PyTorch and the other libraries, and starts two such processes, which import them again.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PLAIN, ALL, HUB_CACHE = "TEST_FORKS_PLAIN", "TEST_FORKS_ALL", "TEST_HUB_CACHE"  # variables for the workers
HELPERS = Path(__file__).parent


def offline_hub(cache: str) -> dict[str, str]:
    """The variables of a process that must not ask the hub."""
    return {"HF_HOME": cache, "HF_HUB_OFFLINE": "1"}


class SharedForks:
    """The process, which ends with this one or when `stop` is called.

    Attributes:
        python: the command line that starts a new Python, as a fork of the process.
    """

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        cache = Path(self.folder.name, "hub")
        (cache / "yaml").mkdir(parents=True)
        listeners = []
        for variable in (PLAIN, ALL):
            os.environ[variable] = str(Path(self.folder.name, variable))
            listeners.append(socket.socket(socket.AF_UNIX))
            listeners[-1].bind(os.environ[variable])
            listeners[-1].listen()
        os.environ[HUB_CACHE] = str(cache)
        numbers = [listener.fileno() for listener in listeners]
        arguments = ["shared", *map(str, numbers), json.dumps(offline_hub(str(cache)))]
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(HELPERS / "stage_forks.py"), *arguments],
            stdin=subprocess.PIPE, pass_fds=numbers,
        )  # fmt: skip
        for listener in listeners:
            listener.close()
        self.python = shlex.join([sys.executable, "-S", __file__])

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def connect(variable: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[variable])
    return connection


if __name__ == "__main__":  # as `python -u -c CODE`
    connection = connect(PLAIN)
    socket.send_fds(connection, [f"\n{sys.argv[-1]}\n".encode()], [0, 1, 2])
    connection.recv(1)  # until the fork ends
