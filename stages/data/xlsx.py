"""Read an Excel workbook as text, as a csv file is read."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from stages.runtime.errors import UserError, first_line


def read_xlsx(path: Path, name: str) -> pa.Table:
    """Read the only sheet of a workbook that is not empty; all columns are text.

    Args:
        name: the file's name in errors.
    """
    try:
        sheets = pd.read_excel(
            path, sheet_name=None, dtype=object, keep_default_na=False, na_values=[""], engine="calamine"
        )
    except Exception as error:  # calamine raises a kind of its own for each part of a file
        raise UserError(f"{name}: not readable as a workbook ({first_line(error)}); save it again as .xlsx") from error
    sheets = {title: rows for title, rows in sheets.items() if not rows.empty}
    if len(sheets) != 1:
        listed = f": {', '.join(sheets)}" if sheets else ""
        raise UserError(f"{name}: {len(sheets)} sheets with rows{listed}; allowed: one; save it as a file of its own")
    rows = next(iter(sheets.values())).rename(columns=str)
    return pa.Table.from_pandas(rows.map(_as_text, na_action="ignore").astype("str"))


def _as_text(value: Any) -> str:
    """A cell as text: 1 for the number 1.0, and ISO format for a date, with the time if it is not midnight."""
    if isinstance(value, datetime):
        return value.isoformat().removesuffix("T00:00:00")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
