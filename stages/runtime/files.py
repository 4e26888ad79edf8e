"""Files that are whole or not there: everything is written under a temporary name, then renamed."""

import csv
import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from stages.runtime import distributed
from stages.runtime.errors import UserError, report_full_disk


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with report_full_disk(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it takes the place of `path` when the block ends well."""
    path = Path(path)
    temporary = _temporary(path)
    temporary.mkdir(parents=True)
    try:
        with report_full_disk(path):
            yield temporary
            remove_folder(path)
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, gone when the block ends."""
    temporary = _temporary(Path(path))
    temporary.mkdir(parents=True)
    try:
        with report_full_disk(path):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: str | Path) -> None:
    """Remove a folder if it is there, under another name: whoever is killed here leaves no half of it behind."""
    path = Path(path)
    temporary = _temporary(path.with_name(f"{path.name}.old"))
    if path.exists():
        os.replace(path, temporary)
        shutil.rmtree(temporary)


def _temporary(path):
    """A temporary name beside `path`; what processes that were killed left under such names is removed."""
    for left in path.parent.glob(f".{path.name}.[0-9]*.tmp"):
        process = left.name.split(".")[-2]
        if process == str(os.getpid()) or not (process.isdigit() and _lives(int(process))):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _lives(process):
    """Whether a process runs. A zombie does not, and a container without an init process keeps it for ever."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_json(path: str | Path, value: dict) -> None:
    """Write JSON that DVC can read as metrics: numbers that are not finite are left out."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items() if not (isinstance(v, float) and not math.isfinite(v))}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def write_csv(path: str | Path, table: pd.DataFrame, quoting: int = csv.QUOTE_MINIMAL) -> None:
    """Write a table; where it holds any text, all text is to be quoted, else a bare carriage return ends the row."""
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", quoting=quoting)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, with the same line ends on every machine."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON file that an earlier stage wrote."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: not readable as JSON ({reason}); run `dvc repro`") from error


def read_table(path: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a parquet file as a data frame: some of its columns, or all."""
    return _read_parquet(path, functools.partial(pd.read_parquet, columns=columns))


def read_columns(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read a parquet file as an arrow table, which has no Python object for each row: some of its columns, or all."""
    return _read_parquet(path, functools.partial(pq.read_table, columns=columns))


def _read_parquet(path, read):
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as parquet ({error}); run `dvc repro`") from error


def check_same_on_all_ranks(find: Callable[[], object], what: str) -> None:
    """Raise UserError where a rank finds another value, or has other code: the run would be of both.

    Args:
        find: gives the value; not called where there is one rank.
        what: stands for it, in the error.
    """
    if distributed.world_size() == 1:
        return
    stages = Path(__file__).parents[1]
    code = {str(path.relative_to(stages)): sha256(path) for path in sorted(stages.rglob("*.py"))}
    mine = (find(), code)
    if any(other != mine for other in distributed.all_gather(mine)):
        raise UserError(f"{what} or the code: not the same for all ranks; every machine needs the same")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
