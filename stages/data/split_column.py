"""Split a table by a column that says which split each row belongs to: `data.split`."""

from typing import Any

import datasets
import pyarrow as pa

from stages.data.label_column import describe_type, format_number
from stages.data.row_places import list_columns
from stages.runtime.errors import UserError

MOST_VALUES = 20  # a column with more values does not name splits


def split_by_column(table: pa.Table, column: str) -> dict[str, pa.Table]:
    """{value of a column, as stripped text: its rows}, in the order of the rows. Rows without a value are in none.

    Raises:
        UserError: no such column, no column of single values, or more than 20 values.
    """
    if column not in table.column_names:
        raise UserError(
            f"params.yaml: data.split: {column}: no such column; the data has {', '.join(list_columns(table))}"
        )
    kind = table.schema.field(column).type
    if pa.types.is_nested(kind):
        raise UserError(f"params.yaml: data.split: {column}: holds {describe_type(kind)}; allowed: text")
    names = getattr(datasets.Features.from_arrow_schema(table.schema)[column], "names", None)
    encoded = table[column].combine_chunks().dictionary_encode()
    texts = [_as_text(value, names) for value in encoded.dictionary.to_pylist()]
    values = list(dict.fromkeys(text for text in texts if text))
    if len(values) > MOST_VALUES:
        raise UserError(
            f"params.yaml: data.split: {column}: {len(values):,} different values, such as {values[0]:.60}; "
            f"allowed: a column with the names of splits, at most {MOST_VALUES}"
        )
    numbers = [values.index(text) if text else None for text in texts]
    row_values = pa.array(numbers, pa.int64()).take(encoded.indices)
    return {value: table.filter(pa.compute.equal(row_values, i)) for i, value in enumerate(values)}


def _as_text(value: Any, names: list[str] | None) -> str:
    """A value as text: the name of a ClassLabel's code, 1 for 1.0, empty for a missing value."""
    if value is None or (names and value == -1):
        return ""
    if names:
        return names[value].strip()
    return (format_number(value) if isinstance(value, float) else str(value)).strip()
