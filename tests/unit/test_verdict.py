"""What the report says of runs that were not worth their training, as they happen with public data sets."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import finished_run

from stages import analyze
from stages.analysis.comparison import compare_models
from stages.data.labels import SingleLabel
from stages.data.task import Task
from stages.report.verdict import explain_verdict

pytestmark = pytest.mark.usefixtures("blank_figures")


def analyze_run(folder, monkeypatch, **run):
    """Make a finished run and analyze it -> (comparison of details.json, report.md)."""
    finished_run.make(folder, **run)
    monkeypatch.chdir(folder)
    analyze.main()
    return json.loads((folder / "metrics/details.json").read_text())["comparison"], (
        folder / "metrics/report.md"
    ).read_text()


def answers(*lines):
    return np.array(lines, dtype=float)


HAM_ONLY = answers([1, 0], [1, 0])
PAIRS = answers([0.82, 0.18], [0.55, 0.45])  # right in 70% of rows, two thirds of which have the first class
NO_HATE = answers([0, 0.2, 0.8], [0, 0.92, 0.08], [0, 0.3, 0.7])


@pytest.mark.parametrize(
    "run, metric, best, verdict, alarm",
    [
        (
            {"classes": ("ham", "spam"), "shares": (0.87, 0.13), "tuned": HAM_ONLY, "words": 12},
            "f1_macro", "bag_of_words", "not worth it", "answers ham to all 557 test rows",
        ),
        (
            {"classes": ("other", "same"), "shares": (0.675, 0.325), "tuned": PAIRS, "words": 1, "rows": 900},
            "accuracy", "bag_of_words", "too close to tell", None,
        ),
        (
            {"classes": ("hate", "offensive", "neither"), "shares": (0.06, 0.77, 0.17), "tuned": NO_HATE, "words": 14},
            "f1_macro", "bag_of_words", "not worth it", "never answers hate",
        ),
        (
            {"classes": tuple(f"intent_{i}" for i in range(77)), "tuned": 0.5, "words": 30, "train_rows": 2000,
             "rows": 3080},
            "accuracy", "bag_of_words", "not worth it", "not better than the best reference, bag of words",
        ),
    ],
    ids=["spam", "similarity", "hate speech", "intents"],
)  # fmt: skip
def test_a_run_that_a_reference_equals_is_not_called_worth_it(run, metric, best, verdict, alarm, tmp_path, monkeypatch):
    shares = run.get("shares")
    settings = {"columns": ("text",), "rows": 557, "train_rows": 600, "train_shares": shares, "seed": 3} | run
    comparison, report = analyze_run(tmp_path, monkeypatch, probe=None, zero_shot=None, untrained=None, **settings)
    assert (comparison["metric"], comparison["best"], comparison["verdict"]) == (metric, best, verdict)
    assert verdict in report.lower()
    assert alarm is None or alarm in report
    assert "But the interval" not in report


@pytest.mark.parametrize(
    "run, references, gap, verdict",
    [
        (
            {"shares": (0.87, 0.13), "tuned": HAM_ONLY}, ["majority_class", "bag_of_words"],
            "macro F1 of the tuned model, 22.8 points below the best reference", "not worth it, 3 alarms in the report",
        ),
        (
            {"tuned": 0.98}, ["majority_class", "bag_of_words"],
            "accuracy of the tuned model, 13.3 points above the best reference", "worth it",
        ),
        (
            {"tuned": answers([0, 1], [0, 1])}, ["majority_class"],
            "accuracy of the tuned model, the same as the only reference", "not worth it, 2 alarms in the report",
        ),
    ],
    ids=["below", "above", "equal"],
)  # fmt: skip
def test_the_last_line_in_the_terminal_has_direction_verdict_and_alarms(
    run, references, gap, verdict, tmp_path, monkeypatch, capsys
):
    settings = {"classes": ("ham", "spam"), "columns": ("text",), "rows": 300, "seed": 3} | run
    finished_run.make(tmp_path, probe=None, zero_shot=None, untrained=None, **settings)
    path = tmp_path / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["analysis"]["references"] = references
    path.write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    analyze.main()
    results = json.loads((tmp_path / "metrics/details.json").read_text())
    comparison, tuned = results["comparison"], results["tuned"]
    low, high = comparison["references"][comparison["best"]]["difference"]["interval"].values()
    score = f"{tuned[comparison['metric']]:.1%}"
    line = f"{score} {gap} ({low * 100:+.1f} to {high * 100:+.1f}), {verdict}: metrics/report.html"
    assert capsys.readouterr().out.splitlines()[-1] == line and line.isascii()
    assert ("alarm" in verdict) == bool(results["alarms"])


@pytest.mark.parametrize(
    "references, which, missing",
    [
        (["untrained_head"], "only", "most frequent class, bag of words, zero-shot, linear probe"),
        (["majority_class", "untrained_head"], "best", "bag of words, zero-shot, linear probe"),
    ],
)
def test_a_report_names_the_references_that_the_parameters_leave_out(references, which, missing, tmp_path, monkeypatch):
    """Without the strong references, the same run seems worth more."""
    finished_run.make(tmp_path, zero_shot=None, probe=None)
    path = tmp_path / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["analysis"]["references"] = references
    path.write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    analyze.main()
    for name in ("report.html", "report.md", "model_card.md"):
        text = (tmp_path / "metrics" / name).read_text()
        assert f" points of accuracy above the {which} reference, " in text, name
        assert f"which analysis.references leaves out: {missing}." in text.replace("<wbr>", ""), name


def test_right_answers_to_test_rows_of_one_class_prove_no_learning_and_no_failure(tmp_path, monkeypatch):
    rows = {"shares": (1, 0, 0), "tuned": 1.0}
    _, report = analyze_run(tmp_path, monkeypatch, **rows)
    assert "All test rows have the class entailment, and the tuned model always answers it" in report
    assert "it learnt nothing" not in report


def test_one_answer_to_all_rows_is_not_worth_it_even_if_it_exceeds_all_references(tmp_path, monkeypatch):
    always_neutral = answers(*[[0, 1, 0]] * 3)
    shifted = {"shares": (0.24, 0.54, 0.22), "train_shares": (0.4, 0.3, 0.3), "rows": 300, "probe": 0.36}
    comparison, report = analyze_run(tmp_path, monkeypatch, tuned=always_neutral, **shifted)
    assert comparison["references"][comparison["best"]]["difference"]["interval"]["low"] > 0
    assert comparison["verdict"] == "not worth it"
    assert "But all answers are one class, which needs no model." in report


def test_a_class_of_few_test_rows_that_is_never_answered_is_no_alarm(tmp_path, monkeypatch):
    """With 77 classes and 150 rows, a good model misses some classes by chance."""
    names = tuple(f"intent_{i}" for i in range(77))
    settings = {"columns": ("text",), "rows": 150, "words": 12, "classes": names}
    _, report = analyze_run(tmp_path, monkeypatch, tuned=0.85, **settings)
    assert "never answers" not in report


@pytest.mark.parametrize(
    "tokens, described",
    [
        ([" ham", " sp"], "template: “ham” for ham, “sp” for spam"),
        ([" ham", " "], "template: “ham” for ham; only white space for spam, for which it is no real reference"),
        (["", "\n"], "template; only white space for ham, spam, for which it is no real reference"),
        ([f"token{i}" for i in range(8)], "template"),
        (
            [*(f"token{i}" for i in range(7)), " "],
            "template; only white space for 7, for which it is no real reference",
        ),
    ],
)
def test_a_token_of_white_space_is_named(tokens, described, tmp_path, monkeypatch):
    """The class name 7 has two tokens in some models: a space, and the digit."""
    classes = ("ham", "spam") if len(tokens) == 2 else tuple(map(str, range(len(tokens))))
    finished_run.make(tmp_path, classes=classes, columns=("text",), probe=None, untrained=None)
    path = tmp_path / "outs/results/base/summary.json"
    summary = json.loads(path.read_text())
    summary["references"] = {"zero_shot": {"tokens": dict(zip(classes, tokens, strict=True))}}
    path.write_text(json.dumps(summary))
    monkeypatch.chdir(tmp_path)
    analyze.main()
    for name, end in (("report.md", " |"), ("report.html", "<"), ("model_card.md", " |")):
        text = (tmp_path / "metrics" / name).read_text().replace("<wbr>", "")
        assert f"the language model's own next token after the {described}{end}" in text.replace("&#39;", "'"), name


def test_another_reference_that_decides_the_verdict_is_named():
    gold, rows = np.arange(300) % 3, np.arange(300)
    wrong = (gold + 1) % 3
    columns = {"gold": gold, "tuned": np.where(rows < 60, wrong, gold), "probe": np.where(rows < 73, wrong, gold)}
    columns["bag_of_words"] = np.where((rows > 150) & (rows <= 225), wrong, gold)
    cases = pd.DataFrame(columns).assign(group=rows, in_train=False)
    comparison = compare_models(cases, Task(("a", "b", "c"), "{text}", None), 0.95)
    text = explain_verdict(comparison, 0.95, SingleLabel(("a", "b", "c")))
    assert text.endswith("But the interval of the difference from another reference reaches 0: bag of words.")
