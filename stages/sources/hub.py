"""Where models and data come from: a pinned revision on the Hugging Face hub, or a local folder."""

import contextlib
import hashlib
import importlib
import json
import re
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

from stages.runtime.errors import UserError
from stages.sources.hashes import sha256_once

# The HTTP library that the hub's client uses, and whose errors it lets through: httpx, or httpx2 in newer releases.
http = importlib.import_module(type(get_session()).__module__.partition(".")[0])

# safetensors only: a pickled checkpoint runs whatever code is in it. Of data, the tables that `datasets` reads.
TABLES = ["parquet", "arrow", *(f"{text}{packed}" for text in ("csv", "tsv", "json", "jsonl", "ndjson")
                                for packed in ("", ".gz", ".bz2", ".xz", ".zst"))]  # fmt: skip
PATTERNS = {
    "model": ["*.json", "*.safetensors", "merges.txt", "tokenizer.model"],
    "dataset": ["README.md", *(f"*.{ending}" for ending in TABLES)],
}
KEYS = {"model": "model", "dataset": "data"}  # the groups of params.yaml
HUB = "hub"  # what `watch` names for a source on the hub: a file that never changes
SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\b")


def fetch(source, kind, watched):
    """Return a local folder with the files of `source` (its `name` and `revision`), and their manifest.

    From the hub the pinned revision lands in the hub's own cache; a folder is used where it lies, and is checked
    against `revision` where that is a digest (64 hex digits).

    Args:
        source: the `model` or `data` group of params.yaml.
        kind: "model" or "dataset".
        watched: the same source's path in `watch`, which DVC compares.

    Returns:
        (folder, manifest): manifest has `name`, `revision`, `digest` and `files` {path: {size in bytes, sha256}}.
    """
    key = KEYS[kind]
    if not is_folder(source.name):
        if watched != HUB:
            raise UserError(f"params.yaml: watch.{key}: {watched}, but {key}.name is no folder; allowed: {HUB}")
        folder = _download(source.name, source.revision, kind, PATTERNS[kind])
        manifest = describe(folder, source, kind)
        _check_announced(folder, manifest, key)
        _check_whole(folder, manifest, key)
        return folder, manifest
    folder = local(source.name)
    manifest = describe(folder, source, kind)
    _check_whole(folder, manifest, key)
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
    return folder, manifest


def is_folder(name):
    """Whether a name means a local folder: one that exists, or that is written as a path."""
    return local(name).is_dir() or name.startswith((".", "/", "~"))


def local(name):
    """The path of a local folder; `~` is the home."""
    return Path(name).expanduser()


def describe(folder, source, kind):
    """Manifest of the files that count, by relative path. The digest is over names and contents."""
    if not folder.is_dir():
        raise UserError(f"params.yaml: {KEYS[kind]}.name: no folder {folder}{_where(folder)}")
    paths = sorted({path for pattern in PATTERNS[kind] for path in folder.rglob(pattern) if path.is_file()})
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": sha256_once(p)} for p in paths}
    whole = hashlib.sha256("".join(f"{name} {f['sha256']}\n" for name, f in files.items()).encode())
    return {"name": source.name, "revision": source.revision, "digest": whole.hexdigest(), "files": files}


def _where(folder):
    """A hint for a relative folder that is not there because the experiment runs in a copy of the repository."""
    copied = not folder.is_absolute() and {"tmp", "exps"} <= set(Path.cwd().parts)
    return f": this experiment runs in a copy of the repository, {Path.cwd()}; name the whole path" if copied else ""


def model_folder(manifest):
    """The folder that holds the model of a manifest; fetched again where the cache lacks a file of it.

    A local folder's files are compared by their hash. In the hub's cache nobody edits files, and their sizes do:
    `download` hashed them, and 5.6 GB would be read twice at each load.
    """
    source = SimpleNamespace(**manifest)
    if is_folder(manifest["name"]):
        folder = local(manifest["name"])
        now = describe(folder, source, "model")["files"]
        changed = sorted(name for name in {*now, *manifest["files"]} if now.get(name) != manifest["files"].get(name))
        if changed:
            raise UserError(
                f"{folder / changed[0]}: missing or changed since `download` read it; "
                "bring it back, or run the pipeline again"
            )
        return folder
    place = (manifest["name"], manifest["revision"], "model", list(manifest["files"]))
    try:
        folder = _snapshot(*place, local_files_only=True)
        if _changed(folder, manifest) is None:
            return folder
    except LocalEntryNotFoundError:
        pass
    folder = _download(*place)
    if describe(folder, source, "model")["digest"] != manifest["digest"]:
        raise UserError(f"model.name: {manifest['name']} changed on the hub; set model.revision to a commit")
    return folder


def _changed(folder, manifest):
    """A file of a manifest that is gone or of another size, or None."""
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


def _check_whole(folder, manifest, key):
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


def _git_hash(path):
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _download(name, revision, kind, patterns):
    """The folder of a snapshot: from the hub, or from the cache where the hub can't be reached; or one line why not."""
    key = KEYS[kind]
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
