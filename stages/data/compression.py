"""Open files that may be compressed, to read or to write them, and decompress .zst files."""

import bz2
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from stages.runtime.errors import UserError, first_line


def _open_zst(path: Path, mode: str) -> BinaryIO:
    return pa.input_stream(path, compression="zstd")


OPENERS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst}


@contextmanager
def open_file(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file to read its bytes, decompressed.

    Args:
        name: the file's name in errors.

    Raises:
        UserError: the file is damaged, here or while it is read.
    """
    try:
        with OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
            yield file
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{name}: not readable ({first_line(error)}); fetch or copy it whole") from error


@contextmanager
def open_to_write(path: Path, suffix: str) -> Iterator[Any]:
    """Open a binary file to write it, compressed as a suffix says. Equal contents give equal files.

    Args:
        suffix: .gz, .bz2, .xz or .zst; another one: not compressed.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "wb"))
        if suffix == ".gz":  # without the time and the name that gzip would note
            yield stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        elif suffix == ".zst":
            yield stack.enter_context(pa.output_stream(file, compression="zstd"))
        else:
            yield stack.enter_context(OPENERS[suffix](file, "wb")) if suffix in OPENERS else file


def decompress_zst(path: Path, target: Path, name: str) -> None:
    """Write the content of a .zst file to `target`: pandas and `datasets` read .zst only with an extra package.

    Args:
        name: the file's name in errors.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        for block in _read_blocks(path, name):
            file.write(block)  # outside `open_file`, which would report a full disk as a damaged file


def _read_blocks(path: Path, name: str) -> Iterator[bytes]:
    with open_file(path, name) as file:
        while block := file.read(1 << 20):
            yield block
