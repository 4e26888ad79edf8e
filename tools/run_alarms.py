"""The alarms of several runs' reports."""

from collections.abc import Iterable, Sequence


def describe_alarms(runs: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """A line for each alarm, with the names of the runs that have it; runs: (name, alarms) of each."""
    names: dict[str, list[str]] = {}  # {alarm: names of runs}
    for name, alarms in runs:
        for alarm in dict.fromkeys(alarms):
            names.setdefault(alarm, []).append(name)
    return [f"Alarm in the report of {', '.join(of)}: {alarm}" for alarm, of in names.items()]
