"""The test rows for readers: the table on the page, the most confident errors, and cases.csv."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup

from stages.analysis.bag_of_words import column_of_bag
from stages.analysis.case_table import probability_columns
from stages.analysis.nli import NliTask, overlap_ends
from stages.analysis.references import REFERENCES
from stages.data.row_places import FILE, FILE_ROW, describe_counting
from stages.data.task import Task
from stages.report.formatting import percent
from stages.report.label_words import NO_CLASS, words_of
from stages.report.tables import FEW_CLASSES

Texts = Literal["all", "errors", "none"]  # `analysis.texts`
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
MAX_ERRORS = 10
SHOWN_CLASSES = 3  # classes below each prediction, with their probabilities
MAX_TEXT = 600  # characters of a text on the page; cases.csv has all
MAX_ERROR_TEXT = 300  # characters of all texts of one of the most confident errors
MAX_ROWS = 10_000  # on the page; cases.csv has all
MAX_CHARACTERS = 3_500_000  # of all texts on the page; this keeps it below 5 MB, which a phone can open


@dataclass(frozen=True)
class ConfidentError:
    """A test row that the tuned model gets wrong.

    Attributes:
        texts: (column, text) pairs.
        gold, reference, tuned: names of classes; the reference is the best one.
        probability: the tuned model's probability of its class.
    """

    row: str
    texts: list[tuple[str, str]]
    gold: str
    reference: str
    tuned: str
    probability: float


def hide_texts(table: pd.DataFrame, texts: Texts, task: Task) -> pd.DataFrame:
    """Leave in a table only those texts that metrics/ may have. The others become empty.

    Args:
        table: `gold`, the prediction (`tuned` or `predicted`), texts, and more.
        texts: `analysis.texts`: the texts of all rows, of the tuned model's errors, or of none.
    """
    if texts == "all":
        return table
    is_error = table["gold"] != table["tuned" if "tuned" in table else "predicted"]
    shown = is_error if texts == "errors" else np.zeros(len(table), bool)
    return table.assign(**{column: table[column].where(shown, "") for column in task.text_columns})


def text_columns(table: pd.DataFrame, task: Task) -> list[tuple[str, str]]:
    """(the data's name, the table's name) of each text column that has a text after `hide_texts`."""
    return [(name, column) for name, column in zip(task.columns, task.text_columns, strict=True) if table[column].any()]


def to_spreadsheet(cases: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The case table with class names instead of numbers, and with formulas escaped.

    With many classes, it has only the predicted class's probability, since Git stores this table. outs/results/ has all
    probabilities.
    """
    class_columns = ["gold", "tuned", *REFERENCES, *map(column_of_bag, task.columns)]
    labels = {column: task.labels.names(cases[column]) for column in class_columns if column in cases}
    many = len(task.classes) > FEW_CLASSES
    excluded = probability_columns(task) if many else []
    return escape_formulas(cases.assign(**labels).drop(columns=["group", *excluded]))


def escape_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Apply `escape_formula` to each text of a table."""
    return table.assign(**table.select_dtypes(["object", "str"]).map(escape_formula))


def escape_formula(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would read as a formula, as OWASP advises."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def confident_errors(cases: pd.DataFrame, reference: str, task: Task) -> list[ConfidentError]:
    """The tuned model's errors with the highest probability, the highest first."""
    wrong = cases[cases["tuned"] != cases["gold"]]
    max_text = MAX_ERROR_TEXT // len(task.columns)
    first = wrong.sort_values("tuned_probability", ascending=False, kind="stable")[:MAX_ERRORS]
    return [
        ConfidentError(
            row=place,
            texts=[(name, cut_text(case[column], max_text)) for name, column in text_columns(cases, task)],
            gold=task.labels.name(case["gold"]) or NO_CLASS,
            reference=task.labels.name(case[reference]) or NO_CLASS,
            tuned=task.labels.name(case["tuned"]) or NO_CLASS,
            probability=float(case["tuned_probability"]),
        )
        for place, (_, case) in zip(list_places(first, cases), first.iterrows(), strict=True)
    ]


def label_error_table(
    label_errors: pd.DataFrame, cases: pd.DataFrame, columns: Sequence[str]
) -> list[tuple[str, list[str], str, str, str, str]]:
    """(row, texts, gold class, predicted class, probability of it, probability of the gold class) of the first ones.

    Args:
        cases: all test rows.
        columns: the text columns to show.
    """
    max_text, shown = MAX_ERROR_TEXT // max(1, len(columns)), label_errors[:MAX_ERRORS]
    return [
        (
            place,
            [cut_text(line[column], max_text) for column in columns],
            line["gold"] or NO_CLASS,
            line["predicted"] or NO_CLASS,
            percent(line["probability"]),
            percent(line["probability_of_gold"]),
        )
        for place, (_, line) in zip(list_places(shown, cases), shown.iterrows(), strict=True)
    ]


def list_places(rows: pd.DataFrame, cases: pd.DataFrame) -> list[str]:
    """Where each row is: its number in the user's file, with the file's name if the test rows are of several.

    Args:
        rows: some of the test rows.
        cases: all test rows.
    """
    if FILE not in cases:  # of a run before there were places
        return [str(row) for row in rows["row"]]
    if cases[FILE].nunique() == 1:
        return [str(number) for number in rows[FILE_ROW]]
    return [f"{file}: {number}" for file, number in zip(rows[FILE], rows[FILE_ROW], strict=True)]


