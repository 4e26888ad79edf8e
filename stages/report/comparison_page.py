"""Show a comparison of recipes: as Markdown for a terminal, as a picture, and as one web page that needs no network."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from stages.analysis.leading_metric import TITLES, LeadingMetric
from stages.analysis.multi_seed.comparison import METHOD_VERSION, Difference
from stages.analysis.multi_seed.power import TARGET_POWER
from stages.analysis.multi_seed.scores import MeanScore, RecipeScores
from stages.report.document import environment, escape_markdown
from stages.report.figures.forest_plot import draw_forest
from stages.report.formatting import (
    confidence_level,
    p_value,
    percent,
    percent_interval,
    points,
    points_interval,
    signed_points,
)
from stages.report.render import render, shorten

TERMINAL_WIDTH = 120  # columns
NAME_WIDTH = 20  # characters of a recipe's name in a table; the list below the tables has the whole name
SEEDS_WIDTH = 13  # characters of the seeds in a table; a longer list is replaced by the number of seeds
TICK_WIDTH = 26  # characters of a recipe's name in the picture
METHODS: dict[LeadingMetric, str] = {
    "accuracy": "Obuchowski-Rockette, Cochran t; McNemar and Tango if both have one seed; Holm",
    "f1_macro": "Obuchowski-Rockette on F1's influence function, Cochran t; Holm",
    "f1_micro": "Obuchowski-Rockette on F1's influence function, Cochran t; Holm",
}
ONE_LABEL = {"accuracy": "accuracy", "f1_weighted": "weighted F1", "f1_macro": "macro F1"}  # columns, by their score
SEVERAL_LABELS = {"accuracy": "subset accuracy", "f1_micro": "micro F1", "f1_macro": "macro F1"}


@dataclass(frozen=True)
class RecipeComparison:
    """The recipes that were compared, and the results.

    Attributes:
        scores: of each recipe.
        differences: the difference of each other recipe from the first.
        runs: for each recipe, a sentence for readers that lists its runs.
        notes: what a reader has to know to read the results.
        metric: of the differences and of the picture.
        confidence: level of the intervals.
        class_rows: number of test rows that have each class.
        group_count: number of groups of rows that are not independent.
        group_column: the column that rows of a group share, such as "premise"; None: all text columns.
        rows_hash: hash of the test rows.
        row_count: number of test rows.
    """

    scores: Sequence[RecipeScores]
    differences: Sequence[Difference]
    runs: Sequence[str]
    notes: Sequence[str]
    metric: LeadingMetric
    confidence: float
    class_rows: dict[str, int]
    group_count: int
    group_column: str | None
    rows_hash: str
    row_count: int


def render_markdown(comparison: RecipeComparison) -> str:
    """Tables, explanations and signature. All lines but the signature fit into `TERMINAL_WIDTH`."""
    runs = [wrap(f"- {recipe_letter(n)}: {escape_markdown(run)}", "  ") for n, run in enumerate(comparison.runs)]
    tables = map(format_table, list_tables(comparison))
    paragraphs = [f"Note: {escape_markdown(note)}" for note in comparison.notes] + explain(comparison)
    parts = [summarize(comparison), *tables, "\n".join(runs), *map(wrap, paragraphs)]
    return "\n\n".join([*parts, f"Signature: `{sign(comparison)}`"]) + "\n"


def render_picture(comparison: RecipeComparison) -> tuple[bytes, str]:
    """Render the forest plot: (PNG bytes, SVG text)."""

    def draw(colours: dict[str, str]) -> Figure:
        names = short_names(comparison, TICK_WIDTH)
        return draw_forest(comparison.scores, comparison.differences, comparison.metric, names, colours)

    return render(draw, [recipe.name for recipe in comparison.scores])


def render_html(comparison: RecipeComparison, svg: str) -> str:
    """Render the page, for light and dark screens.

    Args:
        svg: from `render_picture`.
    """
    title = TITLES[comparison.metric]
    verdicts = [f"{difference.name}: {difference.verdict}" for difference in comparison.differences]
    return (
        environment()
        .get_template("comparison_page.html")
        .render(
            summary=summarize(comparison),
            tables=list_tables(comparison),
            runs=[(recipe_letter(n), run) for n, run in enumerate(comparison.runs)],
            notes=comparison.notes,
            explanations=explain(comparison),
            signature=sign(comparison),
            picture=Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title} of recipes, and differences"', 1)),
            title="; ".join(verdicts) or comparison.scores[0].name,
        )
    )


def recipe_letter(number: int) -> str:
    """A letter for each recipe: A to Z, then A1 to Z1, and so on."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number > 25 else "")


