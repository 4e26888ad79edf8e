"""Where models and data come from: a pinned revision on the Hugging Face hub, or a local folder."""

import contextlib
import hashlib
import importlib
import time
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import HfApi, constants, get_session, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stages.core.errors import UserError
from stages.core.files import sha256

# The HTTP library that the hub's client uses, and whose errors it lets through: httpx, or httpx2 in newer releases.
http = importlib.import_module(type(get_session()).__module__.partition(".")[0])

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
    folder = Path(source.name) if local else _download(source.name, source.revision, kind, PATTERNS[kind])
    manifest = describe(folder, source, kind)
    if not local:
        _check_announced(folder, manifest, key)
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

    Sizes are compared, not hashes: `download` hashed the files, and 5.6 GB would be read twice at each load.
    """
    if is_folder(manifest["name"]):
        folder = Path(manifest["name"])
    else:
        place = (manifest["name"], manifest["revision"], "model", list(manifest["files"]))
        try:
            folder = _snapshot(*place, local_files_only=True)
            whole = _changed(folder, manifest) is None
        except LocalEntryNotFoundError:
            whole = False
        if not whole:
            folder = _download(*place)
            if describe(folder, SimpleNamespace(**manifest), "model")["digest"] != manifest["digest"]:
                raise UserError(f"model.name: {manifest['name']} changed on the hub; run `dvc repro --force download`")
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


def _check_announced(folder, manifest, key):
    """Compare each file's bytes with the hash that the hub announced, which its cache takes for a name.

    A large file is announced by SHA-256, a small one as Git does. A file that differs is deleted.
    """
    for name, file in manifest["files"].items():
        path = folder / name
        announced = path.readlink().name if path.is_symlink() else ""
        if len(announced) == 64:
            found = file["sha256"]
        elif len(announced) == 40:
            found = _git_hash(path)
        else:
            continue
        if found != announced:
            with contextlib.suppress(OSError):  # a cache that can't be written
                path.resolve().unlink()
                path.unlink()
            raise UserError(f"{key}.name: {manifest['name']}: {path} is not what the hub announced; run again")


def _git_hash(path):
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _download(name, revision, kind, patterns):
    """The folder of a snapshot: from the hub, or from the cache where the hub can't be reached; or one line why not."""
    key = {"model": "model", "dataset": "data"}[kind]
    reason = None
    try:
        reason = _unreachable(name, revision, kind)
        return _snapshot(name, revision, kind, patterns, local_files_only=reason is not None)
    except HFValidationError as error:
        raise UserError(f"params.yaml: {key}.name: {name} is no folder, and no name that the hub takes") from error
    except GatedRepoError as error:
        raise UserError(f"{key}.name: {name} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise UserError(f"params.yaml: {key}.revision: {name} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"params.yaml: {key}.name: no {name} on the hub (or private: set HF_TOKEN), and no such folder"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, http.HTTPError) as error:
        raise UserError(
            f"{key}.name: {name} is not in the local cache and {constants.ENDPOINT} gave no answer "
            f"({reason or _first_line(error)}); check the network, or name a folder; `make demo` needs no hub"
        ) from error
    except OSError as error:  # a full disk, a cache that can't be written
        raise UserError(f"{key}.name: {name}: {_first_line(error)} (hub cache {constants.HF_HUB_CACHE})") from error


def _unreachable(name, revision, kind):
    """Why the hub can't be reached, or None. Asked once, without the downloads' patience."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=10)
    except HfHubHTTPError:
        return None  # it answers: whether it is busy or says no, the download finds out
    except http.TransportError as error:
        return _first_line(error)
    return None


def _snapshot(name, revision, kind, patterns, **options):
    """`snapshot_download`, which asks again where the hub is busy, and here also where it fails in mid-file."""
    for pause in (1, 4, None):
        try:
            return Path(snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=patterns, **options))
        except HfHubHTTPError as error:
            if pause is None or error.response.status_code < 500:
                raise
            time.sleep(pause)


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
