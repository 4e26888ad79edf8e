"""The demo's params.yaml as nested dicts that a test can change, and the manifest of a model's folder."""

from pathlib import Path

import yaml

from helpers.project import COMMITTED
from stages.sources.fetch import PINNED_ON_HUB
from stages.sources.manifest import build_manifest, is_local


def unpinned_params() -> dict:
    """The demo's params.yaml as nested dicts, without the digests that pin its folders."""
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    raw["model"]["revision"] = raw["data"]["revision"] = "none"
    return raw


def set_key(raw: dict, key: str, value: object) -> None:
    """Set a dotted key in nested dicts."""
    *sections, leaf = key.split(".")
    for section in sections:
        raw = raw[section]
    raw[leaf] = value


def use(raw: dict, section: str, name: str) -> None:
    """Set the model or the data of nested parameters to a folder, or to a name on the hub."""
    raw[section]["name"] = name
    raw["watch"][section] = name if is_local(name) else PINNED_ON_HUB


def manifest_of(folder: Path | str) -> dict:
    """The manifest that `download` writes for the model in a folder."""
    return build_manifest(Path(folder), str(folder), "none", "model")
