"""Slices of the test rows: by class or label, by number of labels, by length, by probability, and by what NLI adds."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stages.analysis.intervals import measure_share
from stages.analysis.text_terms import length_column
from stages.data.task import Task

# Names of the slices, and the number of each row's slice [rows]; or whether it is in each, bool [rows, slices]
Cut = tuple[Sequence[str], np.ndarray]
CLASS_CUT, LABEL_CUT = "class", "label"  # names of the first cut; of several labels, a row is in each label's slice
PROBABILITY_EDGES = (0.5, 0.7, 0.9)  # with two classes, no probability is below the first
SET_PROBABILITY_EDGES = (0.1, 0.3, *PROBABILITY_EDGES)  # 28 labels, each with 97%, 95%, 90%: 43%, 24%, 5% for the set
LABEL_COUNTS = ("none", "1", "2", "3 or more")


def quartiles(values: Sequence[float] | np.ndarray | pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Cut values at their quartiles. Equal values stay together, so ties make fewer than four groups.

    Returns:
        (groups, edges): the group of each value from 0 up, [rows]; the highest value of each group except the last.
    """
    values = np.asarray(values)
    edges = np.unique(np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf"))
    edges = edges[edges < values.max()]
    return np.searchsorted(edges, values), edges


def name_shares(edges: Sequence[float] | np.ndarray) -> list[str]:
    """Names of the slices between `edges`, which are shares."""
    if not len(edges):
        return ["all alike"]
    between = [f"{low:.0%} to {high:.0%}" for low, high in itertools.pairwise(edges)]
    return [f"up to {edges[0]:.0%}", *between, f"over {edges[-1]:.0%}"]


def name_lengths(edges: Sequence[int] | np.ndarray, unit: str) -> list[str]:
    """Names of the slices between `edges`, which are numbers of words or characters."""
    if not len(edges):
        return ["all alike"]
    between = [
        f"{low + 1} to {high} {unit}" if low + 1 < high else f"{high} {unit}" for low, high in itertools.pairwise(edges)
    ]
    return [f"up to {edges[0]} {unit}", *between, f"over {edges[-1]} {unit}"]


def cuts(cases: pd.DataFrame, probability: np.ndarray, task: Task, extra: Mapping[str, Cut]) -> dict[str, Cut]:
    """All ways to slice the rows, by name.

    Args:
        cases: from `build_case_table`.
        probability: of one model's answers, [rows].
        extra: cuts that only this kind of task has.
    """
    gold = task.labels.from_codes(cases["gold"])
    by_name: dict[str, Cut] = {LABEL_CUT if task.multi_label else CLASS_CUT: (task.classes, gold), **extra}
    if task.multi_label:
        counts = np.minimum(gold.sum(axis=1), len(LABEL_COUNTS) - 1)
        by_name["number of labels"] = (LABEL_COUNTS[: counts.max() + 1], counts)
    units = {column: "words" if length_column("words", column) in cases else "characters" for column in task.columns}
    lengths = {(unit, column): cases[length_column(unit, column)] for column, unit in units.items()}
    if len(lengths) > 1 and len(set(units.values())) == 1:
        lengths[next(iter(units.values())), "all"] = sum(lengths.values())
    for (unit, column), values in lengths.items():
        groups, edges = quartiles(values)
        by_name[f"{unit} in {column}"] = (name_lengths(edges, unit), groups)
    if cases["truncated"].any():
        by_name["at max_length"] = (("whole", "cut"), cases["truncated"].to_numpy().astype(int))
    by_name |= cut_by_probability(probability, task)
    return by_name


def cut_by_probability(probability: np.ndarray, task: Task) -> dict[str, Cut]:
    """The slices by probability; none if all probabilities of sets of labels are in one of them."""
    if task.multi_label:
        edges: Sequence[float] = SET_PROBABILITY_EDGES
    else:
        edges = [edge for edge in PROBABILITY_EDGES if edge > 1 / len(task.classes)]
    numbers = np.searchsorted(edges, probability)
    if task.multi_label and len(set(numbers)) == 1:
        return {}
    return {"probability": (name_shares(edges), numbers)}


def measure_slices(cuts: Mapping[str, Cut], right: np.ndarray, groups: np.ndarray, confidence: float) -> pd.DataFrame:
    """Rows and accuracy of each slice.

    Args:
        cuts: from `cuts`.
        right: whether the model is right, [rows].
        groups: rows of the same group are not independent, [rows].
        confidence: of the intervals, such as 0.95.

    Returns:
        data frame: `cut`, `slice`, `rows`, `right`, `accuracy`, `low`, `high` (NaN for a slice without rows). `slice`
        starts with the cut's name, so it is unique.
    """
    table = []
    for cut, (names, numbers) in cuts.items():
        for number, name in enumerate(names):
            inside = numbers[:, number] if numbers.ndim == 2 else numbers == number
            accuracy = measure_share(right[inside], groups[inside], confidence)
            table.append((cut, f"{cut}: {name}", accuracy.rows, accuracy.hits, accuracy.value, *accuracy.interval))
    return pd.DataFrame(table, columns=["cut", "slice", "rows", "right", "accuracy", "low", "high"])
