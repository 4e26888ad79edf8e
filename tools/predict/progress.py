"""The progress folder of a run: what is predicted so far is there, so that the same command continues after a kill."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from stages.runtime import files
from stages.runtime.errors import UserError, find_disk_full, report_full_disk

DTYPE = np.dtype(np.float32)  # no model's head computes in more bits


@dataclass
class State:
    """How far a run is.

    Attributes:
        out: the file or folder that the run will write.
        file: number of the file that is being predicted.
        part: its part; the parts before it are complete.
        computed: rows of that part in complete batches. They are the first in the order of `Classifier.split_batches`.
        rows: of all files, in complete batches.
        truncated: rows of complete parts that are longer than the model reads.
        longest: tokens of the longest of them.
        sizes: bytes of each file's logits.
    """

    out: str
    file: int = 0
    part: int = 0
    computed: int = 0
    rows: int = 0
    truncated: int = 0
    longest: int = 0
    sizes: list[int] = field(default_factory=list)


class ProgressFolder:
    """A hidden folder next to the file or folder to be written, locked by the process that uses it.

    Its name is a digest of all that decides the logits. It holds the state, and for each file the logits of the rows in
    their order, float32 [rows, outputs].
    """

    def __init__(self, path: Path, state: State, lock: IO) -> None:
        self.path, self.state, self.lock = path, state, lock

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    def logits_file(self, file: int) -> Path:
        return self.path / f"logits-{file}.f32"

    def write_logits(self, file: int, first_row: int, logits: np.ndarray) -> None:
        """Write the logits of consecutive rows. They count only after `save`."""
        path = self.logits_file(file)
        with report_full_disk(path), open(path, "r+b" if path.exists() else "wb") as target:
            target.seek(first_row * logits.shape[1] * DTYPE.itemsize)
            target.write(logits.astype(DTYPE).tobytes())

    def read_logits(self, file: int, first_row: int, rows: int, outputs: int) -> np.ndarray:
        """The logits of consecutive rows, float32 [rows, outputs]."""
        with open(self.logits_file(file), "rb") as source:
            source.seek(first_row * outputs * DTYPE.itemsize)
            return np.fromfile(source, DTYPE, rows * outputs).reshape(-1, outputs)

    def save(self) -> None:
        """Write the state, after the logits of the current file have reached the disk."""
        with report_full_disk(self.path):
            if self.logits_file(self.state.file).exists():
                with open(self.logits_file(self.state.file), "rb") as file:
                    os.fsync(file.fileno())
            self.state.sizes = self.measure_sizes(self.state.file + 1)
            files.write_json(self.state_file, asdict(self.state))

    def measure_sizes(self, count: int) -> list[int]:
        """Bytes of the logits of the first files; 0 if there are none."""
        paths = map(self.logits_file, range(count))
        return [path.stat().st_size if path.exists() else 0 for path in paths]

    def remove(self) -> None:
        with _lock_parent(self.path):
            files.remove_folder(self.path)


def open_progress(out: Path, digest: str) -> ProgressFolder:
    """Open the progress folder of a run, or make it. Other progress towards the same `out` is removed.

    Raises:
        UserError: another process uses it, or writes `out`; or there can be no such folder.
    """
    try:
        return _open_progress(out, digest)
    except OSError as error:
        if find_disk_full(error):
            raise
        raise UserError(f"--out: {out}: {error.strerror}; name another path") from error


def _open_progress(out: Path, digest: str) -> ProgressFolder:
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f".predict-{digest[:20]}"
    with _lock_parent(path):
        for other in out.parent.glob(".predict-*"):
            if other != path and _read_out(other) == out.name:
                with _lock(other, out):
                    shutil.rmtree(other)
        path.mkdir(exist_ok=True)
        progress = ProgressFolder(path, State(out.name), _lock(path, out))
        if progress.state_file.exists():
            state = State(**files.read_json(progress.state_file) | {"out": out.name})
            # A folder that was copied in part would otherwise give wrong predictions: missing logits are read as 0.
            sizes = progress.measure_sizes(len(state.sizes))
            if all(size >= saved for size, saved in zip(sizes, state.sizes, strict=True)):
                progress.state = state
        progress.save()
    return progress


def _read_out(folder: Path) -> str | None:
    try:
        return json.loads((folder / "state.json").read_text())["out"]
    except (OSError, ValueError, KeyError):
        return None


def _lock(folder: Path, out: Path) -> IO:
    """Lock a progress folder until the file that is returned is closed, or this process ends."""
    file = open(folder / "lock", "w")  # noqa: SIM115 - open as long as the lock is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"--out: another process predicts these rows for {out}; wait until it has ended") from error
    return file


@contextmanager
def _lock_parent(path: Path) -> Iterator[None]:
    """Let no other process open or remove a progress folder in this block."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
