"""A process that has imported the large libraries and runs stages, tools and `dvc` in forks of itself.

In a new process the imports take 1 to 5 seconds, in a fork 0.1. The process reads requests from standard input, one
line of JSON each, and answers each with an exit code on standard output. There are four kinds of request:

- `modules`: import modules once in a fork. Then run their `main` in each of many folders, a fork for each folder.
- `module`: do what `python -m` does in one folder. If the module runs DVC, the stages that DVC starts are forks too.
- `start`: the same, but the answer is the fork's process number, and comes immediately. DVC gets a session of its own.
- `wait`: wait for a process of `start`.

The process parses and compiles the project's files once too. A fork does so only with files that a test has edited.
DVC parses each YAML text once: the forks share the results in a folder.

The environment and the arguments come with the request. With BLANK_FIGURES in the environment, `analyze` draws no
pictures. Some libraries read HF_* variables while they are imported. For other values of these, `helpers.stages` asks
a second such process, which imports only the libraries in PLAIN.

With `pytest -n 3`, helpers/shared_forks.py starts one process for all workers, which is `plain`. A fork of it imports
the other libraries too. Each of the two serves each worker in a fork of its own. The workers are forks of the first.
"""

import ast
import contextlib
import gc
import hashlib
import importlib
import json
import marshal
import os
import pickle
import re
import resource
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import types
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import IO, Any

PLAIN = [  # these read no HF_* variables
    "bitsandbytes", "pandas", "pyarrow.parquet", "pydantic.fields", "pydantic.functional_validators", "pydantic.main",
    "scipy.io", "sklearn.feature_extraction.text", "sklearn.linear_model", "sklearn.metrics", "yaml",
]  # fmt: skip
OF_THE_HUB = [
    "transformers.trainer", "transformers.models.phi.modeling_phi", "peft.tuners.lora.bnb", "datasets",
    "huggingface_hub.hf_api",
]  # fmt: skip
OTHERS = [  # these read none either, but few stages need all of them
    "matplotlib.pyplot", "scipy.stats", "dvc.cli.parser",
    "dvc.repo.artifacts", "dvc.repo.datasets", "dvc.repo.experiments.queue.celery", "dvc.repo.experiments.show",
    "dvc.repo.index", "dvc.repo.open_repo", "dvc.repo.plots", "dvc.utils.hydra", "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.local", "dulwich.porcelain", "dulwich.worktree", "git", "pygit2", "tabulate",
]  # fmt: skip
STAGE = re.compile(r"exec env DVC_PID=\$PPID python -m (stages\.\w+)")  # as dvc.yaml starts a stage


def remember_code() -> Callable[[], None]:
    """Parse and compile the files of stages/ and tools/, so that no fork repeats it for a file with the same bytes.

    A clone has the same files under other names. Each fork would need 0.3 s for those of a stage, and `train_qlora`
    another 0.3 s to parse the files that it hashes.

    Returns:
        function that lets this process use the results
    """
    root, trees, codes = Path(__file__).parents[2], dict[bytes, ast.Module](), dict[bytes, bytes]()
    for path in (*root.glob("stages/**/*.py"), *root.glob("tools/**/*.py")):
        source = path.read_bytes()
        trees[source] = ast.parse(source)
        codes[source] = marshal.dumps(compile(source, path, "exec", dont_inherit=True))
    parse, source_to_code = ast.parse, SourceFileLoader.source_to_code

    def parse_new(source: Any, *arguments: Any, **options: Any) -> ast.AST:
        if isinstance(source, bytes) and source in trees and not (arguments or options):
            return trees[source]
        return parse(source, *arguments, **options)

    def compile_new(self: SourceFileLoader, data: Any, path: str, **options: Any) -> CodeType:
        code = codes.get(data) if isinstance(data, bytes) else None
        return rename(marshal.loads(code), path) if code else source_to_code(self, data, path, **options)

    def use() -> None:
        ast.parse, SourceFileLoader.source_to_code = parse_new, compile_new

    return use


def rename(code: CodeType, path: str) -> CodeType:
    """The code with another name of its file."""
    constants = tuple(rename(each, path) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.replace(co_filename=path, co_consts=constants)


def remember_yaml(folder: Path) -> None:
    """Let DVC parse each YAML text once in all forks. It parses params.yaml once a stage, which takes 0.05 s each."""
    from ruamel.yaml import YAML

    load = YAML.load

    def load_new(self: YAML, stream: Any) -> Any:
        if self.typ != ["safe"] or not isinstance(stream, str):
            return load(self, stream)
        path = folder / hashlib.sha256(stream.encode()).hexdigest()
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_bytes(pickle.dumps(load(self, stream)))
            partial.rename(path)
        return pickle.loads(path.read_bytes())

    YAML.load = load_new


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
            os._exit(code if flush(sys.stdout) and flush(sys.stderr) else 120)  # as Python itself does
    return child


def flush(stream: IO[str]) -> bool:
    """Flush a stream, or report that it is closed -> whether it was open."""
    try:
        stream.flush()
        return True
    except OSError as error:
        os.write(2, f"Exception ignored: {error!r}\n".encode())
        return False


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
        from helpers.later_figures import leave_figures_blank_later

        leave_figures_blank_later()


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
    if "STEP_LOG" in os.environ:  # a test that kills stages at chosen moments: helpers/recorder is in sys.path
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
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
    serve_stages(server_end, dvc_end)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def serve_stages(server: socket.socket, dvc_end: socket.socket) -> None:
    """Run each stage that DVC requests in a fork, and answer with its exit code, until DVC ends."""
    dvc_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError), server.makefile("rw") as dvc:
        for line in dvc:
            print(fork(run_stage, json.loads(line)), file=dvc, flush=True)


