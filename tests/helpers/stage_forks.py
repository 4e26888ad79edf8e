"""Run stages in folders, by forks of a process that has imported the large libraries already: that takes seconds.

Takes requests from its input, a line of JSON each: modules, folders, arguments, environment, and a log for what goes
wrong before a module's `main` begins. Answers each with a line, 0 where all was run. A request has a fork of its own,
which imports the modules once, since some libraries read the environment when they are imported. Each folder gets a
fork of that one, from the first line of `main` to its exit code, and FOLDER.result says what came of it.
"""

import gc
import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path

import bitsandbytes  # noqa: F401 -- to be there: it takes PyTorch and its compiler along
import pandas  # noqa: F401
import sklearn.metrics  # noqa: F401


def fork(function, *arguments) -> int:
    """Run a function in a fork -> its exit code, negative for a signal.

    The fork ends without taking its modules down, which would copy most of the memory that it shares.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)  # as Python itself does
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def redirect(path: Path, *numbers: int) -> None:
    """Let file descriptors write into a new file."""
    for number in numbers:
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)


def run_in_each(request: dict) -> None:
    """Run a request's stages in each of its folders."""
    redirect(request["log"], 1, 2)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv[1:] = request["arguments"]
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    if "LARGEST_FILE" in os.environ:  # stands for a full disk
        limit = int(os.environ["LARGEST_FILE"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    modules = [importlib.import_module(name) for name in request["modules"]]
    for folder in request["folders"]:
        code = fork(run, modules, folder)
        stdout, stderr = (Path(f"{folder}.{name}").read_text() for name in ("stdout", "stderr"))
        result = {"returncode": code, "stdout": stdout, "stderr": stderr}
        Path(f"{folder}.result").write_text(json.dumps(result))


def run(modules: list, folder: str) -> None:
    """Run stages in a folder, one after another."""
    from stages.runtime import errors

    for number, name in enumerate(("stdout", "stderr"), start=1):
        redirect(f"{folder}.{name}", number)
    os.chdir(folder)
    for module in modules:
        errors.run(module.main)


gc.freeze()  # the collector would write to all shared memory, and so copy it
for line in sys.stdin:
    print(fork(run_in_each, json.loads(line)), flush=True)
os._exit(0)
