"""The demo's params.yaml as nested dicts that a test can change, and the manifest of a model's folder."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from helpers.project import COMMITTED
from stages.runtime import params
from stages.sources.manifest import build_manifest


def unpinned_params() -> dict:
    """The demo's params.yaml as nested dicts, without the digests that pin its folders."""
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    raw["model"]["digest"] = raw["data"]["digest"] = None
    return raw


def list_leaves(raw: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) of the leaves of nested dicts."""
    for key, value in raw.items():
        if isinstance(value, dict):
            yield from list_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_key(raw: dict, key: str, value: object) -> None:
    """Set a dotted key in nested dicts."""
    *sections, leaf = key.split(".")
    for section in sections:
        raw = raw[section]
    raw[leaf] = value


def use(raw: dict, section: str, folder: str) -> None:
    """Set the model or the data of nested parameters to a folder."""
    raw[section] |= {"folder": folder, "name": None, "revision": None, "digest": None}


def use_hub(raw: dict, section: str, name: str, revision: str) -> None:
    """Set the model or the data of nested parameters to a revision on the hub."""
    raw[section] |= {"folder": params.FROM_HUB, "name": name, "revision": revision, "digest": None}


def source_of(folder: Path | str, digest: str | None = None) -> params.Source:
    """The keys of params.yaml that name a folder."""
    return params.Source(folder=str(folder), name=None, revision=None, digest=digest)


def manifest_of(folder: Path | str) -> dict:
    """The manifest that `download` writes for the model in a folder."""
    return build_manifest(Path(folder), str(folder), None, "model")
