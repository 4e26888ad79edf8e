"""The one exception that a user's mistake raises, and what running a stage means."""

import sys


class UserError(Exception):
    """Something the user can put right: one line that names the file, the key or the column, and what is allowed."""


class StepUnavailable(Exception):
    """Why a model or a machine can't have the captured training step."""


def run(main):
    """Run a stage's `main()`; a `UserError` becomes one line on stderr and exit code 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
