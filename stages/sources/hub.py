"""The Hugging Face hub: fetch a pinned revision into the hub's own cache, and check the bytes that arrived."""

import contextlib
import functools
import hashlib
import importlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from stages.sources.manifest import IGNORED_PATTERNS

# The HTTP library of the hub's client: httpx, or httpx2 in newer releases. The client does not wrap its errors.
http = importlib.import_module(type(get_session()).__module__.partition(".")[0])

NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # OWNER/NAME
REPO_TYPES = {"model": "model", "data": "dataset"}  # section of params.yaml: type of repository on the hub


def download(name: str, revision: str, section: str, patterns: list[str]) -> Path:
    """Return the folder of a snapshot, fetched from the hub, or from the cache if the hub can't be reached.

    Args:
        revision: a commit. A branch or a tag is rejected, and the error names its commit.
        section: of params.yaml, "model" or "data".
        patterns: names of the files to fetch, as `fnmatch` reads them.

    Raises:
        UserError: one line that says why there is no such folder.
    """
    with _explain_errors(name, revision, section):
        commit, unreachable = _find_commit(name, revision, section)
        if commit in (None, revision):
            try:
                with report_full_disk(constants.HF_HUB_CACHE):
                    folder = _fetch_snapshot(
                        name, revision, section, patterns, local_files_only=unreachable is not None
                    )
            except LocalEntryNotFoundError as error:
                raise _not_reached(name, section, unreachable or first_line(error)) from error
            commit = folder.name
        if commit != revision:
            raise UserError(
                f"params.yaml: {section}.revision: {revision} is a name whose files may change; "
                f"allowed: a commit of {name}; set the present one, {commit}"
            )
        return folder


def find_present_commit(name: str, section: str) -> str:
    """Ask the hub for the last commit of a repository. Raises UserError, as `download` does."""
    branch = constants.DEFAULT_REVISION
    with _explain_errors(name, branch, section):
        if constants.HF_HUB_OFFLINE:
            raise _not_reached(name, section, "HF_HUB_OFFLINE is set")
        commit = HfApi().repo_info(name, revision=branch, repo_type=REPO_TYPES[section], timeout=10).sha
    assert commit is not None
    return commit


def _not_reached(name: str, section: str, reason: str) -> UserError:
    return UserError(
        f"params.yaml: {section}.name: {name} is not in the local cache and {constants.ENDPOINT} gave no answer "
        f"({reason}); check the network, or set {section}.folder; `make demo` needs no hub"
    )


@contextlib.contextmanager
def _explain_errors(name: str, revision: str, section: str) -> Iterator[None]:
    """Raise UserError, one line that says what to do, for an error of the hub's client in this block."""
    try:
        yield
    except HFValidationError as error:
        raise UserError(
            f"params.yaml: {section}.name: {name} is not a name that the hub allows; "
            f"set OWNER/NAME, or the path of a folder as {section}.folder"
        ) from error
    except GatedRepoError as error:
        raise UserError(
            f"params.yaml: {section}.name: {name} is gated; accept its terms on the hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"params.yaml: {section}.revision: {name} has no revision {revision}; set a commit from its history"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"params.yaml: {section}.name: no {name} on the hub; correct the name, "
            "or set HF_TOKEN if the repository is private"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, http.HTTPError) as error:
        raise _not_reached(name, section, first_line(error)) from error
    except OSError as error:
        raise UserError(
            f"params.yaml: {section}.name: {name}: the hub cache {constants.HF_HUB_CACHE} is not usable "
            f"({first_line(error)}); set HF_HOME to a folder that can be written"
        ) from error


def find_cached(name: str, revision: str, section: str, patterns: list[str]) -> Path | None:
    """Return the folder of a snapshot in the cache, without asking the hub. None if it is not there."""
    try:
        return _fetch_snapshot(name, revision, section, patterns, local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def check_announced(folder: Path, manifest: dict[str, Any], section: str) -> None:
    """Compare each file's bytes with the hash that the hub announced. The cache uses that hash as the file's name.

    The hub announces the SHA-256 of a large file and the Git hash of a small one. A file that differs is deleted.
    """
    for name, file in manifest["files"].items():
        path = folder / name
        announced = path.readlink().name if path.is_symlink() else ""
        if len(announced) == 64:
            digest = file["sha256"]
        elif len(announced) == 40:
            digest = _git_hash(path)
        else:
            continue
        if digest != announced:
            with contextlib.suppress(OSError):  # the cache may be read-only
                path.resolve().unlink()
                path.unlink()
            raise UserError(
                f"params.yaml: {section}.name: {manifest['name']}: {path} is not what the hub announced; "
                "run the same command again to fetch it again"
            )


def _find_commit(name: str, revision: str, section: str) -> tuple[str | None, str | None]:
    """(commit of a revision, None), or (None, why the hub can't be reached). Asks once, unlike a download.

    (None, None) if the hub answers with an error: `download` then meets the same error.
    """
    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    try:
        return HfApi().repo_info(name, revision=revision, repo_type=REPO_TYPES[section], timeout=10).sha, None
    except HfHubHTTPError:
        return None, None
    except http.TransportError as error:
        return None, first_line(error)


def _fetch_snapshot(name: str, revision: str, section: str, patterns: list[str], local_files_only: bool) -> Path:
    """Call `snapshot_download` up to three times: it repeats a request to a busy hub, but not a download that broke."""
    fetch = functools.partial(
        snapshot_download, name, revision=revision, repo_type=REPO_TYPES[section], allow_patterns=patterns,
        ignore_patterns=IGNORED_PATTERNS[section], local_files_only=local_files_only,
    )  # fmt: skip
    for pause_seconds in (1, 4):
        try:
            return Path(fetch())
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            time.sleep(pause_seconds)
    return Path(fetch())


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
