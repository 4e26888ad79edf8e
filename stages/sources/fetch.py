"""Fetch a model or a data set, from the Hugging Face hub or a local folder, and find a base model again later."""

import re
from pathlib import Path
from typing import Any, Protocol

from stages.runtime.errors import UserError
from stages.sources import hub
from stages.sources.manifest import PATTERNS, build_manifest, check, find_changed_size, is_local, local_path

OUTPUT_FOLDERS = ("outs", "metrics")  # the folders with all outs of dvc.yaml
COMMIT = re.compile("[0-9a-f]{40}")  # revision on the hub; a local folder's is a digest of 64 digits, or none
PINNED_ON_HUB = "pinned_on_hub.txt"  # value of `watch` for a source on the hub: a file that never changes


class Source(Protocol):
    """The section `model` or `data` of params.yaml."""

    name: str
    revision: str


def fetch(source: Source, section: str, watched: str) -> tuple[Path, dict[str, Any]]:
    """Return the local folder of a model or a data set, and its manifest.

    The files of the hub are fetched into the hub's own cache. A local folder is used where it is. If its `revision` is
    a digest, the files must have that digest.

    Args:
        section: of params.yaml, "model" or "data".
        watched: the path in `watch.model` or `watch.data`, which DVC compares.

    Returns:
        (folder, manifest as from `build_manifest`)
    """
    if is_local(source.name):
        return _use_local_folder(source, section, watched)
    if watched != PINNED_ON_HUB:
        raise UserError(
            f"params.yaml: watch.{section}: {watched}, but {section}.name is not a folder; allowed: {PINNED_ON_HUB}"
        )
    folder = hub.download(source.name, source.revision, section, PATTERNS[section])
    manifest = build_manifest(folder, source.name, source.revision, section)
    hub.check_announced(folder, manifest, section)
    check(folder, manifest, section)
    return folder, manifest


def _use_local_folder(source: Source, section: str, watched: str) -> tuple[Path, dict[str, Any]]:
    folder = local_path(source.name)
    _check_outside_outputs(folder, source.name, section)
    manifest = build_manifest(folder, source.name, source.revision, section)
    check(folder, manifest, section)  # first: an incomplete folder has no digest that is worth pinning
    mistakes = []
    if Path(watched) != folder:
        mistakes.append(f"watch.{section}: {watched}, but {section}.name is a folder; set watch.{section}: {folder}")
    if len(source.revision) == 64 and source.revision != manifest["digest"]:
        mistakes.append(
            f"{section}.revision: the files in {source.name} have the digest {manifest['digest']}; "
            f"set {section}.revision to it, or to none for no pin"
        )
    if mistakes:
        raise UserError(f"params.yaml: {'; '.join(mistakes)}")
    if source.revision != manifest["digest"]:
        print(f"{source.name} is a folder and not pinned; to pin it, set {section}.revision: {manifest['digest']}")
        manifest["revision"] = "none"  # params.yaml may still have the commit of an earlier source on the hub
    return folder, manifest


def _check_outside_outputs(folder: Path, name: str, section: str) -> None:
    """Reject a folder that the pipeline writes: DVC would delete it, or it would have its own results as input."""
    for output in map(Path, OUTPUT_FOLDERS):
        if folder.resolve().is_relative_to(output.resolve()) or output.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"params.yaml: {section}.name: {name}: the pipeline writes {output}/ there; allowed: a folder that is "
                f"not in {' or '.join(f'{output}/' for output in OUTPUT_FOLDERS)} and has neither in it. Move the "
                "files and set the new folder"
            )


def use_folder(manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a copy of a manifest with which `find_model_folder` uses `folder`, the tools' option `--base`."""
    if not folder.is_dir():
        raise UserError(
            f"--base: no folder {folder}; allowed: the folder of the base model "
            "(for predictions of the untuned model: `tools.predict --untuned`)"
        )
    return manifest | {"folder": str(folder.absolute())}


def find_model_folder(manifest: dict[str, Any]) -> Path:
    """Return the folder with the model of a manifest. It is fetched again if the hub's cache lacks a file.

    Files of a local folder are compared by their hashes, files in the hub's cache only by their sizes: nobody edits
    them there, `download` has hashed them, and hashing would read 5.6 GB twice at each load.

    Args:
        manifest: as `download` wrote it, or as `use_folder` returns it.
    """
    name, revision, files = manifest["name"], manifest["revision"], manifest["files"]
    if "folder" in manifest:
        folder = Path(manifest["folder"])
        if changed := _find_changed(folder, manifest):
            raise UserError(
                f"--base: {changed}: missing, added or changed; allowed: the files of {name}, on which the adapter "
                f"was trained (SHA-256 of the folder: {manifest['digest']})"
            )
        return folder
    if is_local(name) or not COMMIT.fullmatch(revision):
        folder = local_path(name)
        if not folder.is_dir():
            raise UserError(
                f"the base model was in the local folder {name}, and there is no folder {folder.absolute()}; run the "
                "command where that folder is, or add --base FOLDER (tools.predict, tools.export)"
            )
        if changed := _find_changed(folder, manifest):
            raise UserError(
                f"{changed}: missing or changed since `download` read it; restore the file, or run `dvc repro` again"
            )
        return folder
    cached = hub.find_cached(name, revision, "model", list(files))
    if cached and find_changed_size(cached, manifest) is None:
        return cached
    folder = hub.download(name, revision, "model", list(files))
    if build_manifest(folder, name, revision, "model")["digest"] != manifest["digest"]:
        raise UserError(
            f"params.yaml: model.name: the files of {name} at revision {revision} have changed on the hub since "
            "`download`; set model.revision to another commit"
        )
    return folder


def _find_changed(folder: Path, manifest: dict[str, Any]) -> Path | None:
    """Return the first file that differs between a model's folder and its manifest. None if there is none."""
    present = build_manifest(folder, manifest["name"], manifest["revision"], "model")["files"]
    expected = manifest["files"]
    return next(
        (folder / path for path in sorted({*present, *expected}) if present.get(path) != expected.get(path)), None
    )
