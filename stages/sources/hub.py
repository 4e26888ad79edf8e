"""The Hugging Face hub: a pinned revision into its own cache, and the bytes compared with what the hub announced."""

import contextlib
import hashlib
import importlib
import time
from pathlib import Path

from huggingface_hub import HfApi, constants, get_session, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stages.runtime.errors import UserError, first_line, report_full_disk
from stages.sources.manifest import IGNORED

# The HTTP library that the hub's client uses, and whose errors it lets through: httpx, or httpx2 in newer releases.
http = importlib.import_module(type(get_session()).__module__.partition(".")[0])

REPO_TYPES = {"model": "model", "data": "dataset"}  # what the hub calls the groups of params.yaml


def download(name: str, revision: str, key: str, patterns: list[str]) -> Path:
    """The folder of a snapshot: from the hub, or from the cache where the hub can't be reached; or one line why not.

    Args:
        revision: a commit. A branch or a tag is refused, with the commit where it stands now.
        key: the group of params.yaml, "model" or "data".
        patterns: names of files, as `fnmatch` takes them.
    """
    reason = None
    try:
        commit, reason = _look_up(name, revision, key)
        if commit in (None, revision):
            with report_full_disk(constants.HF_HUB_CACHE):
                folder = _snapshot(name, revision, key, patterns, local_files_only=reason is not None)
            commit = folder.name
        if commit != revision:
            raise UserError(
                f"params.yaml: {key}.revision: {revision} may mean other files tomorrow; allowed: a commit of {name}; "
                f"today that is {commit}"
            )
        return folder
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
            f"({reason or first_line(error)}); check the network, or name a folder; `make demo` needs no hub"
        ) from error
    except OSError as error:  # a cache that can't be written
        raise UserError(f"{key}.name: {name}: {first_line(error)} (hub cache {constants.HF_HUB_CACHE})") from error


def cached(name: str, revision: str, key: str, patterns: list[str]) -> Path | None:
    """The folder of a snapshot in the cache, without a look at the hub; None where it is not there."""
    try:
        return _snapshot(name, revision, key, patterns, local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def check_announced(folder: Path, manifest: dict, key: str) -> None:
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


def _look_up(name, revision, key):
    """(commit of a revision, None); where the hub can't be reached (None, why). Asked once, without the downloads'
    patience."""
    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    try:
        return HfApi().repo_info(name, revision=revision, repo_type=REPO_TYPES[key], timeout=10).sha, None
    except HfHubHTTPError:
        return None, None  # it answers: whether it is busy or says no, the download finds out
    except http.TransportError as error:
        return None, first_line(error)


def _snapshot(name, revision, key, patterns, **options):
    """`snapshot_download`, which asks again where the hub is busy, and here also where it fails in mid-file."""
    for pause in (1, 4, None):
        try:
            folder = snapshot_download(
                name, revision=revision, repo_type=REPO_TYPES[key], allow_patterns=patterns,
                ignore_patterns=IGNORED[key], **options,
            )  # fmt: skip
            return Path(folder)
        except HfHubHTTPError as error:
            if pause is None or error.response.status_code < 500:
                raise
            time.sleep(pause)


def _git_hash(path):
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
