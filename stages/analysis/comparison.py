"""What tuning was worth: the tuned model compared with the references on the same test rows."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from stages.analysis.bag_of_words import BAG_OF_WORDS, column_of_bag
from stages.analysis.case_table import find_outcomes
from stages.analysis.leading_metric import LeadingMetric
from stages.analysis.measures import choose_leading_metric, measure_difference
from stages.analysis.metrics import Estimate, Predictions
from stages.analysis.paired_difference import Difference
from stages.analysis.references import OF_LANGUAGE_MODEL
from stages.data.task import Task

Verdict = Literal["not worth it", "too close to tell", "worth it"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)  # the worst first


@dataclass(frozen=True)
class ReferenceScores:
    """The scores of a reference. `difference`: the tuned model's leading metric minus the reference's.

    `f1_micro` is only of rows with several labels.
    """

    accuracy: Estimate
    f1_weighted: Estimate
    f1_macro: Estimate
    difference: Difference
    f1_micro: Estimate | None = None

    def lead(self, metric: LeadingMetric) -> Estimate:
        return getattr(self, metric)


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
        references: the scores of each reference, the cheapest first. If there are several text columns, the bag of
            words of each is a reference too, under `column_of_bag`: the hypotheses of NLI predict more by themselves.
        best: the reference with the highest leading metric; of equal ones, the cheapest. It is chosen on these test
            rows, so it is rather too good than too bad.
        verdict: on the differences from all references, with and without duplicates: the worse of the two.
        verdict_with_duplicates: of all test rows.
        outcomes: the rows, compared with the best reference.
        head_gain: the probe minus the majority class: what a trained head gets from the frozen base.
        lora_gain: the tuned model minus the probe: what LoRA adds. Both are None if a reference of them is missing.
        without_duplicates: the tuned model's leading metric without the test rows that are duplicates of training
            rows; None if there are none, or if all are.
    """

    metric: LeadingMetric
    rows: int
    references: dict[str, ReferenceScores]
    best: str
    verdict: Verdict
    verdict_with_duplicates: Verdict
    outcomes: Outcomes
    head_gain: Difference | None
    lora_gain: Difference | None
    without_duplicates: Estimate | None

    @property
    def best_reference(self) -> ReferenceScores:
        return self.references[self.best]


def compare_models(
    cases: pd.DataFrame, task: Task, confidence: float, metric: LeadingMetric | None = None
) -> Comparison:
    """Measure each reference and its difference from the tuned model, and judge tuning.

    Args:
        cases: from `build_case_table`; it has at least one reference.
        confidence: of the intervals, such as 0.95.
        metric: in which everything is measured; None: the leading metric of these rows.
    """
    metric = metric or choose_leading_metric(task.labels.from_codes(cases["gold"]), len(task.classes))

    def subtract(name: str, other: str, rows: pd.DataFrame = cases) -> Difference:
        gold, predicted, other_predicted = (task.labels.from_codes(rows[key]) for key in ("gold", name, other))
        groups = rows["group"].to_numpy()
        return measure_difference(metric, gold, predicted, other_predicted, groups, len(task.classes), confidence)

    def measure(name: str) -> ReferenceScores:
        scores = Predictions.from_cases(cases, name, task, confidence)
        micro = scores.f1_micro if metric == "f1_micro" else None
        return ReferenceScores(scores.accuracy, scores.f1_weighted, scores.f1_macro, subtract("tuned", name), micro)

    bags = [column_of_bag(column) for column in task.columns] if len(task.columns) > 1 else []
    names = ["majority_class", BAG_OF_WORDS, *bags, *OF_LANGUAGE_MODEL]
    references = {name: measure(name) for name in names if name in cases}
    best = max(references, key=lambda name: references[name].lead(metric).value)
    outcomes = find_outcomes(cases["gold"].to_numpy(), cases[best].to_numpy(), cases["tuned"].to_numpy())
    verdict = judge([scores.difference for scores in references.values()], needs_no_tuning(cases, best))
    rest = cases[~cases["in_train"]]
    has_duplicates = 0 < len(rest) < len(cases)
    if has_duplicates:
        of_rest = judge([subtract("tuned", name, rest) for name in references], needs_no_tuning(rest, best))
    has_probe, has_majority = "probe" in references, "majority_class" in references
    return Comparison(
        metric=metric,
        rows=len(cases),
        references=references,
        best=best,
        verdict=min(verdict, of_rest, key=VERDICTS.index) if has_duplicates else verdict,
        verdict_with_duplicates=verdict,
        outcomes=Outcomes(**{name: int((outcomes == name).sum()) for name in Outcomes.__annotations__}),
        head_gain=subtract("probe", "majority_class") if has_probe and has_majority else None,
        lora_gain=references["probe"].difference if has_probe and has_majority else None,
        without_duplicates=score_tuned(rest, metric, task, confidence) if has_duplicates else None,
    )


def judge(differences: Collection[Difference], needs_no_tuning: bool) -> Verdict:
    """Whether tuning was worth it: only if the whole interval of its difference from every reference is above 0.

    A reference below the best one can have the wider interval, if it errs in other rows than the tuned model. Asking
    for all intervals keeps the level: an intersection-union test (Berger 1982, Technometrics 24).

    Args:
        differences: the tuned model minus each reference.
        needs_no_tuning: from the function of this name.
    """
    if needs_no_tuning or any(difference.interval.high < 0 for difference in differences):
        return "not worth it"
    return "worth it" if all(difference.interval.low > 0 for difference in differences) else "too close to tell"


def needs_no_tuning(cases: pd.DataFrame, best: str) -> bool:
    """Whether the best reference gives the same answers, or the tuned model gives every row the same answer.

    The most frequent class of the test rows can exceed all references, if it is not that of the training rows.
    """
    answers_one_class = cases["tuned"].nunique() == 1 and cases["gold"].nunique() > 1
    return bool(answers_one_class or (cases[best] == cases["tuned"]).all())


def score_tuned(cases: pd.DataFrame, metric: LeadingMetric, task: Task, confidence: float) -> Estimate:
    predictions = Predictions.from_cases(cases, "tuned", task, confidence)
    return getattr(predictions, metric)
