"""Options of `tools.predict` that change answers: leave unsure ones out, or use another threshold of two classes."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from stages.runtime import errors

if TYPE_CHECKING:  # imports PyTorch
    from stages.model.adapter_files import ClassifierSettings


class Answer(TypedDict):
    label: str | None  # None: no answer
    probabilities: dict[str, float]  # of all classes
    reason: NotRequired[str]  # why there is no answer


Rule = Callable[[Answer], Answer]


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
        help="for two classes: use the threshold with the highest macro F1 on the validation rows, instead of 0.5",
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


def choose_rule(arguments: argparse.Namespace, settings: "ClassifierSettings") -> Rule | None:
    """The rule that the command asks for. Print what it takes from the validation rows to standard error.

    Raises:
        UserError: the adapter lacks what the rule needs.
    """
    if arguments.at_least is not None:
        return partial(leave_out, at_least=arguments.at_least)
    option = "--coverage" if arguments.coverage is not None else "--best-threshold" if arguments.best_threshold else ""
    if not option:
        return None
    if arguments.untuned:
        raise errors.UserError(f"{option}: uses the tuned model's validation rows; remove --untuned")
    if arguments.best_threshold and len(settings.classes) != 2:
        raise errors.UserError(f"{option}: needs an adapter with 2 classes; this one has {len(settings.classes)}")
    from stages.model.validation_summary import ValidationSummary

    summary = ValidationSummary.read(arguments.adapter)
    if arguments.coverage is not None:
        at_least = summary.find_probability(arguments.coverage)
        print(
            f"--coverage {arguments.coverage:g}: no answer below {at_least:.4%}. This share of the "
            f"{summary.rows:,} validation rows reaches that probability.",
            file=sys.stderr,
        )
        return partial(leave_out, at_least=at_least)
    if summary.best_threshold is None:
        raise errors.UserError(f"{arguments.adapter / 'validation.json'}: best_threshold: missing; run `dvc repro`")
    threshold, f1_macro = summary.best_threshold.value, summary.best_threshold.f1_macro
    print(
        f"--best-threshold: {settings.classes[1]} if its probability is above {threshold:.4%}, which was chosen on "
        f"{summary.rows:,} validation rows: macro F1 {f1_macro:.1%} there",
        file=sys.stderr,
    )
    return partial(apply_threshold, classes=settings.classes, threshold=cast(float, threshold))


def leave_out(answer: Answer, at_least: float) -> Answer:
    """The answer, or none if its probability is too low."""
    probability = max(answer["probabilities"].values())
    if probability >= at_least:
        return answer
    digits = 1 if f"{probability:.1%}" != f"{at_least:.1%}" else 4
    reason = f"no answer: {probability:.{digits}%} is below {at_least:.{digits}%}"
    return {"label": None, "probabilities": answer["probabilities"], "reason": reason}


def apply_threshold(answer: Answer, classes: list[str], threshold: float) -> Answer:
    """The second of two classes if its probability is above the threshold, else the first."""
    return {**answer, "label": classes[int(answer["probabilities"][classes[1]] > threshold)]}
