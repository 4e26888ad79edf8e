"""`make setup` checks the Python version before it installs anything. CI and documents name the same versions."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from helpers.project import ROOT

RANGE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
LOW, HIGH = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", RANGE).groups())
# Pretends to be Python of another version: it runs `-c` code, and logs any other arguments.
OTHER_PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then
  exec {python} -c 'import sys; sys.version_info = ({version}, 0, "final", 0); exec(sys.argv[2])' "$@"
fi
echo "$@" >> arguments
exit 1
"""


def setup_with(folder, version):
    """Run `make setup` in a new folder with a Python of this version -> (stderr, the Python's arguments or None)."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    python = folder / "other-python"
    python.write_text(OTHER_PYTHON.format(python=sys.executable, version=version.replace(".", ", ")))
    python.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test` runs this
    done = subprocess.run(["make", "setup", f"PYTHON={python}"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    arguments = folder / "arguments"
    return done.stderr, arguments.read_text() if arguments.exists() else None


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("version", ["2.7", f"3.{LOW - 1}", f"3.{HIGH}"])
def test_a_python_outside_the_range_is_rejected_in_one_line_before_anything_is_installed(tmp_path, version):
    stderr, arguments = setup_with(tmp_path, version)
    assert arguments is None
    line, make_line = stderr.splitlines()
    allowed = f"3.{LOW} to 3.{HIGH - 1}"
    assert line == f"error: Python {version}; allowed: {allowed}; for example: make setup PYTHON=python3.{LOW}"
    assert make_line.startswith("make: ")


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("version", [f"3.{LOW}", f"3.{HIGH - 1}"])
def test_a_python_in_the_range_creates_the_environment(tmp_path, version):
    assert setup_with(tmp_path, version)[1] == "-m venv .venv\n"


def test_ci_runs_each_python_in_the_range():
    matrix = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["check"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(LOW, HIGH)]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_the_range(document):
    assert f"Python 3.{LOW} to 3.{HIGH - 1}" in " ".join((ROOT / document).read_text().split())


def test_python_3_14_is_allowed():
    """Ubuntu 26.04 has it."""
    assert LOW <= 14 < HIGH
