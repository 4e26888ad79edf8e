"""How a comparison of recipes is shown: tables, explanations, picture and page."""

import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from stages.analysis.leading_metric import choose_leading_metric
from stages.analysis.multi_seed.comparison import METHOD_VERSION, compare_recipes
from stages.analysis.multi_seed.row_values import GoldRows
from stages.analysis.multi_seed.scores import Recipe
from stages.data.labels import MultiLabel, SingleLabel, make_labels
from stages.report import comparison_page, render
from stages.report.cases import escape_formula
from stages.report.comparison_page import RecipeComparison
from stages.report.figures import forest_plot
from stages.report.formatting import p_value
from stages.runtime.errors import UserError
from tools import read_runs
from tools.group_runs import compare_runs
from tools.read_runs import INPUTS, Run

LONG_NAME = "data.train_rows=12345, lora.r=128, train.learning_rate=0.00012345, train.schedule=cosine"


def compare(seeds, names=("HEAD", LONG_NAME), rows=500, accuracies=(0.8, 0.84), notes=(), shares=None):
    """Compare recipes with these seeds and these accuracies on random rows of three classes with these shares."""
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, rows) if shares is None else rng.choice(3, rows, p=shares)
    metric, class_rows = choose_leading_metric(gold, 3), dict(zip("abc", np.bincount(gold).tolist(), strict=True))
    recipes = [
        Recipe(name, tuple(numbers), np.where(rng.random((len(numbers), rows)) < accuracy, gold, (gold + 1) % 3))
        for name, numbers, accuracy in zip(names, seeds, accuracies, strict=True)
    ]
    scores, differences = compare_recipes(recipes, GoldRows(gold, np.arange(rows), 3, metric), 0.95)
    return RecipeComparison(
        scores, differences, list(names), list(notes), metric, 0.95, class_rows, rows, "premise", "d" * 16, rows
    )


def markdown_in_one_line(comparison):
    return " ".join(comparison_page.render_markdown(comparison).split())


@pytest.mark.parametrize("seeds", [([1], [2]), ([10001, 10002, 10003], [10001, 10002, 10003]), ([1, 2], range(7))])
def test_the_output_fits_into_a_terminal_of_120_columns(seeds):
    printed = comparison_page.render_markdown(compare(seeds, notes=[f"{LONG_NAME} differs from HEAD in code too."]))
    assert max(len(line) for line in printed.splitlines() if not line.startswith("Signature: ")) <= 120


