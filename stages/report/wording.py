"""The sentences of the report that depend on its numbers."""

from dataclasses import dataclass

from stages.analysis.comparison import Baseline, Comparison
from stages.analysis.design_effects import FEW_GROUPS
from stages.analysis.f1 import FEW_ROWS
from stages.analysis.metrics import Score
from stages.analysis.results import Results
from stages.data.data_summary import SplitSummary
from stages.report.formatting import percent, percent_interval, points, points_interval

MAX_CLASSES = 5  # by name; further ones are counted
UNEVEN_RATIO = 3  # classes are uneven if the most frequent has more than this many times the rows of the rarest


@dataclass(frozen=True)
class Lead:
    """The score that the report starts with: accuracy, or macro F1 if the classes are uneven.

    Attributes:
        reason: why it is not accuracy, or None.
    """

    title: str
    base: Score
    tuned: Score
    reason: str | None


def headline(comparison: Comparison, confidence: float) -> str:
    """The gain from tuning in two or three sentences."""
    gain, interval = comparison.accuracy_gain.value, points_interval(comparison.accuracy_gain.interval)
    if gain:
        change = f"{'raised' if gain > 0 else 'lowered'} accuracy by {points(gain)} points (interval {interval})."
    else:
        change = f"did not change accuracy. Interval of the gain: {interval}."
    return (
        f"Tuning {change} Of {comparison.rows:,} rows it corrected {comparison.fixed:,} and broke "
        f"{comparison.broken:,}: {significance(comparison.mcnemar_p, confidence)}."
    )


def significance(p: float, confidence: float) -> str:
    """Whether a McNemar p is significant at the level of the intervals."""
    value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{'' if p < 1 - confidence else 'not '}statistically significant ({value}, McNemar test)"


def confidence_level(confidence: float) -> str:
    """The confidence of the intervals, in percent."""
    return f"{confidence * 100:g}%"


def explain_intervals(results: Results, group: str | None, confidence: float) -> str:
    """Which intervals the report shows, and the design effects that widen them; group: `Task.group`."""
    base, tuned, gain = (part.design_effect for part in (results.base, results.tuned, results.comparison))
    related = f"share the same {group}" if group else "have the same texts"
    return (
        f"All intervals are {confidence_level(confidence)} confidence intervals. Accuracies and shares have Wilson's, "
        "differences between groups of rows Newcombe's, the gain Tango's. F1 has Agresti and Coull's by its influence "
        f"function, with the bias subtracted. Rows that {related} are not independent. Therefore counts are divided by "
        f"the design effect (accuracy: base {base:.2f}, tuned {tuned:.2f}; gain {gain:.2f}). If there are few groups "
        "of such rows, Student's t widens the intervals further. The p of the gain is the largest of three McNemar "
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
    rows = {name: count for name, count in results.data.splits["test"].classes.items() if count}
    most, fewest = max(rows, key=lambda name: rows[name]), min(rows, key=lambda name: rows[name])
    if rows[most] <= UNEVEN_RATIO * rows[fewest]:
        return Lead("accuracy", results.base.accuracy, results.tuned.accuracy, None)
    majority = percent(results.comparison.majority_class.accuracy.value)
    reason = (
        f"The classes are uneven: of the test rows, {rows[most]:,} are of class {most} and {rows[fewest]:,} of "
        f"class {fewest}. Accuracy is misleading here: always answering the most frequent class of training has an "
        f"accuracy of {majority}. In macro F1 every class has the same weight."
    )
    return Lead("macro F1", results.base.f1_macro, results.tuned.f1_macro, reason)


def baselines(comparison: Comparison) -> list[tuple[str, Baseline]]:
    """The baselines by name, the simplest first."""
    by_column = comparison.bag_of_words_by_column
    single = [(f"words of {column} only", baseline) for column, baseline in by_column.items()]
    return [
        ("majority class", comparison.majority_class),
        *(single if len(single) > 1 else []),
        ("bag of words", comparison.bag_of_words),
    ]


def list_baselines(comparison: Comparison) -> str:
    """The accuracies of the baselines in one sentence."""
    accuracies = [
        f"{name} {percent(baseline.accuracy.value)} ({percent_interval(baseline.accuracy.interval)})"
        for name, baseline in baselines(comparison)
    ]
    return f"Accuracy of the baselines: {', '.join(accuracies)}."
