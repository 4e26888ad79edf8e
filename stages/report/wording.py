"""What the numbers say, in words."""

from collections.abc import Callable
from typing import Any

from stages.analysis.design_effects import FEW_GROUPS
from stages.analysis.f1 import FEW_ROWS
from stages.report.formatting import (
    gap_with_interval,
    percent,
    percent_interval,
    points,
    points_interval,
    share_with_interval,
)

NAMED = 5  # classes; more are counted
UNEVEN = 3  # times as many rows in the most frequent class as in the rarest
FATES = {
    "fixed": "corrected by tuning",
    "broken": "broken by tuning",
    "both_right": "right twice",
    "both_wrong": "wrong twice",
}


def headline(gained: dict[str, Any], confidence: float) -> str:
    """What tuning was worth, in one sentence or two.

    Args:
        gained: from `comparison.comparison`.
    """
    gap, interval = gained["accuracy_gain"], gained["accuracy_gain_interval"]
    ends = points_interval((interval["low"], interval["high"]))
    verb = "raised" if gap > 0 else "lowered" if gap < 0 else "did not move"
    by = f" by {points(gap)} points (interval {ends})." if gap else f". Interval of the gain: {ends}."
    return (
        f"Tuning {verb} accuracy{by} Of {gained['rows']:,} rows it corrected {gained['fixed']:,} and "
        f"broke {gained['broken']:,}; {chance(gained['mcnemar_p'], confidence)}"
    )


def chance(p: float, confidence: float) -> str:
    """A McNemar p in words, which say no more than the interval of that confidence does."""
    value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    how = None if p >= 1 - confidence else "almost never" if p < 0.001 else "seldom"
    split = f"would {how} split them so" if how else "could well split them so"
    return f"chance alone {split} ({value}, McNemar test)."


def confidence_level(confidence: float) -> str:
    """The confidence of every interval, in percent."""
    return f"{confidence * 100:g}%"


def intervals(base_effect: float, tuned_effect: float, gain_effect: float, group: str | None, confidence: float) -> str:
    """Which intervals the report shows, and by which design effects they are widened; group: `Task.group`."""
    alike = f"share the same {group}" if group else "have the same texts"
    return (
        f"Intervals of {confidence_level(confidence)}: Wilson's of accuracies and shares, Newcombe's of differences "
        f"between groups of rows, Tango's of the gain, for F1 Agresti and Coull's by its influence function, its bias "
        f"taken off. Rows that {alike} are not independent: counts are divided by the design effect first "
        f"(accuracy: base {base_effect:.2f}, tuned {tuned_effect:.2f}; gain {gain_effect:.2f}), and further, by "
        "Student's t, where groups of such rows are few. The gain's p is the "
        "largest of three McNemar tests: exact by rows, exact by groups of such rows, and the score test that goes "
        "with Tango's interval."
    )


def interval_cautions(classes: dict[str, int], groups: int, group: str | None) -> list[str]:
    """What the test rows can't tell, however wide an interval is.

    Args:
        classes: test rows of each class.
        groups: how many groups of rows that are not independent.
        group: `Task.group`.
    """
    said = []
    if groups == 1:
        alike = f"share one {group}" if group else "have the same texts"
        which = "There is one test row" if sum(classes.values()) == 1 else f"All test rows {alike}"
        said.append(f"{which}: how the model does on others can't be known.")
    elif groups < FEW_GROUPS:
        said.append(
            f"The test rows are of {groups} {f'values of {group}' if group else 'different texts'}. With so few, the "
            "intervals are rough estimates, and may be too narrow where such rows are much alike."
        )
    if few := [f"{name} ({rows})" for name, rows in classes.items() if 0 < rows < FEW_ROWS]:
        said.append(
            f"Classes with fewer than {FEW_ROWS} test rows: {_first(few)}. F1 is a rough estimate for "
            "them, and so is the interval of macro F1, in which they count like any other."
        )
    if without := [name for name, rows in classes.items() if not rows]:
        said.append(
            f"Classes without test rows: {_first(without)}. Nothing is known of their F1. Macro F1 leaves out those "
            "that the model never predicts, and counts the others as 0."
        )
    return said


