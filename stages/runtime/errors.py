"""Errors that a user can correct, the errors of a full disk, and `run`, which reports both in one line."""

import errno
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.runtime import distributed, startup


class UserError(Exception):
    """An error that the user can correct.

    Its message is one line: what is wrong (file, key or column, value), what is allowed, and what to do.
    """


class DiskFull(UserError):
    """The disk is full, or a quota is used up. The line names the path and the free space there."""

    def __init__(self, path: str | Path, reason: str, free: float) -> None:
        self.reason, self.free = reason, free
        super().__init__(
            f"{path}: not written ({reason}; {free / 1e6:,.1f} MB free there); "
            "free some space, then run the same command again to continue"
        )


# Libraries in C++ and Rust report no error number. PyTorch and NumPy only report that a write was too short.
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
SHORT_WRITE = re.compile(
    r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing|iostream error|requested and \d+ written"
)
MAY_QUOTE_DATA = (UserError, ValueError, LookupError)  # a parser's message may quote a row that has such words


def find_disk_full(error: BaseException | None, path: str | Path | None = None) -> DiskFull | None:
    """Return a `DiskFull` if a full disk has caused an error, else None.

    Args:
        path: the path that was being written. The error's own path is reported instead if it is on another disk.
            None: the error's own path, or the fullest of the folders that libraries write to.
    """
    while error:
        if isinstance(error, DiskFull):  # keep its free space: the partial file has been removed since
            return DiskFull(path, error.reason, error.free) if path else error
        if reason := _disk_full_reason(error):
            error_path = getattr(error, "filename", None)
            if isinstance(error_path, str) and (not path or _device(error_path) != _device(path)):
                path = error_path
            path = path or min((Path.cwd(), Path(tempfile.gettempdir()), Path.home()), key=_free_bytes)
            return DiskFull(path, reason, _free_bytes(path))
        error = error.__cause__ or error.__context__
    return None


def _disk_full_reason(error: BaseException) -> str | None:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return os.strerror(number)
    if isinstance(error, MAY_QUOTE_DATA):
        return None
    if match := NO_SPACE.search(str(error)):
        return match[0]
    return "a write was cut short" if SHORT_WRITE.search(str(error)) else None


def _free_bytes(path: str | Path) -> int:
    return shutil.disk_usage(_existing_parent(path)).free


def _device(path: str | Path) -> int:
    return _existing_parent(path).stat().st_dev


def _existing_parent(path: str | Path) -> Path:
    path = Path(path).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


@contextmanager
def report_full_disk(path: str | Path) -> Iterator[None]:
    """Raise `DiskFull` for `path` if the disk fills up in this block, whichever library notices it."""
    try:
        yield
    except Exception as error:
        if full := find_disk_full(error, path):
            raise full from error
        raise


def run(main: Callable[[], None]) -> None:
    """Run a stage's or a tool's `main`. A `UserError` or a full disk becomes one line on stderr and exit code 1.

    A stage that DVC has started ends its process here.
    """
    startup.freeze_imports()
    try:
        main()
        distributed.shut_down()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        user_error = error if isinstance(error, UserError) else find_disk_full(error)
        message = f"error: {one_line(user_error)}" if user_error else traceback.format_exc()
        if distributed.is_launched():
            distributed.fail(message, immediately=user_error is not None and distributed.is_main())
        if user_error is None:
            raise
        sys.exit(message)
    finally:
        startup.unfreeze_imports()
    if "DVC_STAGE" in os.environ:
        startup.exit_now()


def one_line(error: BaseException) -> str:
    """An error's message as one line, without the user and password of a URL (HF_ENDPOINT may have them)."""
    return re.sub(r"(\w://)[^/\s@]+@", r"\1", " ".join(str(error).split()))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def type_and_first_line(error: BaseException) -> str:
    """The name of an error's type and the first line of its message."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