def run_stage(request: dict[str, Any]) -> None:
    """`run_module` in a process with the stage's name, which `ps` shows."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Path("/proc/self/comm").write_text(request["module"].rpartition(".")[2])
    run_module(request)


def start(request: dict[str, Any]) -> int:
    """Start `run_on_streams` in a fork -> its process number. The streams are open when this function returns."""
    streams = [os.open(request["stdin"], os.O_RDONLY)]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND  # both may be the same file
    streams += [os.open(request[name], flags) for name in ("stdout", "stderr")]
    child = start_fork(run_on_streams, request, streams)
    for stream in streams:
        os.close(stream)
    return child


def run_on_streams(request: dict[str, Any], streams: list[int]) -> None:
    """`run_module` with other standard streams, which are buffered as those of a new Python."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    lines = 1 if "PYTHONUNBUFFERED" in request["env"] else -1
    sys.stdin, sys.stdout = open(0), open(1, "w", buffering=lines)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    if request["module"] != "dvc":
        run_module(request)
        return
    os.setsid()
    server_end, dvc_end = socket.socketpair()
    start_fork(serve_stages, server_end, dvc_end)
    run_with_stages(request, dvc_end, server_end)


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
    """Have a stage run in a fork of the server -> its exit code. Meanwhile DVC ignores Ctrl-C."""
    sys.stdout.flush()
    env = {**env, "DVC_PID": str(os.getpid())}
    request = {"module": module, "folder": cwd, "env": env, "arguments": []}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        print(json.dumps(request), file=server, flush=True)
        return int(server.readline())
    finally:
        signal.signal(signal.SIGINT, handler)


def answer(request: dict[str, Any]) -> int:
    """Do what a request asks for -> the exit code, or the process number."""
    if "wait" in request:
        return os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
    if "start" in request:
        return start(request)
    return fork(run_alone if "module" in request else run_in_each, request)


def import_all(libraries: list[str]) -> None:
    """Import libraries. The collector would write to all shared memory, and so copy it: the objects are exempt."""
    gc.disable()
    for name in libraries:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()


def accept_in_forks(listener: socket.socket) -> socket.socket:
    """Start a fork for each process that connects -> the connection, in the fork.

    This process ends with the one that started it, which has the other end of standard input.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return connection
        connection.close()
    os._exit(0)


def become_python(streams: list[int], environment: dict[str, str], code: str) -> None:
    """Do what `python -c CODE` does with other standard streams, until that code ends."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    exec(code, vars(sys.modules["__main__"]))
    sys.exit()


def serve_all(plain: socket.socket, everything: socket.socket, hub: dict[str, str]) -> None:
    """Serve processes that connect to one of two sockets. It returns in forks, which serve one process each.

    Args:
        plain: whoever connects here is served by a process with the libraries that read no HF_* variables.
        everything: by a process with all libraries.
        hub: the HF_* variables of the latter.
    """
    global requests, answers
    environment = dict(os.environ)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else forks could not use CUDA
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    import_all(PLAIN + OTHERS)
    use_code = remember_code()
    has_all = os.fork() == 0
    if has_all:
        os.environ.update(hub)
        import_all(OF_THE_HUB)
    connection = accept_in_forks(everything if has_all else plain)
    lines = connection.makefile("rw")
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)  # the first byte
    if streams:
        become_python(streams, environment, lines.readline())
    sys.dont_write_bytecode = True  # as `stage_env` lets other processes do
    use_code()
    if has_all:
        remember_yaml(Path(hub["HF_HOME"]) / "yaml")
    requests = answers = lines


requests, answers, own_folder = sys.stdin, sys.stdout, None
os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # stages/__init__.py sets it before the libraries are imported
if sys.argv[1] == "shared":
    serve_all(*(socket.socket(fileno=int(number)) for number in sys.argv[2:4]), json.loads(sys.argv[4]))
else:
    import_all(PLAIN if sys.argv[1] == "plain" else PLAIN + OF_THE_HUB + OTHERS)
    remember_code()()
    if sys.argv[1] == "all":
        own_folder = tempfile.mkdtemp()  # each stage that runs exit handlers would remove a TemporaryDirectory
        remember_yaml(Path(own_folder))
for line in requests:
    print(answer(json.loads(line)), file=answers, flush=True)
if own_folder:
    shutil.rmtree(own_folder)
os._exit(0)
