"""Title and caption of each picture."""

from stages.analysis.calibration import BINS, MIN_BIN_ROWS
from stages.analysis.comparison import Comparison
from stages.analysis.leading_metric import TITLES
from stages.analysis.usage import RunUsage
from stages.data.labels import Labels
from stages.report.figures.axes import can_name_classes
from stages.report.figures.scores import LOWEST_CLASSES
from stages.report.label_words import words_of
from stages.report.run_description import RunDescription
from stages.report.tables import FEW_CLASSES
from stages.report.verdict import name_reference


def captions(comparison: Comparison, run: RunDescription, usage: RunUsage) -> dict[str, tuple[str, str]]:
    """The (title, caption) of each picture, by its name.

    Args:
        usage: from `document.shown_usage`.
    """
    task, p, words = run.task, run.params, words_of(run.task.labels)
    metric = _capitalise(TITLES[comparison.metric])
    before = " Grey squares are the same answers without the temperature." if p.train.calibrate else ""
    kept_epoch = "the one with the lowest validation loss" if p.train.keep == "best" else "the last"
    return {
        "references": (
            metric,
            f"{metric} of the tuned model and the references on the test rows, with intervals. The dashed line is the "
            "tuned model's.",
        ),
        "confusion": (words.confusion, _confusion(task.classes, task.labels.noun, task.labels.nouns) + words.cells),
        "loss": (
            "Loss",
            "Training and validation loss by epoch, and behind them the loss of each step. The ring marks the epoch "
            f"whose adapter is used: {kept_epoch}.",
        ),
        "validation": (
            "Validation",
            f"{words.validation_scores} of the validation rows after each epoch. The axis does not start at 0. The "
            f"ring marks the epoch whose adapter is used: {kept_epoch}.",
        ),
        "slices": ("Slices", _slices(task.labels, name_reference(comparison.best, task.labels))),
        "reliability": (
            "Calibration",
            f"{_capitalise(words.accuracy)} by the {words.certainty}. Each dot is a bin of rows, with its interval. "
            "Where a dot is below the dotted line, the model is overconfident: right less often than its probability "
            f"says. Up to {BINS} bins have about equally many rows, at least {MIN_BIN_ROWS} each. The axes do not "
            f"start at 0.{before}",
        ),
        "coverage": (
            "Coverage",
            "Coverage is the share of the rows that the model answers: those with the highest probability. The others "
            "are left to a person. The line is the accuracy of the answers, with its interval. Dots mark accuracies of "
            "90%, 95% and 99%, with the interval of the coverage, unless all rows or no rows have them. The accuracy "
            "axis does not start at 0.",
        ),
        "usage": ("Memory and load", _usage(usage, run.tested is None)),
    }


def _capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def _confusion(classes: tuple[str, ...], noun: str, nouns: str) -> str:
    shades = f"The stronger a colour, the larger the share of the gold {noun}."
    numbers = "" if can_name_classes(classes) else f" The table of all {nouns} has the numbers of the axes."
    if len(classes) <= FEW_CLASSES:
        return f"Test rows by gold and predicted {noun}, with their share of the gold {noun}. {shades}{numbers}"
    return f"Test rows by gold and predicted {noun}. {shades} Cells without rows have no colour.{numbers}"


def _slices(labels: Labels, reference: str) -> str:
    count, accuracy = len(labels.classes), words_of(labels).accuracy
    selection = (
        f" Of {count} {labels.nouns} it shows the {LOWEST_CLASSES} with the lowest {accuracy} of the tuned model."
        if count > LOWEST_CLASSES
        else ""
    )
    return (
        f"{_capitalise(accuracy)} of the tuned model and of the best reference ({reference}), with intervals. In "
        f"brackets: test rows.{selection}"
    )


def _usage(usage: RunUsage, is_own_test: bool) -> str:
    stages = (
        "The three stages that run the model, one after the other."
        if is_own_test
        else "Base and tuned model, one after the other, on all data sets of the command. The training is not shown."
    )
    if (number := usage.process_count) == 1:
        return stages
    lines = f"One line for each of the {number} {'GPUs' if usage.on_gpu else 'processes'}."
    return f"{stages} {lines} The panel between memory and load is their total memory."
