"""The table of a model's predictions, of test rows and of validation rows."""

import numpy as np
import pandas as pd

from stages.data.task import Task

FEW_ROWS = 50  # validation rows: with 50, a temperature's 95% interval is 0.6 to 1.7 times its value


def prediction_table(rows: pd.DataFrame, probabilities: np.ndarray, task: Task) -> pd.DataFrame:
    """The columns of `rows`, the class probabilities rounded to 1e-6, and the predicted class.

    Args:
        rows: such as `row`, `label` and `group`, a line for each row.
        probabilities: float [rows, classes].
    """
    columns = pd.DataFrame(probabilities.round(6), columns=task.probability_columns)
    answers = task.labels.to_codes(task.labels.decide(probabilities))
    return pd.concat([rows, columns.assign(prediction=answers)], axis=1)
