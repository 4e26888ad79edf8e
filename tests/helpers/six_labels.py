"""Generated rows with any of six labels each, which follow from the words of the demo's toy world.

Each text is about two people, and the labels are those of the second. So the words alone do not say which label a row
has, and a bag of words can't learn it.
"""

import random
import runpy

import pandas as pd

from helpers.project import DEMO

# {label: (facet of the world, class of the facet, share of the rows that have any label)}
LABELS = {
    "outdoors": ("place", "outdoors", 0.5), "happy": ("mood", "happy", 0.35), "old": ("age", "old", 0.3),
    "rain": ("weather", "rain", 0.2), "music": ("activity", "music", 0.15), "night": ("time", "night", 0.1),
}  # fmt: skip
EMPTY = 0.1  # share of the rows without any label


def draw_rows(count: int, seed: int) -> pd.DataFrame:
    """Draw rows with different texts: `text`, and `labels`, a list of names."""
    world, rng, rows = runpy.run_path(str(DEMO / "make" / "world.py")), random.Random(seed), {}
    while len(rows) < count:
        others, labels = draw_labels(rng), draw_labels(rng)
        text = f"{describe_person(world, rng, others)} {describe_person(world, rng, labels)}"
        rows.setdefault(text, labels)
    return pd.DataFrame({"text": list(rows), "labels": list(rows.values())})


def draw_labels(rng: random.Random) -> list[str]:
    labels: list[str] = []
    is_empty = rng.random() < EMPTY
    while not (labels or is_empty):
        labels = [label for label, (_, _, share) in LABELS.items() if rng.random() < share]
    return labels


def describe_person(world: dict, rng: random.Random, labels: list[str]) -> str:
    """A sentence about a person who has these labels and no other. A facet without a label has other words, or none."""
    words = {}
    for label, (facet, kind, _) in LABELS.items():
        values = [value for value in world["PREMISE_VALUES"][facet] if (value[0] == kind) == (label in labels)]
        has_words = label in labels or rng.random() < 0.5
        words[facet] = world["phrase"](rng, facet, rng.choice(values), 0) if has_words else ""
    subject = world["article"](f"{words['age']} {words['mood']} {rng.choice(list(world['PEOPLE']))}".strip())
    parts = [subject, "is", words["activity"] or "waiting", words["place"], words["weather"], words["time"]]
    return " ".join(" ".join(parts).split()).capitalize() + "."
