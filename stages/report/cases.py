"""The test rows: to filter and search on the page, and as cases.csv for a spreadsheet."""

import json
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from stages.analysis.claims import overlap_ends
from stages.task.labels import LABELS, TEXTS

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def for_a_spreadsheet(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases with the classes' names for their numbers, and with an apostrophe before each text that a spreadsheet
    would take for a formula, as OWASP advises.
    """
    names = dict(enumerate(LABELS))
    named = {column: cases[column].map(names) for column in ("gold", "base", "tuned", "baseline")}
    quoted = {
        column: [f"'{text}" if text.startswith(FORMULA_STARTS) else text for text in cases[column]] for column in TEXTS
    }
    return cases.assign(**named, **quoted)


def groups(cases: pd.DataFrame) -> dict[str, np.ndarray]:
    """The groups of rows that the published report argues from: {name: whether a row is in it}."""
    low, high = overlap_ends(cases)
    missed = cases["tuned"] != cases["gold"]
    entailment, neutral = LABELS.index("entailment"), LABELS.index("neutral")
    return {
        "the first ten rows": cases.index < 10,
        "neutral, missed by tuned": missed & (cases["gold"] == neutral),
        "high overlap, taken for entailment": missed & high & (cases["tuned"] == entailment),
        "low overlap, missed by tuned": missed & low,
    }


def as_json(cases: pd.DataFrame) -> Markup:
    """The cases as lists: row, texts, gold, base, tuned, fate, groups (a bit each), probabilities in percent."""
    bits = sum(inside.astype(int) * 2**place for place, inside in enumerate(groups(cases).values()))
    columns = [cases[name].tolist() for name in ("row", *TEXTS, "gold", "base", "tuned", "fate")]
    shares = [
        (cases[[f"{name}_{label}" for label in LABELS]] * 100).round().astype(int).to_numpy().tolist()
        for name in ("base", "tuned")
    ]
    return script_json(list(zip(*columns, bits.tolist(), *shares, strict=True)))


def script_json(value: Any) -> Markup:
    """JSON that stays data inside a <script> element: without `<` nothing can end it."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))
