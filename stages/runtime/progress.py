"""How far a long loop is: a bar on a terminal, and elsewhere, as in a log, a line every 30 seconds.

    with progress_bar(len(rows), "predict", "row") as bar:
        for batch in batches:
            ...
            bar.update(len(batch))

prints to standard error, where there is no terminal:

    predict: row 12,000 of 570,152, 5,210 rows/s, about 1 min 47 s left
"""

import sys
import time
from typing import Any, Self

FIRST_SECONDS, LINE_SECONDS = 10, 30  # until the first line; from each line to the next


def progress_bar(total: int, title: str, unit: str, initial: int = 0, disable: bool = False) -> Any:
    """A `tqdm` bar if standard error is a terminal, else `ProgressLines`, which has the methods that we use.

    Args:
        total: number of units at the end.
        title: what runs, such as "predict".
        unit: what is counted, in the singular.
        initial: number of units that an earlier run has done.
        disable: print nothing, as on ranks other than 0.
    """
    if disable or not sys.stderr.isatty():
        return ProgressLines(total, title, unit, initial, disable)
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=title, unit=unit, initial=initial)


class ProgressLines:
    """A line after 10 seconds and then every 30 seconds, with the methods of `tqdm`'s bar.

    A loop that ends within 10 seconds prints nothing. The rate is that since the last line.

    Attributes:
        n: number of units done.
    """

    def __init__(self, total: int, title: str, unit: str, initial: int = 0, disable: bool = False) -> None:
        self.total, self.title, self.unit, self.n, self.disable = total, title, unit, initial, disable
        self.text = ""
        self.last_update = time.monotonic()
        self.next_line = self.last_update + FIRST_SECONDS
        self.recent_units, self.recent_seconds = 0.0, 0.0  # since the last line

    def update(self, n: int = 1) -> None:
        """Count `n` more units. Print a line if it is time."""
        now = time.monotonic()
        self.n += n
        self.recent_units += n
        self.recent_seconds += now - self.last_update
        self.last_update = now
        if (
            not self.disable
            and now >= self.next_line
            and self.n < self.total
            and self.recent_units
            and self.recent_seconds
        ):
            print(self._line(self.recent_units / self.recent_seconds), file=sys.stderr, flush=True)
            self.next_line = now + LINE_SECONDS
            self.recent_units, self.recent_seconds = 0.0, 0.0

    def _line(self, rate: float) -> str:
        text = self.text or f"{format_rate(rate)} {self.unit}s/s"
        left = format_seconds((self.total - self.n) / rate)
        return f"{self.title}: {self.unit} {self.n:,} of {self.total:,}, {text}, about {left} left"

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Let the lines have this text instead of the rate."""
        self.text = text

    def unpause(self) -> None:
        """Leave the time since the last update out of the rate."""
        self.last_update = time.monotonic()

    def write(self, text: str) -> None:
        """Print a line of its own to standard output, now and not when its buffer is full."""
        print(text, flush=True)

    def close(self) -> None:
        """Nothing: the lines stay."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def format_rate(rate: float) -> str:
    """A number of units a second with at least two digits that count: 1,234, 56, 7.8, 0.12."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units: 8 s, 12 min 40 s, 3 h 5 min, 2 days 4 h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "days" if days > 1 else "day"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((i for i, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join([f"{value} {name}" for value, name in parts[first : first + 2] if value]) or "0 s"
