"""Hold validation and test rows out of the training rows (`data.holdout`).

What is never separated is a unit: the rows with the same value in `data.group`, or else the rows with equal texts,
spaces apart. A hash of `data.holdout.seed` and the unit's content puts the units in an order. In this order, units are
held out until each class has its share. So the same rows are held out on every machine, from every kind of file, in any
order of the rows, and with every `seed`, template (if `data.holdout.columns` is set) and size of the validation split.

New rows change few test rows. In percent, single rows of one class change no test row of another class. Rows of the
same class replace some, because an exact share of each class and rows that never change exclude each other. If 1,000
rows are added to 10,000, 4 of 1,000 test rows change with two classes, and 31 with 77 (benchmarks/holdout.py).

If rows may have several labels, `label_strata` chooses the units.
"""

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.data.label_strata import Unit, choose_by_rarest, count_rows, stratify
from stages.data.task import NO_LABEL, Task
from stages.runtime.errors import UserError
from stages.runtime.params import Holdout

HELD_OUT = ("test", "validation")  # in the order in which they are chosen: the test rows depend on no other size
UNIT = "unit"  # column of the training rows: text that is equal for rows which are not separated
FAR_OFF = 0.2  # of the size that was asked for


def list_sizes(holdout: Holdout) -> dict[str, str]:
    """{split: its size} of the splits that are held out, in the order in which they are chosen."""
    return {split: size for split in HELD_OUT if (size := getattr(holdout, split)) is not None}


def hold_out(
    rows: pd.DataFrame, holdout: Holdout, task: Task, count_unlabelled: bool = False
) -> dict[str, pd.DataFrame]:
    """Divide the training rows into training rows and held-out rows.

    Args:
        rows: with the task's text columns, `label`, and `UNIT` if a split has a size.
        count_unlabelled: hold out rows without a label too, since they get one later. Else they stay in training.

    Returns:
        {split: rows}, for "train" and each split that has a size. They are in the order of the hashes and keep their
        index. If no split has a size, the training rows are returned unchanged.

    Raises:
        UserError: a size is too large, or no unit can be held out, or no row has a label.
    """
    sizes, seed = list_sizes(holdout), holdout.seed
    if not sizes:
        return {"train": rows}
    numbers, names = pd.factorize(rows[UNIT])
    unit_order = np.argsort(hash_texts(names, seed), kind="stable")
    places = np.argsort(unit_order)[numbers]  # of each row's unit in the order of the hashes
    strata = np.unique([NO_LABEL, *rows["label"]], return_inverse=True)[1][1:]  # 0: without a label
    units = count_rows(places, strata, len(names))
    counts = np.bincount(strata, minlength=1)
    counts[0] *= count_unlabelled
    total = counts.sum(keepdims=True)
    if not total[0]:
        raise UserError(
            "params.yaml: data.label: no row of train has a label, so no rows can be held out; name another column, or "
            "give these rows a class by data.unlabelled"
        )
    targets = set_targets(sizes, total if task.multi_label else counts)

    assigned = np.full(len(units), "train", dtype=object)
    for split, target in targets.items():
        left = np.flatnonzero(assigned == "train").tolist()
        if task.multi_label:
            is_exact = not sizes[split].endswith("%")
            split_units, split_targets = stratify(rows["label"], places, task.labels, target[0], count_unlabelled)
            chosen = choose_by_rarest({place: split_units[place] for place in left}, split_targets, is_exact)
        else:
            chosen = choose_units({place: units[place] for place in left}, target)
        if not chosen:
            smallest = int(np.bincount(places)[left].min())
            raise _no_unit(split, sizes[split], any(target), smallest, int(total[0]), describe_unit(holdout, task))
        assigned[chosen] = split

    # Rows of a unit are in an order of their content too.
    content = rows[task.text_columns].assign(
        label=task.labels.names(rows["label"]).where(rows["label"] != NO_LABEL, "")
    )
    row_order = np.lexsort((hash_texts(join_texts(content), seed), places))
    ordered, splits = rows.drop(columns=UNIT).iloc[row_order], assigned[places][row_order]
    return {split: ordered[splits == split] for split in ("train", *targets)}


def _no_unit(split: str, size: str, is_enough: bool, smallest: int, rows: int, unit: str) -> UserError:
    if is_enough:
        reason = (
            f"{unit} are not separated (the fewest such rows are {smallest:,}), and some rows of each class stay in "
            "training; allowed: a larger size"
        )
    else:
        number = max(1, round(float(size.rstrip("%")) / 100 * rows))
        reason = f"this is less than half a row of each class; allowed: a larger share, or a number such as {number}"
    return UserError(
        f"params.yaml: data.holdout.{split}: {size} of {rows:,} rows: no row can be held out, because {reason}"
    )