def short_names(comparison: RecipeComparison, length: int) -> list[str]:
    """The recipes' names, each after its letter and cut to `length` characters."""
    return [f"{recipe_letter(n)} {shorten(recipe.name, length)}" for n, recipe in enumerate(comparison.scores)]


def summarize(comparison: RecipeComparison) -> str:
    """What was compared, in one line."""
    count = len(comparison.scores)
    return (
        f"{count} recipe{'s' if count > 1 else ''} on the same {comparison.row_count:,} test rows. "
        f"In brackets: {confidence_level(comparison.confidence)} confidence intervals."
    )


def list_tables(comparison: RecipeComparison) -> list[list[list[str]]]:
    """Header and lines of each table."""
    tables = [list_scores(comparison)]
    return [*tables, list_differences(comparison)] if comparison.differences else tables


def list_scores(comparison: RecipeComparison) -> list[list[str]]:
    """Header and lines of the table of scores."""

    def format_score(score: MeanScore) -> str:
        return f"{percent(score.value)} ({percent_interval((score.low, score.high))})"

    columns = SEVERAL_LABELS if comparison.metric == "f1_micro" else ONE_LABEL
    lines = [
        [name, list_seeds(scores.seeds), *(format_score(getattr(scores, key)) for key in columns)]
        for name, scores in zip(short_names(comparison, NAME_WIDTH), comparison.scores, strict=True)
    ]
    return [["recipe", "seeds", *columns.values()], *lines]


def list_seeds(seeds: Sequence[int]) -> str:
    """The seeds, or their number if they are too many for the table."""
    text = ", ".join(map(str, seeds))
    return text if len(text) <= SEEDS_WIDTH else f"{len(seeds)} seeds"


def list_differences(comparison: RecipeComparison) -> list[list[str]]:
    """Header and lines of the table of differences from the first recipe, in points of the leading metric."""
    lines = [
        [
            name,
            f"{signed_points(d.value)} ({points_interval((d.low, d.high))})",
            p_value(d.p, comparison.confidence),
            p_value(d.p_holm, comparison.confidence),
            d.verdict + (" (these seeds)" if d.design == "rows only" else ""),
            points(d.smallest_detectable) if d.smallest_detectable < 1 else "none",
        ]
        for name, d in zip(short_names(comparison, NAME_WIDTH)[1:], comparison.differences, strict=True)
    ]
    return [
        ["recipe", f"points of {TITLES[comparison.metric]} above A", "p", "Holm's p", "verdict", "detectable"],
        *lines,
    ]


def explain(comparison: RecipeComparison) -> list[str]:
    """How to read the tables: the variance, the differences, and what the experiment can detect."""
    paragraphs = [explain_metric(comparison)] if comparison.metric != "accuracy" else []
    paragraphs.append(explain_variance(comparison))
    if not comparison.differences:
        return paragraphs
    designs = [difference.design for difference in comparison.differences]
    if "rows only" in designs:
        paragraphs.append(
            "These seeds: at least one of the two recipes has only one seed, so nothing is known about other seeds. "
            "The verdict holds for other test rows, but another seed could reverse it."
        )
    if "paired seeds" in designs:
        paragraphs.append(
            "If two recipes have the same seeds, trainings with equal seeds are compared with each other."
        )
    adjustment = f" Verdicts use Holm's p, which adjusts for {len(designs)} comparisons." if len(designs) > 1 else ""
    paragraphs.append(
        "p: the probability of such a difference, or a larger one, if there were none. Below "
        f"{1 - comparison.confidence:.2g} the difference is statistically significant.{adjustment}"
    )
    paragraphs.append(
        f"Detectable: the smallest true difference, in points, that is significant in {TARGET_POWER:.0%} of such "
        "experiments. It is computed from these variances and for one comparison. A smaller difference may exist and "
        "remain undetected. More seeds or more rows make it detectable."
    )
    return paragraphs


