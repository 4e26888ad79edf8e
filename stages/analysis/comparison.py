"""What tuning was worth: the tuned model compared with the references on the same test rows."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from stages.analysis.bag_of_words import BAG_OF_WORDS, column_of_bag
from stages.analysis.case_table import find_outcomes
from stages.analysis.leading_metric import LeadingMetric, choose_leading_metric
from stages.analysis.metrics import Estimate, Predictions
from stages.analysis.paired_difference import Difference, measure_difference
from stages.analysis.references import REFERENCES
from stages.data.task import Task

Verdict = Literal["worth it", "too close to tell", "not worth it"]


@dataclass(frozen=True)
class ReferenceScores:
    """The scores of a reference. `difference`: the tuned model's leading metric minus the reference's."""

    accuracy: Estimate
    f1_weighted: Estimate
    f1_macro: Estimate
    difference: Difference

    def lead(self, metric: LeadingMetric) -> Estimate:
        return self.accuracy if metric == "accuracy" else self.f1_macro


@dataclass(frozen=True)
class Outcomes:
    """Test rows by what tuning did to them, compared with the best reference."""

    fixed: int
    broken: int
    both_right: int
    both_wrong: int


@dataclass(frozen=True)
class Comparison:
    """The tuned model and the references. The attributes are the keys of details.json.

    Attributes:
        metric: the leading metric, in which all differences are measured.
        rows: all test rows.
        references: the scores of each reference, the cheapest first.
        best: the reference with the highest leading metric; of equal ones, the cheapest. It is chosen on these test
            rows, so it is rather too good than too bad.
        verdict: on the difference from the best reference.
        outcomes: the rows, compared with the best reference.
        head_gain: the probe minus the majority class: what a trained head gets from the frozen base.
        lora_gain: the tuned model minus the probe: what LoRA adds. Both are None if a reference of them is missing.
        bag_of_words_by_column: learned from each text column by itself, if there are several.
        without_duplicates: the tuned model's leading metric without the test rows that are duplicates of training
            rows; None if there are none, or if all are.
    """

    metric: LeadingMetric
    rows: int
    references: dict[str, ReferenceScores]
    best: str
    verdict: Verdict
    outcomes: Outcomes
    head_gain: Difference | None
    lora_gain: Difference | None
    bag_of_words_by_column: dict[str, ReferenceScores]
    without_duplicates: Estimate | None

    @property
    def best_reference(self) -> ReferenceScores:
        return self.references[self.best]


def compare_models(cases: pd.DataFrame, task: Task, confidence: float) -> Comparison:
    """Measure each reference and its difference from the tuned model, and judge the best one.

    Args:
        cases: from `build_case_table`; it has at least one reference.
        confidence: of the intervals, such as 0.95.
    """
    gold, groups, classes = cases["gold"].to_numpy(), cases["group"].to_numpy(), len(task.classes)
    metric = choose_leading_metric(gold, classes)

    def subtract(name: str, other: str) -> Difference:
        predicted, other_predicted = cases[name].to_numpy(), cases[other].to_numpy()
        return measure_difference(metric, gold, predicted, other_predicted, groups, classes, confidence)

    def measure(name: str) -> ReferenceScores:
        scores = Predictions.from_cases(cases, name, task, confidence)
        return ReferenceScores(scores.accuracy, scores.f1_weighted, scores.f1_macro, subtract("tuned", name))

    references = {name: measure(name) for name in REFERENCES if name in cases}
    best = max(references, key=lambda name: references[name].lead(metric).value)
    outcomes = find_outcomes(gold, cases[best].to_numpy(), cases["tuned"].to_numpy())
    answers_one_class = cases["tuned"].nunique() == 1 and len(np.unique(gold)) > 1
    columns = task.columns if BAG_OF_WORDS in references and len(task.columns) > 1 else ()
    has_probe, has_majority = "probe" in references, "majority_class" in references
    return Comparison(
        metric=metric,
        rows=len(cases),
        references=references,
        best=best,
        verdict=judge(references[best].difference, answers_one_class or (cases[best] == cases["tuned"]).all()),
        outcomes=Outcomes(**{name: int((outcomes == name).sum()) for name in Outcomes.__annotations__}),
        head_gain=subtract("probe", "majority_class") if has_probe and has_majority else None,
        lora_gain=references["probe"].difference if has_probe and has_majority else None,
        bag_of_words_by_column={column: measure(column_of_bag(column)) for column in columns},
        without_duplicates=score_without_duplicates(cases, metric, task, confidence),
    )


def judge(difference: Difference, needs_no_tuning: bool) -> Verdict:
    """Whether tuning was worth it: the sign of the whole interval decides.

    Args:
        difference: the tuned model minus the best reference.
        needs_no_tuning: the reference gives the same answers, or the tuned model gives every row the same answer. The
            most frequent class of the test rows can exceed all references if it is not that of the training rows.
    """
    if needs_no_tuning or difference.interval.high < 0:
        return "not worth it"
    return "worth it" if difference.interval.low > 0 else "too close to tell"


def score_without_duplicates(
    cases: pd.DataFrame, metric: LeadingMetric, task: Task, confidence: float
) -> Estimate | None:
    rest = cases[~cases["in_train"]]
    if not 0 < len(rest) < len(cases):
        return None
    predictions = Predictions.from_cases(rest, "tuned", task, confidence)
    return predictions.accuracy if metric == "accuracy" else predictions.f1_macro
