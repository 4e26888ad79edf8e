"""The one exception that a user's mistake raises, and what running a stage means."""

import atexit
import errno
import gc
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from stages.runtime import distributed


class UserError(Exception):
    """Something the user can put right: one line that names the file, the key or the column, and what is allowed."""


class DiskFull(UserError):
    """A full disk, or a quota used up: one line that names the place and the free space there."""

    def __init__(self, path: str | Path, reason: str, free: float) -> None:
        self.reason, self.free = reason, free
        super().__init__(
            f"{path}: not written ({reason}; {free / 1e6:,.1f} MB free there); free some space, "
            "then the same command goes on"
        )


# Libraries in C++ and Rust give no number of the error. PyTorch and NumPy only say that less was written than asked.
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
CUT_SHORT = re.compile(
    r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing|iostream error|requested and \d+ written"
)
QUOTES_DATA = (UserError, ValueError, LookupError)  # a parser's error may quote a row that has such words


def full_disk(error: BaseException | None, path: str | Path | None = None) -> DiskFull | None:
    """The error of a full disk that an error is, or that it came of; None where it has another reason.

    Args:
        path: what was to be written, unless the error names a file on another disk; None: the file that the error
            names, or the fullest of the folders that libraries write to.
    """
    while error:
        if isinstance(error, DiskFull):  # its free space was measured before the part that was written was removed
            return DiskFull(path, error.reason, error.free) if path else error
        if reason := _no_space(error):
            named = error.filename if isinstance(getattr(error, "filename", None), str) else None
            if not path or (named and _device(named) != _device(path)):
                path = named or min((Path.cwd(), Path(tempfile.gettempdir()), Path.home()), key=_free)
            return DiskFull(path, reason, _free(path))
        error = error.__cause__ or error.__context__
    return None


def _no_space(error):
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return os.strerror(error.errno)
    if isinstance(error, QUOTES_DATA):
        return None
    if found := NO_SPACE.search(str(error)):
        return found[0]
    return "a write was cut short" if CUT_SHORT.search(str(error)) else None


def _free(path):
    return shutil.disk_usage(_existing(path)).free


def _device(path):
    return _existing(path).stat().st_dev


def _existing(path):
    path = Path(path).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


@contextmanager
def report_full_disk(path: str | Path) -> Iterator[None]:
    """A full disk inside is a `DiskFull` of this path, whichever library met it."""
    try:
        yield
    except Exception as error:
        if full := full_disk(error, path):
            raise full from error
        raise


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main()`; a `UserError` or a full disk becomes one line on stderr and exit code 1. In `dvc` the
    process ends here.

    The garbage collector passes over what was there before: the imports make half a million objects that stay.
    """
    gc.freeze()
    gc.enable()  # stages/__init__.py had it off
    try:
        main()
        distributed.shut_down()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        told = error if isinstance(error, UserError) else full_disk(error)
        message = f"error: {one_line(told)}" if told else traceback.format_exc()
        if distributed.is_launched():
            distributed.fail(message, at_once=told is not None and distributed.is_main())
        if told is None:
            raise
        sys.exit(message)
    finally:
        gc.unfreeze()
    if "DVC_STAGE" in os.environ:
        end_at_once()


def end_at_once() -> NoReturn:
    """End this process with exit code 0, and leave its memory to the system: Python takes over a second to tidy it up.

    What libraries want done at the end is done: `datasets` removes its temporary folders there.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def one_line(error: BaseException) -> str:
    """An error as one line; an address in it loses user and password (HF_ENDPOINT may hold them)."""
    return re.sub(r"(\w://)[^/\s@]+@", r"\1", " ".join(str(error).split()))


def first_line(error: BaseException) -> str:
    """The first line of what a library says of an error."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def type_and_first_line(error: BaseException) -> str:
    """The class of an error and its first line."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
