"""The one exception that a user's mistake raises, and what running a stage means."""

import re
import sys


class UserError(Exception):
    """Something the user can put right: one line that names the file, the key or the column, and what is allowed."""


def run(main):
    """Run a stage's `main()`; a `UserError` becomes one line on stderr and exit code 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(error):
    """An error as one line; an address in it loses user and password (HF_ENDPOINT may hold them)."""
    return re.sub(r"(\w://)[^/\s@]+@", r"\1", " ".join(str(error).split()))
