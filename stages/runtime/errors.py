"""The one exception that a user's mistake raises, and what running a stage means."""

import re
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right: one line that names the file, the key or the column, and what is allowed."""


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main()`; a `UserError` becomes one line on stderr and exit code 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


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
