"""What other thresholds would change on the test rows, of two classes or of each label. All results use 0.5."""

from dataclasses import dataclass, replace

from stages.analysis.measures import measure_difference
from stages.analysis.metrics import Estimate, Predictions
from stages.analysis.paired_difference import Difference
from stages.data.thresholds import choose_thresholds


@dataclass(frozen=True)
class ThresholdEffect:
    """The test rows with other thresholds than 0.5. The attributes are the keys of details.json.

    Attributes:
        threshold: from the validation rows; a row has the second class if its probability is above it. If a row may
            have several labels, the threshold of each label.
        accuracy, f1_macro: with this threshold.
        f1_macro_gain: macro F1 with this threshold minus that with 0.5.
        f1_micro, without_rows: only if a row may have several labels. F1 as f1_macro; the labels that no validation
            row has, so that they keep 0.5.
    """

    threshold: float | dict[str, float]
    accuracy: Estimate
    f1_macro: Estimate
    f1_macro_gain: Difference
    f1_micro: Estimate | None = None
    without_rows: list[str] | None = None


def measure_best_threshold(test: Predictions, validation: Predictions) -> ThresholdEffect | None:
    """Choose thresholds on the validation rows and measure them on the test rows: of two classes, or of each label."""
    thresholds = choose_thresholds(validation.gold, validation.probabilities)
    if thresholds is None:
        return None
    changed = replace(test, predicted=test.labels.decide(test.probabilities, thresholds))
    gain = measure_difference(
        "f1_macro", test.gold, changed.predicted, test.predicted, test.groups, len(test.classes), test.confidence
    )
    if not isinstance(thresholds, list):
        return ThresholdEffect(thresholds, changed.accuracy, changed.f1_macro, gain)
    by_class = dict(zip(test.classes, thresholds, strict=True))
    without_rows = [name for name, rows in zip(test.classes, validation.counts[1], strict=True) if not rows]
    return ThresholdEffect(by_class, changed.accuracy, changed.f1_macro, gain, changed.f1_micro, without_rows)
