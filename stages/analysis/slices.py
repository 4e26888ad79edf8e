"""Test rows cut into slices by what they say: class, word overlap, negation, length, confidence."""

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.analysis.statistics import effective_counts, wilson
from stages.task.labels import LABELS

NEGATIONS = frozenset(
    ["no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "without", "cannot"]
)
CONFIDENCES = (0.5, 0.7, 0.9)  # a model is sure of its class above the last, and of three classes none is under 1/3


def words(text: str) -> list[str]:
    """Lower-case words of a text, in order."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def overlap(premise: str, hypothesis: str) -> float:
    """Share of the hypothesis's different words that stand in the premise, 0 to 1; 0 if it has no word."""
    wanted = set(words(hypothesis))
    return len(wanted & set(words(premise))) / len(wanted) if wanted else 0.0


def is_negated(hypothesis: str) -> bool:
    """Whether a hypothesis has a word of negation."""
    return any(word in NEGATIONS or word.endswith(("n't", "n’t")) for word in words(hypothesis))


def features(premises: pd.Series, hypotheses: pd.Series) -> pd.DataFrame:
    """What rows are cut by, as a data frame: `overlap`, `negated`, `words` (of the hypothesis)."""
    pairs = list(zip(premises, hypotheses, strict=True))
    return pd.DataFrame(
        {
            "overlap": [overlap(premise, hypothesis) for premise, hypothesis in pairs],
            "negated": [is_negated(hypothesis) for _, hypothesis in pairs],
            "words": [len(words(hypothesis)) for _, hypothesis in pairs],
        }
    )


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


def length_names(edges: Sequence[int]) -> list[str]:
    """Names of the groups that `edges`, numbers of words, make."""
    if not len(edges):
        return ["all alike"]
    between = [
        f"{low + 1} to {high} words" if low + 1 < high else f"{high} words" for low, high in itertools.pairwise(edges)
    ]
    return [f"up to {edges[0]} words", *between, f"over {edges[-1]} words"]


def cuts(gold: np.ndarray, traits: pd.DataFrame, confidence: np.ndarray) -> dict[str, tuple[Sequence[str], np.ndarray]]:
    """All ways of cutting the rows.

    Args:
        gold: labels, [rows].
        traits: data frame with the columns of `features`.
        confidence: one model's probability of the class it predicts, [rows].

    Returns:
        {what is cut by: (names of its slices, slice of each row [rows])}
    """
    overlaps, overlap_edges = quartiles(traits["overlap"])
    lengths, length_edges = quartiles(traits["words"])
    return {
        "class": (LABELS, gold),
        "word overlap": (share_names(overlap_edges), overlaps),
        "negation": (("without", "with"), traits["negated"].to_numpy().astype(int)),
        "hypothesis length": (length_names(length_edges), lengths),
        "confidence": (share_names(CONFIDENCES), np.searchsorted(CONFIDENCES, confidence)),
    }


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
            low, high = wilson(*effective_counts(inside, groups[group == number]), confidence_level)
            accuracy = inside.mean() if len(inside) else np.nan
            table.append((by, f"{by}: {name}", len(inside), int(inside.sum()), accuracy, low, high))
    return pd.DataFrame(table, columns=["cut", "slice", "rows", "right", "accuracy", "low", "high"])
