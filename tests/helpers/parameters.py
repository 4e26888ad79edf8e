"""The demo parameters as plain dicts, to be changed; the manifest of a model's folder."""

from pathlib import Path

import yaml

from helpers.project import COMMITTED
from stages.sources.fetch import PINNED_ON_HUB
from stages.sources.manifest import build_manifest, is_local


def unpinned_params() -> dict:
    """The demo params.yaml as plain dicts, without its pins: these would refuse any other folder."""
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    raw["model"]["revision"] = raw["data"]["revision"] = "none"
    return raw


def set_key(raw: dict, key: str, value: object) -> None:
    """Set a dotted key in nested dicts."""
    *groups, leaf = key.split(".")
    for group in groups:
        raw = raw[group]
    raw[leaf] = value


def use(raw: dict, key: str, name: str) -> None:
    """Let nested parameters take their model or data from a folder, or from the hub."""
    raw[key]["name"] = name
    raw["watch"][key] = name if is_local(name) else PINNED_ON_HUB


def manifest_of(folder: Path | str) -> dict:
    """The manifest that `download` would write for a model in a folder."""
    return build_manifest(Path(folder), str(folder), "none", "model")
