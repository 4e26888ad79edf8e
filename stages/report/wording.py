"""The sentences of the report that depend on its numbers; `verdict` has those on what tuning was worth."""

from collections.abc import Mapping

from stages.analysis.best_threshold import ThresholdEffect
from stages.analysis.calibration import Calibration
from stages.analysis.coverage import CoverageOfGoal
from stages.analysis.design_effects import FEW_GROUPS
from stages.analysis.f1 import FEW_ROWS
from stages.analysis.leading_metric import TITLES
from stages.analysis.metrics import Score
from stages.analysis.results import Results
from stages.data.data_summary import SplitSummary
from stages.data.labels import Labels
from stages.data.predictions import FEW_ROWS as FEW_ROWS_FOR_A_TEMPERATURE
from stages.report.formatting import (
    confidence_level,
    list_names,
    number,
    percent,
    percent_interval,
    points_interval,
    signed_points,
)
from stages.report.label_words import explain_guessing
from stages.report.run_description import RunDescription

AVERAGE_PRECISION = "mean_average_precision"  # a key of `metrics.METRICS`


def explain_tested(results: Results, run: RunDescription) -> str | None:
    """Which data the test rows are of, if they are not the run's own."""
    if run.tested is None:
        return None
    tested, rows = run.tested, results.tuned.rows
    split = f", split {tested.split}" if tested.split else ""
    sharing = f" {tested.sharing:,} of them are also among the run's own test rows." if tested.sharing else ""
    return (
        f"The test rows are the {rows:,} labelled rows of {tested.source.name}{split}. The model was "
        f"trained on {run.data.name}. Training and validation rows, and the thresholds, are those of that run."
        f"{sharing}"
    )


def explain_intervals(results: Results, group: str | None, confidence: float) -> str:
    """Which intervals the report shows, and the design effects that widen them; group: `Task.group`."""
    tuned, gain = results.tuned.design_effect, results.comparison.best_reference.difference.design_effect
    related = f"share the same {group}" if group else "have the same texts"
    if results.comparison.metric == "accuracy":
        of_difference = (
            "The difference from a reference has Tango's. Its p is the largest of three McNemar tests: exact by rows, "
            "exact by groups of rows that are not independent, and the score test that matches the interval."
        )
    else:
        metric = TITLES[results.comparison.metric]
        of_difference = (
            f"The difference from a reference in {metric} has one by its influence function. Its p is 1 minus the "
            "confidence at which this interval would end at 0."
        )
    if AVERAGE_PRECISION in results.tuned.scores:
        of_rows = "Mean average precision has Wilson's, of as many rows as the jackknife's variance says."
        of_difference = f"{of_rows} {of_difference}"
    return (
        f"All intervals are {confidence_level(confidence)} confidence intervals. Accuracies and shares have Wilson's, "
        "differences between groups of rows Newcombe's. F1 has Agresti and Coull's by its influence function, with the "
        f"bias subtracted. Loss and Brier score have Hall's for skewed values. {of_difference} Rows that {related} are "
        f"not independent. Therefore counts are divided by the design effect (accuracy {tuned:.2f}, difference from "
        f"the best reference {gain:.2f}). If there are few groups of such rows, Student's t widens the intervals "
        "further."
    )


def interval_warnings(
    classes: dict[str, int], rows: int, groups: int, group: str | None, kind: type[Labels]
) -> list[str]:
    """Warnings about what the test rows can't show, however wide the intervals are.

    Args:
        classes: test rows of each class. A row may have several, or none.
        rows: number of test rows.
        groups: number of groups of rows that are not independent.
        group: `Task.group`.
        kind: of the labels.
    """
    warnings, nouns = [], kind.nouns.capitalize()
    if groups == 1:
        related = f"share one {group}" if group else "have the same texts"
        subject = "There is one test row" if rows == 1 else f"All test rows {related}"
        warnings.append(f"{subject}: the accuracy on others can't be estimated.")
    elif groups < FEW_GROUPS:
        different = f"values of {group}" if group else "different texts"
        warnings.append(
            f"The test rows have only {groups} {different}. The intervals are rough estimates. They may be too narrow "
            "if such rows are very similar."
        )
    if few := [f"{name} ({count})" for name, count in classes.items() if 0 < count < FEW_ROWS]:
        warnings.append(
            f"{nouns} with fewer than {FEW_ROWS} test rows: {list_names(few)}. Their F1 is a rough estimate. The "
            f"interval of macro F1 is one too, since every {kind.noun} has the same weight in it."
        )
    if missing := [name for name, count in classes.items() if not count]:
        warnings.append(
            f"{nouns} without test rows: {list_names(missing)}. Their F1 is unknown. Macro F1 leaves out those that "
            "the model never predicts, and counts the others as 0."
        )
    return warnings


def average_precision_warnings(results: Results) -> list[str]:
    """A warning if mean average precision has no interval."""
    score = results.tuned.scores.get(AVERAGE_PRECISION)
    if score is None or score.interval is not None:
        return []
    return ["Mean average precision has no interval, since the labels have too few test rows."]


