"""Where models and data come from: a pinned revision on the Hugging Face hub, or a local folder."""

import hashlib
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stages.core.errors import UserError
from stages.core.files import sha256

# safetensors only: a pickled checkpoint runs whatever code is in it.
PATTERNS = {
    "model": ["*.json", "*.safetensors", "merges.txt", "tokenizer.model"],
    "dataset": ["README.md", "*.parquet", "*.csv", "*.json", "*.jsonl"],
}


def fetch(source, kind):
    """Return a local folder with the files of `source` (its `name` and `revision`), and their manifest.

    From the hub the pinned revision lands in the hub's own cache; a folder is used where it lies, and is checked
    against `revision` where that is a digest (64 hex digits).

    Args:
        source: the `model` or `data` group of params.yaml.
        kind: "model" or "dataset".

    Returns:
        (folder, manifest): manifest has `name`, `revision`, `digest` and `files` {path: {size in bytes, sha256}}.
    """
    key = {"model": "model", "dataset": "data"}[kind]
    local = is_folder(source.name)
    announced = {} if local else announced_hashes(source, kind, key)
    folder = Path(source.name) if local else _download(source, kind, key)
    manifest = describe(folder, source, kind)
    for path, expected in announced.items():
        if path in manifest["files"] and manifest["files"][path]["sha256"] != expected:
            blob = (folder / path).resolve()
            raise UserError(
                f"{key}.name: {source.name}/{path} differs from the hash that the hub announces; delete {blob}"
            )
    if local and len(source.revision) == 64 and source.revision != manifest["digest"]:
        raise UserError(f"params.yaml: {key}.revision: the files in {source.name} have the digest {manifest['digest']}")
    if local and source.revision != manifest["digest"]:
        print(f"{source.name} is a folder and not pinned; to pin it, set {key}.revision: {manifest['digest']}")
    return folder, manifest


def is_folder(name):
    """Whether a name means a local folder: one that exists, or that is written as a path."""
    return Path(name).is_dir() or name.startswith((".", "/", "~"))


def describe(folder, source, kind):
    """Manifest of the files that count, by relative path. The digest is over names and contents."""
    if not folder.is_dir():
        raise UserError(f"params.yaml: {'model' if kind == 'model' else 'data'}.name: no folder {folder}")
    paths = sorted({path for pattern in PATTERNS[kind] for path in folder.rglob(pattern) if path.is_file()})
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": sha256(p)} for p in paths}
    whole = hashlib.sha256("".join(f"{name} {f['sha256']}\n" for name, f in files.items()).encode())
    return {"name": source.name, "revision": source.revision, "digest": whole.hexdigest(), "files": files}


def model_folder(manifest):
    """The folder that holds the model of a manifest; fetched again where the cache lacks a file of it.

    Sizes are compared, not hashes: `download` hashed the files, and 5.5 GB would be read twice at each load.
    """
    if is_folder(manifest["name"]):
        folder = Path(manifest["name"])
    else:
        patterns = list(manifest["files"])
        try:
            folder = _snapshot(manifest["name"], manifest["revision"], "model", patterns, local_files_only=True)
            if _changed(folder, manifest):
                raise LocalEntryNotFoundError("incomplete")
        except LocalEntryNotFoundError:
            folder = _guarded(manifest["name"], manifest["revision"], "model", "model", patterns)
    changed = _changed(folder, manifest)
    if changed:
        raise UserError(f"{folder / changed}: missing or changed since `download`; run `dvc repro --force download`")
    return folder


def _changed(folder, manifest):
    for name, file in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["size"]:
            return name
    return None


def announced_hashes(source, kind, key):
    """SHA-256 of each large file as the hub announces it; empty when the hub is not asked (offline)."""
    if constants.HF_HUB_OFFLINE:
        return {}

    def ask():
        info = HfApi().repo_info(source.name, revision=source.revision, repo_type=kind, files_metadata=True, timeout=10)
        return {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}

    return _explained(ask, source.name, source.revision, key, cached=True)


def _download(source, kind, key):
    return _guarded(source.name, source.revision, kind, key, PATTERNS[kind])


def _guarded(name, revision, kind, key, patterns):
    return _explained(lambda: _snapshot(name, revision, kind, patterns), name, revision, key)


def _snapshot(name, revision, kind, patterns, **options):
    folder = snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=patterns, **options)
    return Path(folder)


def _explained(call, name, revision, key, cached=False):
    """Run a hub call; its failures become one line each. With `cached`, an unreachable hub is left to the cache."""
    try:
        return call()
    except GatedRepoError as error:
        raise UserError(f"{key}.name: {name} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise UserError(f"params.yaml: {key}.revision: {name} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"params.yaml: {key}.name: no {name} on the hub (or private: set HF_TOKEN), and no such folder"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        if cached:
            return {}
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{key}.name: {name} is not in the local cache and {constants.ENDPOINT} gave no answer ({reason}); "
            "check the network, or name a folder, or try `make demo`, which needs no hub"
        ) from error
