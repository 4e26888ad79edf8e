"""The parameters of the last run, which dvc.lock has, next to those of params.yaml."""

from pathlib import Path
from typing import Any

import yaml

TRAINING = ("download", "tokenize", "train_qlora")  # the stages that make the adapter


def find_changed_params(folder: Path) -> list[str]:
    """The keys that have changed since `folder`'s adapter was trained. If a file is missing, there are none."""
    try:
        parameters, lock = (yaml.safe_load((folder / name).read_text()) for name in ("params.yaml", "dvc.lock"))
        current, stages = flatten(parameters), lock["stages"]
        changed = dict.fromkeys(key for name in TRAINING for key in find_changes(current, stages[name]))
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return []  # not a pipeline's folder, or `dvc` will say what is wrong
    return [key for key in changed if ".digest" not in key]


def find_changes(parameters: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """{key: value of the stage's last run} of those that differ from `parameters`, from `flatten`, or are not in them.

    Args:
        entry: of the stage in dvc.lock.
    """
    last = lock_parameters(entry)
    return {key: value for key, value in last.items() if key not in parameters or parameters[key] != value}


def lock_parameters(entry: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a stage's last run; entry: of the stage in dvc.lock."""
    return flatten(entry.get("params", {}).get("params.yaml", {}))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested parameters. PyYAML reads 2e-05 as a string; here it is a number."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = parse_number(value)
    return flat


def parse_number(value: Any) -> Any:
    """The number that a string spells; any other value unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
