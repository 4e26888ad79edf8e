"""The sentences of the report that depend on its numbers."""

from dataclasses import dataclass

from stages.analysis.comparison import Comparison, ReferenceScores
from stages.analysis.design_effects import FEW_GROUPS
from stages.analysis.f1 import FEW_ROWS
from stages.analysis.leading_metric import TITLES
from stages.analysis.metrics import Score
from stages.analysis.results import Results
from stages.data.data_summary import SplitSummary
from stages.report.formatting import percent, percent_interval, points, points_interval

MAX_CLASSES = 5  # by name; further ones are counted


REFERENCE_NAMES = {
    "majority_class": "most frequent class",
    "bag_of_words": "bag of words",
    "zero_shot": "zero-shot",
    "probe": "linear probe",
    "untrained_head": "untrained head",
}


@dataclass(frozen=True)
class Lead:
    """The score that the report starts with: accuracy, or macro F1 if the classes are uneven.

    Attributes:
        reason: why it is not accuracy, or None.
    """

    title: str
    reference_name: str
    reference: Score
    tuned: Score
    reason: str | None


def headline(comparison: Comparison, confidence: float) -> str:
    """The verdict in two or three sentences."""
    difference, outcomes = comparison.best_reference.difference, comparison.outcomes
    return (
        f"{comparison.verdict.capitalize()}: {points(difference.value)} points of {TITLES[comparison.metric]} above "
        f"the best reference, {REFERENCE_NAMES[comparison.best]} (interval {points_interval(difference.interval)}). "
        f"Of {comparison.rows:,} rows it corrected {outcomes.fixed:,} and broke {outcomes.broken:,}: "
        f"{significance(difference.p, confidence)}."
    )


def significance(p: float, confidence: float) -> str:
    """Whether a McNemar p is significant at the level of the intervals."""
    value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{'' if p < 1 - confidence else 'not '}statistically significant ({value})"


def confidence_level(confidence: float) -> str:
    """The confidence of the intervals, in percent."""
    return f"{confidence * 100:g}%"


def explain_intervals(results: Results, group: str | None, confidence: float) -> str:
    """Which intervals the report shows, and the design effects that widen them; group: `Task.group`."""
    tuned, gain = results.tuned.design_effect, results.comparison.best_reference.difference.design_effect
    related = f"share the same {group}" if group else "have the same texts"
    return (
        f"All intervals are {confidence_level(confidence)} confidence intervals. Accuracies and shares have Wilson's, "
        "differences between groups of rows Newcombe's, the gain Tango's. F1 has Agresti and Coull's by its influence "
        f"function, with the bias subtracted. Rows that {related} are not independent. Therefore counts are "
        f"divided by the design effect (accuracy {tuned:.2f}, difference from the best reference {gain:.2f}). If there "
        "are few groups of such rows, Student's t widens the intervals further. The p of the gain is the largest of three McNemar "
        "tests: exact by rows, exact by groups of such rows, and the score test that matches Tango's interval."
    )


def interval_warnings(classes: dict[str, int], groups: int, group: str | None) -> list[str]:
    """Warnings about what the test rows can't show, however wide the intervals are.

    Args:
        classes: test rows of each class.
        groups: number of groups of rows that are not independent.
        group: `Task.group`.
    """
    warnings = []
    if groups == 1:
        related = f"share one {group}" if group else "have the same texts"
        rows = "There is one test row" if sum(classes.values()) == 1 else f"All test rows {related}"
        warnings.append(f"{rows}: the accuracy on others can't be estimated.")
    elif groups < FEW_GROUPS:
        different = f"values of {group}" if group else "different texts"
        warnings.append(
            f"The test rows have only {groups} {different}. The intervals are rough estimates. They may be too narrow "
            "if such rows are very similar."
        )
    if few := [f"{name} ({rows})" for name, rows in classes.items() if 0 < rows < FEW_ROWS]:
        warnings.append(
            f"Classes with fewer than {FEW_ROWS} test rows: {_shorten_list(few)}. Their F1 is a rough estimate. The "
            "interval of macro F1 is one too, since every class has the same weight in it."
        )
    if missing := [name for name, rows in classes.items() if not rows]:
        warnings.append(
            f"Classes without test rows: {_shorten_list(missing)}. Their F1 is unknown. Macro F1 leaves out those that "
            "the model never predicts, and counts the others as 0."
        )
    return warnings


def _shorten_list(names: list[str]) -> str:
    more = f" and {len(names) - MAX_CLASSES:,} more" if len(names) > MAX_CLASSES else ""
    return ", ".join(names[:MAX_CLASSES]) + more


def no_overlap(test: SplitSummary, group: str | None) -> str | None:
    """The sentence that no test row is a training row, or None; `data_warnings` has the opposite warnings.

    Args:
        test: counts of the test rows.
        group: `Task.group`.
    """
    overlap = test.overlaps["train"]
    if overlap.rows:
        return None
    if group is None or overlap.groups:
        return "No test row is also a training row."
    return f"No test row is also a training row, and none shares its {group} with one."


def choose_lead(results: Results) -> Lead:
    """The score that the report starts with."""
    comparison = results.comparison
    name, reference = REFERENCE_NAMES[comparison.best], comparison.best_reference.lead(comparison.metric)
    if comparison.metric == "accuracy":
        return Lead("accuracy", name, reference, results.tuned.accuracy, None)
    rows = {name: count for name, count in results.data.splits["test"].classes.items() if count}
    most, fewest = max(rows, key=lambda name: rows[name]), min(rows, key=lambda name: rows[name])
    reason = (
        f"The classes are uneven: of the test rows, {rows[most]:,} are of class {most} and {rows[fewest]:,} of "
        f"class {fewest}. Accuracy is misleading here. In macro F1 every class has the same weight."
    )
    return Lead("macro F1", name, reference, results.tuned.f1_macro, reason)


def references(comparison: Comparison) -> list[tuple[str, ReferenceScores]]:
    """The references by name, the cheapest first."""
    by_column = comparison.bag_of_words_by_column.items()
    lines = [(REFERENCE_NAMES[key], scores) for key, scores in comparison.references.items()]
    return [*lines, *((f"words of {column} only", scores) for column, scores in by_column)]


def list_references(comparison: Comparison) -> str:
    """The scores of the references in one sentence."""
    metric = comparison.metric
    scores = [
        f"{name} {percent(scores.lead(metric).value)} ({percent_interval(scores.lead(metric).interval)})"
        for name, scores in references(comparison)
    ]
    return f"{TITLES[metric].capitalize()} of the references: {', '.join(scores)}."