def test_one_group_of_rows_can_detect_no_difference():
    gold = np.arange(40) % 3
    recipes = [
        Recipe(name, (1,), np.array([(gold + np.arange(40) % 5 // number) % 3]))
        for name, number in (("a", 4), ("b", 3))
    ]
    scores, differences = compare_recipes(recipes, GoldRows(gold, np.zeros(40), 3, "accuracy"), 0.95)
    comparison = RecipeComparison(
        scores, differences, ["a", "b"], [], "accuracy", 0.95, {"a": 40}, 1, "author", "d" * 16, 40
    )
    assert re.search(r"not significant \(these seeds\) +\| none +\|", comparison_page.render_markdown(comparison))


def finished_run(name, seed, lora_rank, rows, wrong_rows):
    """A run with two classes, whose test rows all have the same author."""
    gold = np.array(["no", "yes"])[np.arange(rows) % 2]
    predicted = np.where(np.arange(rows) < wrong_rows, "yes", gold)
    table = {
        "row": range(rows),
        "text_text": [f"row {row}" for row in range(rows)],
        "gold": gold,
        "predicted": predicted,
        "group": "me",
    }
    parameters = {"seed": seed, "lora.r": lora_rank, "analysis.confidence": 0.95, "data.group": "author"}
    return Run(name, "", parameters, {}, dict.fromkeys(INPUTS, "a"), pd.DataFrame(table), ("no", "yes"))


@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize("seeds", [[1], [1, 2]], ids=["one seed", "two seeds"])
def test_runs_with_one_group_of_rows_are_compared_but_no_difference_is_significant(rows, seeds):
    runs = [
        finished_run(f"{lora_rank}, {seed}", seed, lora_rank, rows, wrong_rows)
        for lora_rank, wrong_rows in ((8, 0), (16, 9))
        for seed in seeds
    ]
    comparison = compare_runs(runs, None, [])
    assert [difference.verdict for difference in comparison.differences] == ["not significant"]
    printed = markdown_in_one_line(comparison)
    reason = "There is one test row" if rows == 1 else "All test rows share one author"
    assert f"Note: {reason}: the accuracy on others can't be estimated." in printed
    assert "Note: Classes with fewer than 10 test rows: no" in printed
    assert ("Note: Classes without test rows: yes." in printed) == (rows == 1)


def test_the_columns_of_a_table_are_aligned():
    printed = comparison_page.render_markdown(compare(([1], [2])))
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    places = [[match.start() for match in re.finditer(r"\|", line)] for line in lines]
    assert places[0] == places[1] == places[2] == places[3] and places[4] == places[5] == places[6]


def test_with_one_seed_each_the_verdict_is_about_these_seeds():
    comparison = compare(([1], [2]))
    assert re.search(r"\(these seeds\) +\|", comparison_page.render_markdown(comparison))
    printed = markdown_in_one_line(comparison)
    assert "another seed could reverse it" in printed
    assert "Seeds:" not in printed and "comparisons" not in printed


def test_the_deviation_of_several_seeds_is_reported():
    comparison = compare(([1, 2, 3], [1, 2, 3]))
    printed = markdown_in_one_line(comparison)
    deviation = np.sqrt(np.mean([np.var(score.seed_scores, ddof=1) for score in comparison.scores])) * 100
    assert f"varies by {deviation:.1f} points on these rows (standard deviation, 6 trainings)" in printed
    assert "these seeds" not in printed.lower() and "trainings with equal seeds are compared" in printed


def test_the_adjustment_for_several_comparisons_is_reported():
    comparison = compare(([1, 2], [1, 2], [3, 4, 5]), ("HEAD", "b", "c"), accuracies=(0.8, 0.8, 0.9))
    assert "adjusts for 2 comparisons" in markdown_in_one_line(comparison)


def test_the_signature_has_all_that_the_figures_depend_on():
    parts = comparison_page.sign(compare(([1, 2], [3, 4, 5]))).split("|")
    for part in ("rows:500", f"sha256:{'d' * 16}", "groups:500 by premise", "seeds:A=1,2;B=3,4,5", "confidence:0.95",
                 f"version:{METHOD_VERSION}"):  # fmt: skip
        assert part in parts


def test_markup_in_a_name_is_escaped():
    comparison = compare(([1], [2]), ("HEAD", "tokenize.template=<script>alert(1)</script>|"))
    page = comparison_page.render_html(comparison, comparison_page.render_picture(comparison)[1])
    assert "<script" not in page and "&lt;script&gt;" in page
    assert r"\<script" in comparison_page.render_markdown(comparison)


def test_every_recipe_has_its_own_letter():
    letters = [comparison_page.recipe_letter(number) for number in range(80)]
    assert letters[:2] == ["A", "B"] and letters[26] == "A1" and len(set(letters)) == 80


@pytest.mark.parametrize(
    ("share", "tick"), [(0.005, "+0.5"), (-0.01, "−1"), (0.0, "0"), (1e-18, "0"), (0.30000000000000004, "+30")]
)
def test_the_ticks_of_a_difference_are_in_points(share, tick):
    assert forest_plot.format_points_tick(share) == tick


def test_the_colour_of_a_difference_shows_its_verdict():
    comparison = compare(([1, 2, 3], [1, 2, 3], [1, 2, 3]), ("HEAD", "same", "better"), accuracies=(0.7, 0.7, 0.95))
    assert [difference.verdict for difference in comparison.differences] == ["not significant", "better"]
    colours = {"ink": "#000001", "muted": "#000002", "line": "#3", "base": "#000004", "tuned": "#000005", "paper": "#6"}
    figure = forest_plot.draw_forest(comparison.scores, comparison.differences, "accuracy", ["A", "B", "C"], colours)
    _, below = figure.axes
    assert [line.get_color() for line in below.lines if line.get_marker() == "o"] == ["#000002", "#000005"]


def test_one_recipe_alone_has_scores_and_no_differences():
    comparison = compare(([1, 2],), ("HEAD",), accuracies=(0.8,))
    png, svg = comparison_page.render_picture(comparison)
    assert png.startswith(b"\x89PNG") and "points of accuracy" not in svg
    assert "verdict" not in comparison_page.render_markdown(comparison)
    assert "HEAD" in comparison_page.render_html(comparison, svg)


UNEVEN = (0.9, 0.07, 0.03)


def test_if_the_classes_are_uneven_every_difference_is_in_macro_f1():
    comparison = compare(([1, 2, 3], [1, 2, 3]), shares=UNEVEN, accuracies=(0.7, 0.9))
    printed = markdown_in_one_line(comparison)
    most, _, fewest = comparison.class_rows.values()
    assert f"has {most:,} test rows, and the rarest has {fewest:,}. Differences" in printed and "in macro F1" in printed
    assert "| points of macro F1 above A |" in printed and "metric:macro F1|" in printed
    assert "the macro F1 of trainings that differ only in seed varies by" in printed
    assert "points of accuracy" not in printed and "McNemar" not in printed
    first, other = comparison.scores
    (difference,) = comparison.differences
    assert difference.value == pytest.approx(other.f1_macro.value - first.f1_macro.value)
    _, svg = comparison_page.render_picture(comparison)
    assert "points of macro F1 above A" in svg and "accuracy" not in svg
    figure = forest_plot.draw_forest(
        comparison.scores, comparison.differences, "f1_macro", ["A", "B"], dict.fromkeys(render.ON_WHITE, "#000001")
    )
    dots = [line.get_xdata()[0] for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([first.f1_macro.value, other.f1_macro.value, difference.value])


def test_if_the_classes_are_even_the_reason_for_macro_f1_is_not_printed():
    printed = markdown_in_one_line(compare(([1, 2, 3], [1, 2, 3])))
    assert "| points of accuracy above A |" in printed and "uneven" not in printed


def without_texts(run, **changes):
    """The run as it is read from a cases.csv of `analysis.texts: none`."""
    return replace(run, rows=run.rows.drop(columns="group").assign(text_text=""), has_texts=False, **changes)


def test_runs_without_texts_are_compared_if_another_run_has_them():
    first, other = finished_run("a", 1, 8, 40, 0), finished_run("b", 1, 16, 40, 9)
    whole, blank = (compare_runs(runs, None, []) for runs in ([first, other], [without_texts(first), other]))
    assert blank == whole, "groups and signature too"


def test_if_no_run_has_texts_the_groups_are_unknown_and_nothing_is_compared():
    runs = [without_texts(finished_run(name, 1, rank, 40, 0)) for name, rank in (("a", 8), ("b", 16))]
    with pytest.raises(UserError, match=r"does not have all texts .* same author are unknown; fetch .* `dvc pull`"):
        compare_runs(runs, None, [])


def test_rows_without_texts_are_matched_by_number_gold_label_and_data():
    first, other = finished_run("a", 1, 8, 40, 0), finished_run("b", 1, 16, 40, 9)
    numbers = without_texts(replace(other, rows=other.rows.assign(row=other.rows["row"] + 1)))
    with pytest.raises(
        UserError, match=r"its test rows are not those of a .* in row 0, counted from 0: '1 / no', not '0 / no'"
    ):
        compare_runs([first, numbers], None, [])
    with pytest.raises(UserError, match=r"b: outs/splits differs from a, and metrics/cases.csv of b does not have"):
        compare_runs([first, without_texts(other, inputs=dict.fromkeys(INPUTS, "b"))], None, [])
    chosen = without_texts(other, params=other.params | {"data.unlabelled": "no"})
    with pytest.raises(UserError, match=r"b: data.unlabelled differs from a"):
        compare_runs([first, chosen], None, [])
    held_out = without_texts(other, params=other.params | {"data.holdout.seed": 1})
    with pytest.raises(UserError, match=r"b: data.holdout.seed differs from a"):
        compare_runs([first, held_out], None, [])


def test_the_holdouts_seed_is_part_of_the_recipe_and_a_pin_is_not():
    run = finished_run("a", 1, 8, 40, 0)
    pinned, other = (replace(run, params=run.params | {key: 1}) for key in ("data.digest", "data.holdout.seed"))
    assert pinned.recipe == run.recipe != other.recipe


def test_a_parameter_that_one_run_does_not_have_is_named():
    old, new = finished_run("old", 1, 8, 40, 0), finished_run("new", 1, 8, 40, 9)
    new = replace(new, params=new.params | {"train.calibrate": True, "model.subset": None})
    names = [[score.name for score in compare_runs(runs, None, []).scores] for runs in ([old, new], [new, old])]
    assert names == [["old", "train.calibrate=True, model.subset=None"],
                     ["new", "without train.calibrate, without model.subset"]]  # fmt: skip


def test_the_references_of_a_run_are_not_part_of_its_recipe():
    first, other = finished_run("a", 1, 8, 40, 0), finished_run("b", 2, 8, 40, 9)
    other = replace(other, params=other.params | {"analysis.references": ["probe"], "analysis.texts": "none"})
    (score,) = compare_runs([first, other], None, []).scores
    assert score.seeds == (1, 2)


def test_each_alarm_of_a_report_is_noted_once_with_its_recipes():
    runs = [finished_run(f"{rank}, {seed}", seed, rank, 40, rank - 8) for rank in (8, 16) for seed in (1, 2)]
    cut, worse = "30 of 40 test rows (75.0%) were longer", "The tuned model is not better"
    runs = [replace(run, alarms=[cut] if run is runs[0] else [cut, worse]) for run in runs]
    assert compare_runs(runs, None, ["before"]).notes[:3] == [
        "before",
        f"Alarm in the report of A, B: {cut}",
        f"Alarm in the report of A, B: {worse}",
    ]
    assert compare_runs(runs[:1], None, []).notes[0] == f"Alarm in the report of A: {cut}"


@pytest.mark.parametrize(
    ("p", "confidence", "text"),
    [
        (0.0496, 0.95, "0.0496"), (0.0504, 0.95, "0.050"), (0.04996, 0.95, "0.04996"), (0.049, 0.95, "0.049"),
        (0.04999999, 0.95, "<0.05"), (0.0996, 0.9, "0.0996"), (0.0996, 0.95, "0.100"), (0.0004, 0.95, "<0.001"),
        (0.0007, 0.9995, "0.001"), (1.0, 0.95, "1.000"), (1e-15, 0.9999, "<0.001"),
    ],
)  # fmt: skip
def test_a_p_value_is_never_printed_on_the_wrong_side_of_the_level(p, confidence, text):
    assert p_value(p, confidence) == text


CASES_OF_THREE = b"""row,text_premise,text_text,gold,tuned
0,p,a,yes,no
4,p,b,no,no
8,q,c,no,no
"""
GROUPED = {"data": {"group": "premise"}}


def test_a_cases_table_without_all_texts_has_numbered_rows_and_no_groups():
    whole, blank = (read_runs.read_cases("run", CASES_OF_THREE, GROUPED, has_texts) for has_texts in (True, False))
    assert whole["group"].tolist() == [0, 0, 1] and whole["row"].tolist() == [0, 4, 8]
    assert "group" not in blank, "rows that share a premise must not be treated as independent"
    assert set(blank["text_premise"]) == {""} and blank["row"].tolist() == [0, 4, 8]


def test_a_changed_list_of_references_does_not_make_a_run_unfinished():
    outs = dict.fromkeys((read_runs.RESULTS, *INPUTS), "a" * 32)
    lock = {
        "eval_base": {"params": {"params.yaml": {"seed": 1, "analysis": {"references": ["probe"]}}}},
        "eval_lora": {"params": {"params.yaml": {"seed": 1}}},
    }
    read_runs.check_finished("run", {"seed": 1, "analysis.references": []}, lock, outs)
    with pytest.raises(UserError, match=r"seed is 2 in params.yaml, but the results are those of 1"):
        read_runs.check_finished("run", {"seed": 2, "analysis.references": []}, lock, outs)


@pytest.mark.parametrize(("rare_rows", "metric"), [(10, "accuracy"), (9, "f1_macro")])
def test_runs_are_compared_in_the_leading_metric_of_their_test_rows(rare_rows, metric):
    first, other = finished_run("a", 1, 8, 40, 0), finished_run("b", 1, 16, 40, 9)
    gold = np.where(np.arange(40) < rare_rows, "yes", "no")
    runs = [replace(run, rows=run.rows.assign(gold=gold)) for run in (first, other)]
    assert compare_runs(runs, None, []).metric == metric


def run_of_labels(name, seed, lora_rank, right):
    """A run whose rows may have several of three labels, and that answers a share of them rightly."""
    rng = np.random.default_rng(seed)
    gold = ["", "=a", "b", "c", "=a|b", "b|c", "b|=a", ""] * 30
    predicted = [text if rng.random() < right else rng.choice(gold) for text in gold]
    rows = pd.DataFrame({"row": range(240), "text_text": [f"row {row}" for row in range(240)], "group": range(240)})
    rows = rows.assign(gold=list(map(escape_formula, gold)), predicted=list(map(escape_formula, predicted)))
    parameters = {"seed": seed, "lora.r": lora_rank, "analysis.confidence": 0.95, "data.group": None}
    classes = ("'=a", "b", "c", "never")
    return Run(name, "", parameters, {}, dict.fromkeys(INPUTS, "a"), rows, classes, kind=MultiLabel)


def test_runs_with_several_labels_a_row_are_compared_in_micro_f1():
    runs = [
        run_of_labels(f"{rank}, {seed}", seed, rank, right)
        for rank, right in ((8, 0.6), (16, 0.9))
        for seed in (1, 2, 3)
    ]
    comparison = compare_runs(runs, None, [])
    (difference,) = comparison.differences
    assert comparison.metric == "f1_micro" and difference.verdict == "better"
    assert comparison.class_rows == {"'=a": 90, "b": 120, "c": 60, "never": 0}
    printed = comparison_page.render_markdown(comparison)
    assert "2 recipes on the same 240 test rows" in printed and "|metric:micro F1|" in printed
    assert re.search(r"\| subset accuracy +\| micro F1 +\| macro F1 +\|", printed) and "weighted F1" not in printed
    assert "points of micro F1 above A" in printed and "a row may have several labels" in printed
    assert max(len(line) for line in printed.splitlines() if not line.startswith("Signature: ")) <= 120
    assert "points of micro F1 above A" in comparison_page.render_picture(comparison)[1]


def test_runs_with_other_labels_are_not_compared():
    first, other = run_of_labels("first", 1, 8, 0.9), run_of_labels("other", 1, 16, 0.9)
    with pytest.raises(UserError, match=r"^other: its labels are b, c, but those of first are '=a, b, c, never"):
        compare_runs([first, replace(other, classes=("b", "c"))], None, [])


@pytest.mark.parametrize("seeds, design", [((1,), "rows only"), ((1, 2), "paired seeds")])
def test_a_sweep_with_few_seeds_and_several_labels_a_row_has_a_verdict_in_micro_f1(seeds, design):
    runs = [
        run_of_labels(f"{rank}, {seed}", seed, rank, right) for rank, right in ((8, 0.6), (16, 0.9)) for seed in seeds
    ]
    comparison = compare_runs(runs, None, [])
    (difference,) = comparison.differences
    assert (comparison.metric, difference.design, difference.verdict) == ("f1_micro", design, "better")
    scores = []
    for run in runs:
        gold, answers = (
            np.array([[name in text for name in "abc"] for text in run.rows[column]])
            for column in ("gold", "predicted")
        )
        scores.append(f1_score(gold, answers, average="micro"))
    expected = np.mean(scores[len(seeds) :]) - np.mean(scores[: len(seeds)])
    assert difference.value == pytest.approx(expected), "not the difference in subset accuracy or in macro F1"


def test_runs_with_one_label_and_with_several_labels_a_row_cannot_be_compared():
    first, other = run_of_labels("a", 1, 8, 0.6), run_of_labels("b", 1, 8, 0.6)
    with pytest.raises(UserError, match=r"b: its task is single_label_.*, but that of a is multi_label_"):
        compare_runs([first, replace(other, kind=SingleLabel)], None, [])


@pytest.mark.parametrize("multi_label", [False, True])
def test_predictions_from_the_cache_and_from_the_cases_in_git_are_equal(tmp_path, multi_label):
    labels, numbers = make_labels(["=a", "b", "c"], multi_label), [0, 1, 2, 1]
    codes = pd.DataFrame({"label": [0, 5, 7, 3], "prediction": [1, 5, 0, 6]} if multi_label else
                         {"label": numbers, "prediction": numbers[::-1]})  # fmt: skip
    table = labels.to_lists(codes, ["label", "prediction"]).assign(row=range(4), text_text=list("wxyz"), group=range(4))
    for folder in ("ab", "cd"):
        (tmp_path / "files/md5" / folder).mkdir(parents=True)
    table.assign(**{f"p_{name}": 0.5 for name in labels.classes}).to_parquet(tmp_path / "files/md5/cd/e")
    (tmp_path / "files/md5/ab/c").write_text(json.dumps([{"relpath": "predictions.parquet", "md5": "cde"}]))
    cached, classes, kind = read_runs.read_cached_rows(tmp_path, "abc")
    gold, tuned = (labels.names(codes[name]).map(escape_formula) for name in codes)
    cases = pd.DataFrame({"row": range(4), "text_text": list("wxyz"), "gold": gold, "tuned": tuned})
    from_git = read_runs.read_cases("run", cases.to_csv(index=False).encode(), {"data": {"group": None}}, True)
    pd.testing.assert_frame_equal(cached, from_git, check_like=True, check_dtype=False)
    assert kind is type(labels) and classes == ("'=a", "b", "c")
    if multi_label:
        assert cached["gold"].tolist() == ["", "'=a|c", "'=a|b|c", "'=a|b"]
        split = [read_runs.split_labels(text, kind) for text in cached["gold"]]
        assert split == [[], ["'=a", "c"], ["'=a", "b", "c"], ["'=a", "b"]]


def test_a_file_of_git_must_be_the_one_that_the_lock_names():
    outs = {read_runs.DETAILS: "99914b932bd37a50b983c5e7c90ae93b"}  # of {}
    assert read_runs.read_locked_file("run", read_runs.DETAILS, b"{}", outs) == b"{}"
    for content in (None, b"{} "):
        with pytest.raises(UserError, match=r"run: .* metrics/details.json is not the file that its dvc.lock names"):
            read_runs.read_locked_file("run", read_runs.DETAILS, content, outs)


def test_alarms_are_those_of_the_report_that_the_lock_names():
    details = json.dumps({"alarms": ["an alarm"]}).encode()
    outs = {read_runs.DETAILS: hashlib.md5(details).hexdigest()}
    assert read_runs.read_alarms(details, outs) == ["an alarm"]
    for content in (None, details + b" "):
        assert read_runs.read_alarms(content, outs) == []
    assert read_runs.read_alarms(b"{}", {read_runs.DETAILS: "99914b932bd37a50b983c5e7c90ae93b"}) == [], "0.1.0"