def hash_texts(texts: pd.Series | pd.Index, seed: int) -> np.ndarray:
    """A number for each text, from the text and the seed alone, uint64 [texts]."""
    start = hashlib.blake2b(digest_size=8, key=str(seed).encode())
    digests = []
    for text in pa.array(texts, pa.large_string()).cast(pa.large_binary()).to_pylist():
        digest = start.copy()
        digest.update(text)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def join_texts(texts: pd.DataFrame) -> pd.Series:
    """The columns of a table of texts as one text a row. No text is expected to have the control character between."""
    first, *others = texts.columns
    return texts[first].str.cat([texts[other] for other in others], sep="\x1f") if others else texts[first]


def set_targets(sizes: Mapping[str, str], rows: np.ndarray) -> dict[str, list[int]]:
    """How many rows of each class each split should have.

    A share is rounded for each class by itself, so rows of other classes do not change it. A number of rows is divided
    by the largest remainder, so that the sum is exact.

    Args:
        rows: of each class, int [classes].
    """
    total, counts = int(rows.sum()), rows.tolist()
    targets: dict[str, list[int]] = {}
    left = total
    for split, size in sizes.items():
        if size.endswith("%"):
            targets[split] = [floor(Fraction(size[:-1]) / 100 * count + Fraction(1, 2)) for count in counts]
        else:
            exact = [Fraction(int(size) * count, total) for count in counts]
            target = [*map(floor, exact)]
            by_remainder = sorted(range(len(exact)), key=lambda number: target[number] - exact[number])
            for number in by_remainder[: int(size) - sum(target)]:
                target[number] += 1
            targets[split] = target
        if sum(targets[split]) >= left:
            others = "" if left == total else f", and data.holdout.test takes {total - left:,} of them"
            raise UserError(
                f"params.yaml: data.holdout.{split}: {size}: leaves no row to train on, because there are {total:,} "
                f"rows{others}; allowed: a smaller size"
            )
        left -= sum(targets[split])
    return targets


def choose_units(units: Mapping[int, Unit], targets: Sequence[int]) -> list[int]:
    """Choose units, in their order, that bring the numbers of rows nearer to the targets.

    A unit is chosen if the sum over the classes of |target - rows| becomes less. It is not chosen if it is the last one
    that has rows of some class.

    Args:
        units: {place: rows of each class}, in the order in which they are tried.
        targets: rows of each class.

    Returns:
        the places of the chosen units.
    """
    remaining = [0] * len(targets)  # units that have rows of the class
    for unit in units.values():
        for label, _ in unit:
            remaining[label] += 1
    missing, chosen = list(targets), []
    for place, unit in units.items():
        gain = sum(abs(missing[label]) - abs(missing[label] - count) for label, count in unit)
        if gain > 0 and all(remaining[label] > 1 for label, _ in unit):
            chosen.append(place)
            for label, count in unit:
                missing[label] -= count
                remaining[label] -= 1
            if max(missing) <= 0:
                break
    return chosen


def describe_unit(holdout: Holdout, task: Task) -> str:
    """What is not separated, for the user."""
    if task.group is not None:
        return f"rows with the same {task.group}"
    return f"rows with equal {', '.join(holdout.columns) if holdout.columns else 'texts'}"


def describe_holdout(splits: Mapping[str, pd.DataFrame], rows: int, holdout: Holdout, task: Task) -> list[str]:
    """Lines for the user: what was held out, and which size was missed by far.

    Args:
        splits: {split: rows}, from `hold_out`.
        rows: that were divided. Rows without a label do not count if they will be dropped.
    """
    sizes = list_sizes(holdout)
    if not sizes:
        return []
    counts = " and ".join(f"{len(splits[split]):,} {split} rows" for split in sizes)
    lines = [f"held out of {rows:,} training rows: {counts}"]
    if holdout.columns and task.group is not None:
        lines.append(f"data.holdout.columns is not used, because rows with the same {task.group} are not separated")
    exact = "the share of each label is exact" if task.multi_label else "each class has a whole number of rows"
    for split, size in sizes.items():
        wanted = float(size[:-1]) / 100 * rows if size.endswith("%") else int(size)
        if abs(len(splits[split]) - wanted) > max(1, FAR_OFF * wanted):
            lines.append(
                f"WARNING: data.holdout.{split}: {size}: {len(splits[split]):,} rows were held out, not "
                f"{wanted:,.0f}, because {describe_unit(holdout, task)} are not separated, and {exact}"
            )
    return lines
