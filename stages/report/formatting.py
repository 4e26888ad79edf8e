"""Numbers as text."""

import math
from collections.abc import Callable
from typing import Any

from stages.analysis import metrics

DECIMALS = 4  # at most


def percent(share: float) -> str:
    """A share, 0 to 1, in percent; a dash where it can't be known."""
    return f"{in_percent(share)}%" if math.isfinite(share) else "–"


def in_percent(share: float) -> str:
    """A share without its sign, with more than one decimal where it would seem to be none or all, and is not."""
    if not 0 < share < 1:
        return f"{share * 100:.1f}"
    shown = (f"{share * 100:.{decimals}f}" for decimals in range(1, DECIMALS + 1))
    near = f"<{10**-DECIMALS:.{DECIMALS}f}" if share < 0.5 else f">{100 - 10**-DECIMALS:.{DECIMALS}f}"
    return next((text for text in shown if 0 < float(text) < 100), near)


def whole_percent(share: float) -> str:
    """A share, 0 to 1, in whole percent; neither 0 nor 100 where it is more or less."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def number(value: float) -> str:
    """A number as it is; a dash where it can't be known."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def percent_interval(interval: tuple[float, float]) -> str:
    """An interval of a share, in percent."""
    low, high = interval
    return f"{in_percent(low)} to {in_percent(high)}%"


def number_interval(interval: tuple[float, float]) -> str:
    """An interval of a number."""
    low, high = interval
    return f"{low:.3f} to {high:.3f}"


def signed_points(difference: float) -> str:
    """A difference of shares in percentage points with its sign, a true minus."""
    sign = "−" if math.copysign(1, difference) < 0 else "+"
    return sign + points(difference)


def points(difference: float) -> str:
    """A difference of shares in percentage points without its sign, with more decimals where it would seem to be 0."""
    shown = [f"{abs(difference) * 100:.{decimals}f}" for decimals in range(1, DECIMALS + 1)]
    return next((text for text in shown if float(text)), shown[0])


def points_interval(interval: tuple[float, float]) -> str:
    """An interval of a difference of shares, in percentage points."""
    low, high = interval
    return f"{signed_points(low)} to {signed_points(high)}"


def share_with_interval(part: int, rows: int, interval: tuple[float, float]) -> str:
    """A share with its counts and its interval."""
    return f"{percent(part / rows)} ({part:,} of {rows:,}, {percent_interval(interval)})" if rows else "none of 0"


def gap_with_interval(gap: float, interval: tuple[float, float]) -> str:
    """A difference of shares with its interval, in percentage points."""
    return f"{signed_points(gap)} points ({points_interval(interval)})"


# How a metric and its interval are written.
FORMS = {"percent": (percent, percent_interval), "number": (number, number_interval)}


def numbers(details: dict[str, Any]) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """The table of metrics: (title, [(value, interval or None) of base, of tuned]) a row.

    Those that have a value for each class are in another table, `tables.by_class`.

    Args:
        details: metrics/details.json.
    """
    table = []
    for metric in metrics.METRICS:
        write, write_interval = FORMS[metric.form]
        values = [details[name][metric.key] for name in ("base", "tuned")]
        if isinstance(values[0], dict):
            continue
        ends = [details[name].get(f"{metric.key}_interval") for name in ("base", "tuned")]
        intervals = [end and write_interval((end["low"], end["high"])) for end in ends]
        table.append((metric.title, list(zip(map(write, values), intervals, strict=True))))
    return table


def found(values: dict[str, Any], key: str, show: str | Callable[[float], str]) -> str:
    """A nested value as text, or a dash where it was not measured or is not finite.

    Args:
        key: with dots, such as "train.seconds".
        show: a format string, such as "{:.3f}", or a function.
    """
    for part in key.split("."):
        if part not in values:
            return "–"
        values = values[part]
    if not math.isfinite(values):
        return "–"
    return show.format(values) if isinstance(show, str) else show(values)
