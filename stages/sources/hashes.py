"""SHA-256 of files. A large one is read once, and again when its stamp says that it may have changed."""

import json
import time
from pathlib import Path

from huggingface_hub import constants

from stages.runtime.errors import DiskFull
from stages.runtime.files import atomic_file, sha256

LARGE = 64 * 1024**2  # bytes; less takes no longer to read than to look up
SETTLED = 2 * 10**9  # ns; a file touched later than this before its reading may change again within its clock's tick
STAMPS = "qlora-file-hashes.json"  # in the folder of the hub's cache: what a file's stamp and hash were


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex; of a large file as read before, where place, size, times and inode are the same.

    The change time stands in the stamp since no program can set it back, as `cp -p` does the modification time.
    """
    path = Path(path).resolve()
    before = _stamp(path)
    if before[0] < LARGE:
        return sha256(path)
    store = Path(constants.HF_HOME) / STAMPS
    known = _read(store)
    if known.get(str(path), [None])[0] == before:
        return known[str(path)][1]
    found = sha256(path)
    if _stamp(path) == before and time.time_ns() - max(before[1:3]) > SETTLED:
        _write(store, _read(store) | {str(path): [before, found]})
    return found


def _stamp(path):
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _read(store):
    try:
        known = json.loads(store.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(store, known):
    try:
        with atomic_file(store) as temporary:
            temporary.write_text(json.dumps(known))
    except (OSError, DiskFull):  # a cache that can't be written costs time, nothing else
        return
