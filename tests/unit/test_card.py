"""The model card, read by the hub's own classes; and the folder that is ready to publish."""

import ast
import json
import re
import subprocess

import pytest
from helpers import finished_run
from helpers.project import ROOT
from huggingface_hub import ModelCard

from stages import analyze

PUBLISH = "rm -rf publish && cp -r outs/adapter publish && cp metrics/model_card.md publish/README.md"


@pytest.fixture
def card(tmp_path, monkeypatch):
    """The card of a made run -> (card, metrics folder)."""

    def make(**settings):
        finished_run.make(tmp_path, **settings)
        source = tmp_path / "outs/data_source.json"
        if "model" in settings:
            source.write_text(json.dumps({"name": "stanfordnlp/snli", "revision": "cdb5c3d", "digest": "d" * 64}))
        monkeypatch.chdir(tmp_path)
        analyze.main()
        return ModelCard.load(tmp_path / "metrics/model_card.md"), tmp_path / "metrics"

    return make


def test_metadata_of_a_base_on_the_hub(card):
    made, metrics = card(model="microsoft/phi-2")
    assert made.data.base_model == "microsoft/phi-2"
    assert made.data.datasets == ["stanfordnlp/snli"]
    assert made.data.library_name == "peft" and made.data.pipeline_tag == "text-classification"
    scores = json.loads((metrics / "details.json").read_text())["tuned"]
    results = {result.metric_name: result for result in made.data.eval_results}
    for name, key in (("Accuracy", "accuracy"), ("Weighted F1", "f1_weighted"), ("Macro F1", "f1_macro")):
        assert results[name].metric_value == pytest.approx(scores[key], abs=5e-5)
        assert results[name].dataset_revision == "cdb5c3d" and results[name].dataset_split == "test"
    assert '    "microsoft/phi-2",\n    revision="none",\n' in made.text


def test_a_local_folder_is_no_name_on_the_hub(card, tmp_path):
    for name in ("nano-phi", "everyday-nli"):
        (tmp_path / "assets" / name).mkdir(parents=True)
    made, _ = card()
    assert made.data.base_model is None and made.data.datasets is None
    assert '    "assets/nano-phi",\n' in made.text and "revision=" not in made.text


def test_a_card_of_another_task_names_its_classes_and_columns(card):
    """The lines to ask the adapter by are Python, whatever the columns are called."""
    columns = ("it's a <title>", 'Größe "1"')
    made, _ = card(classes=("ham", "spam_or_*so*"), columns=columns, train_rows=100)
    assert "sorts texts into 2 classes: ham, spam_or\\_\\*so\\*." in made.text
    assert not any(word in made.text for word in ("premise", "entailment", "does not check facts"))
    assert made.data.eval_results[0].task_name == "Text classification"
    assert made.data.tags == ["lora", "qlora"]
    block = re.search(r"```python\n(.*?)```", made.text, re.DOTALL)[1]
    compile(block, "card", "exec")
    (line,) = (line for line in block.splitlines() if line.startswith("texts = "))
    assert list(ast.literal_eval(line.removeprefix("texts = "))) == list(columns)


def test_the_card_says_what_it_is_not_good_for(card):
    made, _ = card()
    for heading in ("## Results", "## Recipe", "## Use", "## Limits"):
        assert heading in made.text


def test_the_documented_command_makes_a_folder_to_publish(card, tmp_path):
    card()
    (tmp_path / "outs/adapter").mkdir(exist_ok=True)
    (tmp_path / "outs/adapter/adapter_config.json").write_text("{}")
    subprocess.run(["bash", "-ec", PUBLISH], cwd=tmp_path, check=True)
    folder = tmp_path / "publish"
    assert ModelCard.load(folder / "README.md").data.to_dict()["model-index"]
    assert (folder / "adapter_config.json").exists()
    assert PUBLISH in (ROOT / "README.md").read_text()
