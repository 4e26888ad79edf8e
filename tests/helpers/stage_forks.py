"""A process that has imported the large libraries and runs stages, tools and `dvc` in forks of itself.

In a new process the imports take 1 to 5 seconds, in a fork 0.1. The process reads requests from standard input, one
line of JSON each, and answers each with an exit code on standard output. There are two kinds of request:

- `modules`: import modules once in a fork. Then run their `main` in each of many folders, a fork for each folder.
- `module`: do what `python -m` does in one folder. If the module runs DVC, the stages that DVC starts are forks too.

The environment and the arguments come with the request. With BLANK_FIGURES in the environment, `analyze` draws no
pictures. Some libraries read HF_* variables while they are imported. For other values of these, `helpers.stages` starts
a second such process, which imports only the libraries in PLAIN.
"""

import gc
import importlib
import json
import os
import re
import resource
import runpy
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

PLAIN = [  # these read no HF_* variables
    "bitsandbytes", "pandas", "pyarrow.parquet", "pydantic.fields", "pydantic.functional_validators", "pydantic.main",
    "scipy.io", "sklearn.feature_extraction.text", "sklearn.linear_model", "sklearn.metrics", "yaml",
]  # fmt: skip
LIBRARIES = [
    *PLAIN, "transformers.trainer", "transformers.models.phi.modeling_phi", "peft.tuners.lora.bnb", "datasets",
    "huggingface_hub.hf_api", "matplotlib.pyplot", "scipy.stats", "dvc.cli.parser",
    "dvc.repo.experiments.queue.celery", "dvc.utils.hydra", "dulwich.porcelain", "git", "pygit2", "tabulate",
]  # fmt: skip
STAGE = re.compile(r"exec env DVC_PID=\$PPID python -m (stages\.\w+)")  # as dvc.yaml starts a stage


def fork(function: Callable[..., None], *arguments: object) -> int:
    """Run a function in a fork -> its exit code, negative for a signal.

    The fork ends without finalizing its modules, which would copy most of the shared memory.
    """
    child = start_fork(function, *arguments)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start_fork(function: Callable[..., None], *arguments: object) -> int:
    """Start a function in a fork -> its process number."""
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
    return child


def redirect(path: str, *numbers: int) -> None:
    """Let file descriptors write to a new file."""
    for number in numbers:
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)


def set_environment(request: dict[str, Any]) -> None:
    """Set environment and arguments, and the folders that Python imports from."""
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv[1:] = request["arguments"]
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if "LARGEST_FILE" in os.environ:  # as on a full disk
        limit = int(os.environ["LARGEST_FILE"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def skip_figures(modules: list[str]) -> None:
    """With BLANK_FIGURES in the environment, let a module that calls `analyze` draw no pictures.

    It imports `stages`, so sys.path must have the folder of the stages that run.
    """
    if "BLANK_FIGURES" not in os.environ:
        return
    sys.path.append(str(Path(__file__).parents[1]))
    if {"stages.analyze", "tools.evaluate"} & set(modules):
        from helpers.blank_figures import leave_figures_blank

        leave_figures_blank()
    elif "tools.sweep" in modules:
        from helpers.unsaved_figures import leave_figures_unsaved

        leave_figures_unsaved()


def run_in_each(request: dict[str, Any]) -> None:
    """Run the `main` of modules in each of a request's folders, and write each outcome to FOLDER.result."""
    redirect(request["log"], 1, 2)
    set_environment(request)
    modules = [importlib.import_module(name) for name in request["modules"]]
    skip_figures(request["modules"])
    for folder in request["folders"]:
        code = fork(run_mains, modules, folder)
        stdout, stderr = (Path(f"{folder}.{name}").read_text() for name in ("stdout", "stderr"))
        result = {"returncode": code, "stdout": stdout, "stderr": stderr}
        Path(f"{folder}.result").write_text(json.dumps(result))


def run_mains(modules: list, folder: str) -> None:
    """Run stages in a folder, one after another."""
    from stages.runtime import errors

    for number, name in enumerate(("stdout", "stderr"), start=1):
        redirect(f"{folder}.{name}", number)
    os.chdir(folder)
    for module in modules:
        errors.run(module.main)


def run_module(request: dict[str, Any]) -> None:
    """Do what `python -m MODULE ARGUMENTS` does in a folder."""
    set_environment(request)
    os.chdir(request["folder"])
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    skip_figures([request["module"]])
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def run_alone(request: dict[str, Any]) -> None:
    """`run_module` with its output in two files. The stages that DVC starts run in forks of this process.

    DVC is a fork itself, and requests its stages by a socket, so that a stage does not inherit DVC's state.
    """
    sys.stdin = open(request["stdin"])  # noqa: SIM115
    redirect(request["stdout"], 1)
    redirect(request["stderr"], 2)
    server_end, dvc_end = socket.socketpair()
    child = start_fork(run_with_stages, request, dvc_end, server_end)
    dvc_end.close()
    with server_end.makefile("rw") as dvc:
        for line in dvc:
            print(fork(run_module, json.loads(line)), file=dvc, flush=True)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def run_with_stages(request: dict[str, Any], server: socket.socket, other_end: socket.socket) -> None:
    """`run_module`. If the module runs DVC, the server at the socket's other end starts DVC's stages."""
    import dvc.stage.run
    from dvc.stage.exceptions import StageCmdFailedError

    other_end.close()
    run_in_shell = dvc.stage.run._run

    def run_command(executable: str | None, command: str, **options: Any) -> None:
        stage = STAGE.fullmatch(command)
        if not stage:
            run_in_shell(executable, command, **options)
        elif code := ask(server.makefile("rw"), stage[1], **options):
            raise StageCmdFailedError(command, code)

    dvc.stage.run._run = run_command
    run_module(request)


def ask(server: IO[str], module: str, cwd: str, env: dict[str, str], **_: object) -> int:
    """Have a stage run in a fork of the server -> its exit code."""
    sys.stdout.flush()
    env = {**env, "DVC_PID": str(os.getpid())}
    request = {"module": module, "folder": cwd, "env": env, "arguments": []}
    print(json.dumps(request), file=server, flush=True)
    return int(server.readline())


os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # stages/__init__.py sets it before the libraries are imported
for name in LIBRARIES if sys.argv[1] == "all" else PLAIN:
    importlib.import_module(name)
gc.freeze()  # the collector would write to all shared memory, and so copy it
for line in sys.stdin:
    request = json.loads(line)
    print(fork(run_alone if "module" in request else run_in_each, request), flush=True)
os._exit(0)
