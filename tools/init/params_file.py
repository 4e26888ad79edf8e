"""Change keys of a params.yaml and keep its other lines, as `dvc exp run -S` does. This module is no command."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

from stages.runtime import params

SPECIFIC_HEAD = re.compile(r"#.*(\bNLI\b|toy data set|tools\.init)")  # a first line that is wrong for other data


class Change(NamedTuple):
    """The new value of a key, and the comment that replaces its comment; None keeps it."""

    value: Any
    comment: str | None


class Draft:
    """A params.yaml with some new values, before it is written.

    DVC's own reader and writer change it, so a later `-S` changes no further line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.present = params.load(path)
        self.text = path.read_text(encoding="utf-8")
        self.changes: dict[str, Change] = {}
        self.head: str | None = None

    def set(self, key: str, value: Any, comment: str | None = None) -> None:
        """Set a dotted key."""
        self.changes[key] = Change(value, comment)

    def set_head(self, sentence: str) -> None:
        """Replace the file's first line, if it names the data that the project comes with or that it had before."""
        self.head = sentence

    def params(self) -> params.Params:
        """The parameters with the new values."""
        values = self.present.model_dump()
        for key, change in self.changes.items():
            section, name = _find(values, key)
            section[name] = change.value
        return params.validate(values, params.Params, self.path)

    def render(self) -> str:
        """The text of the file with the new values."""
        content = self._parse(self.text)
        for key, change in self.changes.items():
            section, name = _find(content, key)
            if section[name] != change.value:
                section[name] = change.value
        lines = dumps_yaml(content).splitlines()
        if self.head and SPECIFIC_HEAD.match(lines[0]):
            lines[0] = f"# {self.head}"
        written = self._parse("\n".join(lines))
        comments = {}  # {number of a key's line: its new comment}
        for key, change in self.changes.items():
            if change.comment is not None:
                section, name = _find(written, key)
                comments[section.lc.key(name)[0]] = change.comment
        for number in sorted(comments, reverse=True):  # from the end: removing a line moves only later lines
            _set_comment(lines, number, comments[number])
        return "\n".join(lines) + "\n"

    def render_changes(self) -> str:
        """YAML of the keys that have another value than before, in the file's order; empty if there are none."""
        content = self._parse(self.text)
        changed: dict[str, Any] = {}
        places = {key: _find(content, key) for key in self.changes}
        for key in sorted(places, key=lambda key: places[key][0].lc.key(places[key][1])):
            section, name = places[key]
            if section[name] != self.changes[key].value:
                inner: Any = changed
                for parent in key.split(".")[:-1]:
                    inner = inner.setdefault(parent, {})
                inner[name] = self.changes[key].value
        return dumps_yaml(changed) if changed else ""

    def _parse(self, text: str) -> Any:
        return parse_yaml_for_update(text, self.path)


def _find(content: Any, key: str) -> tuple[Any, str]:
    """(The section that has a dotted key, the key's last part)."""
    *parents, name = key.split(".")
    for parent in parents:
        content = content[parent]
    return content, name


def _set_comment(lines: list[str], number: int, comment: str) -> None:
    """Replace the comment lines above a key, or else the comment after its value."""
    line = lines[number]
    indent = line[: len(line) - len(line.lstrip())]
    above = number
    while above and lines[above - 1].startswith(f"{indent}#"):
        above -= 1
    if above < number:
        lines[above:number] = [f"{indent}# {comment}"]
        return
    try:
        name, value = yaml.compose(line).value[0]  # type: ignore[union-attr]
    except yaml.YAMLError:  # the value goes on in the next line, and no comment can be there
        return
    end = value.end_mark.column if value.value else name.end_mark.column + 1
    old = line.find("#", end)
    lines[number] = f"{line[:end]:<{max(end + 2, old)}}# {comment}"