def _first(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def overlap(test: dict[str, Any], group: str | None) -> str | None:
    """That no test row, and no group of one, was seen in training; `find_warnings` warns of those that were.

    Args:
        test: {"in_train": {"rows", "groups"}}, of outs/data_summary.json; "groups" where the task has them.
        group: `Task.group`.
    """
    found = test["in_train"]
    if found["rows"]:
        return None
    if group is None or found["groups"]:
        return "No test row stands in the training rows."
    return f"No test row stands in the training rows, and none shares its {group} with one."


def lead(details: dict[str, Any]) -> dict[str, Any]:
    """The score that the report leads with: accuracy, or macro F1 where classes are uneven.

    Args:
        details: metrics/details.json.

    Returns:
        {"key" in details.json, "title", "why" it is not accuracy, or None}
    """
    rows = {name: count for name, count in details["data"]["test"]["classes"].items() if count}
    most, fewest = max(rows, key=rows.get), min(rows, key=rows.get)
    if rows[most] <= UNEVEN * rows[fewest]:
        return {"key": "accuracy", "title": "accuracy", "why": None}
    always = percent(details["comparison"]["majority_class"]["accuracy"])
    why = (
        f"The classes are uneven: of the test rows, {rows[most]:,} are of class {most} and {rows[fewest]:,} of "
        f"class {fewest}. Accuracy misleads there: always answering the most frequent class of training is right in "
        f"{always}. In macro F1 every class counts alike."
    )
    return {"key": "f1_macro", "title": "macro F1", "why": why}


def guesses(gained: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What guesses with less than the model: (name, its accuracy as in details.json) each; gained: as `headline`."""
    by_column = gained["bag_of_words_by_column"]
    alone = [(f"words of {column} alone", found) for column, found in by_column.items()] if len(by_column) > 1 else []
    return [("always one class", gained["majority_class"]), *alone, ("bag of words", gained["bag_of_words"])]


def guessed(gained: dict[str, Any]) -> str:
    """What guesses with less than the model, in one sentence; gained: as `headline`."""
    said = [
        f"{name} {percent(m['accuracy'])} ({percent_interval(tuple(m['accuracy_interval'].values()))})"
        for name, m in guesses(gained)
    ]
    return f"For reference, what is right with less: {', '.join(said)}."


def legend(classes: int) -> str:
    """What stands beneath each prediction; classes: how many of them."""
    which = "both classes" if classes == 2 else f"the {classes} likeliest classes"
    return f"✓ right, ✗ wrong. Beneath each prediction: {which}, with the model's probability of each in percent."


def published(theirs: dict[str, Any], rows: int) -> str:
    """What "the published report" is; theirs: published.json."""
    return (
        f"The published report is a student's, of {theirs['model']} tuned on {theirs['data']} ({theirs['source']}). "
        f"This pipeline's recipe comes from its notebook. It argues from ten test rows; here its claims meet all "
        f"{rows:,} of this run."
    )


def claims(findings: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """Findings of `analysis.nli` in words: a list of {"claim", "verdict", "evidence"}."""
    return [
        {"claim": CLAIMS[key][0], "verdict": found["verdict"], "evidence": CLAIMS[key][1](found)}
        for key, found in findings.items()
    ]


def _base_answers_one_class(found: dict[str, Any]) -> str:
    answers = share_with_interval(found["part"], found["rows"], found["interval"])
    return (
        f"{answers} of the base's answers are {found['answer']}; "
        f"almost one class is taken as {found['bar']:.0%} or more."
    )


def _tuning_fixes_most(found: dict[str, Any]) -> str:
    corrected = share_with_interval(found["part"], found["rows"], found["interval"])
    return f"Of the rows that the base gets wrong, tuning corrects {corrected}."


def _neutral_is_hardest(found: dict[str, Any]) -> str:
    if not _both_sides(found):
        return "These rows do not hold neutral and another class."
    return (
        f"The tuned model misses {_part(found['here'])} neutral rows and {_part(found['elsewhere'])} {found['rival']} "
        f"rows, the worst of the others: {gap_with_interval(found['gap'], found['interval'])}."
    )


def _high_overlap_pulls(found: dict[str, Any]) -> str:
    sentence = "Of rows that are not entailment, {} are called so by tuned where overlap is highest, {} elsewhere: {}."
    return _overlap(found, sentence)


def _low_overlap_fails(found: dict[str, Any]) -> str:
    return _overlap(found, "The tuned model misses {} where overlap is lowest and {} elsewhere: {}.")


def _premise_is_read(found: dict[str, Any]) -> str:
    won = share_with_interval(found["part"], found["rows"], found["interval"])
    return (
        f"A classifier that sees the hypothesis alone gets {percent(found['guessed'])} right, the tuned model "
        f"{percent(found['right'])}; where one is right and the other wrong, the tuned model is right in {won}."
    )


def _overlap(found: dict[str, Any], sentence: str) -> str:
    if not _both_sides(found):
        return "Too few different overlaps in these rows to compare."
    gap = gap_with_interval(found["gap"], found["interval"])
    return sentence.format(_part(found["here"]), _part(found["elsewhere"]), gap)


def _both_sides(found: dict[str, Any]) -> bool:
    return bool(found["here"]["rows"] and found["elsewhere"]["rows"])


def _part(side: dict[str, int]) -> str:
    return f"{percent(side['part'] / side['rows'])} of {side['rows']:,}"


CLAIMS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "base_answers_one_class": ("The base model answers almost one class", _base_answers_one_class),
    "tuning_fixes_most": ("Tuning fixes most of the base's mistakes", _tuning_fixes_most),
    "neutral_is_hardest": ("Neutral is the hardest class", _neutral_is_hardest),
    "high_overlap_pulls_to_entailment": ("High word overlap pulls towards entailment", _high_overlap_pulls),
    "low_overlap_fails": ("Low word overlap fails more often", _low_overlap_fails),
    "premise_is_read": ("The tuned model does better than the hypothesis alone allows", _premise_is_read),
}
