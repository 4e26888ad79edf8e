"""pyproject.toml declares every package that the code imports. requirements.txt pins them. The wheel has all files."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions

import pytest
import yaml
from helpers.project import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stages.training.live_curves import LOGGERS

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DEPENDENCIES = [Requirement(line) for line in PROJECT["dependencies"]]
DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
REQUIREMENTS = (ROOT / "requirements.txt").read_text()
CODE = [path for top in ("stages", "tools") for path in sorted((ROOT / top).rglob("*.py"))]


def pinned(lines):
    """{package: Requirement} of lines of requirements.txt."""
    pins = [Requirement(line.partition("  #")[0]) for line in lines.splitlines() if line and line[0] != "#"]
    return {canonicalize_name(pin.name): pin for pin in pins}


def imported_packages(path):
    """Top-level packages that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_every_imported_package_is_declared():
    names = (
        {name for path in CODE for name in imported_packages(path)} - set(sys.stdlib_module_names) - {"stages", "tools"}
    )
    assert "torch" in names
    packages = packages_distributions()
    packages.setdefault("triton", ["triton"])  # installed only on Linux
    declared = {canonicalize_name(requirement.name) for requirement in DEPENDENCIES}
    names -= LOGGERS.keys()  # the user installs the one of train.report_to
    missing = {n for n in names if not {canonicalize_name(p) for p in packages.get(n, [])} & declared}
    assert not missing


def test_requirements_txt_pins_the_declared_packages_within_their_ranges():
    first, _, rest = REQUIREMENTS.partition("\n# What those need (`pip freeze`, less the above):")
    pins = pinned(first)
    assert pins.keys() == {canonicalize_name(requirement.name) for requirement in (*DEPENDENCIES, *DEV)}
    for requirement in (*DEPENDENCIES, *DEV):
        pin = pins[canonicalize_name(requirement.name)]
        version = re.fullmatch(r"(?:==|>=)(.+)", str(pin.specifier))[1]
        assert requirement.specifier.contains(version), requirement
    assert not pins.keys() & pinned(rest).keys()
    unpinned = [name for name, pin in {**pins, **pinned(rest)}.items() if not str(pin.specifier).startswith("==")]
    assert unpinned == ["triton"]


def test_the_package_includes_the_files_that_are_not_python():
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    packaged = {
        path for name, globs in data.items() for glob in globs for path in (ROOT / name.replace(".", "/")).glob(glob)
    }
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "stages", "tools"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert packaged == {ROOT / name for name in listed if not name.endswith(".py") and (ROOT / name).exists()}
    assert packaged


def test_each_folder_of_code_is_a_package():
    assert all((folder / "__init__.py").is_file() for folder in {path.parent for path in CODE})


def test_pre_commit_runs_the_pinned_linter():
    repo, local = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"].endswith("/ruff-pre-commit")
    assert f"ruff=={repo['rev'].removeprefix('v')} " in REQUIREMENTS
    assert [hook["entry"] for hook in local["hooks"]] == [".venv/bin/mypy"], "the pinned one of `make setup`"


def test_a_copy_of_the_repository_runs_the_copys_code(tmp_path):
    """`make setup` installs this checkout. A copy, as from `dvc exp run --temp`, must run the code in the copy."""
    urls = [installed.read_text("direct_url.json") for installed in distributions(name=PROJECT["name"])]
    origins = [json.loads(url) for url in urls if url]  # the metadata in the checkout itself has no such file
    if not origins:
        pytest.skip("the project is not installed in place: run `make setup`")
    assert origins[0]["dir_info"]["editable"]
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").touch()
    (tmp_path / "stages/download.py").write_text("print(__file__)\n")
    done = subprocess.run(
        [sys.executable, "-m", "stages.download"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path}/stages/download.py\n"
