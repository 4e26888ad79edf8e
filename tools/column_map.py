"""`--column premise=sentence1`: which column of a file each column of the template is read from."""

import argparse
from collections.abc import Sequence
from shlex import quote

from stages.runtime.errors import UserError


def add_column_argument(parser: argparse._ActionsContainer) -> None:
    """Add the option, which may be repeated."""
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        dest="columns",
        metavar="COLUMN=COLUMN",
        help="a column of the template, and the file's column to read for it, such as premise=sentence1; repeat it "
        "for several (default: the column of the same name)",
    )


def parse_column_map(pairs: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """The column of the file for each column of the template.

    Args:
        pairs: values of `--column`. The file's column is all that follows the first `=`.
        columns: of the template.

    Returns:
        {column of the template: column of the file}, in the template's order.

    Raises:
        UserError: a pair has no `=`, or its first column is not in the template or is named twice.
    """
    mapped: dict[str, str] = {}
    for pair in pairs:
        column, separator, source = pair.partition("=")
        if not separator or not source:
            example = f"{quote(columns[0])}={quote(column or 'text')}"
            raise UserError(f"--column {pair}: must be COLUMN=COLUMN, such as {example}")
        if column not in columns:
            raise UserError(f"--column {pair}: the template has no column {column}; it has {', '.join(columns)}")
        if column in mapped:
            raise UserError(f"--column {pair}: {column} is read from {mapped[column]} already; name it once")
        mapped[column] = source
    return {column: mapped.get(column, column) for column in columns}
