"""How a stage starts and ends: it imports only what it uses, and ends immediately after its last output."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.imports import ALLOWED, SLOW
from helpers.project import ROOT
from helpers.stages import stage_env


def test_every_allowed_library_is_in_the_list_of_slow_ones():
    assert set().union(*ALLOWED.values()) <= SLOW


def test_bitsandbytes_is_imported_without_the_compiler_and_torch_compile_is_restored():
    code = """
import sys, torch
torch_compile = torch.compile
import stages.model
assert torch.compile is torch_compile
assert "torch._inductor.compile_fx" not in sys.modules
from bitsandbytes.backends.default import ops
assert ops._dequantize_4bit_compute.__name__ == "_dequantize_4bit_compute"
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=stage_env(), check=True)


MAIN = """
import atexit, gc, stages
assert gc.isenabled() == {collects}, "during the imports"
from stages.runtime import errors
class Cycle:
    def __del__(self): print("freed")
cycle = Cycle()
cycle.itself = cycle
def main():
    assert gc.isenabled() and gc.get_freeze_count() > 1000
    atexit.register(print, "registered")
    {body}
print("no line end", end="")
errors.run(main)
print("continued")
"""


def run_main(body, **env):
    collects = "DVC_STAGE" not in env
    code = MAIN.format(body=body, collects=collects)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=stage_env(**env), capture_output=True, text=True)


IN_DVC = {"DVC_STAGE": "one", "DVC_PID": str(os.getpid())}


def test_in_dvc_a_stage_exits_immediately_with_code_0():
    done = run_main("pass", **IN_DVC)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no line endregistered\n", "no object is freed, and all output is flushed"


def test_outside_dvc_the_program_continues_after_run():
    done = run_main("pass")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no line endcontinued\nregistered\nfreed\n"


@pytest.mark.parametrize("env", [{}, IN_DVC], ids=["by hand", "in dvc"])
@pytest.mark.parametrize(
    "body, code, last_line",
    [
        ("raise errors.UserError('what\\nto do')", 1, "error: what to do\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
    ids=["user's mistake", "a bug"],
)
def test_a_failed_stage_prints_why_and_exits_with_a_code(body, code, last_line, env):
    done = run_main(body, **env)
    assert done.returncode == code
    assert done.stderr.endswith(last_line)
    assert "continued" not in done.stdout and "registered" in done.stdout


@pytest.mark.parametrize("while_", ["it imports its libraries", "it runs"])
def test_in_dvc_ctrl_c_says_how_the_outs_come_back(while_):
    """Some libraries catch every exception while they are imported."""
    body = "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    print('caught')\n"
    if while_ == "it runs":
        done = run_main(body.replace("\n", "\n    "), **IN_DVC)
    else:
        command = [sys.executable, "-c", f"import stages\n{body}"]
        done = subprocess.run(command, cwd=ROOT, env=stage_env(**IN_DVC), capture_output=True, text=True)
    assert done.returncode == 130 and "caught" not in done.stdout
    assert done.stderr == "interrupted; `dvc checkout` restores the last outs\n"


def test_settings_of_accelerate_launch_do_not_change_the_training():
    """`accelerate launch` sets a precision in the environment, which the Trainer would use."""
    code = "import stages, os; from accelerate import Accelerator; print(Accelerator(cpu=True).mixed_precision)"
    env = stage_env(ACCELERATE_MIXED_PRECISION="bf16")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == "no\n", done.stderr


@pytest.mark.parametrize("tool", ["predict", "evaluate"])
def test_the_help_of_a_tool_that_loads_a_model_imports_no_slow_library_but_pandas(tool):
    code = f"import runpy, sys; sys.argv = ['', '--help']; runpy.run_module('tools.{tool}', run_name='__main__')"
    code = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=stage_env(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m tools.{tool} ")
    assert SLOW & set(done.stderr.split()) <= {"pandas"}


@pytest.mark.parametrize(
    ("command", "printed"), [(["-m", "tools.probe"], "False\nTrue\n"), (["-c", "import tools.probe"], "True\nTrue\n")]
)
def test_only_a_tools_command_collects_no_garbage_during_its_imports(tmp_path, command, printed):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/__init__.py", tmp_path / "tools")
    (tmp_path / "tools/probe.py").write_text(
        "import gc\nfrom stages.runtime import errors\n"
        "print(gc.isenabled())\nerrors.run(lambda: print(gc.isenabled()))\n"
    )
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=stage_env(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (printed, "")
