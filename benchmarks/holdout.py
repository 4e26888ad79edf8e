"""How many held-out test rows change if rows are added to a data set.

    python benchmarks/holdout.py

Each data set has 10,000 rows with equally frequent classes, and 10% of them are held out. Then 1,000 rows are added.
The table has the number of the 1,000 test rows that are no longer test rows: mean, least and most of 100 data sets.
"""

import numpy as np
import pandas as pd

from stages.data.holdout import UNIT, hold_out
from stages.data.task import Task
from stages.runtime.params import Holdout

ROWS, ADDED, REPEATS = 10_000, 1_000, 100
HOLDOUT = Holdout(validation="10%", test="10%", seed=42, columns=None)


def main() -> None:
    print("| classes | test rows replaced, mean | least to most |\n| --- | --- | --- |")
    for classes in (2, 4, 77):
        replaced = [count_replaced(classes, seed) for seed in range(REPEATS)]
        print(f"| {classes} | {np.mean(replaced):.1f} | {min(replaced)} to {max(replaced)} |")


def count_replaced(classes: int, seed: int) -> int:
    """The number of test rows of a data set that are not test rows after rows were added."""
    rng = np.random.default_rng(seed)
    texts = [f"data set {seed}, row {row}" for row in range(ROWS + ADDED)]
    rows = pd.DataFrame({"text_text": texts, "label": rng.integers(classes, size=len(texts)), UNIT: texts})
    task = Task(tuple(map(str, range(classes))), "{text}", None)
    before, after = (set(hold_out(table, HOLDOUT, task)["test"].index) for table in (rows[:ROWS], rows))
    return len(before - after)


if __name__ == "__main__":
    main()
