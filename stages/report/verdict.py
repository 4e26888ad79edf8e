"""The verdict on tuning in words, and the references with which the tuned model is compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.analysis.bag_of_words import BAG_OF_WORDS, column_of_bag
from stages.analysis.comparison import Comparison, ReferenceScores
from stages.analysis.leading_metric import TITLES
from stages.analysis.metrics import Score
from stages.analysis.paired_difference import Difference
from stages.analysis.results import Results
from stages.data.labels import Labels
from stages.report.formatting import (
    confidence_level,
    list_names,
    p_statement,
    percent,
    percent_interval,
    points,
    points_interval,
)
from stages.report.label_words import words_of
from stages.report.run_description import RunDescription

REFERENCE_NAMES = {
    "majority_class": "most frequent class",
    "bag_of_words": "bag of words",
    "zero_shot": "zero-shot",
    "probe": "linear probe",
    "untrained_head": "untrained head",
}
IN_A_SENTENCE = {
    "bag_of_words": "a bag of words",
    "zero_shot": "the base model zero-shot",
    "probe": "a linear probe on the frozen base",
    "untrained_head": "the base model with an untrained head",
}
MAX_TOKENS = 4  # of the zero-shot reference, by name


def name_reference(key: str, labels: Labels) -> str:
    """A reference's name for readers; of a bag of words from one column: words of that column only."""
    if key == "majority_class":
        return f"most frequent {words_of(labels).answer}"
    return REFERENCE_NAMES.get(key) or f"words of {key.removeprefix(column_of_bag(''))} only"


@dataclass(frozen=True)
class ScoreLine:
    """A line of the table of references, and of its picture.

    Attributes:
        description: what a reader should know who never heard of it.
        score: in the leading metric.
        difference: the tuned model minus this reference; None for the tuned model.
        kind: "tuned", "best" (the best reference) or "other".
    """

    name: str
    description: str
    score: Score
    difference: Difference | None
    kind: str


def summarize_verdict(results: Results, alarms: int) -> str:
    """Score, difference from the best reference, verdict and number of alarms in one line for the terminal.

    It is ASCII, since a terminal need not have the typographic minus of the report.
    """
    comparison, difference = results.comparison, results.comparison.best_reference.difference
    title, which = TITLES[comparison.metric], _best_or_only(comparison)
    if difference.value:
        side = "above" if difference.value > 0 else "below"
        gap = f"{points(difference.value)} points {side} the {which} reference"
    else:
        gap = f"the same as the {which} reference"
    counted = f", {alarms} alarm{'s' if alarms > 1 else ''} in the report" if alarms else ""
    return (
        f"{percent(results.tuned.scores[comparison.metric].value)} {title} of the tuned model, {gap} "
        f"({points_interval(difference.interval).replace('−', '-')}), {comparison.verdict}{counted}"
    )


def explain_verdict(comparison: Comparison, confidence: float, labels: Labels) -> str:
    """The verdict's reason: the difference from the best reference; confidence: of the intervals."""
    best, metric = comparison.best_reference, comparison.metric
    value, interval, p = best.difference.value, best.difference.interval, best.difference.p
    name = name_reference(comparison.best, labels)
    name = f"the {name}" if comparison.best == "majority_class" else IN_A_SENTENCE.get(comparison.best, name)
    reference = f"the {_best_or_only(comparison)} reference, {name} ({percent(best.lead(metric).value)})"
    if value:
        gap = f"{points(value)} points of {TITLES[metric]} {'above' if value > 0 else 'below'} {reference}"
    else:
        gap = f"the same {TITLES[metric]} as {reference}"
    more = ""
    if comparison.verdict == "too close to tell":
        undecided = [key for key, scores in comparison.references.items() if scores.difference.interval.low <= 0]
        if comparison.best in undecided:
            more = " With more test rows it would be narrower."
        elif undecided:
            names = list_names([name_reference(key, labels) for key in undecided])
            more = f" But the interval of the difference from another reference reaches 0: {names}."
    elif comparison.verdict == "not worth it" == comparison.verdict_with_duplicates and value > 0:
        more = f" But all answers are one {words_of(labels).answer}, which needs no model."
    return (
        f"{gap}. The {confidence_level(confidence)} interval of the difference is {points_interval(interval)} "
        f"({p_statement(p, confidence)}).{more}"
    )


def _best_or_only(comparison: Comparison) -> str:
    return "best" if len(comparison.references) > 1 else "only"


def explain_gains(comparison: Comparison, labels: Labels) -> str | None:
    """How much of the tuned model's score is the work of a trained head, and how much that of LoRA."""
    head, lora = comparison.head_gain, comparison.lora_gain
    if head is None or lora is None:
        return None
    majority = comparison.references["majority_class"].lead(comparison.metric).value
    return (
        f"Always answering the {name_reference('majority_class', labels)} of the training rows has "
        f"{_with_article(comparison)} of {percent(majority)}. A head trained on the frozen base (the linear probe) "
        f"{_add(head.value)} points, and LoRA {_add(lora.value)} points."
    )


