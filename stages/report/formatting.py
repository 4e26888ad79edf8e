"""Numbers as text."""

import math
from collections.abc import Sequence

from stages.analysis.intervals import Share

MAX_DECIMALS = 4
MAX_NAMES = 5  # in a sentence; further ones are counted
MAX_P_DECIMALS = 6


def percent(share: float) -> str:
    """A share, 0 to 1, in percent; a dash if it is unknown."""
    return f"{in_percent(share)}%" if math.isfinite(share) else "–"


def in_percent(share: float) -> str:
    """A share in percent without the sign. It has more decimals if it would otherwise round to 0 or 100."""
    if not 0 < share < 1:
        return f"{share * 100:.1f}"
    shown = (f"{share * 100:.{decimals}f}" for decimals in range(1, MAX_DECIMALS + 1))
    near = f"<{10**-MAX_DECIMALS:.{MAX_DECIMALS}f}" if share < 0.5 else f">{100 - 10**-MAX_DECIMALS:.{MAX_DECIMALS}f}"
    return next((text for text in shown if 0 < float(text) < 100), near)


def whole_percent(share: float) -> str:
    """A share, 0 to 1, in whole percent; 0% and 100% only if the share is exactly 0 or 1."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def number(value: float) -> str:
    """A number with three decimals; a dash if it is unknown."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def percent_interval(interval: tuple[float, float]) -> str:
    """The interval of a share, in percent."""
    low, high = interval
    return f"{in_percent(low)} to {in_percent(high)}%"


def number_interval(interval: tuple[float, float]) -> str:
    """The interval of a number."""
    low, high = interval
    return f"{low:.3f} to {high:.3f}"


def signed_points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign (a typographic minus)."""
    sign = "−" if math.copysign(1, difference) < 0 else "+"
    return sign + points(difference)


def points(difference: float) -> str:
    """A difference of shares in percentage points, without its sign. It has more decimals if it would round to 0."""
    shown = [f"{abs(difference) * 100:.{decimals}f}" for decimals in range(1, MAX_DECIMALS + 1)]
    return next((text for text in shown if float(text)), shown[0])


def points_interval(interval: tuple[float, float]) -> str:
    """The interval of a difference of shares, in percentage points."""
    low, high = interval
    return f"{signed_points(low)} to {signed_points(high)}"


def p_value(p: float, confidence: float) -> str:
    """A p-value with three decimals, or more if it would otherwise seem to be on the other side of 1 - confidence."""
    level = round(1 - confidence, 12)  # 1 - 0.95 is not quite 0.05
    if p < min(0.001, level):
        return "<0.001"
    shown = (f"{p:.{decimals}f}" for decimals in range(3, MAX_P_DECIMALS + 1))
    return next((text for text in shown if (float(text) < level) == (p < 1 - confidence)), f"<{level:g}")


def p_statement(p: float, confidence: float) -> str:
    """A p-value as a statement, such as p = 0.021 or p < 0.001."""
    value = p_value(p, confidence)
    return f"p {value[0]} {value[1:]}" if value.startswith("<") else f"p = {value}"


def list_names(names: Sequence[str]) -> str:
    """Names in a sentence. Of many, the first ones and the number of the others."""
    more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def confidence_level(confidence: float) -> str:
    """The confidence of the intervals, in percent."""
    return f"{confidence * 100:g}%"


def share_with_interval(share: Share) -> str:
    """A share with its counts and its interval."""
    if not share.rows:
        return "none of 0"
    return f"{percent(share.value)} ({share.hits:,} of {share.rows:,}, {percent_interval(share.interval)})"


def gap_with_interval(gap: float, interval: tuple[float, float]) -> str:
    """A difference of shares with its interval, in percentage points."""
    return f"{signed_points(gap)} points ({points_interval(interval)})"
