"""validation.json of a saved adapter: what `tools.predict` needs of the validation rows' probabilities."""

from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field

from stages.data.confusion import count_classes, f1_macro
from stages.data.labels import Labels
from stages.data.thresholds import choose_thresholds
from stages.runtime import files, params
from stages.runtime.errors import UserError

FILE = "validation.json"
QUANTILES = 101  # 0%, 1%, … 100%
Probability = Annotated[float, Field(ge=0, le=1)]


class BestThreshold(params.Section):
    """The threshold of the second of two classes, or of each label, and its macro F1 on the validation rows."""

    value: Probability | list[Probability]
    f1_macro: Probability


class ValidationSummary(params.Section):
    """What validation.json holds.

    Attributes:
        rows: number of validation rows.
        probability_quantiles: of the probability of the answer, ascending, [QUANTILES].
        best_threshold: None unless there are exactly two classes, or a row may have several labels.
    """

    rows: params.Count
    probability_quantiles: Annotated[list[Probability], Field(min_length=QUANTILES, max_length=QUANTILES)]
    best_threshold: BestThreshold | None

    @classmethod
    def measure(cls, gold: np.ndarray, probabilities: np.ndarray, labels: Labels) -> Self:
        """Summarize the validation rows: a gold label array, and probabilities, [rows, classes]."""
        probabilities = probabilities.round(6)  # as `tools.predict` prints them
        of_answers = labels.answer_probability(probabilities, labels.decide(probabilities))
        quantiles = np.quantile(of_answers, np.linspace(0, 1, QUANTILES)).round(6)
        best, thresholds = None, choose_thresholds(gold, probabilities)
        if thresholds is not None:
            counts = count_classes(gold, labels.decide(probabilities, thresholds), len(labels.classes))
            best = BestThreshold(value=thresholds, f1_macro=float(np.nan_to_num(f1_macro(counts))))
        return cls(rows=len(gold), probability_quantiles=quantiles.tolist(), best_threshold=best)

    @classmethod
    def read(cls, adapter: Path) -> Self:
        """Read it from an adapter's folder.

        Raises:
            UserError: the folder lacks the file, or a key is missing, unknown or of another type.
        """
        path = adapter / FILE
        if not path.exists():
            raise UserError(f"{path}: missing; an earlier version made this adapter: train it again with `dvc repro`")
        return params.validate(files.read_json(path), cls, path)

    def write(self, adapter: Path) -> None:
        files.write_json(adapter / FILE, self.model_dump())

    def find_probability(self, coverage: float) -> float:
        """The probability that this share of the validation rows reaches; interpolated between quantiles."""
        probability = np.interp(1 - coverage, np.linspace(0, 1, QUANTILES), self.probability_quantiles)
        return round(float(probability), 6)
