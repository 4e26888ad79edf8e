"""Run stages and tools, in new processes or in forks; check what a failed one printed and wrote."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from helpers import shared_forks
from helpers.project import ROOT

_hub_cache = tempfile.TemporaryDirectory()  # the folder is removed with this object
NO_HUB = shared_forks.offline_hub(os.environ.get(shared_forks.HUB_CACHE, _hub_cache.name))


def stage_env(**changes: str) -> dict[str, str]:
    """Environment of a stage's process: no network, unless a test changes HF_HUB_OFFLINE."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **NO_HUB, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **changes}


def run_stage(stage: str, folder: Path, **env: str) -> subprocess.CompletedProcess:
    """Run one stage in a new process, in a folder that holds a params.yaml."""
    return subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=stage_env(**env), capture_output=True, text=True
    )


@functools.cache
def _forks(hash_seed: str, libraries: str) -> subprocess.Popen | SimpleNamespace:
    """A process of stage_forks.py, which ends with this process.

    Args:
        libraries: those that it imports first: "all", or "plain", which read no HF_* variables.
    """
    variable = shared_forks.ALL if libraries == "all" else shared_forks.PLAIN
    if hash_seed == "random" and variable in os.environ:
        connection = shared_forks.connect(variable)
        connection.send(b"\n")
        lines = connection.makefile("rw")
        return SimpleNamespace(stdin=lines, stdout=lines, kill=lambda: connection.shutdown(socket.SHUT_RDWR))
    forks = Path(__file__).with_name("stage_forks.py")
    command = [sys.executable, "-P", str(forks), libraries]  # -P: tests/helpers has a stages.py too
    env = stage_env(PYTHONHASHSEED=hash_seed)
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(request: dict, env: dict[str, str]) -> int:
    """Send a request to a process of stage_forks.py -> its answer, the exit code of the fork that served it.

    Args:
        env: the fork's environment. It decides which process is asked.
    """
    no_hub = all(env.get(name) == NO_HUB.get(name) for name in {*env, *NO_HUB} if name.startswith("HF_"))
    key = env.get("PYTHONHASHSEED", "random"), "all" if no_hub else "plain"
    forks = _forks(*key)
    try:
        print(json.dumps(request), file=forks.stdin, flush=True)
        return int(forks.stdout.readline())
    except BaseException:  # the test timed out: the next test would read this answer
        forks.kill()
        _forks.cache_clear()
        raise


def run_stage_in_each(stage: str, folders: Iterable[Path], **env: str) -> dict[str, SimpleNamespace]:
    """`run_in_each` for one stage, or for several (`download,tokenize`)."""
    return run_in_each([f"stages.{name}" for name in stage.split(",")], folders, **env)


def run_in_each(
    modules: Iterable[str], folders: Iterable[Path], arguments: Iterable[object] = (), **env: str
) -> dict[str, SimpleNamespace]:
    """Run the `main` of modules in each of many folders, one after another; each folder gets a fork.

    Args:
        modules: as `python -m` names them.
        arguments: of the command line.

    Returns:
        {folder's name: namespace with returncode, stdout, stderr}
    """
    request = {"modules": list(modules), "folders": list(map(str, folders)), "arguments": list(map(str, arguments))}
    with tempfile.NamedTemporaryFile("w+") as log:
        environment = stage_env(**env)
        code = _ask(request | {"env": environment, "log": log.name}, environment)
        assert code == 0, Path(log.name).read_text()
    return {
        Path(folder).name: SimpleNamespace(**json.loads(Path(f"{folder}.result").read_text()))
        for folder in request["folders"]
    }


def run_module(
    module: str, arguments: Iterable[object], folder: Path, env: dict[str, str], stdin: str = ""
) -> subprocess.CompletedProcess:
    """Do what `python -m MODULE ARGUMENTS` does in a folder, but in a fork. Stages that DVC starts are forks too."""
    request = {"module": module, "arguments": list(map(str, arguments)), "folder": str(folder), "env": env}
    with tempfile.TemporaryDirectory() as name:
        streams = {stream: Path(name, stream) for stream in ("stdin", "stdout", "stderr")}
        streams["stdin"].write_text(stdin)
        code = _ask(request | {stream: str(path) for stream, path in streams.items()}, env)
        stdout, stderr = (streams[stream].read_text() for stream in ("stdout", "stderr"))
    return subprocess.CompletedProcess([module, *request["arguments"]], code, stdout, stderr)


class StartedModule:
    """A module that runs in a fork while the test goes on, with attributes and methods of `subprocess.Popen`.

    Args:
        module: as `python -m` names it. `dvc` gets a session of its own, and its stages are forks in it.
        stdin: a file, or `subprocess.PIPE`.
        stdout, stderr: `subprocess.PIPE`, or a file.
    """

    def __init__(
        self, module: str, arguments: Iterable[object], folder: Path, env: dict[str, str], *,
        stdin: str | Path | int = os.devnull, stdout: str | Path | int = os.devnull,
        stderr: str | Path | int = os.devnull,
    ):  # fmt: skip
        self.returncode, self._env = None, env
        paths, ends = {}, []
        for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
            setattr(self, name, None)
            paths[name] = str(stream)
            if stream == subprocess.PIPE:
                own, other = reversed(os.pipe()) if name == "stdin" else os.pipe()
                setattr(self, name, open(own, "w" if name == "stdin" else "r"))  # noqa: SIM115
                paths[name] = f"/proc/{os.getpid()}/fd/{other}"
                ends.append(other)
        request = {"start": True, "module": module, "arguments": list(map(str, arguments)), "folder": str(folder)}
        self.pid = _ask(request | {"env": env} | paths, env)
        for end in ends:  # the fork has opened it
            os.close(end)

    def poll(self) -> int | None:
        """The exit code, or None while the module runs."""
        from stages.runtime.processes import is_running  # not at the start: helpers/processes.py imports this file

        return None if self.returncode is None and is_running(self.pid) else self.wait()

    def wait(self, timeout: float = 0) -> int:
        """Wait for the end -> the exit code. `timeout`: seconds until an error; 0: none."""
        deadline = time.monotonic() + timeout
        while timeout and self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        if self.returncode is None:
            self.returncode = _ask({"wait": self.pid}, self._env)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self.wait()


def error_line(outcome: subprocess.CompletedProcess | SimpleNamespace) -> str:
    """The error line of a stage that failed with exactly one, and with no traceback."""
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr, outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome.stderr
    return lines[0]


def assert_refused(outcome: SimpleNamespace, phrases: Iterable[str]) -> None:
    """A stage failed with one line that contains all phrases, and wrote nothing."""
    line = error_line(outcome)
    assert all(phrase in line for phrase in phrases), line
    assert outcome.written == []


def written(folder: Path) -> list[str]:
    """Files in a stage's folder, without params.yaml."""
    return sorted(
        str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and p.name != "params.yaml"
    )
