"""How often the intervals of stages/analysis cover the truth, for rows with a known distribution.

    python benchmarks/intervals.py --samples 1000                   # all tables, an hour
    python benchmarks/intervals.py --samples 500 --tables labels    # one of f1, accuracy, differences, labels

The table of F1 has classes and rows as in public data sets. Mistakes are spread over the wrong classes, all answered
with one class, or made mostly in a third of the classes. The table of accuracy and gain has rows in a few groups. The
third table has the difference of macro F1 between two models, and the last one has several labels a row. An interval of
95% should cover the truth in 95 of 100 samples. benchmarks/multi_seed.py has the intervals of several trainings.

How many of 100 intervals of macro F1 cover the truth at accuracies of 60 to 99%, the smallest and the largest value of
each kind of cells (1,000 samples, accurate to 1.5 points):

    mistakes                     spread       one answer   a third
    77 even, 500 rows            93.7-99.7    96.1-99.4    93.9-99.7
    77 even, 3,080 rows          94.6-96.4    94.6-96.7    94.9-96.0
    31 even, 400 rows            95.4-98.9    96.0-98.2    94.2-98.9
    28 uneven, 1,000 rows        94.3-99.1    98.2-100     93.9-99.7
    90, 8 and 2%, 200 rows       94.6-99.9    97.5-99.8    94.3-99.9
    90 and 10%, 200 rows         94.6-98.5    95.2-99.0    93.7-99.3
    3 even, 100 rows             95.7-98.5    94.5-97.8    94.4-98.6
    3 even, 1,000 rows           95.4-97.0    95.0-97.0    94.3-96.9

Values above 98 come from classes with few rows, or from samples with one or two mistakes. Intervals of weighted F1
cover 93.9 to 99.2. With three rows a group, intervals of both F1 scores cover 93.7 to 98.1.

If two rows of a group correlate by 0.1 or less, intervals of accuracy cover 96.1 to 100 of 100 with 3 groups, 93.9 to
97.2 with 5, and 93.2 to 96.2 with 8 to 30. With groups of uneven size they cover 92 or more. At a correlation of 0.3
and an accuracy of 90%, most groups have no mistake, and the intervals cover 87 to 93. With five groups or fewer, no
gain is significant at 5%, because the exact test by groups has no p-value below 6%.

How many of 100 intervals of the difference of macro F1 cover the truth (500 samples, accurate to 2 points). Two models
with accuracies of 60 to 97% have equal outcomes in at least 0, 50 or 90% of the rows. Or one model always answers the
most frequent class:

                         two models                             a model and the most frequent class
    mistakes             spread      one answer   a third       spread      one answer   a third
    77 even, 500 rows    92.6-100    94.6-100     93.2-99.8     92.8-98.4   93.8-99.2    93.2-98.0
    77 even, 3,080 rows  93.4-97.2   94.8-97.8    93.4-96.6     95.0-95.6   95.4-96.8    95.2-96.2
    31 even, 400 rows    94.4-100    94.8-100     94.2-100      95.0-96.8   95.4-98.4    96.4-97.8
    28 uneven, 1,000     94.8-100    93.8-100     94.8-100      93.4-97.2   90.4-99.2    92.2-97.2
    90, 8 and 2%, 200    95.2-100    92.8-100     96.0-100      95.4-96.6   92.2-97.6    95.8-96.6

With three rows a group they cover 93.2 to 99.4, with 5 groups of 100 rows 95.6 to 99.8, with 10 groups 91.8 to 98.0. If
the true difference is 0, at most 6.0 of 100 differences are significant at 5%. Values above 98 come from classes with
fewer than ten rows, or from models that differ in a few rows. Of 84 and 86%, mistakes spread and half of the
outcomes in common, 83 of 100 differences are significant with 77 classes and 3,080 rows, 20 with 28 uneven classes, and
3 with 90, 8 and 2% of 200 rows.

How many of 100 intervals cover the truth with several labels a row (`--tables labels --samples 500`, accurate to 2
points). The labels depend on each other: 6 of 50 to 3%, 6 of 90 to 3%, or 28 of 30 to 1% of the rows. Nearly perfect
models have a micro F1 of 97 to 99%, the others one of 52 to 94%. The groups are three rows that resemble each other:

    rows                                100         300         1,000       900 in groups
    micro F1                            92.0-97.2   93.6-96.8   94.0-97.0   92.4-96.8
        nearly perfect                  95.0-98.6   94.4-96.8   94.6-96.4   94.2-96.0
    macro F1                            93.6-98.2   92.8-96.8   94.0-96.6   92.6-96.4
        nearly perfect                  99.6-100    98.8-99.8   96.4-97.8   97.2-98.2
    mean average precision, 6 labels    92.0-98.7   91.6-98.4   93.6-97.8   93.4-98.2
        nearly perfect                  99.2-100    98.8-99.8   99.6-100    99.2-99.6
    mean average precision, 28 labels   none        92.7-95.5   92.4-97.0   90.6-95.2
        nearly perfect                  none        98.7-99.2   99.6-100    99.0-99.8
    difference of micro F1              93.6-97.2   93.8-96.6   94.0-96.2   94.4-97.0
        nearly perfect                  95.6-99.2   95.4-97.6   94.6-97.2   95.4-97.2
    difference of macro F1              96.4-98.4   95.2-98.6   94.0-96.4   94.4-97.4
        nearly perfect                  99.4-100    98.0-99.6   94.8-97.8   97.8-98.6

If the true difference is 0, at most 6.4 of 100 differences of micro F1 are significant at 5%, and at most 6.0 of macro
F1. Values above 98 come from labels with few rows, as with one class a row, and from models with few mistakes: no
mistake in a label's three rows is no proof that it has none. Of 100 rows and 28 labels, most samples lack a label.
Fewer than 1% of them have an interval of mean average precision, so the printed shares of these say nothing.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from markdown_table import make_parser, print_header, print_line
from scipy.stats import norm

from stages.analysis import average_precision, design_effects, f1, intervals, label_f1, measures, metrics, paired_f1
from stages.analysis.paired_difference import measure_difference
from stages.data.confusion import class_counts, count_classes

CONFIDENCE = 0.95
ALIKE = 0.9  # share of a group's rows that have the same gold class and answer
EMOTIONS = (
    4130, 2939, 2470, 1567, 1087, 1368, 2191, 641, 1269, 2022, 793, 303, 853, 596, 2662, 77, 1452, 2086, 164, 1581, 111,
    1110, 153, 545, 1326, 1060, 14219, 2328,
)  # fmt: skip
"""Rows of 28 classes, about as GoEmotions has them: the rarest has two of 1,000."""
SHARES = {
    "77 even": np.full(77, 1 / 77),
    "31 even": np.full(31, 1 / 31),
    "28 uneven": np.array(EMOTIONS) / sum(EMOTIONS),
    "28 as 1/rank": 1 / np.arange(1, 29) / (1 / np.arange(1, 29)).sum(),
    "12 even": np.full(12, 1 / 12),
    "3 even": np.full(3, 1 / 3),
    "90, 8, 2%": np.array([0.9, 0.08, 0.02]),
    "90, 10%": np.array([0.9, 0.1]),
}
Mistakes = Literal["spread", "one answer", "a third"]


@dataclass(frozen=True)
class F1Cell:
    """One line of the table of F1.

    Attributes:
        classes: a key of `SHARES`.
        rows: number of test rows.
        accuracy: of the model, 0 to 1.
        mistakes: "spread" over the wrong classes; all answered with "one answer", the first class; or spread, but most
            of them made in "a third" of the classes.
        a_group: rows of a group; a share of `ALIKE` has the same gold class and answer.
    """

    classes: str
    rows: int
    accuracy: float
    mistakes: Mistakes = "spread"
    a_group: int = 1

    def matrix(self) -> np.ndarray:
        """Shares of rows of each gold class (down) and answer (across)."""
        gold = SHARES[self.classes]
        count = len(gold)
        right = np.full(count, self.accuracy)
        if self.mistakes == "a third":
            worst = np.arange(count) % 3 == 2 if count > 3 else np.arange(count) == count - 1
            right = np.where(worst, max(0.3, 1 - 3 * (1 - self.accuracy)), 1 - 0.1 * (1 - self.accuracy))
        answers = (1 - np.eye(count)) / (count - 1)
        if self.mistakes == "one answer":
            answers = np.eye(count)[np.where(np.arange(count) == 0, 1, 0)]
        return gold[:, None] * (np.diag(right) + (1 - right)[:, None] * answers)


def f1_coverage(cell: F1Cell, samples: int, seed: int) -> dict[str, float]:
    """Shares of samples in which the intervals of weighted and macro F1 cover the truth, and their mean widths."""
    rng, matrix = np.random.default_rng(seed), cell.matrix()
    counts, classes = class_counts(matrix), len(matrix)
    truth = f1.f1_weighted(counts), f1.f1_macro(counts)
    groups = np.arange(cell.rows) // cell.a_group
    covered, width, cumulated = np.zeros(2), np.zeros(2), matrix.cumsum()
    for _ in range(samples):
        numbers = rng.random(cell.rows)
        if cell.a_group > 1:
            numbers = np.where(rng.random(cell.rows) < ALIKE, rng.random(groups[-1] + 1)[groups], numbers)
        matrix_cells = np.minimum(np.searchsorted(cumulated, numbers), matrix.size - 1)
        gold, answers = np.divmod(matrix_cells, classes)
        names = tuple(map(str, range(classes)))
        predictions = metrics.Predictions(gold, answers, np.empty(0), groups, names, CONFIDENCE)
        for average in (f1.WEIGHTED, f1.MACRO):
            low, high = predictions.f1_interval(average)
            covered[average] += low - 1e-12 <= truth[average] <= high + 1e-12
            width[average] += high - low
    covered, width = covered / samples, width / samples
    return {"weighted": covered[0], "macro": covered[1], "weighted width": width[0], "macro width": width[1]}


@dataclass(frozen=True)
class PairedCell:
    """One line of the table of the difference of macro F1.

    Attributes:
        model: the rows and the first model; its `a_group` is the number of rows of a group.
        other: accuracy of the other model, 0 to 1, with the same kind of mistakes; None if it always answers the most
            frequent class.
        common: share of the rows whose outcomes come from one number for both models, else from two.
        alike: share of a group's rows that have the same gold class and answers.
    """

    model: F1Cell
    other: float | None
    common: float = 0.0
    alike: float = ALIKE

    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """Shares of rows of each gold class and answer, of both models."""
        matrix = self.model.matrix()
        if self.other is not None:
            return matrix, replace(self.model, accuracy=self.other).matrix()
        gold = matrix.sum(axis=1)
        return matrix, gold[:, None] * np.eye(len(gold))[gold.argmax()]

    def true_difference(self) -> float:
        first, other = (float(f1.f1_macro(class_counts(matrix))) for matrix in self.matrices())
        return first - other


def draw_pair(cell: PairedCell, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gold classes, the answers of both models, and groups, int [rows] each."""
    groups = np.arange(cell.model.rows) // cell.model.a_group
    numbers = rng.random((4, len(groups)))
    if cell.model.a_group > 1:
        numbers = np.where(rng.random(len(groups)) < cell.alike, rng.random((4, groups[-1] + 1))[:, groups], numbers)
    numbers[2] = np.where(numbers[3] < cell.common, numbers[1], numbers[2])
    matrices = cell.matrices()
    classes = np.arange(len(matrices[0]))
    gold = np.minimum(np.searchsorted(matrices[0].sum(axis=1).cumsum(), numbers[0]), classes[-1])
    order = np.stack([np.roll(classes, -first) for first in classes])  # the right class first
    answers = []
    for matrix, number in zip(matrices, numbers[1:], strict=False):
        cumulated = np.take_along_axis(matrix / matrix.sum(axis=1, keepdims=True), order, axis=1).cumsum(axis=1)
        position = np.minimum((cumulated[gold] <= number[:, None]).sum(axis=1), classes[-1])
        answers.append(order[gold, position])
    return gold, answers[0], answers[1], groups


