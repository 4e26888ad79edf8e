"""Read an Excel workbook as text, as a csv file is read."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.runtime.errors import UserError, first_line


def read_xlsx(path: Path, name: str) -> tuple[pa.Table, np.ndarray]:
    """Read the only sheet of a workbook that is not empty; all columns are text. Its first row names the columns.

    Empty rows count nowhere: a table may begin in any cell. Only its first column needs no name: pandas writes an index
    so.

    Args:
        name: the file's name in errors.

    Returns:
        (the table, the number of each row in the sheet, counted from 1)
    """
    try:
        sheets = pd.read_excel(
            path, sheet_name=None, header=None, dtype=object, keep_default_na=False, na_values=[""], engine="calamine"
        )
    except Exception as error:  # calamine raises a kind of its own for each part of a file
        raise UserError(f"{name}: not readable as a workbook ({first_line(error)}); save it again as .xlsx") from error
    sheets = {title: rows.dropna(how="all").dropna(how="all", axis="columns") for title, rows in sheets.items()}
    sheets = {title: rows for title, rows in sheets.items() if len(rows) > 1}
    if len(sheets) != 1:
        listed = f": {', '.join(sheets)}" if sheets else ""
        raise UserError(f"{name}: {len(sheets)} sheets with rows{listed}; allowed: one; save it as a file of its own")
    cells = next(iter(sheets.values())).map(_as_text, na_action="ignore")
    header = cells.iloc[0].fillna("").tolist()
    if "" in header[1:] or len(set(header)) < len(header):
        raise UserError(
            f"{name}: the first row does not name its {len(header)} columns ({', '.join(header):.200}); allowed: a "
            "name of its own above each column, and no title above the names"
        )
    rows = cells.iloc[1:].set_axis([header[0] or "Unnamed: 0", *header[1:]], axis="columns")
    return pa.Table.from_pandas(rows.astype("str"), preserve_index=False), rows.index.to_numpy() + 1


def _as_text(value: Any) -> str:
    """A cell as text: 1 for the number 1.0, and ISO format for a date, with the time if it is not midnight."""
    if isinstance(value, datetime):
        return value.isoformat().removesuffix("T00:00:00")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
