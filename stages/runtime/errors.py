"""The one exception that a user's mistake raises, and what running a stage means."""

import atexit
import gc
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from stages.runtime import ranks


class UserError(Exception):
    """Something the user can put right: one line that names the file, the key or the column, and what is allowed."""


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main()`; a `UserError` becomes one line on stderr and exit code 1. In `dvc` the process ends here.

    The garbage collector passes over what was there before: the imports make half a million objects that stay.
    """
    gc.freeze()
    gc.enable()  # stages/__init__.py had it off
    try:
        main()
        ranks.leave()
    except UserError as error:
        message = f"error: {one_line(error)}"
        if ranks.launched():
            ranks.fail(message, at_once=ranks.is_first())
        sys.exit(message)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        if ranks.launched():
            ranks.fail(traceback.format_exc(), at_once=False)
        raise
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


def kind_and_line(error: BaseException) -> str:
    """The class of an error and its first line."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
