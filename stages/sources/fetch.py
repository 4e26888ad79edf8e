"""Fetch a model or a data set, from the Hugging Face hub or a local folder, and find a base model again later."""

import os
import shutil
import subprocess
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

    Data may be a single file. Other files in its folder then do not count, not even README.md with its `configs`.

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
        check_place(source.folder, section, Path.cwd())
        folder = Path(source.folder)
        manifest = build_manifest(folder, source.folder, None, section)
        folder = folder if folder.is_dir() else folder.parent
    check(folder, manifest, section)  # first: an incomplete folder has no digest that is worth pinning
    _check_digest(source, manifest, section)
    if source.folder != FROM_HUB and not _is_in_copies(folder, manifest):
        print(
            f"{source.folder} is not in Git: experiments in DVC's queue or with --temp run in a copy that lacks it; "
            f"for those, commit it or run `dvc add`, or set {section}.folder: {_whole_path(source.folder, Path.cwd())}"
        )
    return folder, manifest


def _check_digest(source: Source, manifest: dict[str, Any], section: str) -> None:
    digest = manifest["digest"]
    if source.digest is None and source.folder != FROM_HUB:
        print(f"{source.folder} is not pinned; to pin it, set {section}.digest: {digest}")
    if source.digest not in (None, digest):
        raise UserError(
            f"params.yaml: {section}.digest: the files of {manifest['name']} have the digest {digest}; "
            f"set {section}.digest to it, or to null if they may change"
            + ("; for data with other columns: python -m tools.init PATH" if section == "data" else "")
        )


def check_place(folder: str, section: str, at: Path) -> None:
    """Reject a relative path that only works here, and a folder that the pipeline writes.

    DVC would delete that folder, or it would have its own results as input. Experiments in DVC's queue, and those with
    `--temp`, run in a copy of the repository, where a relative path to another place does not exist.

    Args:
        folder: `data.folder` or `model.folder`.
        section: "data" or "model".
        at: the folder of params.yaml, absolute.
    """
    place = f"params.yaml: {section}.folder: {folder}"
    whole = _whole_path(folder, at)
    if folder.startswith("~"):
        raise UserError(f"{place}: DVC does not replace ~; set the whole path, {whole}")
    if not Path(folder).is_absolute() and not whole.is_relative_to(_find_repository(at)):
        raise UserError(
            f"{place}: is outside the repository, and experiments that run in a copy of it do not find it there; "
            f"set the whole path, {whole}"
        )
    target = whole.resolve()
    for output in OUTPUT_FOLDERS:
        outs = (at / output).resolve()
        if target.is_relative_to(outs) or outs.is_relative_to(target):
            raise UserError(
                f"{place}: the pipeline writes {output}/ there; allowed: a folder that is not in "
                f"{' or '.join(f'{name}/' for name in OUTPUT_FOLDERS)} and has neither in it. Move the files and set "
                "the new folder"
            )


def choose_folder_value(path: Path) -> str:
    """The value of `model.folder` or `data.folder` for a path: relative inside the repository, else the whole path."""
    here = Path.cwd()
    whole = _whole_path(str(path), here)
    return os.path.relpath(whole, here) if whole.is_relative_to(_find_repository(here)) else str(whole)


def _whole_path(folder: str, at: Path) -> Path:
    """The whole path of a folder, without `..`. A link stays a link, unlike in `Path.resolve`."""
    home = os.path.expanduser(folder)  # noqa: PTH111 (`Path.expanduser` fails for an unknown user)
    return Path(os.path.normpath(at / home))


def _find_repository(at: Path) -> Path:
    """The Git repository of a folder; without one, the folder itself."""
    return next((path for path in (at, *at.parents) if (path / ".git").exists()), at)


def _is_in_copies(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether a copy of the repository has all files too: their path is absolute, or Git or DVC tracks them.

    Without Git, or if the folder is a link to another place, there is nothing to say: the answer is True.
    """
    here = Path.cwd()
    repository, whole = _find_repository(here), Path(os.path.normpath(here / folder))
    is_inside = whole.resolve().is_relative_to(repository) and (repository / ".git").exists()
    if folder.is_absolute() or not is_inside or not shutil.which("git"):
        return True
    added = [_dvc_file(path) for path in (whole, *whole.parents) if repository in path.parents]
    command = ["git", "ls-files", "-z", "--", str(whole), *map(str, added)]
    process = subprocess.run(command, cwd=here, capture_output=True, check=False)
    tracked = {Path(os.path.normpath(here / os.fsdecode(name))) for name in process.stdout.split(b"\0") if name}
    paths = [Path(os.path.normpath(whole / name)) for name in manifest["files"]]
    return process.returncode != 0 or all(
        path in tracked or any(_dvc_file(parent) in tracked for parent in (path, *path.parents[:-1])) for path in paths
    )


def _dvc_file(path: Path) -> Path:
    """The file that `dvc add` writes for a file or a folder."""
    return path.with_name(f"{path.name}.dvc")


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
