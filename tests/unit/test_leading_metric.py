"""The metric that results start with."""

import numpy as np
import pytest

from stages.analysis.leading_metric import choose_leading_metric


@pytest.mark.parametrize(
    ("rows", "metric"),
    [
        ([10, 10, 10], "accuracy"),
        ([30, 10, 20], "accuracy"),  # exactly 3 times
        ([31, 10, 20], "f1_macro"),
        ([20, 0, 10], "accuracy"),  # a class without test rows
        ([0, 31, 10], "f1_macro"),
        ([7, 0, 0], "accuracy"),
    ],
)
def test_macro_f1_leads_if_the_most_frequent_class_has_more_than_3_times_the_rows_of_the_rarest(rows, metric):
    gold = np.repeat(np.arange(len(rows)), rows)
    assert choose_leading_metric(gold, len(rows)) == metric
