"""Fetch a model or a data set, from the Hugging Face hub or a local folder, and find a base model again later."""

import os
from pathlib import Path
from typing import Any

from stages.runtime.errors import UserError
from stages.runtime.params import FROM_HUB, Source
from stages.sources import hub
from stages.sources.manifest import PATTERNS, build_manifest, check, find_changed_size

OUTPUT_FOLDERS = ("outs", "metrics")  # the folders with all outs of dvc.yaml


def fetch(source: Source, section: str) -> tuple[Path, dict[str, Any]]:
    """Return the local folder of a model or a data set, and its manifest.

    The files of the hub are fetched into the hub's own cache. A local folder is used where it is. If `digest` is set,
    the files must have it.

    Args:
        source: the section `model` or `data` of params.yaml.
        section: its name, "model" or "data".

    Returns:
        (folder, manifest as from `build_manifest`)
    """
    if source.folder == FROM_HUB:
        assert source.name is not None and source.revision is not None  # params.py checks it
        folder = hub.download(source.name, source.revision, section, PATTERNS[section])
        manifest = build_manifest(folder, source.name, source.revision, section)
        hub.check_announced(folder, manifest, section)
    else:
        folder = Path(source.folder)
        _check_place(folder, section)
        manifest = build_manifest(folder, source.folder, None, section)
        folder = folder if folder.is_dir() else folder.parent
    check(folder, manifest, section)  # first: an incomplete folder has no digest that is worth pinning
    _check_digest(source, manifest, section)
    return folder, manifest


def _check_digest(source: Source, manifest: dict[str, Any], section: str) -> None:
    digest = manifest["digest"]
    if source.digest is None and source.folder != FROM_HUB:
        print(f"{source.folder} is not pinned; to pin it, set {section}.digest: {digest}")
    if source.digest not in (None, digest):
        raise UserError(
            f"params.yaml: {section}.digest: the files of {manifest['name']} have the digest {digest}; "
            f"set {section}.digest to it, or to null if they may change"
        )


def _check_place(folder: Path, section: str) -> None:
    """Reject a relative path that only works here, and a folder that the pipeline writes.

    DVC would delete that folder, or it would have its own results as input. Experiments in DVC's queue, and those with
    `--temp`, run in a copy of the repository, where a relative path to another place does not exist.
    """
    whole = _whole_path(folder)
    if str(folder).startswith("~"):
        raise UserError(f"params.yaml: {section}.folder: {folder}: DVC does not replace ~; set the whole path, {whole}")
    if not folder.is_absolute() and not whole.is_relative_to(_find_repository()):
        raise UserError(
            f"params.yaml: {section}.folder: {folder}: is outside the repository, and DVC's queue runs in "
            f"a copy of the repository, where this path is another; set the whole path, {whole}"
        )
    for output in map(Path, OUTPUT_FOLDERS):
        if folder.resolve().is_relative_to(output.resolve()) or output.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"params.yaml: {section}.folder: {folder}: the pipeline writes {output}/ there; allowed: a folder that "
                f"is not in {' or '.join(f'{output}/' for output in OUTPUT_FOLDERS)} and has neither in it. Move the "
                "files and set the new folder"
            )


def choose_folder_value(path: Path) -> str:
    """The value of `model.folder` or `data.folder` for a path: relative inside the repository, else the whole path."""
    whole = _whole_path(path)
    return os.path.relpath(whole) if whole.is_relative_to(_find_repository()) else str(whole)


def _find_repository() -> Path:
    """The folder of the Git repository around this folder; this folder if there is none."""
    return next((path for path in (Path.cwd(), *Path.cwd().parents) if (path / ".git").exists()), Path.cwd())


def _whole_path(path: Path) -> Path:
    return Path(os.path.normpath(Path.cwd() / path.expanduser()))  # not `resolve`: a link stays a link


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
    if revision is None:
        folder = Path(name)
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