def paired_coverage(cell: PairedCell, samples: int, seed: int) -> dict[str, float]:
    """Shares of samples with an interval that covers the truth, and with one that excludes 0; its mean width."""
    rng, truth = np.random.default_rng(seed), cell.true_difference()
    covered, significant, width = 0, 0, 0.0
    for _ in range(samples):
        _, interval = paired_f1.difference_intervals(*draw_pair(cell, rng), len(SHARES[cell.model.classes]))
        low, high = interval(CONFIDENCE)
        covered += low - 1e-12 <= truth <= high + 1e-12
        significant += low > 0 or high < 0
        width += high - low
    return {"covered": covered / samples, "significant": significant / samples, "width": width / samples}


@dataclass(frozen=True)
class GroupCell:
    """One line of the table of groups.

    Attributes:
        groups: number of groups.
        accuracy: mean of all groups, 0 to 1.
        alike: correlation of two rows of a group; the groups' accuracies have a beta distribution.
        a_group: mean number of rows of a group.
        even: whether all groups have equally many rows; else their shares have a Dirichlet distribution.
    """

    groups: int
    accuracy: float
    alike: float
    a_group: int = 100
    even: bool = True


def group_coverage(cell: GroupCell, samples: int, seed: int) -> dict[str, float]:
    """Shares of samples in which the intervals of accuracy and of a gain cover the truth; the true gain is 0."""
    rng = np.random.default_rng(seed)
    common = (1 - cell.alike) / cell.alike
    covered = np.zeros(2)
    for _ in range(samples):
        sizes = np.full(cell.groups, cell.a_group)
        if not cell.even:
            sizes = np.maximum(1, rng.dirichlet(np.ones(cell.groups)) * sizes.sum()).astype(int)
        group_accuracies = rng.beta(common * cell.accuracy, common * (1 - cell.accuracy), (2, cell.groups))
        groups = np.repeat(np.arange(cell.groups), sizes)
        right, other = rng.random((2, len(groups))) < np.repeat(group_accuracies, sizes, axis=1)
        low, high = intervals.wilson(*design_effects.effective_counts(right, groups, CONFIDENCE), CONFIDENCE)
        covered[0] += low <= cell.accuracy <= high
        gold = np.ones(len(groups), int)
        gain = measure_difference("accuracy", gold, other.astype(int), right.astype(int), groups, 2, CONFIDENCE)
        low, high = gain.interval
        covered[1] += low <= 0 <= high
    return {"accuracy": covered[0] / samples, "gain": covered[1] / samples}