def explain_calibration(calibration: Calibration | None, loss: float, labels: Labels) -> list[str]:
    """What the temperature is and what it changed; loss: of the test rows, with the temperature."""
    scale = f"Lower scores are better. {explain_guessing(labels)}"
    if calibration is None:
        return [f"The probabilities are as training left them, since train.calibrate is false. {scale}"]
    value, low, high = (f"{value:.3g}" for value in (calibration.temperature, calibration.low, calibration.high))
    if calibration.low > 1:
        meaning = "Without it the model was overconfident there: right less often than its probabilities say."
    elif calibration.high < 1:
        meaning = "Without it the model was underconfident there: right more often than its probabilities say."
    else:
        meaning = "The interval contains 1, so these rows don't show whether it is needed."
    before, after = number(calibration.without.loss), number(loss)
    verb = "lowers" if loss < calibration.without.loss else "raises"
    change = f"leaves the loss at {after}" if before == after else f"{verb} the loss from {before} to {after}"
    return [
        f"The logits are divided by a temperature of {value} (95% interval {low} to {high}), so that the probabilities "
        "say how often the model is right. It is part of the saved head and changes no prediction. It was fitted to "
        f"{calibration.rows:,} validation rows. {meaning}",
        f"On the test rows it {change}. {scale}",
    ]


def calibration_warnings(calibration: Calibration | None) -> list[str]:
    """A warning if the temperature was fitted to few rows."""
    if calibration is None or calibration.rows >= FEW_ROWS_FOR_A_TEMPERATURE:
        return []
    return [
        f"The temperature was fitted to only {calibration.rows} validation rows. With fewer than "
        f"{FEW_ROWS_FOR_A_TEMPERATURE}, it may be far off: see its interval."
    ]


def explain_coverage(coverage: dict[str, CoverageOfGoal]) -> list[str]:
    """Which share of the rows the model can answer with each accuracy."""
    of_goals = {goal: found.on_test for goal, found in coverage.items()}
    everything = [goal for goal, best in of_goals.items() if best and best.coverage == 1]
    nothing = [goal for goal, best in of_goals.items() if best is None]
    return [
        *([f"With an accuracy of {' or '.join(everything)} it can answer all rows."] if everything else []),
        *(
            f"With an accuracy of {goal} it can answer {percent(best.coverage)} of the rows (interval "
            f"{percent_interval(best.interval)}): those with a probability of at least {best.threshold:.3f}."
            for goal, best in of_goals.items()
            if best and best.coverage < 1
        ),
        *([f"With an accuracy of {' or '.join(nothing)} it can answer no rows."] if nothing else []),
    ]


def explain_threshold(effect: ThresholdEffect | None, scores: Mapping[str, Score]) -> str | None:
    """What the best threshold of two classes, or of each label, would change; None if there is none.

    Args:
        scores: of the tuned model, with 0.5.
    """
    if effect is None:
        return None
    gain = effect.f1_macro_gain
    if isinstance(effect.threshold, dict) and effect.f1_micro:
        thresholds = [value for value in effect.threshold.values() if value != 0.5]
        without = effect.without_rows or []
        verb = "keeps" if len(without) == 1 else "keep"
        kept = f" {list_names(without)} {verb} 0.5, since no validation row has such a label." if without else ""
        if not thresholds:
            return f"All results use the threshold 0.5. The validation rows give no label another one.{kept}"
        ends = " to ".join(f"{value:.3f}" for value in sorted({min(thresholds), max(thresholds)}))
        changes = [
            f"{title} from {percent(scores[key].value)} to {percent(score.value)}"
            for title, key, score in (
                ("micro F1", "f1_micro", effect.f1_micro),
                ("macro F1", "f1_macro", effect.f1_macro),
                ("subset accuracy", "accuracy", effect.accuracy),
            )
        ]
        return (
            f"All results use the threshold 0.5. For {len(thresholds)} of {len(effect.threshold)} labels, F1 on the "
            f"validation rows is best at another threshold: {ends} (best_threshold in details.json has each).{kept} On "
            f"the test rows, these thresholds change {changes[0]}, {changes[1]} ({signed_points(gain.value)} points, "
            f"interval {points_interval(gain.interval)}), and {changes[2]}."
        )
    if effect.threshold == 0.5:
        return "All results use the threshold 0.5. It also has the best macro F1 on the validation rows."
    return (
        f"All results use the threshold 0.5. The validation rows have the best macro F1 at {effect.threshold:.3f}. On "
        f"the test rows, this threshold has a macro F1 of {percent(effect.f1_macro.value)} and an accuracy of "
        f"{percent(effect.accuracy.value)}. It changes macro F1 by {signed_points(gain.value)} points (interval "
        f"{points_interval(gain.interval)})."
    )


def no_overlap(test: SplitSummary, group: str | None) -> str | None:
    """The sentence that no test row is a training row, or None; `data_warnings` has the opposite warnings.

    Args:
        test: counts of the test rows.
        group: `Task.group`.
    """
    overlap = test.overlaps["train"]
    if overlap.rows:
        return None
    if group is None or overlap.groups != 0:  # None: its values are not those of training's group
        return "No test row is also a training row."
    return f"No test row is also a training row, and none shares its {group} with one."
