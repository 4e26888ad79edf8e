"""The results of a run, which `analyze` computes and the reports read; as JSON, metrics/details.json."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Self

import pandas as pd

from stages.analysis import metrics
from stages.analysis.best_threshold import ThresholdEffect
from stages.analysis.calibration import Calibration
from stages.analysis.comparison import Comparison
from stages.analysis.coverage import CoverageOfGoal
from stages.analysis.intervals import Interval
from stages.analysis.metrics import ModelScores, Score
from stages.analysis.nli import Claims
from stages.data.data_summary import DataSummary

SEVERAL_LABELS = ("f1_micro", "mean_average_precision")  # in `summarize` if a row may have several labels


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model. In `stored`, a 4-bit weight counts half."""

    stored: int
    total: int
    trainable: int


@dataclass(frozen=True)
class Training:
    """The training: the epoch whose adapter is used (`best_epoch`), and the losses and validation scores after it."""

    best_epoch: int
    parameters: ParameterCounts
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_f1_weighted: float
    validation_f1_micro: float | None = None  # only if a row may have several labels

    @classmethod
    def from_history(cls, summary: dict[str, Any], epochs: pd.DataFrame) -> Self:
        """Join the training's summary.json with the line of its `best_epoch` in epochs.csv."""
        scores = epochs.set_index("epoch").loc[summary["best_epoch"]]
        return cls(
            summary["best_epoch"],
            ParameterCounts(**summary["parameters"]),
            **{name: float(value) for name, value in scores.items()},
        )


@dataclass(frozen=True)
class Results:
    """All results of a run. Equal inputs give equal results.

    Attributes:
        calibration: what the temperature changed; None if `train.calibrate` is false.
        coverage: which share of the rows can be answered with an accuracy, by that accuracy, such as "95%".
        best_threshold: None unless there are two classes, or a row may have several labels.
        claims: the published report's claims, tested on this run; None if it has another task than the report.
    """

    data: DataSummary
    base_parameters: ParameterCounts
    training: Training
    tuned: ModelScores
    tuned_parameters: ParameterCounts
    comparison: Comparison
    calibration: Calibration | None
    coverage: dict[str, CoverageOfGoal]
    best_threshold: ThresholdEffect | None
    claims: Claims | None

    def to_json(self) -> dict[str, Any]:
        """metrics/details.json. It has `multi_label` only if this is true."""
        claims = {"claims": self.claims.verdicts()} if self.claims else {}
        return {
            **({"multi_label": True} if "f1_micro" in self.tuned.scores else {}),
            "data": self.data.to_json(),
            "base": {"parameters": _json(self.base_parameters)},
            "train": _json(self.training),
            "tuned": _scores_json(self.tuned, self.tuned_parameters),
            "comparison": _json(self.comparison) | claims,
            "calibration": _json(self.calibration),
            "coverage": _json(self.coverage),
            "best_threshold": _json(self.best_threshold),
        }

    def summarize(self) -> dict[str, float]:
        """The few scores by which runs are compared.

        DVC sorts them by name. So names start with the kind of score, and come before the names of memory and seconds
        (`usage.Usage.summarize`).
        """
        metric, best = self.comparison.metric, self.comparison.best_reference
        return {
            "accuracy": self.tuned.accuracy.value,
            "calibration_error": self.tuned.scores["calibration_error"].value,
            "f1_macro": self.tuned.f1_macro.value,
            **{key: self.tuned.scores[key].value for key in SEVERAL_LABELS if key in self.tuned.scores},
            "f1_weighted": self.tuned.f1_weighted.value,
            f"gain_{metric}": best.difference.value,
            f"best_reference_{metric}": best.lead(metric).value,
            "loss_test": self.tuned.scores["loss"].value,
            "loss_train": self.training.train_loss,
            "loss_validation": self.training.validation_loss,
            "parameters_trained": self.training.parameters.trainable,
        }


def _scores_json(model: ModelScores, parameters: ParameterCounts) -> dict[str, Any]:
    scores = model.scores | model.class_scores
    counts = {"rows": model.rows, "groups": model.groups, "design_effect": model.design_effect}
    return (
        counts
        | _items_json((metric.key, scores[metric.key]) for metric in metrics.METRICS if metric.key in scores)
        | {"parameters": _json(parameters)}
    )


def _json(value: Any) -> Any:
    if isinstance(value, Interval):
        return value._asdict()
    if is_dataclass(value):
        items = ((field, getattr(value, field.name)) for field in fields(value))
        return _items_json((field.name, item) for field, item in items if not (item is None and field.default is None))
    return _items_json(value.items()) if isinstance(value, dict) else value


def _items_json(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Items as JSON; a `Score` becomes two keys, its value and its interval."""
    record: dict[str, Any] = {}
    for key, value in items:
        if isinstance(value, Score):
            record[key] = value.value
            if value.interval:
                record[f"{key}_interval"] = value.interval._asdict()
        else:
            record[key] = _json(value)
    return record
