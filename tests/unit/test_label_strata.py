"""Rows with several labels that are held out of the training rows: each label has its share in each split."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from stages.data.holdout import UNIT, describe_holdout, hold_out
from stages.data.label_strata import choose_by_rarest
from stages.data.labels import MultiLabel
from stages.data.task import NO_LABEL, Task
from stages.runtime.errors import UserError
from stages.runtime.params import Holdout


def draw(rows, labels, seed):
    """Labels that depend on each other, from frequent to rare; 30 to 40% of the rows have none. bool [rows, labels]."""
    rng = np.random.default_rng([rows, labels, seed])
    traits = rng.normal(size=(rows, 1)) + rng.normal(size=(rows, labels))
    return traits > np.sqrt(2) * norm.ppf(1 - np.geomspace(0.4, 0.01, labels))


def task_of(has):
    return Task(tuple(f"l{number}" for number in range(has.shape[1])), "{text}", None, multi_label=True)


def rows_of(has, texts=None, missing=()):
    """Rows as `prepare_rows` returns them; those whose numbers are in `missing` have no gold label."""
    codes = pd.Series(MultiLabel(task_of(has).classes).to_codes(has))
    codes.iloc[list(missing)] = NO_LABEL
    texts = texts or [f"text {row}" for row in range(len(has))]
    return pd.DataFrame({"text_text": texts, "label": codes, UNIT: texts})


def held_out(has, test="10%", validation=None, count_unlabelled=False, **of_rows):
    """{split: numbers of its rows}."""
    holdout = Holdout(validation=validation, test=test, seed=42, columns=None)
    splits = hold_out(rows_of(has, **of_rows), holdout, task_of(has), count_unlabelled)
    return {split: rows.index.to_numpy() for split, rows in splits.items()}


def stratify_iteratively(has, share, rng):
    """Sechidis et al. 2011, algorithm 1, with two parts -> whether each row is in the first, bool [rows]."""
    rows = np.array([share, 1 - share]) * len(has)
    wanted, left, part = np.outer([share, 1 - share], has.sum(axis=0)), has.copy(), np.full(len(has), -1)
    while left.any():
        label = np.where(left.any(axis=0), left.sum(axis=0), len(has) + 1).argmin()
        for row in np.flatnonzero(left[:, label]):
            best = np.flatnonzero(wanted[:, label] == wanted[:, label].max())
            part[row] = rng.choice(best[rows[best] == rows[best].max()])
            wanted[part[row]] -= has[row]
            rows[part[row]] -= 1
            left[row] = False
    for row in np.flatnonzero(part < 0):
        part[row] = rows.argmax()
        rows[part[row]] -= 1
    return part == 0


def excess(has, chosen, share=0.1):
    """The largest difference between the rows of a label that were chosen and its share of the rows."""
    return np.abs(has[chosen].sum(axis=0) - share * has.sum(axis=0)).max()


@pytest.mark.parametrize(("rows", "labels"), [(300, 6), (3000, 6), (3000, 28)])
def test_labels_have_their_shares_as_by_iterative_stratification(rows, labels):
    ours, theirs, by_chance = np.mean(
        [
            [excess(has, held_out(has)["test"]), excess(has, stratify_iteratively(has, 0.1, np.random.default_rng(0))),
             excess(has, np.random.default_rng(seed).permutation(rows)[: rows // 10])]
            for seed in range(5)
            for has in [draw(rows, labels, seed)]
        ],
        axis=0,
    )  # fmt: skip
    assert ours <= theirs + 0.5 and ours < by_chance / 3


def test_frequent_sets_of_labels_have_their_shares_too():
    has = draw(3000, 6, 0)
    chosen, codes = held_out(has)["test"], rows_of(has)["label"]
    sets = codes.value_counts()
    frequent = [code for code in sets.index[sets >= 10] if code.bit_count() > 1]
    assert len(frequent) > 5
    for code in frequent:
        assert abs((codes[chosen] == code).sum() - 0.1 * sets[code]) <= 0.5


def test_rows_without_labels_have_their_share_if_there_are_many_rare_labels():
    has = draw(2000, 70, 0)
    chosen = held_out(has, test="25%")["test"]
    assert (~has[chosen]).all(axis=1).mean() == pytest.approx((~has).all(axis=1).mean(), abs=0.02)


def test_a_number_of_rows_is_exact_even_if_each_row_has_labels():
    has = draw(1000, 6, 1)
    has = has[has.any(axis=1)]
    splits = held_out(has, test="77", validation="31")
    assert [len(splits[split]) for split in ("test", "validation")] == [77, 31]
    assert excess(has, splits["test"], 77 / len(has)) < 3


def test_the_test_rows_depend_neither_on_the_validation_rows_nor_on_the_order():
    has = draw(400, 6, 2)
    test = set(held_out(has)["test"])
    assert test == set(held_out(has, validation="60")["test"])
    order = np.random.default_rng(0).permutation(400)
    shuffled = held_out(has[order], texts=[f"text {row}" for row in order])["test"]
    assert set(order[shuffled]) == test


def test_rows_of_a_unit_stay_together_and_each_label_stays_in_training():
    has = draw(300, 8, 3)
    has[:, 7] = False
    has[[5, 17], 7] = True
    splits = held_out(has, texts=[f"text {row // 3}" for row in range(300)], test="40%", validation="40%")
    units = [set(rows // 3) for rows in splits.values()]
    assert sum(map(len, units)) == 100
    assert has[splits["train"]].any(axis=0).all()


def test_rows_without_a_gold_label_are_held_out_only_if_they_get_one():
    has, missing = draw(300, 6, 4), range(100)
    assert not set(held_out(has, missing=missing)["test"]) & set(missing)
    assert len(held_out(has, missing=missing)["test"]) == pytest.approx(20, abs=1)
    counted = held_out(has, missing=missing, count_unlabelled=True)["test"]
    assert len(counted) == pytest.approx(30, abs=1) and len(set(counted) & set(missing)) == pytest.approx(10, abs=1)


def test_more_labels_than_bits_of_an_integer_are_held_out():
    has = np.eye(100, dtype=bool)[np.arange(2000) % 100]
    assert excess(has, held_out(has)["test"]) == 0


@pytest.mark.parametrize(
    ("size", "of_rows", "message"),
    [
        ("89", {"texts": ["same"] * 90}, "no row can be held out, because rows with equal texts are not separated (the "
         "fewest such rows are 90)"),
        ("0.1%", {}, "0.1% of 90 rows: no row can be held out, because this is less than half a row of each class"),
        ("90", {}, "90: leaves no row to train on, because there are 90 rows"),
        ("10%", {"missing": range(90)}, "data.label: no row of train has a label, so no rows can be held out"),
    ],
)  # fmt: skip
def test_what_can_not_be_held_out_is_one_line(size, of_rows, message):
    with pytest.raises(UserError) as error:
        held_out(draw(90, 6, 5), test=size, **of_rows)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_size_that_is_missed_by_far_has_a_reason():
    has = draw(100, 6, 6)
    holdout = Holdout(validation=None, test="10%", seed=42, columns=None)
    line = describe_holdout({"test": rows_of(has)[:20]}, 100, holdout, task_of(has))[1]
    assert line.endswith("because rows with equal texts are not separated, and the share of each label is exact")


def test_the_rarest_stratum_of_a_unit_decides():
    units = {0: [(1, 1), (2, 1)], 1: [(0, 1), (1, 1), (2, 1)], 2: [(0, 1), (2, 1)], 3: [(1, 1), (2, 1)], 4: [(2, 1)]}
    assert choose_by_rarest(units, [1, 1, 2], is_exact=False) == [1, 4]
    assert choose_by_rarest(units, [1, 1, 1], is_exact=True) == [1]
    assert choose_by_rarest(units, [0, 1, 3], is_exact=True) == [0, 4, 2]
