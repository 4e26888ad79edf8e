"""SHA-256 of files. The hash of a large file is cached until the file's stamp changes: its size, times and inode."""

import json
import time
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from stages.runtime.errors import DiskFull
from stages.runtime.files import atomic_file, sha256

LARGE_BYTES = 64 * 1024**2  # hashing a smaller file takes no longer than looking it up
# A hash is cached only if the file changed longer ago: a second change within a clock tick would have the same times.
SETTLED_NS = 2 * 10**9
CACHE_NAME = "qlora-file-hashes.json"  # in the folder of Hugging Face's cache: {path: [stamp, hash]}


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits. A large file is read again only if its path or stamp has changed."""
    path = Path(path).resolve()
    stamp = _read_stamp(path)
    if stamp[0] < LARGE_BYTES:
        return sha256(path)
    cache_file = Path(constants.HF_HOME) / CACHE_NAME
    cache = _read_cache(cache_file)
    if cache.get(str(path), [None])[0] == stamp:
        return cache[str(path)][1]
    digest = sha256(path)
    if _read_stamp(path) == stamp and time.time_ns() - max(stamp[1:3]) > SETTLED_NS:
        _write_cache(cache_file, _read_cache(cache_file) | {str(path): [stamp, digest]})
    return digest


def _read_stamp(path: Path) -> list[int]:
    """The stamp includes the change time, which no program can set. `cp -p` sets back only the modification time."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _read_cache(file: Path) -> dict[str, Any]:
    try:
        cache = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _write_cache(file: Path, cache: dict[str, Any]) -> None:
    try:
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(cache))
    except (OSError, DiskFull):  # without the cache, files are hashed again
        return
