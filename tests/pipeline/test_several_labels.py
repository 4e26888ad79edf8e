"""Several labels a row through all six stages, `tools.predict` and `tools.evaluate`."""

import ast
import json
import re
import sys
from pathlib import Path

import bitsandbytes
import pandas as pd
import pytest
import yaml
from helpers.parameters import unpinned_params, use
from helpers.project import NANO
from helpers.six_labels import LABELS, draw_rows
from helpers.stages import run_stage_in_each
from huggingface_hub import constants

from stages.data.task import Task
from tools import publish
from tools.evaluate import __main__ as evaluate
from tools.evaluate import finished_run
from tools.predict import __main__ as predict

pytestmark = pytest.mark.slow

STAGES = ["download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of one epoch, and what the stages printed."""
    folder = tmp_path_factory.mktemp("six") / "run"
    (folder / "own").mkdir(parents=True)
    draw_rows(340, seed=1).to_json(folder / "own/rows.jsonl", orient="records", lines=True)
    raw = unpinned_params()
    use(raw, "model", str(NANO))
    use(raw, "data", "./own")
    raw["data"] |= {"label": "labels", "classes": list(LABELS), "group": None}
    raw["data"]["splits"] |= {"validation": None, "test": None}
    raw["data"]["holdout"] |= {"validation": "15%", "test": "25%"}
    raw["tokenize"]["template"] = "{text}\nLabels:"
    raw["train"] |= {"epochs": 1, "class_weights": "balanced"}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    (outcome,) = run_stage_in_each(",".join(STAGES), [folder], BLANK_FIGURES="1").values()
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return folder, outcome.stdout


@pytest.fixture
def tool(run, monkeypatch):
    """A function that runs a tool in the run's folder, in this process."""
    monkeypatch.chdir(run[0])

    def start(main, *arguments):
        monkeypatch.setattr(sys, "argv", list(map(str, ["tool", *arguments])))
        main()

    return start


def test_the_stages_say_what_they_do_with_several_labels(run):
    _, printed = run
    assert "6 labels, of which a row may have several: outdoors, happy, old, rain, music, night" in printed
    last_line = (
        r"\d% micro F1 of the tuned model, [\d.]+ points \w+ the best reference \(.+\), [^.]+: metrics/report.html"
    )
    assert re.search(last_line, printed)
    assert re.search(r"epoch 1 of 1: .* micro F1 \d+\.\d%, subset accuracy ", printed)
    assert "zero_shot is left out: a language model continues a text with one class" in printed


def test_each_file_has_the_labels_of_its_rows(run):
    folder, task = run[0], Task.read(run[0] / "outs/task.json")
    gold = draw_rows(340, seed=1).set_index("text")["labels"].map(sorted)
    test = pd.read_parquet(folder / "outs/results/tuned/predictions.parquet")
    named = test["label"].map(lambda numbers: sorted(task.classes[number] for number in numbers))
    assert named.tolist() == gold[test["text_text"]].tolist()
    assert (test["label"].map(len) == 0).any(), "a row without labels stays"
    predicted = [[number in row for number in range(6)] for row in test["prediction"]]
    probabilities = test[task.probability_columns].to_numpy()
    assert ((probabilities > 0.5) == predicted)[probabilities != 0.5].all()  # a stored 0.5 may have been more or less
    cases = pd.read_csv(folder / "metrics/cases.csv", keep_default_na=False)
    assert cases["gold"].tolist() == ["|".join(task.classes[number] for number in row) for row in test["label"]]


def test_the_adapter_tells_plain_transformers_that_labels_are_several(run):
    folder = run[0] / "outs/adapter"
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == list(LABELS)
    assert json.loads((folder / "classifier.json").read_text())["multi_label"] is True
    assert len(json.loads((folder / "validation.json").read_text())["best_threshold"]["value"]) == 6


def test_the_code_in_the_model_card_gives_the_labels_that_eval_lora_gave(run, monkeypatch, capsys):
    folder, task = run[0], Task.read(run[0] / "outs/task.json")
    rows = pd.read_parquet(folder / "outs/results/tuned/predictions.parquet")
    row = rows.loc[(rows[task.probability_columns] - 0.5).abs().min(axis=1).idxmax()]  # rounding changes no answer
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "metrics/model_card.md").read_text(), re.DOTALL)
    block, times = re.subn("(?m)^texts = .*$", lambda _: f"texts = {{'text': {row['text_text']!r}}}", block)
    assert times == 1
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    exec(block.replace("path/to/this/folder", str(folder / "outs/adapter")), {})
    labels, _, probabilities = capsys.readouterr().out.strip().rpartition("] [")
    assert ast.literal_eval(f"[{probabilities}") == pytest.approx(row[task.probability_columns].tolist(), abs=0.02)
    assert ast.literal_eval(f"{labels}]") == [task.classes[number] for number in row["prediction"]]


