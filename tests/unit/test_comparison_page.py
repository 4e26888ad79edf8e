"""What is said of settings that were compared: tables, words, picture and page."""

import re

import numpy as np
import pandas as pd
import pytest

from stages.analysis.multi_seed import comparison
from stages.analysis.multi_seed.scores import Recipe
from stages.report import comparison_page
from stages.report.figures import forest_plot
from tools import compare

LONG = "data.train_rows=12345, lora.r=128, train.learning_rate=0.00012345, train.schedule=cosine"


def compared(numbers, names=("HEAD", LONG), rows=500, shares=(0.8, 0.84), notes=()):
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, rows)
    made = [
        Recipe(name, tuple(trained), np.where(rng.random((len(trained), rows)) < share, gold, (gold + 1) % 3))
        for name, trained, share in zip(names, numbers, shares, strict=True)
    ]
    scores, differences = comparison.compare_recipes(made, gold, np.arange(rows), 3, 0.95)
    return comparison_page.Compared(
        scores, differences, list(names), list(notes), 0.95, rows, rows, "premise", "d" * 16
    )


@pytest.mark.parametrize("numbers", [([1], [2]), ([10001, 10002, 10003], [10001, 10002, 10003]), ([1, 2], range(7))])
def test_a_terminal_of_120_columns_is_wide_enough(numbers):
    told = comparison_page.markdown(compared(numbers, notes=[f"{LONG} differs from HEAD in code too."]))
    assert max(len(line) for line in told.splitlines() if not line.startswith("Recipe: ")) <= 120


def test_what_could_be_shown_by_one_group_is_nothing():
    gold = np.arange(40) % 3
    made = [
        Recipe(name, (1,), np.array([(gold + np.arange(40) % 5 // number) % 3]))
        for name, number in (("a", 4), ("b", 3))
    ]
    scores, differences = comparison.compare_recipes(made, gold, np.zeros(40), 3, 0.95)
    found = comparison_page.Compared(scores, differences, ["a", "b"], [], 0.95, 40, 1, "author", "d" * 16)
    assert re.search(r"not significant \(these runs\) +\| nothing +\|", comparison_page.markdown(found))


def finished(name, seed, rank, rows, wrong):
    """A run of two classes, whose test rows are one author's."""
    gold = np.array(["no", "yes"])[np.arange(rows) % 2]
    predicted = np.where(np.arange(rows) < wrong, "yes", gold)
    table = {"text_text": [f"row {row}" for row in range(rows)], "gold": gold, "predicted": predicted, "group": "me"}
    parameters = {"seed": seed, "lora.r": rank, "analysis.confidence": 0.95, "data.group": "author"}
    return compare.Run(name, "", parameters, {}, dict.fromkeys(compare.INPUTS, "a"), pd.DataFrame(table), ("no", "yes"))


@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize("trained", [[1], [1, 2]], ids=["one seed", "two seeds"])
def test_runs_of_one_group_of_rows_are_compared_and_nothing_is_told(rows, trained):
    runs = [
        finished(f"{rank}, {seed}", seed, rank, rows, wrong) for rank, wrong in ((8, 0), (16, 9)) for seed in trained
    ]
    found = compare.compare(runs, None, [])
    assert [difference.verdict for difference in found.differences] == ["not significant"]
    told = " ".join(comparison_page.markdown(found).split())
    which = "There is one test row" if rows == 1 else "All test rows share one author"
    assert f"Note: {which}: how the model does on others can't be known." in told
    assert "Note: Classes with fewer than 10 test rows: no" in told
    assert ("Note: Classes without test rows: yes." in told) == (rows == 1)


def test_the_columns_of_a_table_stand_below_each_other():
    lines = [line for line in comparison_page.markdown(compared(([1], [2]))).splitlines() if line.startswith("|")]
    places = [[match.start() for match in re.finditer(r"\|", line)] for line in lines]
    assert places[0] == places[1] == places[2] == places[3] and places[4] == places[5] == places[6]


def test_one_seed_each_is_said_to_be_of_these_runs_alone():
    told = comparison_page.markdown(compared(([1], [2])))
    assert re.search(r"\(these runs\) +\|", told) and "another seed may turn it round" in " ".join(told.split())
    assert "Seeds:" not in told and "comparisons" not in told


def test_several_seeds_are_said_to_vary():
    found = compared(([1, 2, 3], [1, 2, 3]))
    told = " ".join(comparison_page.markdown(found).split())
    deviation = np.sqrt(np.mean([np.var(score.seed_accuracies, ddof=1) for score in found.scores])) * 100
    assert f"vary by {deviation:.1f} points of accuracy on these rows (standard deviation, 6 trainings)" in told
    assert "these runs" not in told and "trainings of equal seed are compared" in told


def test_several_comparisons_are_said_to_be_allowed_for():
    found = compared(([1, 2], [1, 2], [3, 4, 5]), ("HEAD", "b", "c"), shares=(0.8, 0.8, 0.9))
    assert "allows for 2 comparisons" in " ".join(comparison_page.markdown(found).split())


def test_the_recipe_holds_all_that_the_figures_depend_on():
    told = comparison_page.recipe(compared(([1, 2], [3, 4, 5])))
    for part in ("rows:500", f"sha256:{'d' * 16}", "groups:500 by premise", "seeds:A=1,2;B=3,4,5", "confidence:0.95",
                 f"version:{comparison.METHOD_VERSION}"):  # fmt: skip
        assert part in told.split("|")


def test_what_could_be_markup_is_escaped():
    found = compared(([1], [2]), ("HEAD", "tokenize.template=<script>alert(1)</script>|"))
    page = comparison_page.html(found, comparison_page.picture(found)[1])
    assert "<script" not in page and "&lt;script&gt;" in page
    assert r"\<script" in comparison_page.markdown(found)


def test_every_setting_has_a_letter_of_its_own():
    letters = [comparison_page.mark(number) for number in range(80)]
    assert letters[:2] == ["A", "B"] and letters[26] == "A1" and len(set(letters)) == 80


@pytest.mark.parametrize(
    ("share", "tick"), [(0.005, "+0.5"), (-0.01, "−1"), (0.0, "0"), (1e-18, "0"), (0.30000000000000004, "+30")]
)
def test_the_ticks_of_a_difference(share, tick):
    assert forest_plot.format_points_tick(share) == tick


def test_a_verdict_is_seen_in_its_colour():
    found = compared(([1, 2, 3], [1, 2, 3], [1, 2, 3]), ("HEAD", "same", "better"), shares=(0.7, 0.7, 0.95))
    assert [d.verdict for d in found.differences] == ["not significant", "better"]
    colours = {"ink": "#000001", "muted": "#000002", "line": "#3", "base": "#000004", "tuned": "#000005", "paper": "#6"}
    figure = forest_plot.draw_forest(found.scores, found.differences, ["A", "B", "C"], colours)
    _, below = figure.axes
    assert [line.get_color() for line in below.lines if line.get_marker() == "o"] == ["#000002", "#000005"]


def test_one_setting_alone_has_scores():
    found = compared(([1, 2],), ("HEAD",), shares=(0.8,))
    png, svg = comparison_page.picture(found)
    assert png.startswith(b"\x89PNG") and "points of accuracy" not in svg
    assert "verdict" not in comparison_page.markdown(found) and "HEAD" in comparison_page.html(found, svg)
