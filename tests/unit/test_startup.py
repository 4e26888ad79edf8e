"""How a stage starts and ends: it imports what it uses and no more, and leaves at once when all is written."""

import os
import subprocess
import sys

import pytest
from helpers.imports import ALLOWED, SLOW
from helpers.project import ROOT
from helpers.stages import stage_env

from stages.runtime import late_compile


def test_what_is_allowed_is_among_what_is_watched():
    assert set().union(*ALLOWED.values()) <= SLOW


def test_compiling_late_is_compiling_at_the_first_call(monkeypatch):
    calls = []

    def compile_now(function, **options):
        calls.append(options)
        return lambda *arguments: ("compiled", function(*arguments))

    monkeypatch.setattr(late_compile, "_compile", compile_now)

    @late_compile.compile_late
    def plain(x):
        """Doubles."""
        return 2 * x

    @late_compile.compile_late(dynamic=False)
    def with_options(x):
        return 3 * x

    assert not calls
    assert (plain(1), plain(2), plain.__doc__) == (("compiled", 2), ("compiled", 4), "Doubles.")
    assert calls == [{}], "compiled once"
    assert with_options(1) == ("compiled", 3)
    assert calls == [{}, {"dynamic": False}]


def test_torch_compile_is_its_own_again_afterwards():
    code = "import torch; before = torch.compile; import stages.model; assert torch.compile is before"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=stage_env(), check=True)


MAIN = """
import atexit, gc, stages
assert gc.isenabled() == {collects}, "while the imports run"
from stages.runtime import errors
class BaseCache:
    def __del__(self): print("taken down")
kept = BaseCache()
kept.itself = kept
def main():
    assert gc.isenabled() and gc.get_freeze_count() > 1000
    atexit.register(print, "registered")
    {body}
print("no line end", end="")
errors.run(main)
print("went on")
"""


def run_main(body, **env):
    collects = "DVC_STAGE" not in env
    code = MAIN.format(body=body, collects=collects)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=stage_env(**env), capture_output=True, text=True)


def test_in_dvc_a_stage_ends_at_once_and_well():
    done = run_main("pass", DVC_STAGE="one", DVC_PID=str(os.getpid()))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no line endregistered\n", "nothing is taken down, all that was printed is there"


def test_elsewhere_the_program_goes_on():
    done = run_main("pass")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no line endwent on\nregistered\ntaken down\n"


@pytest.mark.parametrize("env", [{}, {"DVC_STAGE": "one", "DVC_PID": str(os.getpid())}], ids=["alone", "in dvc"])
@pytest.mark.parametrize(
    "body, code, said",
    [
        ("raise errors.UserError('what\\nto do')", 1, "error: what to do\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
    ids=["user's mistake", "Ctrl-C", "a bug"],
)
def test_a_stage_that_fails_says_so(body, code, said, env):
    done = run_main(body, **env)
    assert done.returncode == code
    assert done.stderr.endswith(said) and bool(done.stderr) == bool(said)
    assert "went on" not in done.stdout and "registered" in done.stdout


def test_what_accelerate_left_in_the_environment_changes_no_training():
    """`accelerate launch` sets a precision of its own, which the Trainer would take."""
    code = "import stages, os; from accelerate import Accelerator; print(Accelerator(cpu=True).mixed_precision)"
    env = stage_env(ACCELERATE_MIXED_PRECISION="bf16")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == "no\n", done.stderr
