"""Choose held-out rows that may have several labels: iterative stratification, in the order of the hashes.

Each split gets its share of the rows of every label, and of every set of labels of which it gets a row, the empty set
too. As Sechidis et
al. 2011 ("On the Stratification of Multi-Label Data") do, rows are chosen for the rarest label first: what it lacks
can't be made up for later. Rows without labels are the last.

The shares of the labels and the number of rows can't all be exact. In percent, the shares are. If a number of rows is
asked for, that is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stages.data.labels import Labels
from stages.data.task import NO_LABEL

Unit = list[tuple[int, int]]  # (stratum, rows) for each stratum of a unit's rows, in the order of the numbers


def count_rows(places: np.ndarray, strata: np.ndarray, number: int) -> list[Unit]:
    """The rows of each stratum in each unit.

    Args:
        places, strata: of each row's unit and stratum, int [rows]. A row may be in several strata.
        number: of units.
    """
    width = strata.max() + 1
    pairs, counts = np.unique(places * width + strata, return_counts=True)
    units: list[Unit] = [[] for _ in range(number)]
    for place, stratum, count in zip((pairs // width).tolist(), (pairs % width).tolist(), counts.tolist(), strict=True):
        units[place].append((stratum, count))
    return units


def stratify(
    codes: pd.Series, places: np.ndarray, labels: Labels, row_target: int, count_unlabelled: bool
) -> tuple[list[Unit], list[int]]:
    """(The rows of each stratum in each unit, how many of them a split should have).

    The strata are the labels, the sets of labels of which the split gets a row, the rows without a gold label, and all
    rows. They are numbered from the rarest to all rows.

    Args:
        codes, places: label and unit of each row, [rows].
        row_target: rows of the split.
        count_unlabelled: whether rows without a gold label count. Else they are in no stratum.
    """
    known = np.flatnonzero(codes != NO_LABEL)
    counted = np.arange(len(codes)) if count_unlabelled else known
    has = labels.from_codes(codes.iloc[known])
    sets, _ = pd.factorize(codes.iloc[known])
    is_set = has.sum(axis=1) != 1  # a set of one is a label
    frequent = (np.bincount(sets)[sets] * row_target >= len(counted)) & is_set
    of_labels, numbers = np.nonzero(has)
    rows = [np.setdiff1d(counted, known), known[of_labels], known[frequent], counted]
    names = [np.full(len(rows[0]), -1), numbers, has.shape[1] + sets[frequent], np.full(len(counted), len(codes) ** 2)]
    _, strata, counts = np.unique(np.concatenate(names), return_inverse=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    units = count_rows(places[np.concatenate(rows)], np.argsort(order)[strata], places.max() + 1)
    return units, ((2 * row_target * counts[order] + len(counted)) // (2 * len(counted))).tolist()


def choose_by_rarest(units: Mapping[int, Unit], targets: Sequence[int], is_exact: bool) -> list[int]:
    """Choose units that bring the rows of each stratum to its target.

    A unit is chosen if the rows of its rarest stratum come nearer to their target. It is not chosen if it is the last
    one that has rows of some stratum.

    Args:
        units: {place: rows of each stratum}. The order decides between units with the same rarest stratum.
        targets: rows of each stratum, of which the last is all rows.
        is_exact: whether the number of all rows matters more than the other strata.

    Returns:
        the places of the chosen units.
    """
    remaining = np.bincount([stratum for unit in units.values() for stratum, _ in unit], minlength=len(targets))
    missing = list(targets)
    chosen: dict[int, None] = {}

    def gain(unit: Unit) -> int:
        return sum(abs(missing[stratum]) - abs(missing[stratum] - count) for stratum, count in unit)

    def choose(place: int) -> None:
        unit = units[place]
        fits = not is_exact or unit[-1][1] <= missing[-1]
        if fits and all(remaining[stratum] > 1 for stratum, _ in unit):
            chosen[place] = None
            for stratum, count in unit:
                missing[stratum] -= count
                remaining[stratum] -= 1

    for place in sorted((place for place in units if units[place]), key=lambda place: units[place][0][0]):
        if gain(units[place][:1]) > 0:
            choose(place)
    if is_exact:
        rest = [place for place, unit in units.items() if unit and place not in chosen]
        for place in sorted(rest, key=lambda place: -gain(units[place])):
            choose(place)
    return list(chosen)
