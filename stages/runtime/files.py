"""Reading and writing files. Every file and folder is written under a temporary name, then renamed."""

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
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.runtime import distributed
from stages.runtime.errors import UserError, report_full_disk
from stages.runtime.processes import is_running

Table = TypeVar("Table")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`. Rename it to `path` if the block raises nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        with report_full_disk(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder. Replace `path` by it if the block raises nothing."""
    path = Path(path)
    temporary = _temporary_path(path)
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
    """Yield an empty folder next to `path`, and remove it after the block."""
    temporary = _temporary_path(Path(path))
    temporary.mkdir(parents=True)
    try:
        with report_full_disk(path):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: str | Path) -> None:
    """Remove a folder if it exists. It is renamed first: if the process is killed, no partial folder has its name."""
    path = Path(path)
    temporary = _temporary_path(path.with_name(f"{path.name}.old"))
    if path.exists():
        os.replace(path, temporary)
        shutil.rmtree(temporary)


def _temporary_path(path: Path) -> Path:
    """A path next to `path` that names this process. Remove what ended processes have left under such names."""
    for leftover in path.parent.glob(f".{path.name}.[0-9]*.tmp"):
        process = leftover.name.split(".")[-2]
        if process == str(os.getpid()) or not (process.isdigit() and is_running(int(process))):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_json(path: str | Path, value: dict) -> None:
    """Write JSON that DVC can read as metrics: dictionary entries that are NaN or infinite are left out."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(_drop_not_finite(value), indent=2, allow_nan=False) + "\n")


def _drop_not_finite(value: Any) -> Any:
    if isinstance(value, dict):
        finite = {key: v for key, v in value.items() if not isinstance(v, float) or math.isfinite(v)}
        return {key: _drop_not_finite(v) for key, v in finite.items()}
    if isinstance(value, list):
        return [_drop_not_finite(v) for v in value]
    return value


def write_csv(path: str | Path, table: pd.DataFrame, quoting: int = csv.QUOTE_MINIMAL) -> None:
    """Write a table as CSV.

    Args:
        quoting: csv.QUOTE_NONNUMERIC for a table with text: pandas does not quote a carriage return, which ends a row.
    """
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", quoting=quoting)


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8 with the line ends of Unix, on every machine."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON file that an earlier stage has written."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `dvc repro` writes it, in the folder of the pipeline") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: not readable as JSON ({reason}); run `dvc repro` to write it again") from error


def read_table(path: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read some columns of a parquet file, or all, as a data frame."""
    return _read_parquet(path, functools.partial(pd.read_parquet, columns=columns))


def read_columns(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read some columns of a parquet file, or all, as an Arrow table, which has no Python object for each row."""
    return _read_parquet(path, functools.partial(pq.read_table, columns=columns))


def _read_parquet(path: str | Path, read: Callable[[str | Path], Table]) -> Table:
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as parquet ({error}); run `dvc repro` to write it again") from error


def check_same_on_all_ranks(get_value: Callable[[], object], description: str) -> None:
    """Raise UserError unless all ranks have the same value and the same code.

    Args:
        get_value: returns this rank's value. It is not called if there is only one rank.
        description: what the value is, for the error.
    """
    if distributed.world_size() == 1:
        return
    stages = Path(__file__).parents[1]
    code = {str(path.relative_to(stages)): sha256(path) for path in sorted(stages.rglob("*.py"))}
    local = (get_value(), code)
    if any(other != local for other in distributed.all_gather(local)):
        raise UserError(
            f"not the same on all ranks: {description} or the code; give every machine the same files and versions"
        )


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