def explain_places(cases: pd.DataFrame) -> str:
    """A sentence that says what `list_places` shows."""
    if FILE not in cases:
        return "Rows are counted from 0."
    files = list(cases[FILE].unique())
    if len(files) == 1:
        return f"Rows are those of {files[0]}, {describe_counting(files)}."
    return f"Rows are those of {len(files):,} files, {describe_counting(files)}."


def cut_text(text: str, length: int) -> str:
    """Cut a text, and mark the cut."""
    return text if len(text) <= length else f"{text[:length]}…"


def filters(cases: pd.DataFrame, nli: NliTask | None) -> dict[str, np.ndarray]:
    """The filters of the page: {name: whether each row passes}. NLI adds filters by word overlap."""
    passes = {"truncated": cases["truncated"].to_numpy()} if cases["truncated"].any() else {}
    if nli:
        low, high = overlap_ends(cases)
        wrong = cases["tuned"] != cases["gold"]
        passes |= {
            "neutral, tuned model wrong": wrong & (cases["gold"] == nli.neutral),
            "high overlap, wrongly entailment": wrong & high & (cases["tuned"] == nli.entailment),
            "low overlap, tuned model wrong": wrong & low,
        }
    return {name: np.asarray(rows) for name, rows in passes.items()}


def list_names(cases: pd.DataFrame, reference: str, task: Task) -> list[str]:
    """What a row of the page may have as gold label or answer: the classes, and behind them the sets that occur."""
    codes = pd.unique(pd.concat([cases[column] for column in ("gold", reference, "tuned")]))
    sets = sorted(task.labels.name(code) or NO_CLASS for code in codes)
    return list(dict.fromkeys([*task.classes, *sets]))


def rows_as_json(
    cases: pd.DataFrame, filters: dict[str, np.ndarray], reference: str, task: Task, names: Sequence[str]
) -> Markup:
    """The rows of the page as JSON, a list for each: row, texts, gold, reference, tuned, outcome, filters (one bit per
    filter), and the tuned model's most probable classes as [class, percent, class, percent, …].

    Args:
        filters: from `filters`.
        names: from `list_names`. Labels and classes are places in it.
    """
    bits = sum((rows.astype(int) * 2**place for place, rows in enumerate(filters.values())), np.zeros(len(cases), int))
    table = cases.assign(filters=bits).iloc[select_rows(cases, count_page_rows(cases, task))]
    shown = [column for _, column in text_columns(table, task)]
    texts = [[cut_text(text, MAX_TEXT) for text in row] for row in table[shown].to_numpy().tolist()]
    places = {name: place for place, name in enumerate(names)}
    of_labels = [task.labels.names(table[column]).replace("", NO_CLASS) for column in ("gold", reference, "tuned")]
    columns = [*(names.map(places) for names in of_labels), table["outcome"], table["filters"]]
    classes = most_probable(table[probability_columns(task)].to_numpy())
    return script_json(
        list(zip(list_places(table, cases), texts, *(c.tolist() for c in columns), classes, strict=True))
    )


def select_rows(cases: pd.DataFrame, count: int) -> np.ndarray:
    """Choose the rows of the page, as positions in order.

    If they are not all rows, up to half of them are the tuned model's most confident errors. The others are spaced
    evenly.
    """
    if count >= len(cases):
        return np.arange(len(cases))
    wrong = np.flatnonzero(cases["tuned"] != cases["gold"])
    errors = wrong[np.argsort(-cases["tuned_probability"].to_numpy()[wrong], kind="stable")[: count // 2]]
    others, other_count = np.setdiff1d(np.arange(len(cases)), errors), count - len(errors)
    return np.sort(np.concatenate([errors, others[np.arange(other_count) * len(others) // other_count]]))


def count_page_rows(cases: pd.DataFrame, task: Task) -> int:
    """How many rows fit on the page."""
    shown = [column for _, column in text_columns(cases, task)]
    characters = cases[shown].map(len).clip(upper=MAX_TEXT).to_numpy().sum()
    return min(len(cases), MAX_ROWS, max(1, int(len(cases) * MAX_CHARACTERS / max(1, characters))))


def most_probable(probabilities: np.ndarray) -> list[list[int]]:
    """The most probable classes of each row with their probabilities in percent, in one list.

    Args:
        probabilities: float [rows, classes].
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :SHOWN_CLASSES]
    percent = (np.take_along_axis(probabilities, order, axis=1) * 100).round().astype(int)
    return np.stack([order, percent], axis=2).reshape(len(order), -1).tolist()


def legend(cases: pd.DataFrame, task: Task, texts: Texts) -> str:
    """How to read the table."""
    classes = len(task.classes)
    nouns = task.labels.nouns
    class_names = f"both {nouns}" if classes == 2 else f"the {min(SHOWN_CLASSES, classes)} most probable {nouns}"
    hidden = {"all": "", "errors": " Only errors have their texts.", "none": " The texts are left out."}[texts]
    return (
        f"{words_of(task.labels).marks}. After the tuned model's prediction: {class_names}, each with its probability "
        f"in percent. {explain_places(cases)}{hidden}"
    )


def script_json(value: Any) -> Markup:
    """JSON for a <script> element: without `<`, no text can end the element."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def names_as_json(names: Sequence[str]) -> Markup:
    return script_json(list(names))
