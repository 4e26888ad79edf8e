"""Change keys of a params.yaml and keep its other lines, as `dvc exp run -S` does. This module is no command."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update


class Change(NamedTuple):
    """The new value of a key, and the comment that replaces the key's own; None keeps the comment."""

    value: Any
    comment: str | None = None


def change_params(text: str, changes: Mapping[str, Change]) -> str:
    """Set keys in the text of a params.yaml.

    DVC's own reader and writer do it, so a later `-S` changes no further line.

    Args:
        changes: {dotted key that the text has: new value}.
    """
    content = parse_yaml_for_update(text, Path("params.yaml"))
    for key, change in changes.items():
        section, name = _find(content, key)
        if section[name] != change.value:
            section[name] = change.value
    lines = dumps_yaml(content).splitlines()
    written = parse_yaml_for_update("\n".join(lines), Path("params.yaml"))
    places = {}  # {number of a key's line: its new comment}
    for key, change in changes.items():
        if change.comment is not None:
            section, name = _find(written, key)
            places[section.lc.key(name)[0]] = change.comment
    for line in sorted(places, reverse=True):  # from the end, so that a removed line moves no line to come
        _set_comment(lines, line, places[line])
    return "\n".join(lines) + "\n"


def changed_keys(text: str, changes: Mapping[str, Change]) -> dict[str, Any]:
    """The sections of a params.yaml with the keys whose values `changes` would change."""
    content: Any = parse_yaml_for_update(text, Path("params.yaml"))
    changed: dict[str, Any] = {}
    for key, change in changes.items():
        section, name = _find(content, key)
        if section[name] != change.value:
            inner = changed
            for part in key.split(".")[:-1]:
                inner = inner.setdefault(part, {})
            inner[name] = change.value
    return changed


def _find(content: Any, key: str) -> tuple[Any, str]:
    """(The section that has a dotted key, the key's last part)."""
    *parents, name = key.split(".")
    for parent in parents:
        content = content[parent]
    return content, name


def _set_comment(lines: list[str], number: int, comment: str) -> None:
    """Replace the comment lines above a key, or else the comment after its value. A value may fill several lines."""
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
    except yaml.YAMLError:  # the value goes on in the next line
        return
    end = value.end_mark.column if value.value else name.end_mark.column + 1
    old = re.search("#", line[end:])
    column = max(end + 2, end + old.start() if old else 0)
    lines[number] = f"{line[:end]:<{column}}# {comment}"
