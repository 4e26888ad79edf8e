"""How a stage starts: it imports what it uses and no more."""

import subprocess
import sys

import pytest
from helpers.imports import ALLOWED, SLOW, too_many
from helpers.project import ROOT
from helpers.stages import stage_env

from stages.runtime import late_compile


@pytest.mark.parametrize("stage", ALLOWED)
def test_a_stage_imports_no_slow_library_that_it_does_not_use(stage):
    code = f"import sys, stages.{stage}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=stage_env(), capture_output=True, text=True, check=True
    )
    assert too_many(stage, done.stdout.split()) == set()


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
