"""What tuning was worth: pure functions of the two runs' predictions."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from stages.core.labels import LABELS

FATES = ("both_right", "fixed", "broken", "both_wrong")


def scores(gold, predicted):
    """Accuracy, weighted and macro F1, and F1 of each class.

    Args:
        gold, predicted: integer labels, [rows].
    """
    labels = range(len(LABELS))
    per_class = f1_score(gold, predicted, labels=labels, average=None, zero_division=0)
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "f1_weighted": float(f1_score(gold, predicted, labels=labels, average="weighted", zero_division=0)),
        "f1_macro": float(f1_score(gold, predicted, labels=labels, average="macro", zero_division=0)),
        "rows": len(gold),
        "f1": {name: float(value) for name, value in zip(LABELS, per_class, strict=True)},
    }


def fates(gold, base, tuned):
    """What became of each row: one of `FATES`, [rows]."""
    base_right, tuned_right = np.asarray(base) == gold, np.asarray(tuned) == gold
    return np.select(
        [base_right & tuned_right, ~base_right & tuned_right, base_right & ~tuned_right], FATES[:3], default=FATES[3]
    )


def gain(gold, base, tuned):
    """Rows of each fate, and the gain in accuracy."""
    fate = fates(gold, base, tuned)
    counts = {name: int((fate == name).sum()) for name in FATES}
    return {**counts, "rows": len(fate), "accuracy_gain": (counts["fixed"] - counts["broken"]) / len(fate)}
