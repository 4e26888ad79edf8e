"""The rooms of stages/: an import runs downwards, in no circle, and only a stage or a tool starts anything."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.project import ROOT

# From the top; README lists them in this order.
ROOMS = ("report", "analysis", "training", "model", "kernels", "data", "sources", "runtime")
FILES = sorted(path.relative_to(ROOT) for top in ("stages", "tools") for path in (ROOT / top).rglob("*.py"))


def imports(file: Path) -> set[Path]:
    """Files of this project that a file names in its imports, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {Path(f"{name.replace('.', '/')}.py") for name in names}
    return found & set(FILES)


KNOWS = {  # the rooms below that a room may import
    "report": {"analysis", "data", "sources", "runtime"},
    "analysis": {"data"},
    "training": {"kernels", "data", "runtime"},
    "model": {"kernels", "data", "sources", "runtime"},
    "kernels": {"runtime"},
    "data": {"sources", "runtime"},
    "sources": {"runtime"},
    "runtime": set(),
}


EVALUATION = Path("stages/evaluation.py")  # shared by two stages, above all packages


def floor(file: Path) -> int:
    """0 for a stage or a tool, 1 for `evaluation`, else 2 and more in the order of the packages."""
    return ROOMS.index(file.parts[1]) + 2 if len(file.parts) > 2 else int(file == EVALUATION)


def test_the_rooms_are_these():
    assert {path.name for path in (ROOT / "stages").iterdir() if (path / "__init__.py").is_file()} == set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_an_import_runs_downwards(file):
    if file.name == "__init__.py":
        return
    upwards = {other for other in imports(file) if floor(other) < floor(file)}
    assert upwards == set()


def test_no_stage_imports_a_stage():
    stages = {file for file in FILES if file.parts[0] == "stages" and floor(file) == 0} - {Path("stages/__init__.py")}
    assert len(stages) == 6
    assert {file: imports(file) & stages for file in stages} == {file: set() for file in stages}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_few_others(room):
    others = {other.parts[1] for file in FILES if file.parts[1] == room for other in imports(file)}
    assert others - {room} <= KNOWS[room]


def test_no_files_import_each_other_in_a_circle():
    order = list(TopologicalSorter({file: imports(file) for file in FILES}).static_order())  # a circle raises
    assert len(order) == len(FILES)


def test_readme_lists_the_rooms_in_their_order():
    tree = (ROOT / "README.md").read_text()
    places = [tree.index(f"\n  {room}/ ") for room in ROOMS]
    assert places == sorted(places)