LABEL_SHARES = {
    "6, 50 to 3%": np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.03]),
    "6, 90 to 3%": np.array([0.9, 0.3, 0.2, 0.1, 0.05, 0.03]),
    "28, 30 to 1%": np.geomspace(0.3, 0.01, 28),
}
"""Shares of the rows that have each label. Without any label are 38, 9 and 38% of the rows."""
TRUTH_ROWS = 200_000  # of which the true scores are measured
LABEL_COLUMNS = {
    "micro": "micro F1",
    "macro": "macro F1",
    "precision": "mAP",
    "micro difference": "micro difference",
    "macro difference": "macro difference",
    "micro significant": "micro significant",
    "macro significant": "macro significant",
}


@dataclass(frozen=True)
class LabelCell:
    """One line of the table of several labels a row.

    Attributes:
        labels: a key of `LABEL_SHARES`.
        rows: number of test rows.
        noise: of the model, as `draw_labels` adds it: at 0 every answer is right.
        other: noise of the other model, whose errors are partly those of the first.
        a_group: rows of a group, which have the same trait that makes all labels likely.
    """

    labels: str
    rows: int
    noise: float
    other: float
    a_group: int = 1


def draw_labels(
    shares: np.ndarray, rows: int, noises: Sequence[float], rng: np.random.Generator, a_group: int = 1
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels that depend on each other, and the scores that models give them: bool and float [rows, labels].

    A row has a label if a normal number is above the label's threshold. A model sees this number with noise. It answers
    with the labels whose score is above 0, as often as rows have them.

    Args:
        shares: of the rows that have each label.
        noises: standard deviation of each model's noise; 36% of its variance is the same in all models.
        a_group: rows of a group have a term of all their numbers in common.
    """
    groups = np.arange(rows) // a_group
    of_rows = rng.normal(size=(groups[-1] + 1, 1))[groups]
    traits = np.sqrt(0.5) * (of_rows + rng.normal(size=(rows, len(shares))))
    edges, shared = norm.ppf(1 - shares), rng.normal(size=traits.shape)
    scores = [
        traits + each * (0.6 * shared + 0.8 * rng.normal(size=traits.shape)) - np.sqrt(1 + each**2) * edges
        for each in noises
    ]
    return traits > edges, scores


def label_coverage(cell: LabelCell, samples: int, seed: int) -> dict[str, float]:
    """Shares of samples whose intervals cover the truth: of F1, of mean average precision, and of differences of F1.

    And the shares of samples whose difference is significant. The mean average precision has no interval in a sample
    with one row of a label: NaN if it never has one.
    """
    rng, shares = np.random.default_rng(seed), LABEL_SHARES[cell.labels]
    noises, groups = (cell.noise, cell.other), np.arange(cell.rows) // cell.a_group
    names: dict[str, label_f1.Average] = {"micro": label_f1.MICRO, "macro": label_f1.MACRO}
    gold, scores = draw_labels(shares, TRUTH_ROWS, noises, rng)
    counts = [count_classes(gold, each > 0, len(shares)) for each in scores]
    if cell.noise == cell.other:
        counts = [(counts[0] + counts[1]) / 2] * 2
    truth = {name: [label_f1.average_f1(each, average) for each in counts] for name, average in names.items()}
    precision = average_precision.mean_average_precision(gold, scores[0])
    covered: dict[str, list[bool]] = {}
    for _ in range(samples):
        gold, scores = draw_labels(shares, cell.rows, noises, rng, cell.a_group)
        first, other = (each > 0 for each in scores)
        for name, average in names.items():
            low, high = measures.f1_interval(gold, first, average, groups, len(shares), CONFIDENCE)
            covered.setdefault(name, []).append(low <= truth[name][0] <= high)
            _, interval = label_f1.difference_intervals(gold, first, other, average, groups)
            low, high = interval(CONFIDENCE)
            covered.setdefault(f"{name} difference", []).append(low <= truth[name][0] - truth[name][1] <= high)
            covered.setdefault(f"{name} significant", []).append(not low <= 0 <= high)
        if estimate := average_precision.average_precision_interval(gold, scores[0], groups, CONFIDENCE):
            covered.setdefault("precision", []).append(estimate.low <= precision <= estimate.high)
    return {name: float(np.mean(covered.get(name, np.nan))) for name in LABEL_COLUMNS}


def f1_cells() -> list[F1Cell]:
    """All cells of F1."""
    kinds = [
        ("77 even", 500), ("77 even", 3080), ("31 even", 400), ("28 uneven", 1000), ("28 as 1/rank", 1000),
        ("90, 8, 2%", 200), ("90, 10%", 200), ("90, 10%", 1000), ("3 even", 100), ("3 even", 300), ("3 even", 1000),
    ]  # fmt: skip
    mistakes, accuracies = ("spread", "one answer", "a third"), (0.6, 0.8, 0.9, 0.97, 0.99)
    cells = [
        F1Cell(name, rows, accuracy, how)
        for (name, rows), how, accuracy in itertools.product(kinds, mistakes, accuracies)
    ]
    return cells + [F1Cell(name, 3 * rows, 0.8, how, a_group=3) for (name, rows), how in
                    itertools.product(kinds, mistakes)]  # fmt: skip


def group_cells() -> list[GroupCell]:
    """All cells of groups."""
    return [
        GroupCell(groups, accuracy, alike, even=even)
        for even, groups, accuracy, alike in itertools.product(
            (True, False), (2, 3, 5, 8, 15, 30), (0.6, 0.8, 0.9), (0.02, 0.05, 0.1, 0.3)
        )
    ]


def paired_cells() -> list[PairedCell]:
    """All cells of the difference of macro F1: independent rows, groups of three rows, few groups of 100 rows."""
    kinds = [("77 even", 500), ("77 even", 3080), ("31 even", 400), ("28 uneven", 1000), ("90, 8, 2%", 200)]
    mistakes: tuple[Mistakes, ...] = ("spread", "one answer", "a third")
    cells = []
    for (name, rows), how in itertools.product(kinds, mistakes):
        for accuracy, other in ((0.8, 0.8), (0.97, 0.97), (0.6, 0.7), (0.84, 0.86), (0.9, 0.97)):
            cells += [PairedCell(F1Cell(name, rows, accuracy, how), other, common) for common in (0, 0.5, 0.9)]
        cells += [PairedCell(F1Cell(name, rows, accuracy, how), None) for accuracy in (0.6, 0.8, 0.97)]
        threes = F1Cell(name, 3 * rows, 0.8, how, a_group=3)
        cells += [PairedCell(threes, 0.8, 0.5), PairedCell(threes, 0.7, 0.5), PairedCell(threes, None)]
    for (name, _), groups in itertools.product(kinds[1:], (5, 10)):
        few = F1Cell(name, 100 * groups, 0.8, a_group=100)
        cells += [PairedCell(few, other, 0.5, alike=0.2) for other in (0.8, 0.7)] + [PairedCell(few, None, alike=0.2)]
    return cells


def label_cells() -> list[LabelCell]:
    """All cells of several labels a row: independent rows, and groups of three rows."""
    noises = ((0.05, 0.05), (0.2, 0.2), (0.5, 0.5), (1.0, 1.0), (0.05, 0.1), (0.5, 0.7))
    sizes = ((100, 1), (300, 1), (1000, 1), (900, 3))
    return [
        LabelCell(labels, rows, *each, a_group=a_group)
        for labels, (rows, a_group), each in itertools.product(LABEL_SHARES, sizes, noises)
    ]


def print_f1(samples: int) -> None:
    print_header("classes", "rows", "a group", "accuracy", "mistakes", "macro F1", "weighted F1", "widths")
    for number, cell in enumerate(f1_cells()):
        shares = f1_coverage(cell, samples, number)
        print_line(
            cell.classes,
            f"{cell.rows:,}",
            str(cell.a_group),
            f"{cell.accuracy:.0%}",
            cell.mistakes,
            f"{shares['macro']:.1%}",
            f"{shares['weighted']:.1%}",
            f"{100 * shares['macro width']:.1f}, {100 * shares['weighted width']:.1f}",
        )


def print_accuracy(samples: int) -> None:
    print_header("groups", "of size", "accuracy", "correlation", "accuracy covered", "gain covered")
    for number, cell in enumerate(group_cells()):
        shares = group_coverage(cell, samples, number)
        print_line(
            str(cell.groups),
            "100" if cell.even else "uneven",
            f"{cell.accuracy:.0%}",
            str(cell.alike),
            f"{shares['accuracy']:.1%}",
            f"{shares['gain']:.1%}",
        )


def print_differences(samples: int) -> None:
    print_header(
        "classes",
        "rows",
        "a group",
        "accuracies",
        "mistakes",
        "common",
        "difference",
        "covered",
        "significant",
        "width",
    )
    for number, cell in enumerate(paired_cells()):
        shares = paired_coverage(cell, samples, number)
        print_line(
            cell.model.classes,
            f"{cell.model.rows:,}",
            str(cell.model.a_group),
            f"{cell.model.accuracy:.0%}, " + ("constant" if cell.other is None else f"{cell.other:.0%}"),
            cell.model.mistakes,
            f"{cell.common:.0%}",
            f"{100 * cell.true_difference():.1f}",
            f"{shares['covered']:.1%}",
            f"{shares['significant']:.1%}",
            f"{100 * shares['width']:.1f}",
        )


def print_labels(samples: int) -> None:
    print_header("labels", "rows", "a group", "noise", *LABEL_COLUMNS.values())
    for number, cell in enumerate(label_cells()):
        shares = label_coverage(cell, samples, number)
        print_line(
            cell.labels,
            f"{cell.rows:,}",
            str(cell.a_group),
            f"{cell.noise:g}, {cell.other:g}",
            *("none" if np.isnan(share) else f"{share:.1%}" for share in shares.values()),
        )


TABLES = {"f1": print_f1, "accuracy": print_accuracy, "differences": print_differences, "labels": print_labels}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    args = parser.parse_args()
    for name in args.tables:
        TABLES[name](args.samples)
        print()


if __name__ == "__main__":
    main()
