"""The test rows: to filter and search on the page, and as cases.csv for a spreadsheet."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from stages.analysis.baselines import ALL, guess_column
from stages.analysis.comparison import probabilities_of
from stages.analysis.nli import NliTask, overlap_ends
from stages.data.task import Task
from stages.report.tables import FEW_CLASSES

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
ERRORS = 10  # of the surest ones
LIKELIEST = 3  # classes beside a prediction
LONGEST = 600  # characters of a text on the page; cases.csv has it whole
LONGEST_ERROR = 300  # of all texts of a row among the surest errors, which are to be read at a glance
MOST_ROWS = 10_000  # on the page; cases.csv has all
MOST_CHARACTERS = 3_500_000  # of the texts on the page, which is to open on a phone: with all else under 5 MB


def to_spreadsheet(cases: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The cases with the classes' names for their numbers, and `escape_formulas`.

    Of many classes the probabilities are left out but for the likeliest one's: Git keeps this table, and
    outs/results/ has them all.
    """
    names = dict(enumerate(task.classes))
    coded = ["gold", "base", "tuned", ALL, *map(guess_column, task.columns)]
    named = {column: cases[column].map(names) for column in coded}
    shares = (
        [*probabilities_of("base", task), *probabilities_of("tuned", task)] if len(task.classes) > FEW_CLASSES else []
    )
    return escape_formulas(cases.assign(**named).drop(columns=["group", *shares]))


def escape_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """A table with an apostrophe before each text that a spreadsheet would take for a formula, as OWASP advises."""
    texts = table.select_dtypes(["object", "str"])
    return table.assign(**texts.map(lambda text: f"'{text}" if text.startswith(FORMULA_STARTS) else text))


def confident_errors(cases: pd.DataFrame, task: Task) -> list[dict[str, Any]]:
    """The rows that the tuned model gets wrong and is surest of, first the surest.

    Returns:
        list of {"row", "texts": [(column, text)], "gold", "base", "tuned" (classes by name), "confidence"}
    """
    wrong = cases[cases["tuned"] != cases["gold"]]
    longest = LONGEST_ERROR // len(task.columns)
    surest = wrong.sort_values("tuned_probability", ascending=False, kind="stable")[:ERRORS]
    return [
        {
            "row": int(case["row"]),
            "texts": [
                (column, shortened(case[text], longest))
                for column, text in zip(task.columns, task.text_columns, strict=True)
            ],
            **{who: task.classes[case[who]] for who in ("gold", "base", "tuned")},
            "confidence": float(case["tuned_probability"]),
        }
        for _, case in surest.iterrows()
    ]


def shortened(text: str, longest: int) -> str:
    """A text as the page shows it: what is left out is marked."""
    return text if len(text) <= longest else f"{text[:longest]}…"


def groups(cases: pd.DataFrame, nli: NliTask | None) -> dict[str, np.ndarray]:
    """Groups of rows to look at: {name: whether a row is in it}; of NLI those that the published report argues from."""
    found = {"cut at max_length": cases["truncated"].to_numpy()}
    if nli:
        low, high = overlap_ends(cases)
        missed = cases["tuned"] != cases["gold"]
        found |= {
            "the first ten rows": cases.index < 10,
            "neutral, missed by tuned": missed & (cases["gold"] == nli.neutral),
            "high overlap, taken for entailment": missed & high & (cases["tuned"] == nli.entailment),
            "low overlap, missed by tuned": missed & low,
        }
    return {name: np.asarray(inside) for name, inside in found.items() if name != "cut at max_length" or inside.any()}


def as_json(cases: pd.DataFrame, inside: dict[str, np.ndarray], task: Task) -> Markup:
    """The cases as lists: row, texts, gold, base, tuned, fate, groups (a bit each), the likeliest classes of base and
    of tuned as [class, percent, class, percent, …].

    Args:
        inside: from `groups`.
    """
    bits = sum(
        (member.astype(int) * 2**place for place, member in enumerate(inside.values())), np.zeros(len(cases), int)
    )
    shown = cases.assign(groups=bits).iloc[chosen(cases, rows_on_the_page(cases, task))]
    texts = [[shortened(text, LONGEST) for text in row] for row in shown[task.text_columns].to_numpy().tolist()]
    columns = [shown[name].tolist() for name in ("gold", "base", "tuned", "fate", "groups")]
    shares = [likeliest(shown[probabilities_of(name, task)].to_numpy()) for name in ("base", "tuned")]
    return script_json(list(zip(shown["row"].tolist(), texts, *columns, *shares, strict=True)))


def chosen(cases: pd.DataFrame, room: int) -> np.ndarray:
    """Places of the rows that the page shows, in order: all, or where there are more than it has room for, the errors
    that the tuned model is surest of, as half of it at most, and of the other rows some at equal distances.
    """
    if room >= len(cases):
        return np.arange(len(cases))
    wrong = np.flatnonzero(cases["tuned"] != cases["gold"])
    surest = wrong[np.argsort(-cases["tuned_probability"].to_numpy()[wrong], kind="stable")[: room // 2]]
    others, rest = np.setdiff1d(np.arange(len(cases)), surest), room - len(surest)
    return np.sort(np.concatenate([surest, others[np.arange(rest) * len(others) // rest]]))


def rows_on_the_page(cases: pd.DataFrame, task: Task) -> int:
    """How many rows the page has room for."""
    characters = cases[task.text_columns].map(len).clip(upper=LONGEST).to_numpy().sum()
    return min(len(cases), MOST_ROWS, max(1, int(len(cases) * MOST_CHARACTERS / max(1, characters))))


def likeliest(probabilities: np.ndarray) -> list[list[int]]:
    """The likeliest classes of each row with their probabilities in percent, in one list, first the likeliest.

    Args:
        probabilities: float [rows, classes].
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :LIKELIEST]
    percent = (np.take_along_axis(probabilities, order, axis=1) * 100).round().astype(int)
    return np.stack([order, percent], axis=2).reshape(len(order), -1).tolist()


def script_json(value: Any) -> Markup:
    """JSON that stays data inside a <script> element: without `<` nothing can end it."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def page_json(values: Sequence[str]) -> Markup:
    """Names for the page's script."""
    return script_json(list(values))
