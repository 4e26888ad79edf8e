"""Settings compared over seeds and rows, for readers: as Markdown, as a picture, as one web page without network."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from stages.analysis.multi_seed import comparison, power
from stages.analysis.multi_seed.comparison import Difference
from stages.analysis.multi_seed.scores import RecipeScores
from stages.report.document import environment, escape_markdown
from stages.report.figures.forest_plot import draw_forest
from stages.report.formatting import percent, percent_interval, points, points_interval, signed_points
from stages.report.render import render, shorten
from stages.report.wording import confidence_level

COLUMNS = 120  # of a terminal
NAME = 22  # characters of a setting's name in a table; the legend has it whole
SEEDS = 13  # characters of the seeds in a table; of more, their number
TICKS = 26  # characters beside a picture


@dataclass(frozen=True)
class Compared:
    """What was compared, and what came of it.

    Attributes:
        scores: of each setting, the first one first.
        differences: of each but the first.
        runs: which runs each setting has, in words.
        notes: what a reader must know besides.
        confidence: of the intervals.
        rows: of the test.
        groups: of rows that are not independent.
        group: what rows of a group share, such as "premise"; None: all their texts.
        digest: of the rows.
    """

    scores: Sequence[RecipeScores]
    differences: Sequence[Difference]
    runs: Sequence[str]
    notes: Sequence[str]
    confidence: float
    rows: int
    groups: int
    group: str | None
    digest: str


def mark(number: int) -> str:
    """A letter for a setting, by its place."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number > 25 else "")


def names(compared: Compared, length: int) -> list[str]:
    """The settings' names in at most so many characters, each with its letter."""
    return [f"{mark(n)} {shorten(found.name, length)}" for n, found in enumerate(compared.scores)]


def score_table(compared: Compared) -> list[list[str]]:
    """Head and lines of the table of scores."""

    def shown(score):
        return f"{percent(score.value)} ({percent_interval((score.low, score.high))})"

    lines = [
        [name, seed_list(s.seeds), shown(s.accuracy), shown(s.f1_weighted), shown(s.f1_macro)]
        for name, s in zip(names(compared, NAME), compared.scores, strict=True)
    ]
    return [["setting", "seeds", "accuracy", "weighted F1", "macro F1"], *lines]


def seed_list(numbers: Sequence[int]) -> str:
    """The seeds, or how many."""
    listed = ", ".join(map(str, numbers))
    return listed if len(listed) <= SEEDS else f"{len(numbers)} seeds"


def difference_table(compared: Compared) -> list[list[str]]:
    """Head and lines of the table of differences from the first setting, in points of accuracy."""
    lines = [
        [
            name,
            f"{signed_points(d.value)} ({points_interval((d.low, d.high))})",
            chance(d.p),
            chance(d.p_holm),
            d.verdict + (" (these runs)" if d.design == "rows only" else ""),
            points(d.smallest_detectable) if d.smallest_detectable < 1 else "nothing",
        ]
        for name, d in zip(names(compared, NAME)[1:], compared.differences, strict=True)
    ]
    return [["setting", "points against A", "p", "Holm's p", "verdict", "could show"], *lines]


