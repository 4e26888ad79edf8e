"""The words that differ between rows with one class and rows with any number of them, in reports and `tools.init`.

They ask `words_of`. Without it, a text is true of both. `Labels` has the words of the stages before `analyze`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from stages.data.labels import Labels

MAX_SETS = 50  # of labels, in the page's filter
NO_CLASS = "none of the labels"  # the name of the answer that a row has none


@dataclass(frozen=True)
class LabelWords:
    """What the reports say.

    Attributes:
        task: what the model does; it has a place for the number of classes.
        answer: what an answer is.
        majority: the answer of the most frequent one; empty: its name.
        titles: of metrics, by their keys, where they differ from `Metric.title`.
        right: when an answer is right; empty if it goes without saying.
        certainty: the probability that an answer has.
        marks: what ✓ and ✗ mean.
        confusion: title of the picture of gold and predicted classes.
        cells: more about its cells; empty for nothing.
        all_gold: the choice of the page's filter that leaves out no row.
        loss: the kind of loss.
        validation_scores: of each epoch.
        threshold: heading of what the best threshold would change.
        an_accuracy: the score, with its article.
        share_of_rest: of the rows that have a class which is not listed; it has a place for the share.
        contradiction: how duplicates of a row contradict one another.
        to_probabilities, decide: code of the model card, from logits to an answer.
        unavailable: references that don't exist for such rows.
    """

    task: str
    answer: str
    majority: str
    right: str
    certainty: str
    marks: str
    confusion: str
    cells: str
    all_gold: str
    loss: str
    validation_scores: str
    threshold: str
    an_accuracy: str
    share_of_rest: str
    contradiction: str
    to_probabilities: str
    decide: str
    titles: Mapping[str, str] = field(default_factory=dict)
    unavailable: Sequence[str] = ()

    @property
    def accuracy(self) -> str:
        return self.titles.get("accuracy", "accuracy")


SINGLE = LabelWords(
    task="classifies texts into {} classes",
    answer="class",
    majority="",
    right="",
    certainty="probability of the predicted class",
    marks="✓ right, ✗ wrong",
    confusion="Confusion",
    cells="",
    all_gold="all classes",
    loss="cross-entropy",
    validation_scores="Accuracy and weighted F1",
    threshold="The threshold between the two classes",
    an_accuracy="an accuracy",
    share_of_rest="{:6.1%} in",
    contradiction="of several classes",
    to_probabilities="softmax(-1)",
    decide="model.config.id2label[int(probabilities.argmax())]",
)
SEVERAL = LabelWords(
    task="gives a text any number of {} labels, or none",
    answer="set of labels",
    majority="the set of labels that most training rows have",
    right="A row may have several labels or none. An answer is right only if all of its labels are, so each accuracy "
    "is the subset accuracy.",
    certainty="probability that all labels are right",
    marks="✓ all labels right, ✗ not all",
    confusion="Co-occurrence",
    cells=" A row with several labels counts in several cells, so a cell off the diagonal need not be an error.",
    all_gold="all sets of labels",
    loss="binary cross-entropy",
    validation_scores="Micro F1 and subset accuracy",
    threshold="A threshold for each label",
    an_accuracy="a subset accuracy",
    share_of_rest="   and",  # classes of a row overlap
    contradiction="with different labels",
    to_probabilities="sigmoid()",
    decide="[name for i, name in model.config.id2label.items() if probabilities[i] > 0.5]",
    titles={
        "accuracy": "subset accuracy",
        "loss": "loss (mean binary cross-entropy)",
        "brier": "Brier score (0 best, 1 worst)",
    },
    unavailable=("zero_shot",),  # a language model continues a text with one class
)


def words_of(labels: Labels) -> LabelWords:
    return SEVERAL if labels.multi_label else SINGLE


def list_gold(gold: pd.Series, names: Sequence[str], labels: Labels) -> list[tuple[int, str]]:
    """(place in `names`, name) of the gold labels that the page's filter offers: all classes, or the frequent sets.

    Args:
        gold: codes.
        names: from `cases.list_names`.
    """
    if not labels.multi_label:
        return list(enumerate(labels.classes))
    frequent = labels.names(gold).replace("", NO_CLASS).value_counts()[:MAX_SETS]
    return [(names.index(name), name) for name in frequent.index]


def explain_guessing(labels: Labels) -> str:
    """The loss of a model that knows nothing, and what the calibration error is of."""
    if labels.multi_label:
        return (
            "The expected calibration error is the mean over the labels: the gap between a label's probability and its "
            f"share of the rows. Probabilities of 0.5 for all labels have a loss of {math.log(2):.3f}."
        )
    return (
        "The expected calibration error is the mean gap between probability and accuracy. Equal probabilities for all "
        f"classes have a loss of {math.log(len(labels.classes)):.3f}."
    )
