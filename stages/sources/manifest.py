"""Manifests: which files of a model or a data set count, their sizes and hashes, and whether all are there."""

import contextlib
import hashlib
import json
import re
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects

from stages.runtime.errors import UserError
from stages.sources.hashes import cached_sha256

# safetensors only: a pickled checkpoint runs whatever code is in it. Of data, the tables that `datasets` reads.
TABLE_EXTENSIONS = ["parquet", "arrow", *(f"{text}{packed}" for text in ("csv", "tsv", "json", "jsonl", "ndjson")
                                for packed in ("", ".gz", ".bz2", ".xz", ".zst"))]  # fmt: skip


def _in_any_case(ending):
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in ending)


PATTERNS = {
    "model": ["*.json", "*.safetensors", "merges.txt", "tokenizer.model"],
    "data": ["README.md", *(f"*.{_in_any_case(ending)}" for ending in TABLE_EXTENSIONS)],
}
# A second copy of a model's weights, in its maker's own format or for another runtime: original/, onnx/, consolidated.
IGNORED = {"model": ["*/*", "consolidated*.safetensors"], "data": []}
SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\b")


def is_local(name: str) -> bool:
    """Whether a name means something local, not the hub: it exists, or it is written as a path."""
    return local_path(name).exists() or name.startswith((".", "/", "~"))


def local_path(name: str) -> Path:
    """The path of a local folder; `~` is the home."""
    return Path(name).expanduser()


def build_manifest(folder: Path, name: str, revision: str, key: str) -> dict:
    """Manifest of the files that count in a folder.

    Args:
        name, revision: of the source, as params.yaml has them.
        key: its group there, "model" or "data".

    Returns:
        {"name", "revision", "digest" (SHA-256 over names and contents), "files": {relative path: {"size" in bytes,
        "sha256"}}}
    """
    if folder.is_file():
        raise UserError(f"params.yaml: {key}.name: {name} is a file; allowed: the folder that holds it")
    if not folder.is_dir():
        raise UserError(f"params.yaml: {key}.name: no folder {folder}{_where(folder, key)}")
    paths = sorted({path for pattern in PATTERNS[key] for path in folder.rglob(pattern) if path.is_file()})
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    paths = list(
        filter_repo_objects(paths, ignore_patterns=IGNORED[key], key=lambda p: p.relative_to(folder).as_posix())
    )
    files = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": cached_sha256(p)} for p in paths}
    whole = hashlib.sha256("".join(f"{path} {f['sha256']}\n" for path, f in files.items()).encode())
    return {"name": name, "revision": revision, "digest": whole.hexdigest(), "files": files}


def _where(folder, key):
    """A hint for a relative folder that is not there because the experiment runs in a copy of the repository."""
    workspace, copied, _ = str(Path.cwd()).partition("/.dvc/tmp/exps/")
    if folder.is_absolute() or not copied:
        return ""
    return (
        f": this experiment runs in a copy of the repository, {Path.cwd()}; set {key}.name and watch.{key} to the "
        f"whole path, {(workspace / folder).resolve()}"
    )


def check(folder: Path, manifest: dict, key: str) -> None:
    """Refuse a part of a source, a folder of something else, and a base with an adapter."""
    for one in (_check_whole, _check_kind, _check_no_adapter):
        one(folder, manifest, key)


def _check_kind(folder: Path, manifest: dict, key: str) -> None:
    """Refuse a source without a model or a table in it: there is nothing to read, and nothing to pin."""
    names = manifest["files"]
    if key == "model" and not ("config.json" in names and any(name.endswith(".safetensors") for name in names)):
        raise UserError(f"params.yaml: model.name: {folder}: no model here (config.json and *.safetensors)")
    if key == "data" and all(Path(name).name == "README.md" for name in names):
        raise UserError(f"params.yaml: data.name: {folder}: no table here; allowed: *.{', *.'.join(TABLE_EXTENSIONS)}")


def changed_size(folder: Path, manifest: dict) -> str | None:
    """A file of a manifest that is gone or of another size, or None."""
    for name, file in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["size"]:
            return name
    return None


def _check_no_adapter(folder: Path, manifest: dict, key: str) -> None:
    """transformers loads an adapter that it finds next to a base, so the untuned base would be a tuned one."""
    if key == "model" and "adapter_config.json" in manifest["files"]:
        raise UserError(
            f"params.yaml: model.name: {manifest['name']} has a LoRA adapter next to its weights "
            f"({folder / 'adapter_config.json'}); allowed: a base without one, such as a copy without that file"
        )


def _check_whole(folder: Path, manifest: dict, key: str) -> None:
    """A cache or a copy that holds a part of a source's shards is not taken for all of it.

    A shard's name tells how many there are, `train-00000-of-00002.parquet`, and a model's index names all of its.
    """
    names, shards = manifest["files"], {}
    for name in names:
        if numbered := SHARD.match(name):
            shards.setdefault(numbered.groups(), []).append(name)
    for (start, count), found in shards.items():
        if len(found) < int(count):
            raise UserError(
                f"{key}.name: {manifest['name']}: {len(found)} of {int(count)} files {start}-… are in {folder}; "
                "fetch or copy it whole"
            )
    for index in (name for name in names if name.endswith(".safetensors.index.json")):
        with contextlib.suppress(ValueError, AttributeError, KeyError):  # no index: the model's loader says so
            parts = json.loads((folder / index).read_text())["weight_map"].values()
            for part in sorted({str(Path(index).with_name(part)) for part in parts} - names.keys()):
                raise UserError(f"{key}.name: {manifest['name']}: no {part} in {folder}; fetch or copy it whole")
