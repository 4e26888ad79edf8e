"""The packages of stages/: each imports only those below it, and no two files import each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.project import ROOT

# From top to bottom, as in README.
PACKAGES = ("report", "analysis", "training", "model", "kernels", "data", "sources", "runtime")
FILES = sorted(path.relative_to(ROOT) for top in ("stages", "tools") for path in (ROOT / top).rglob("*.py"))
ALLOWED = {  # package: packages that it may import
    "report": {"analysis", "data", "sources", "runtime"},
    "analysis": {"data"},
    "training": {"kernels", "data", "runtime"},
    "model": {"kernels", "data", "sources", "runtime"},
    "kernels": {"runtime"},
    "data": {"sources", "runtime"},
    "sources": {"runtime"},
    "runtime": set(),
}


def imports(file: Path) -> set[Path]:
    """Files of this project that a file imports, inside functions too."""
    modules = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {Path(f"{module.replace('.', '/')}.py") for module in modules} & set(FILES)


EVALUATION = Path("stages/evaluation.py")  # shared by two stages, above all packages


def level(file: Path) -> int:
    """0 for a stage or a tool, 1 for `evaluation`, else 2 and more: the position of its package from the top."""
    if file.parts[0] == "tools" or len(file.parts) == 2:
        return int(file == EVALUATION)
    return PACKAGES.index(file.parts[1]) + 2


def test_these_are_all_packages_of_stages():
    folders = {path.name for path in (ROOT / "stages").iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(PACKAGES)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_nothing_from_a_package_above_its_own(file):
    if file.name == "__init__.py":
        return
    upwards = {imported for imported in imports(file) if level(imported) < level(file)}
    assert upwards == set()


def test_no_stage_imports_a_stage():
    stages = {file for file in FILES if file.parts[0] == "stages" and level(file) == 0} - {Path("stages/__init__.py")}
    assert len(stages) == 6
    assert {file: imports(file) & stages for file in stages} == {file: set() for file in stages}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_allowed(package):
    imported = {other.parts[1] for file in FILES if file.parts[1] == package for other in imports(file)}
    assert imported - {package} <= ALLOWED[package]


def test_no_files_import_each_other_in_a_circle():
    order = list(TopologicalSorter({file: imports(file) for file in FILES}).static_order())  # a circle raises
    assert len(order) == len(FILES)


def test_readme_lists_the_packages_in_their_order():
    tree = (ROOT / "README.md").read_text()
    positions = [tree.index(f"\n  {package}/ ") for package in PACKAGES]
    assert positions == sorted(positions)
