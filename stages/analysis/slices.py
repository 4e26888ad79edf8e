"""Test rows cut into slices: by class, length, confidence, and what else a kind of task is cut by."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.analysis.design_effects import effective_counts
from stages.analysis.intervals import wilson
from stages.analysis.words import length_column
from stages.data.task import Task

CONFIDENCES = (0.5, 0.7, 0.9)  # a model is sure of its class above the last; of two classes none is under the first


def quartiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values cut at their quartiles; equal values stay together, so that ties make fewer groups than four.

    Returns:
        (groups, edges): group of each value, 0 up, [rows]; the highest value of each group but the last.
    """
    values = np.asarray(values)
    edges = np.unique(np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf"))
    edges = edges[edges < values.max()]
    return np.searchsorted(edges, values), edges


def share_names(edges: Sequence[float]) -> list[str]:
    """Names of the groups that `edges`, shares, make."""
    if not len(edges):
        return ["all alike"]
    between = [f"{low:.0%} to {high:.0%}" for low, high in itertools.pairwise(edges)]
    return [f"up to {edges[0]:.0%}", *between, f"over {edges[-1]:.0%}"]


def length_names(edges: Sequence[int], unit: str) -> list[str]:
    """Names of the groups that `edges`, numbers of words or characters, make."""
    if not len(edges):
        return ["all alike"]
    between = [
        f"{low + 1} to {high} {unit}" if low + 1 < high else f"{high} {unit}" for low, high in itertools.pairwise(edges)
    ]
    return [f"up to {edges[0]} {unit}", *between, f"over {edges[-1]} {unit}"]


def cuts(
    cases: pd.DataFrame,
    sure: np.ndarray,
    task: Task,
    own: dict[str, tuple[Sequence[str], np.ndarray]],
) -> dict[str, tuple[Sequence[str], np.ndarray]]:
    """All ways of cutting the rows.

    Args:
        cases: from `comparison.build_case_table`.
        sure: one model's probability of the class it predicts, [rows].
        own: what this kind of task adds.

    Returns:
        {what is cut by: (names of its slices, slice of each row [rows])}
    """
    made = {"class": (task.classes, cases["gold"].to_numpy()), **own}
    units = {column: "words" if length_column("words", column) in cases else "characters" for column in task.columns}
    counts = {(unit, column): cases[length_column(unit, column)] for column, unit in units.items()}
    if len(counts) > 1 and len(set(units.values())) == 1:
        counts[next(iter(units.values())), "all"] = sum(counts.values())
    for (unit, where), values in counts.items():
        groups, edges = quartiles(values)
        made[f"{unit} in {where}"] = (length_names(edges, unit), groups)
    if cases["truncated"].any():
        made["at max_length"] = (("whole", "cut"), cases["truncated"].to_numpy().astype(int))
    edges = [edge for edge in CONFIDENCES if edge > 1 / len(task.classes)]
    return made | {"confidence": (share_names(edges), np.searchsorted(edges, sure))}


def slice_table(
    cut: dict[str, tuple[Sequence[str], np.ndarray]], right: np.ndarray, groups: np.ndarray, confidence_level: float
) -> pd.DataFrame:
    """Rows and accuracy of each slice; a name says what is cut by, so that no two slices share one.

    Args:
        cut: from `cuts`.
        right: whether the model is right, [rows].
        groups: rows of the same group are not independent, [rows].

    Returns:
        data frame: `cut`, `slice`, `rows`, `right`, `accuracy`, `low`, `high` (NaN where a slice has no rows).
    """
    table = []
    for by, (names, group) in cut.items():
        for number, name in enumerate(names):
            inside = right[group == number]
            low, high = wilson(*effective_counts(inside, groups[group == number], confidence_level), confidence_level)
            accuracy = inside.mean() if len(inside) else np.nan
            table.append((by, f"{by}: {name}", len(inside), int(inside.sum()), accuracy, low, high))
    return pd.DataFrame(table, columns=["cut", "slice", "rows", "right", "accuracy", "low", "high"])
