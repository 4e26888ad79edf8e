"""The parameters of the last run, which dvc.lock has, next to those of params.yaml."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from stages.runtime.errors import UserError

TOKENIZED, ADAPTER = "outs/tokenized", "outs/adapter"


def find_changed_params(folder: Path) -> list[str]:
    """The keys that have changed since `folder`'s adapter was trained. If a file is missing, there are none.

    If the stages before have run again since, "other rows" replaces their keys.
    """
    try:
        parameters, lock = (yaml.safe_load((folder / name).read_text()) for name in ("params.yaml", "dvc.lock"))
        current, stages = flatten(parameters), lock["stages"]
        training = stages["train_qlora"]
        if find_hash(training["deps"], TOKENIZED) != find_hash(stages["tokenize"]["outs"], TOKENIZED):
            return ["other rows", *find_changes(current, training)]
        last: dict[str, Any] = {}  # a stage that has run again since, but changed nothing, has other values
        for name in ("download", "tokenize", "train_qlora"):
            last |= lock_parameters(stages[name])
        changed = compare_parameters(current, last)
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return []  # not a pipeline's folder, or `dvc` will say what is wrong
    return [key for key in changed if ".digest" not in key]


def check_rows(adapter: Path) -> None:
    """Reject an adapter that was trained on other rows than outs/tokenized has now: it may have learnt the test rows.

    An adapter of another folder is not checked. Stages that were run by hand leave no dvc.lock, so nothing is checked.

    Raises:
        UserError: as after a run that ended before `train_qlora`.
    """
    if adapter.resolve() != Path(ADAPTER).resolve():
        return
    try:
        training = yaml.safe_load(Path("dvc.lock").read_text())["stages"]["train_qlora"]
        hashes = {path: find_hash(training[kind], path) for kind, path in (("outs", ADAPTER), ("deps", TOKENIZED))}
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return
    if any(hash_out(Path(path)) != md5 for path, md5 in hashes.items()):
        raise UserError(
            f"{ADAPTER}: not trained on the rows that {TOKENIZED} has now; run `dvc repro`, or `dvc checkout`"
        )


def find_hash(entries: list[dict[str, Any]], path: str) -> str | None:
    """The hash of a dependency or an out, by those of a stage in dvc.lock."""
    return {entry["path"]: entry.get("md5") for entry in entries}[path]


def hash_out(path: Path) -> str | None:
    """The hash of a file or folder as dvc.lock has it; None if it does not exist."""
    if path.is_file():
        return md5(path)
    if not path.is_dir():
        return None
    found = sorted((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.relative_to(path).parts)
    listing = [{"md5": md5(file), "relpath": file.relative_to(path).as_posix()} for file in found]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def find_changes(parameters: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """{key: value of the stage's last run} of those that differ from `parameters`, from `flatten`, or are not in them.

    Args:
        entry: of the stage in dvc.lock.
    """
    return compare_parameters(parameters, lock_parameters(entry))


def compare_parameters(parameters: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
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
