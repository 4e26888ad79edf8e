"""tools.predict if rows may have several labels: lists as answers, in all forms of input and output."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from helpers.random_adapter import make_adapter

from stages.data.labels import MultiLabel
from stages.model.validation_summary import BestThreshold, ValidationSummary
from tools.answer_rules import Rule
from tools.answers import decide
from tools.predict import __main__ as predict

CLASSES = ("outdoors", "happy", "rain")
LABELS = MultiLabel(CLASSES)
TEXTS = [
    f"A {word} waits in the {place}." for word in ("man", "happy girl", "dog") for place in ("rain", "park", "bus")
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter whose saved thresholds give each text other labels."""
    folder = make_adapter(tmp_path_factory.mktemp("several") / "adapter", CLASSES, "{text}\nLabels:", multi_label=True)
    probabilities = np.random.default_rng(0).uniform(size=(200, 3)).round(6)
    summary = ValidationSummary.measure(probabilities > 0.5, probabilities, LABELS)
    loaded = predict.load_classifier(folder, base_only=False)
    answers = predict.predict_rows(*loaded, [[text] for text in TEXTS])
    values = np.sort([list(answer["probabilities"].values()) for answer in answers], axis=0)[-3]  # 2 rows have a class
    summary.model_copy(update={"best_threshold": BestThreshold(value=values.tolist(), f1_macro=0.7)}).write(folder)
    return folder


@pytest.fixture
def run(adapter, tmp_path, monkeypatch, capsys):
    """A function that runs the command in a folder with rows.csv; the last row has no text."""
    loaded = predict.load_classifier(adapter, base_only=False)
    monkeypatch.setattr(predict, "load_classifier", lambda *_: loaded)
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"id": range(len(TEXTS) + 1), "text": [*TEXTS, None]}).to_csv("rows.csv", index=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), "--adapter", str(adapter)])
        predict.main()
        return capsys.readouterr()

    run.loaded = loaded
    return run


def test_the_answer_is_each_class_above_its_threshold():
    probabilities = np.array([[0.6, 0.5, 0.2], [0.1, 0.2, 0.3]])
    answers, certainty = decide(LABELS, probabilities, None)
    assert answers.tolist() == [[True, False, False], [False, False, False]]
    assert certainty.tolist() == pytest.approx([0.6 * 0.5 * 0.8, 0.9 * 0.8 * 0.7])
    answers, _ = decide(LABELS, probabilities, Rule(thresholds=[0.6, 0.1, 0.25]))
    assert answers.tolist() == [[False, True, False], [False, True, True]]


def test_a_terminal_shows_all_labels_of_a_text_or_that_it_has_none():
    probabilities = {"a": 0.9, "b": 0.8}
    assert predict.format_answer({"label": ["a", "b"], "probabilities": probabilities}).startswith("a|b\n   90.0% a")
    assert predict.format_answer({"label": [], "probabilities": {"a": 0.1}}).startswith("none of the labels\n")


def test_lines_and_files_have_the_same_lists(run, monkeypatch):
    expected = predict.predict_rows(*run.loaded, [[text] for text in TEXTS], Rule(thresholds=[0.4, 0.5, 0.6]))
    monkeypatch.setattr(predict, "choose_rule", lambda *_: Rule(thresholds=[0.4, 0.5, 0.6]))
    for name in ("out.jsonl", "out.parquet", "out.csv"):
        run("rows.csv", "--out", name, "--all")
    lines, table = [json.loads(line) for line in open("out.jsonl")], pd.read_parquet("out.parquet")  # noqa: SIM115
    labels = [answer["label"] for answer in expected]
    assert [line["prediction"] for line in lines] == [*labels, None]
    assert [row if row is None else row.tolist() for row in table["prediction"]] == [*labels, None]
    assert pd.read_csv("out.csv", keep_default_na=False)["prediction"].tolist() == [*map("|".join, labels), "-"]
    for line, answer in zip(lines, expected, strict=False):
        assert [line[f"p_{name}"] for name in CLASSES] == pytest.approx(
            list(answer["probabilities"].values()), abs=1e-4
        )
        factors = [line[f"p_{name}"] if name in answer["label"] else 1 - line[f"p_{name}"] for name in CLASSES]
        assert line["probability"] == pytest.approx(np.prod(factors), abs=1e-6)


def test_the_best_threshold_is_one_of_each_label(run, adapter):
    summary = ValidationSummary.read(adapter)
    thresholds = dict(zip(CLASSES, summary.best_threshold.value, strict=True))
    output = run("rows.csv", "--out", "out.jsonl", "--best-threshold", "--all")
    lines = [json.loads(line) for line in open("out.jsonl")][:-1]  # noqa: SIM115
    for line in lines:
        assert line["prediction"] == [name for name in CLASSES if line[f"p_{name}"] > thresholds[name]]
    assert len({tuple(line["prediction"]) for line in lines}) > 2
    assert "each label if its probability is above its own threshold, from " in output.err
    assert "validation.json; they were chosen on" in output.err and " keep 50%" not in output.err
    values = [0.5, *list(thresholds.values())[1:]]
    summary.model_copy(update={"best_threshold": BestThreshold(value=values, f1_macro=0.7)}).write(adapter)
    kept = run("A man.", "--best-threshold").err
    summary.write(adapter)
    assert f"1 of {len(CLASSES)} labels keep 50%, as no validation row has them or no other" in kept
    assert f" F1: {CLASSES[0]}\n" in kept
    none = sum(not line["prediction"] for line in lines)
    assert f"{none} with none of the labels" in output.out
    assert "1 row has no text, so it has no prediction" in output.out


def test_the_probability_that_all_labels_are_right_decides_which_answers_are_left_out(run, adapter):
    run("rows.csv", "--out", "all.jsonl")
    probabilities = pd.read_json("all.jsonl", lines=True)["probability"].dropna()
    at_least = float(probabilities.median())
    assert at_least < 0.5, "the highest probability of a label is another number"
    output = run("rows.csv", "--out", "sure.jsonl", "--at-least", at_least)
    sure = [json.loads(line)["prediction"] for line in open("sure.jsonl")][:-1]  # noqa: SIM115
    assert [answer is not None for answer in sure] == (probabilities >= at_least).tolist()
    assert f"{sure.count(None)} without an answer" in output.out
    quantile = ValidationSummary.read(adapter).find_probability(0.4)
    assert f"no answer below {quantile:.4%}" in run("A man.", "--coverage", 0.4).err
