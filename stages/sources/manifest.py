"""The manifest of a model or a data set: its files with sizes and hashes. Checks that the files are complete."""

import contextlib
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.utils import filter_repo_objects

from stages.runtime.errors import UserError
from stages.runtime.params import FROM_HUB
from stages.sources.hashes import cached_sha256

TABLE_EXTENSIONS = [
    "parquet",
    "arrow",
    "xlsx",
    *(
        f"{text}{compression}"
        for text in ("csv", "tsv", "json", "jsonl", "ndjson")
        for compression in ("", ".gz", ".bz2", ".xz", ".zst")
    ),
]


def find_extension(name: str) -> str:
    """The extension that makes a file a table, in lower case; empty for another file."""
    return next((extension for extension in TABLE_EXTENSIONS if name.lower().endswith(f".{extension}")), "")


def _in_any_case(extension: str) -> str:
    """A pattern that matches an extension in capital and small letters."""
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in extension)


# Which files belong to a source. Weights must be safetensors, because a pickled checkpoint can run any code.
PATTERNS = {
    "model": ["*.json", "*.safetensors", "merges.txt", "tokenizer.model", "chat_template.jinja"],
    "data": ["README.md", *(f"*.{_in_any_case(extension)}" for extension in TABLE_EXTENSIONS)],
}
# Second copies of a model's weights, in its maker's own format or for another runtime: original/, onnx/, consolidated.
IGNORED_PATTERNS = {"model": ["*/*", "consolidated*.safetensors"], "data": []}
SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\b")


def build_manifest(folder: Path, name: str, revision: str | None, section: str) -> dict[str, Any]:
    """List the files in `folder` that belong to a model or a data set.

    Args:
        folder: for data, also a single file.
        name: on the hub, or the folder as in params.yaml.
        revision: commit on the hub; None: a local folder.
        section: of params.yaml, "model" or "data".

    Returns:
        {"name", "revision", "digest": SHA-256 of all names and contents, "files": {relative path: {"size": bytes,
        "sha256"}}}
    """
    if folder.is_file():
        if section == "model":
            raise UserError(f"params.yaml: model.folder: {name}: is a file; allowed: a folder; set {folder.parent}")
        folder, found = folder.parent, [folder]
    elif folder.is_dir():
        entries = list(folder.rglob("*"))
        found = [path for path in entries if path.is_file()]
        if section == "data":
            _check_links(entries, folder, name)
    else:
        kind = "folder" if section == "model" else "folder or file"
        raise UserError(
            f"params.yaml: {section}.folder: {name}: no such {kind}; correct the path, or set {FROM_HUB}, and "
            f"{section}.name and {section}.revision"
        )
    paths = sorted(path for path in found if any(fnmatch.fnmatchcase(path.name, p) for p in PATTERNS[section]))
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    paths = list(
        filter_repo_objects(
            paths, ignore_patterns=IGNORED_PATTERNS[section], key=lambda path: path.relative_to(folder).as_posix()
        )
    )
    hashes = {str(path.relative_to(folder)): cached_sha256(path) for path in paths}
    files = {path: {"size": (folder / path).stat().st_size, "sha256": sha256} for path, sha256 in hashes.items()}
    return {"name": name, "revision": revision, "digest": digest_of(hashes), "files": files}


def digest_of(hashes: Mapping[str, str]) -> str:
    """SHA-256 of the names and contents of files; hashes: {relative path: SHA-256}, in the order of the paths."""
    return hashlib.sha256("".join(f"{path} {sha256}\n" for path, sha256 in hashes.items()).encode()).hexdigest()


def _check_links(entries: Iterable[Path], folder: Path, name: str) -> None:
    """Reject a link to a folder inside of data: its files are not found, so a split would be left out."""
    for path in entries:
        relative = path.relative_to(folder)
        if path.is_symlink() and path.is_dir() and not any(part.startswith(".") for part in relative.parts):
            raise UserError(
                f"params.yaml: data.folder: {name}: {relative} is a link to a folder, whose files are not read; copy "
                "them, or link each file"
            )


def check(folder: Path, manifest: dict[str, Any], section: str) -> None:
    """Reject a source with missing shards, without a model or a table, or a base model with a LoRA adapter."""
    _check_shards(folder, manifest, section)
    _check_content(folder, manifest, section)
    if section == "model":
        _check_no_adapter(folder, manifest)


def name_key(manifest: dict[str, Any], section: str) -> str:
    """The key of params.yaml that says where a source is, and its value, for errors."""
    return f"{section}.{'folder' if manifest['revision'] is None else 'name'}: {manifest['name']}"


def _check_shards(folder: Path, manifest: dict[str, Any], section: str) -> None:
    """Reject a cache or a copy that has only some of a source's shards.

    A shard's name has the number of shards, as in `train-00000-of-00002.parquet`. A model's index names all of them.
    """
    names = manifest["files"]
    shards: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := SHARD.match(name):
            shards.setdefault((match[1], match[2]), []).append(name)
    for (start, count), present in shards.items():
        if len(present) < int(count):
            raise UserError(
                f"params.yaml: {name_key(manifest, section)}: {folder} has {len(present)} of {int(count)} files "
                f"{start}-…; fetch or copy it whole"
            )
    for index in (name for name in names if name.endswith(".safetensors.index.json")):
        with contextlib.suppress(ValueError, AttributeError, KeyError):  # not an index: loading the model reports it
            parts = json.loads((folder / index).read_text())["weight_map"].values()
            for part in sorted({str(Path(index).with_name(part)) for part in parts} - names.keys()):
                raise UserError(
                    f"params.yaml: {name_key(manifest, section)}: no {part} in {folder}; fetch or copy it whole"
                )


def _check_content(folder: Path, manifest: dict[str, Any], section: str) -> None:
    """Reject a source without a model or a table."""
    names = manifest["files"]
    if section == "model" and not ("config.json" in names and any(name.endswith(".safetensors") for name in names)):
        raise UserError(
            f"params.yaml: {name_key(manifest, section)}: no model here; "
            "allowed: a folder with config.json and *.safetensors"
        )
    if section == "data" and all(Path(name).name == "README.md" for name in names):
        raise UserError(
            f"params.yaml: {name_key(manifest, section)}: no table here; allowed: *.{', *.'.join(TABLE_EXTENSIONS)}"
        )


def _check_no_adapter(folder: Path, manifest: dict[str, Any]) -> None:
    """Reject a base model with an adapter: transformers would load the adapter too, and the base would be tuned."""
    if "adapter_config.json" in manifest["files"]:
        raise UserError(
            f"params.yaml: {name_key(manifest, 'model')} has a LoRA adapter next to its weights "
            f"({folder / 'adapter_config.json'}); allowed: a base without one, such as a copy without that file"
        )


def find_changed_size(folder: Path, manifest: dict[str, Any]) -> str | None:
    """Return the first file of a manifest that is missing or has another size. None if there is none."""
    for name, file in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["size"]:
            return name
    return None
