"""The model cards, read by the classes of huggingface_hub."""

import ast
import json
import re
import subprocess
from types import SimpleNamespace

import pytest
from helpers import finished_run
from helpers.project import ROOT
from huggingface_hub import ModelCard

from stages import analyze
from stages.data.task import Task
from stages.report.model_card import build_export_card
from tools.export import Agreement


@pytest.fixture
def analyze_run(tmp_path, monkeypatch, blank_figures):
    """A function that analyzes a finished run with these settings and returns (its card, metrics folder)."""

    def analyze_run(**settings):
        finished_run.make(tmp_path, **settings)
        if "model" in settings:
            for file, name in (("data_source", "stanfordnlp/snli"), ("base_model", settings["model"])):
                path = tmp_path / f"outs/{file}.json"
                path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name, "revision": "cdb5c3d"}))
        monkeypatch.chdir(tmp_path)
        analyze.main()
        return ModelCard.load(tmp_path / "metrics/model_card.md"), tmp_path / "metrics"

    return analyze_run


def test_the_metadata_names_a_base_on_the_hub(analyze_run):
    card, metrics = analyze_run(model="microsoft/phi-2")
    assert card.data.base_model == "microsoft/phi-2"
    assert card.data.datasets == ["stanfordnlp/snli"]
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-classification"
    scores = json.loads((metrics / "details.json").read_text())["tuned"]
    results = {result.metric_name: result for result in card.data.eval_results}
    for name, key in (("Accuracy", "accuracy"), ("Weighted F1", "f1_weighted"), ("Macro F1", "f1_macro")):
        assert results[name].metric_value == pytest.approx(scores[key], abs=5e-5)
        assert results[name].dataset_revision == "cdb5c3d" and results[name].dataset_split == "test"
    assert '    "microsoft/phi-2",\n    revision="cdb5c3d",\n' in card.text


def test_the_metadata_names_no_local_folder(analyze_run, tmp_path):
    for name in ("nano-phi", "everyday-nli"):
        (tmp_path / "assets" / name).mkdir(parents=True)
    card, _ = analyze_run()
    assert card.data.base_model is None and card.data.datasets is None
    assert '    "assets/nano-phi",\n' in card.text and "revision=" not in card.text


@pytest.mark.parametrize("relative", [False, True], ids=["absolute path", "relative path"])
def test_the_path_of_local_data_is_not_published(analyze_run, tmp_path, relative):
    """The hub requires `type` and `name` of the data: both are the folder's last name."""
    (tmp_path / "me/reviews").mkdir(parents=True)
    name = "./me/../me/reviews/" if relative else f"{tmp_path}/me/reviews"
    card, _ = analyze_run(data=name)
    (accuracy, *_) = card.data.eval_results
    assert accuracy.dataset_type == accuracy.dataset_name == "reviews"
    assert name not in card.content and "- data: `reviews, SHA-256 of its files " in card.text


def test_the_card_of_an_export_has_its_scores_and_no_local_path(tmp_path):
    (tmp_path / "me/reviews").mkdir(parents=True)
    (tmp_path / "me/phi-2").mkdir()
    source = {"name": f"{tmp_path}/me/reviews", "revision": None, "digest": "d" * 64}
    settings = SimpleNamespace(model=SimpleNamespace(quantization="none"), template="{text}", max_length=9)
    about = {
        "task": Task(("ham", "spam"), "{text}", None),
        "model": {**source, "name": f"{tmp_path}/me/phi-2"},
        "data": source,
        "settings": settings,
        "rows": 2,
        "truncated": 0,
        "left_out": 0,
        "special": False,
        "adapter": Agreement({"f1_macro": 0.5, "accuracy": 0.9}, 0, 0, 0),
        "merges": {"original": Agreement({"f1_macro": 0.6, "accuracy": 0.8}, 0, 0, 0)},
        "chosen": "original",
        "dtype": "bfloat16",
        "license": "mit",
        "base_model": None,
        "example": "x",
    }
    text = build_export_card(about)
    assert str(tmp_path) not in text and "On 2 test rows of reviews:" in text and "base model: `phi-2`, SHA" in text
    assert ModelCard(text).data.license == "mit" and "Before you publish" not in text
    card = ModelCard(build_export_card(about | {"base_model": "me/phi-2"}))
    assert card.data.base_model == "me/phi-2" and "base model: `me/phi-2`, SHA" in card.text
    assert "Before you publish, add `license:`" in build_export_card(about | {"license": None})
    results = ModelCard(text).data.eval_results
    assert [(each.metric_name, each.metric_type, each.metric_value) for each in results] == [
        ("Accuracy", "accuracy", 0.8), ("Macro F1", "f1", 0.6),
    ]  # fmt: skip
    assert results[0].dataset_type == "reviews" and results[1].metric_args == {"average": "macro"}
    assert "| | macro F1 | accuracy | predictions" in text and "| adapter on its base | 50.0% | 90.0% | | |" in text
    assert "| merged into the original weights, this folder | 60.0% | 80.0% | 0 | 0.000 |" in text


def test_the_card_of_another_task_names_its_classes_and_columns(analyze_run):
    """The code in the card is valid Python, whatever the names of the columns are."""
    columns = ("it's a <title>", 'Größe "1"')
    card, _ = analyze_run(classes=("ham", "spam_or_*so*"), columns=columns, train_rows=100)
    assert "classifies texts into 2 classes: ham, spam_or\\_\\*so\\*." in card.text
    assert not any(word in card.text for word in ("premise", "entailment", "does not check facts"))
    assert card.data.eval_results[0].task_name == "Text classification"
    assert card.data.tags == ["lora", "qlora"]
    block = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    compile(block, "card", "exec")
    (line,) = (line for line in block.splitlines() if line.startswith("texts = "))
    assert list(ast.literal_eval(line.removeprefix("texts = "))) == list(columns)


def test_the_card_has_all_sections(analyze_run):
    card, _ = analyze_run()
    for heading in ("## Results", "## Recipe", "## Use", "## Limits"):
        assert heading in card.text


@pytest.mark.parametrize("below", ["", "demo/"])
def test_git_ignores_the_folder_to_publish(below):
    process = subprocess.run(["git", "check-ignore", "--quiet", f"{below}publish/README.md"], cwd=ROOT)
    if process.returncode == 128:
        pytest.skip("the project is not in a Git repository")
    assert process.returncode == 0
