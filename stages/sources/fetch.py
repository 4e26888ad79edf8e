"""Where models and data come from: a pinned revision on the Hugging Face hub, or a local folder."""

import re
from pathlib import Path
from typing import Protocol

from stages.runtime.errors import UserError
from stages.sources import hub
from stages.sources.manifest import PATTERNS, build_manifest, changed_size, check, is_local, local_path

OUTPUT_FOLDERS = ("outs", "metrics")  # the folders that hold all outs of dvc.yaml
COMMIT = re.compile("[0-9a-f]{40}")  # the revision of a source on the hub, and of no folder
PINNED_ON_HUB = "pinned_on_hub.txt"  # what `watch` names for a source on the hub: a file that never changes


class Source(Protocol):
    """The group `model` or `data` of params.yaml."""

    name: str
    revision: str


def fetch(source: Source, key: str, watched: str) -> tuple[Path, dict]:
    """Return a local folder with the files of `source`, and their manifest.

    From the hub the pinned revision lands in the hub's own cache; a folder is used where it lies, and is checked
    against `revision` where that is a digest (64 hex digits).

    Args:
        key: the group's name, "model" or "data".
        watched: the same source's path in `watch`, which DVC compares.

    Returns:
        (folder, manifest as `manifest.build_manifest` has it)
    """
    if is_local(source.name):
        folder, manifest = _from_folder(source, key, watched)
    elif watched != PINNED_ON_HUB:
        raise UserError(f"params.yaml: watch.{key}: {watched}, but {key}.name is no folder; allowed: {PINNED_ON_HUB}")
    else:
        folder = hub.download(source.name, source.revision, key, PATTERNS[key])
        manifest = build_manifest(folder, source.name, source.revision, key)
        hub.check_announced(folder, manifest, key)
        check(folder, manifest, key)
    return folder, manifest


def _from_folder(source, key, watched):
    folder = local_path(source.name)
    _check_outside_outs(folder, source.name, key)
    manifest = build_manifest(folder, source.name, source.revision, key)
    check(folder, manifest, key)  # first: the digest of a part, or of nothing, is nothing to pin
    wrong = []
    if Path(watched) != folder:
        wrong.append(f"watch.{key}: {watched}, but {key}.name is a folder; set watch.{key}: {folder}")
    if len(source.revision) == 64 and source.revision != manifest["digest"]:
        wrong.append(
            f"{key}.revision: the files in {source.name} have the digest {manifest['digest']}; "
            f"set {key}.revision to it, or to none for no pin"
        )
    if wrong:
        raise UserError(f"params.yaml: {'; '.join(wrong)}")
    if source.revision != manifest["digest"]:
        print(f"{source.name} is a folder and not pinned; to pin it, set {key}.revision: {manifest['digest']}")
        manifest["revision"] = "none"  # a commit that was left there is none of a folder's
    return folder, manifest


def _check_outside_outs(folder, name, key):
    """Refuse a folder that DVC would delete or change, or that would be a source of itself."""
    for out in map(Path, OUTPUT_FOLDERS):
        if folder.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"params.yaml: {key}.name: {name}: the pipeline writes {out}/ there; allowed: a folder outside of "
                f"{' and '.join(f'{out}/' for out in OUTPUT_FOLDERS)} that holds neither of them. Move the files and "
                "name their new folder"
            )


def use_folder(manifest: dict, folder: Path) -> dict:
    """The manifest of a model, its files to be read from another folder than it names: `--base` of the tools."""
    if not folder.is_dir():
        raise UserError(
            f"--base: no folder {folder}; allowed: the folder of the base model "
            "(to ask the untuned model: `tools.predict --untuned`)"
        )
    return manifest | {"folder": str(folder.absolute())}


def find_model_folder(manifest: dict) -> Path:
    """The folder that holds the model of a manifest; fetched again where the cache lacks a file of it.

    A local folder's files are compared by their hash. In the hub's cache nobody edits files, and their sizes do:
    `download` hashed them, and 5.6 GB would be read twice at each load.

    Args:
        manifest: as `download` wrote it, or as `use_folder` returns it.
    """
    name, revision, files = manifest["name"], manifest["revision"], manifest["files"]
    if given := manifest.get("folder"):
        if wrong := _changed(Path(given), manifest):
            raise UserError(
                f"--base: {wrong}: missing, added or changed: the files must be those of {name}, on which the adapter "
                f"was trained (SHA-256 of the folder: {manifest['digest']})"
            )
        return Path(given)
    if is_local(name) or not COMMIT.fullmatch(revision):
        folder = local_path(name)
        if not folder.is_dir():
            raise UserError(
                f"the base model was in the local folder {name}, and there is no folder {folder.absolute()}; run this "
                "where it is, or name it by --base FOLDER (tools.predict, tools.export)"
            )
        if wrong := _changed(folder, manifest):
            raise UserError(
                f"{wrong}: missing or changed since `download` read it; bring it back, or run the pipeline again"
            )
        return folder
    folder = hub.cached(name, revision, "model", list(files))
    if folder and changed_size(folder, manifest) is None:
        return folder
    folder = hub.download(name, revision, "model", list(files))
    if build_manifest(folder, name, revision, "model")["digest"] != manifest["digest"]:
        raise UserError(f"model.name: {name} changed on the hub; set model.revision to a commit")
    return folder


def _changed(folder, manifest):
    """A file that differs between a folder and a model's manifest, or None."""
    now, files = build_manifest(folder, manifest["name"], manifest["revision"], "model")["files"], manifest["files"]
    return next((folder / path for path in sorted({*now, *files}) if now.get(path) != files.get(path)), None)