def _with_article(comparison: Comparison) -> str:
    return f"{'an' if comparison.metric == 'accuracy' else 'a'} {TITLES[comparison.metric]}"


def _add(gain: float) -> str:
    return f"{'adds' if gain >= 0 else 'loses'} {points(gain)}"


def explain_outcomes(comparison: Comparison, labels: Labels) -> str:
    """How many rows changed, compared with the best reference."""
    outcomes, name = comparison.outcomes, name_reference(comparison.best, labels)
    rows = "row" if outcomes.broken == 1 else "rows"
    return (
        f"In {outcomes.fixed:,} of {comparison.rows:,} test rows, the tuned model is right and the best reference "
        f"({name}) is wrong. In {outcomes.broken:,} {rows} it is the other way round."
    )


def explain_missing(references: Sequence[str], labels: Labels) -> str | None:
    """Which references the run did not compute, or None; references: `analysis.references`.

    A verdict without the strong ones looks the same.
    """
    unavailable = words_of(labels).unavailable
    missing = [name_reference(key, labels) for key in REFERENCE_NAMES if key not in (*references, *unavailable)]
    if not missing:
        return None
    return f"The verdict is without these references, which analysis.references leaves out: {list_names(missing)}."


def explain_metric(results: Results) -> str | None:
    """Why the report leads with macro or micro F1; None if it leads with accuracy."""
    if results.comparison.metric == "accuracy":
        return None
    if results.comparison.metric == "f1_micro":
        return "The report leads with micro F1, in which all labels of all rows count equally."
    rows = {name: count for name, count in results.data.splits["test"].classes.items() if count}
    most, fewest = max(rows, key=lambda name: rows[name]), min(rows, key=lambda name: rows[name])
    return (
        "The report leads with macro F1, in which every class has the same weight, because the classes are uneven: "
        f"{rows[most]:,} test rows are {most}, {rows[fewest]:,} {'is' if rows[fewest] == 1 else 'are'} {fewest}."
    )


def explain_duplicates(comparison: Comparison, level: str) -> str | None:
    """The score without duplicates of training rows; None if there are none."""
    score = comparison.without_duplicates
    if score is None:
        return None
    return (
        f"Without the test rows that are duplicates of training rows, the tuned model's {TITLES[comparison.metric]} is "
        f"{percent(score.value)} ({level} interval {percent_interval(score.interval)})."
    )


def list_scores(results: Results, run: RunDescription) -> list[ScoreLine]:
    """The tuned model and all references in the leading metric, the best first."""
    comparison = results.comparison
    metric = comparison.metric
    lines = [
        _reference_line(name_reference(key, run.task.labels), describe_reference(key, results, run), scores, comparison)
        for key, scores in comparison.references.items()
    ]
    tuned = ScoreLine("tuned", "this run's adapter and head", results.tuned.scores[metric], None, "tuned")
    return [tuned, *sorted(lines, key=lambda line: -line.score.value)]


def _reference_line(name: str, description: str, scores: ReferenceScores, comparison: Comparison) -> ScoreLine:
    kind = "best" if scores is comparison.best_reference else "other"
    return ScoreLine(name, description, scores.lead(comparison.metric), scores.difference, kind)


def describe_reference(key: str, results: Results, run: RunDescription) -> str:
    """What a reference does, in half a sentence."""
    settings = run.references.get(key, {})
    if key == "majority_class":
        train = results.data.splits["train"].classes
        return f"always answers {words_of(run.task.labels).majority or max(train, key=lambda name: train[name])}"
    if key == "zero_shot":
        return f"the language model's own next token after the template{_list_tokens(settings.get('tokens', {}))}"
    if key == "probe":
        rows = f", learned from {settings['rows']:,} training rows" if "rows" in settings else ""
        return f"logistic regression on the frozen base's last state{rows}"
    if key == "untrained_head":
        return f"random weights on the frozen base{': the published reference' if results.claims else ''}"
    if key == BAG_OF_WORDS:
        return "logistic regression on words and pairs of words of the whole texts, without a language model"
    return "the bag of words of one column"


def _list_tokens(tokens: dict[str, str]) -> str:
    """The token of each class, if there are few; and always the class whose name begins with a token for its space."""
    words = {name: token.strip() for name, token in tokens.items()}
    listed = ", ".join(f"“{word}” for {name}" for name, word in words.items() if word)
    blank = [name for name, word in words.items() if not word]
    return (f": {listed}" if listed and len(tokens) <= MAX_TOKENS else "") + (
        f"; only white space for {list_names(blank)}, for which it is no real reference" if blank else ""
    )


def list_left_out(references: dict[str, Any]) -> list[str]:
    """A sentence for each reference that could not be computed.

    Args:
        references: of the base's summary.json.
    """
    return [
        f"{REFERENCE_NAMES[key].capitalize()} is left out: {settings['left_out']}."
        for key, settings in references.items()
        if "left_out" in settings
    ]
