"""Options of `tools.predict` that change answers: leave unsure ones out, or use other thresholds than 0.5."""

import argparse
import sys
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from stages.data.classifier_settings import ClassifierSettings
from stages.runtime import errors


class Answer(TypedDict):
    label: str | list[str] | None  # a list if a row may have several labels; None: no answer
    probabilities: dict[str, float]  # of all classes
    reason: NotRequired[str]  # why there is no answer


MOST_NAMED = 10  # labels in a message


@dataclass(frozen=True)
class Rule:
    """How probabilities become answers.

    Attributes:
        at_least: a row has no answer if the probability of its answer is lower.
        thresholds: of the second of two classes, or [classes] if a row may have several labels. A row has a class if
            its probability is above. None: the most probable class, or 0.5.
    """

    at_least: float = 0.0
    thresholds: float | list[float] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, of which a command may have one."""
    options = parser.add_mutually_exclusive_group()
    options.add_argument(
        "--at-least", type=parse_share, metavar="P", help="give no answer if its probability is below P, 0 to 1"
    )
    options.add_argument(
        "--coverage", type=parse_share, metavar="C", help="choose P to answer this share of the validation rows, 0 to 1"
    )
    options.add_argument(
        "--best-threshold",
        action="store_true",
        help="for two classes, or several labels per row: use the threshold, or each label's, with the highest F1 on "
        "the validation rows, instead of 0.5",
    )


def parse_share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def choose_rule(arguments: argparse.Namespace, settings: ClassifierSettings) -> Rule | None:
    """The rule that the command asks for. Print what it takes from the validation rows to standard error.

    Raises:
        UserError: the adapter lacks what the rule needs.
    """
    if arguments.at_least is not None:
        return Rule(arguments.at_least)
    option = "--coverage" if arguments.coverage is not None else "--best-threshold" if arguments.best_threshold else ""
    if not option:
        return None
    if arguments.untuned:
        raise errors.UserError(f"{option}: uses the tuned model's validation rows; remove --untuned")
    from stages.model.validation_summary import ValidationSummary

    summary = ValidationSummary.read(arguments.adapter)
    if arguments.coverage is not None:
        at_least = summary.find_probability(arguments.coverage)
        print(
            f"--coverage {arguments.coverage:g}: no answer below {at_least:.4%}. This share of the "
            f"{summary.rows:,} validation rows reaches that probability.",
            file=sys.stderr,
        )
        return Rule(at_least)
    if summary.best_threshold is None:
        raise errors.UserError(f"{option}: needs an adapter with 2 classes; this one has {len(settings.classes)}")
    thresholds, f1_macro = summary.best_threshold.value, summary.best_threshold.f1_macro
    if isinstance(thresholds, list):
        low, high = (find(range(len(thresholds)), key=thresholds.__getitem__) for find in (min, max))
        kept = [name for name, value in zip(settings.classes, thresholds, strict=True) if value == 0.5]
        if kept:
            print(
                f"--best-threshold: {len(kept)} of {len(thresholds)} labels keep 50%, as no validation row has them or "
                f"no other threshold has a higher F1: {', '.join(kept[:MOST_NAMED])}{', …' * (len(kept) > MOST_NAMED)}",
                file=sys.stderr,
            )
        what = (
            f"each label if its probability is above its own threshold, from {thresholds[low]:.4%} "
            f"({settings.classes[low]}) to {thresholds[high]:.4%} ({settings.classes[high]}), see "
            f"{arguments.adapter / 'validation.json'}; they were"
        )
    else:
        what = f"{settings.classes[1]} if its probability is above {thresholds:.4%}, which was"
    print(
        f"--best-threshold: {what} chosen on {summary.rows:,} validation rows: macro F1 {f1_macro:.1%} there",
        file=sys.stderr,
    )
    return Rule(thresholds=thresholds)


def explain_missing(probability: float, at_least: float) -> str:
    """Why a row has no answer."""
    digits = 1 if f"{probability:.1%}" != f"{at_least:.1%}" else 4
    return f"no answer: {probability:.{digits}%} is below {at_least:.{digits}%}"
