"""What the best threshold of two classes would change on the test rows. All results use 0.5."""

from dataclasses import dataclass, replace

from stages.analysis.metrics import Estimate, Predictions, has_two_classes
from stages.analysis.paired_difference import Difference, measure_difference
from stages.data.thresholds import best_threshold


@dataclass(frozen=True)
class ThresholdEffect:
    """The test rows with another threshold than 0.5. The attributes are the keys of details.json.

    Attributes:
        threshold: from the validation rows; a row has the second class if its probability is above it.
        accuracy, f1_macro: with this threshold.
        f1_macro_gain: macro F1 with this threshold minus that with 0.5.
    """

    threshold: float
    accuracy: Estimate
    f1_macro: Estimate
    f1_macro_gain: Difference


def measure_best_threshold(test: Predictions, validation: Predictions) -> ThresholdEffect | None:
    """Choose the threshold on the validation rows and measure it on the test rows: only of two classes."""
    if not has_two_classes(test):
        return None
    threshold = best_threshold(validation.gold, validation.probabilities[:, 1])
    changed = replace(test, predicted=(test.probabilities[:, 1] > threshold).astype(int))
    gain = measure_difference("f1_macro", test.gold, changed.predicted, test.predicted, test.groups, 2, test.confidence)
    return ThresholdEffect(threshold, changed.accuracy, changed.f1_macro, gain)