def chance(p: float) -> str:
    """A p in a table."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def headline(compared: Compared) -> str:
    """What was measured, in a line."""
    many = len(compared.scores)
    return (
        f"{many} setting{'s' if many > 1 else ''} on the same {compared.rows:,} test rows. "
        f"Brackets hold intervals of {confidence_level(compared.confidence)}."
    )


def explanations(compared: Compared) -> list[str]:
    """How to read the tables: the variance, the differences, and what could have been seen."""
    said = [variances(compared)]
    if compared.differences:
        kinds = [found.design for found in compared.differences]
        if "rows only" in kinds:
            said.append(
                "Of a setting with one seed it is not known what other seeds would give. Where one of the two has one, "
                "the verdict is on these runs alone, for other rows: another seed may turn it round."
            )
        if "paired seeds" in kinds:
            said.append("Where both have the same seeds, trainings of equal seed are compared with each other.")
        count = len(kinds)
        adjusted = f" Verdicts are by Holm's p, which allows for {count} comparisons." if count > 1 else ""
        said.append(
            f"p: the chance of such a difference, or a larger one, if there were none; below "
            f"{1 - compared.confidence:.2g} it is told from none.{adjusted}"
        )
        said.append(
            "Could show: the smallest true difference, in points, that so many rows and seeds tell from none in "
            f"{power.TARGET_POWER:.0%} of such experiments, by these variances and for one comparison. What is less "
            "can well be there unseen; more seeds or rows would show it."
        )
    return said


def variances(compared: Compared) -> str:
    """How much seeds and how much rows move the accuracy."""
    several = [found for found in compared.scores if len(found.seeds) > 1]
    said = []
    if several:
        freedom = [len(found.seeds) - 1 for found in several]
        pooled = np.average([found.seed_deviation**2 for found in several], weights=freedom) ** 0.5
        said.append(
            f"Seeds: trainings that differ in seed alone vary by {points(pooled)} points of accuracy on these rows "
            f"(standard deviation, {sum(freedom) + len(several)} trainings)."
        )
    of_differences = (
        f", and their differences by {span([found.row_standard_error for found in compared.differences])}"
        if compared.differences
        else ""
    )
    said.append(
        f"Rows: on other test rows the accuracies of these trainings would vary by "
        f"{span([found.row_standard_error for found in compared.scores])} points{of_differences} (standard errors)."
    )
    return " ".join(said)


def span(errors: Sequence[float]) -> str:
    """The least and the greatest of some shares, in points."""
    ends = list(dict.fromkeys(points(end) for end in (min(errors), max(errors))))
    return " to ".join(ends)


def recipe(compared: Compared) -> str:
    """All that another needs to get the same figures, in one line, as sacreBLEU's signature has it."""
    trained = ";".join(f"{mark(n)}={','.join(map(str, s.seeds))}" for n, s in enumerate(compared.scores))
    parts = {
        "rows": compared.rows,
        "sha256": compared.digest,
        "groups": f"{compared.groups} by {compared.group or 'all texts'}",
        "seeds": trained,
        "confidence": f"{compared.confidence:g}",
        "method": "Obuchowski-Rockette, Cochran t; of one seed each McNemar, Tango; Holm",
        "samples": "none, no chance in it",
        "version": comparison.METHOD_VERSION,
    }
    return "|".join(f"{name}:{value}" for name, value in parts.items())


def markdown(compared: Compared) -> str:
    """Tables, explanations and recipe; all but the recipe is at most `COLUMNS` wide."""
    legend = [folded(f"- {mark(n)}: {escape_markdown(run)}", "  ") for n, run in enumerate(compared.runs)]
    tables = [table(score_table(compared))]
    if compared.differences:
        tables.append(table(difference_table(compared)))
    said = [f"Note: {escape_markdown(note)}" for note in compared.notes] + explanations(compared)
    parts = [headline(compared), *tables, "\n".join(legend), *map(folded, said)]
    return "\n\n".join([*parts, f"Recipe: `{recipe(compared)}`"]) + "\n"


def folded(text: str, indent: str = "") -> str:
    """A paragraph in lines."""
    return textwrap.fill(text, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def table(lines: list[list[str]]) -> str:
    """Markdown whose columns stand below each other on a terminal too."""
    cells = [[escape_markdown(name), *others] for name, *others in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    return "\n".join([rows[0], "| " + " | ".join("-" * width for width in widths) + " |", *rows[1:]])


def picture(compared: Compared) -> tuple[bytes, str]:
    """The forest plot, rendered: (PNG bytes, SVG text)."""

    def draw(colours):
        return draw_forest(compared.scores, compared.differences, names(compared, TICKS), colours)

    return render(draw, [found.name for found in compared.scores])


def html(compared: Compared, svg: str) -> str:
    """One page without network, light and dark.

    Args:
        svg: from `picture`.
    """
    said = [f"{found.name}: {found.verdict}" for found in compared.differences]
    return (
        environment()
        .get_template("comparison_page.html")
        .render(
            headline=headline(compared),
            tables=[score_table(compared), *([difference_table(compared)] if compared.differences else [])],
            legend=[(mark(n), run) for n, run in enumerate(compared.runs)],
            notes=compared.notes,
            explanations=explanations(compared),
            recipe=recipe(compared),
            picture=Markup(svg.replace("<svg", '<svg role="img" aria-label="accuracies and differences"', 1)),
            title="; ".join(said) or compared.scores[0].name,
        )
    )