def test_the_adapter_is_published_with_its_kind_of_labels(run, monkeypatch, tmp_path):
    monkeypatch.chdir(run[0])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    publish.write_adapter(tmp_path, Path("outs/adapter"), None, "tests/nano", "mit")
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "multi_label_classification"
    assert json.loads((tmp_path / "classifier.json").read_text())["multi_label"] is True


def test_the_results_lead_with_micro_f1_and_every_reference_is_measured(run):
    details = json.loads((run[0] / "metrics/details.json").read_text())
    comparison, tuned = details["comparison"], details["tuned"]
    assert comparison["metric"] == "f1_micro"
    assert set(comparison["references"]) == {"majority_class", "bag_of_words", "probe", "untrained_head"}
    assert all(scores["f1_micro_interval"] for scores in comparison["references"].values())
    assert tuned["f1_micro"] > comparison["references"]["majority_class"]["f1_micro"]
    assert set(tuned["average_precision"]) == set(LABELS)
    assert details["multi_label"] is True
    assert set(details["best_threshold"]["threshold"]) == set(LABELS) and details["best_threshold"]["f1_micro_interval"]
    slices = pd.read_csv(run[0] / "metrics/plots/slices_tuned.csv")
    assert "number of labels: none" in set(slices["slice"])
    report = (run[0] / "metrics/report.md").read_text()
    assert "labels, F1 on the validation rows is best at another threshold: " in report


def test_the_report_has_no_word_that_is_only_true_of_one_label(run):
    texts = [(run[0] / "metrics" / name).read_text() for name in ("report.md", "report.html", "model_card.md")]
    for text in texts:
        assert "only if all of its labels are, so each accuracy is the subset accuracy." in text
        assert "subset accuracy</th>" in text or "| subset accuracy |" in text
        assert "always answers the set of labels that most training rows have" in text
        assert "most frequent class" not in text and "the predicted class" not in text
    assert "It gives a text any number of 6 labels, or none: outdoors, happy" in texts[2]
    assert "Brier score (0 best, 1 worst)" in texts[0] and "have a loss of 0.693." in texts[0]


def test_predict_answers_a_file_as_eval_lora_does(tool, run, tmp_path):
    predictions = pd.read_parquet("outs/results/tuned/predictions.parquet")
    predictions[["text_text"]].to_parquet(tmp_path / "rows.parquet")
    tool(predict.main, tmp_path / "rows.parquet", "--out", tmp_path / "out.parquet", "--column", "text=text_text")
    names = predictions["prediction"].map(lambda numbers: [list(LABELS)[number] for number in numbers])
    assert pd.read_parquet(tmp_path / "out.parquet")["prediction"].map(list).tolist() == names.tolist()


def test_evaluate_scores_the_rows_in_another_form_alike(tool, run, tmp_path, monkeypatch, capsys, blank_figures):
    monkeypatch.setattr(finished_run, "check_workspace", lambda: None)  # there is no dvc.lock
    (run[0] / "dvc.lock").touch()
    predictions = pd.read_parquet("outs/results/tuned/predictions.parquet")
    flags = {
        name: predictions["label"].map(lambda row, number=number: number in row) for number, name in enumerate(LABELS)
    }
    pd.DataFrame({"text": predictions["text_text"], **flags}).to_csv(tmp_path / "flags.csv", index=False)
    columns = [flag for name in LABELS for flag in ("--label", name)]
    tool(evaluate.main, tmp_path / "flags.csv", *columns, "--out", tmp_path / "evaluations")
    own, other = (
        json.loads((folder / "details.json").read_text())["tuned"]
        for folder in (run[0] / "metrics", tmp_path / "evaluations/flags")
    )
    assert other["f1_micro"] == pytest.approx(own["f1_micro"]) and other["accuracy"] == pytest.approx(own["accuracy"])
    printed = capsys.readouterr().out
    assert f"{(predictions['label'].map(len) == 0).sum()} with none of the labels" in printed
    assert "| micro F1 (95% interval) |" in printed
