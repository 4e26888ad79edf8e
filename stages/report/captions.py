"""Title and caption of each picture, for any task."""

from stages.analysis.metrics import BINS, MIN_BIN_ROWS
from stages.analysis.usage import RunUsage
from stages.data.task import Task
from stages.report.figures.accuracy import LOWEST_CLASSES
from stages.report.figures.axes import can_name_classes
from stages.report.tables import FEW_CLASSES
from stages.runtime.params import Params


def captions(task: Task, p: Params, usage: RunUsage) -> dict[str, tuple[str, str]]:
    """(title, caption) of each picture by its name.

    Args:
        p: all of params.yaml.
        usage: of the training.
    """
    kept = "the one of the lowest validation loss" if p.train.keep == "best" else "the last"
    return {
        "accuracy": (
            "Accuracy",
            "Of the test rows, with intervals: tuned and base, and what guesses with less than a language model.",
        ),
        "confusion": ("Confusion", _confusion(task.classes)),
        "loss": (
            "Loss",
            f"Of the training and the validation rows by epoch; behind them, of each step. The ring marks the epoch "
            f"that was kept: {kept}.",
        ),
        "validation": (
            "Validation",
            f"Accuracy and weighted F1 of the validation rows after each epoch. The axis does not start at 0. The "
            f"ring marks the epoch that was kept: {kept}.",
        ),
        "slices": ("Slices", _slices(len(task.classes))),
        "reliability": (
            "Calibration",
            "How often a model is right beside how sure it is: on the dotted line as often as it is sure, below it "
            f"less often. Each dot is a bin, with its interval. Up to {BINS} bins hold about equally many rows, at "
            f"least {MIN_BIN_ROWS} each. The axes differ, and do not start at 0.",
        ),
        "usage": ("Memory and load", _usage(usage)),
    }


def _confusion(classes: tuple[str, ...]) -> str:
    numbers = "" if can_name_classes(classes) else " The table of every class has their numbers."
    if len(classes) <= FEW_CLASSES:
        return (
            "Test rows by gold and predicted class, and their share of the gold class; darker is a greater share."
            + numbers
        )
    return (
        "Gold and predicted classes. Darker is a greater share of the gold class; where no row is, there is no colour."
        + numbers
    )


def _slices(classes: int) -> str:
    some = (
        f" Of {classes} classes, the {LOWEST_CLASSES} that tuned has the lowest accuracy in."
        if classes > LOWEST_CLASSES
        else ""
    )
    return (
        f"Accuracy with intervals; in brackets a slice's rows (base / tuned where they differ).{some} The table of "
        "every slice has all of them."
    )


def _usage(usage: RunUsage) -> str:
    said = "Over the three stages that run the model, laid end to end."
    if (number := usage.process_count) == 1:
        return said
    what = "GPUs" if usage.on_gpu else "processes"
    return f"{said} A line for each of the {number} {what}; between memory and load, the memory of all at one time."
