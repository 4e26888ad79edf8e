"""`python -m tools.NAME --help` shows a worked example. The files are read, not run: an import takes seconds."""

import ast
import re

import pytest
from helpers.project import ROOT

COMMANDS = {
    path.parent.name if path.name == "__main__.py" else path.stem: ast.parse(text)
    for path in sorted((ROOT / "tools").rglob("*.py"))
    if "argparse.ArgumentParser(" in (text := path.read_text())
}


def test_the_commands_are_found():
    readme = re.search(r"^tools/ +(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)[1]
    assert set(COMMANDS) == set(readme.split(", "))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_is_the_docstring_with_an_example(name):
    """A line begins with "Example". argparse keeps the line breaks."""
    docstring = ast.get_docstring(COMMANDS[name])
    assert re.search(r"^Example\b", docstring, re.MULTILINE), docstring
    assert re.search(rf"^    python -m tools\.{name}\b", docstring, re.MULTILINE), docstring
    (parser,) = (
        call
        for call in ast.walk(COMMANDS[name])
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "argparse.ArgumentParser"
    )
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in parser.keywords}
    assert options["prog"] == f"'python -m tools.{name}'"
    assert options["description"] == "__doc__"
    assert options["formatter_class"] == "argparse.RawDescriptionHelpFormatter"