def explain_metric(comparison: RecipeComparison) -> str:
    """Why the differences are in macro or micro F1."""
    if comparison.metric == "f1_micro":
        return (
            "Micro F1: a row may have several labels. Micro F1 counts all labels of all rows together, so a frequent "
            "label has more weight in it than a rare one. Macro F1 is the mean over labels. Subset accuracy is the "
            "share of rows whose labels are all right. Differences, p, verdicts and the picture are in micro F1."
        )
    most, fewest = max(comparison.class_rows.values()), min(filter(None, comparison.class_rows.values()))
    return (
        f"Macro F1: the classes are uneven. The most frequent one has {most:,} test rows, and the rarest has "
        f"{fewest:,}. Differences, p, verdicts and the picture are therefore in macro F1, in which every class has the "
        "same weight."
    )


def explain_variance(comparison: RecipeComparison) -> str:
    """How much other seeds and other rows would change the leading metric."""
    title = TITLES[comparison.metric]
    several_seeds = [recipe for recipe in comparison.scores if len(recipe.seeds) > 1]
    sentences = []
    if several_seeds:
        degrees_of_freedom = [len(recipe.seeds) - 1 for recipe in several_seeds]
        variances = [recipe.seed_deviation**2 for recipe in several_seeds]
        pooled = np.average(variances, weights=degrees_of_freedom) ** 0.5
        sentences.append(
            f"Seeds: the {title} of trainings that differ only in seed varies by {points(pooled)} points on these "
            f"rows (standard deviation, {sum(len(recipe.seeds) for recipe in several_seeds)} trainings)."
        )
    errors = format_range([recipe.row_standard_error for recipe in comparison.scores])
    of_differences = (
        f", and their differences by {format_range([d.row_standard_error for d in comparison.differences])}"
        if comparison.differences
        else ""
    )
    sentences.append(
        f"Rows: on other test rows, the {title} of these trainings would vary by {errors} points{of_differences} "
        "(standard errors)."
    )
    return " ".join(sentences)


def format_range(shares: Sequence[float]) -> str:
    """The smallest and the largest of some shares, in points."""
    ends = list(dict.fromkeys(points(end) for end in (min(shares), max(shares))))
    return " to ".join(ends)


def sign(comparison: RecipeComparison) -> str:
    """Everything that others need to get the same figures, in one line, like the signature of sacreBLEU."""
    seeds = ";".join(f"{recipe_letter(n)}={','.join(map(str, s.seeds))}" for n, s in enumerate(comparison.scores))
    parts = {
        "rows": comparison.row_count,
        "sha256": comparison.rows_hash,
        "groups": f"{comparison.group_count} by {comparison.group_column or 'all texts'}",
        "seeds": seeds,
        "confidence": f"{comparison.confidence:g}",
        "metric": TITLES[comparison.metric],
        "method": METHODS[comparison.metric],
        "resampling": "none",
        "version": METHOD_VERSION,
    }
    return "|".join(f"{name}:{value}" for name, value in parts.items())


def wrap(text: str, indent: str = "") -> str:
    """Break a paragraph into lines."""
    return textwrap.fill(text, TERMINAL_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def format_table(lines: list[list[str]]) -> str:
    """A Markdown table with aligned columns, which is readable in a terminal too."""
    cells = [[escape_markdown(name), *others] for name, *others in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    return "\n".join([rows[0], "| " + " | ".join("-" * width for width in widths) + " |", *rows[1:]])
