"""The model card, read by the hub's own classes; and the folder that is ready to publish."""

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
from stages.report import model_card as card_module
from tools.export import Agreement

PUBLISH = "rm -rf publish && cp -rL outs/adapter publish && cp metrics/model_card.md publish/README.md"


@pytest.fixture
def card(tmp_path, monkeypatch, one_pixel_pngs):
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


@pytest.mark.parametrize("relative", [False, True], ids=["whole path", "relative"])
def test_a_users_path_of_data_is_not_published(card, tmp_path, monkeypatch, relative):
    """The hub wants `type` and `name` of the data that were scored: both are the folder's last name."""
    (tmp_path / "me/reviews").mkdir(parents=True)
    name = "./me/../me/reviews/" if relative else f"{tmp_path}/me/reviews"
    made, _ = card(data=name)
    (accuracy, *_) = made.data.eval_results
    assert accuracy.dataset_type == accuracy.dataset_name == "reviews"
    assert name not in made.content and "- data: `reviews, revision none, SHA-256 of its files " in made.text


def test_an_exports_card_publishes_no_path_of_data_either(tmp_path):
    (tmp_path / "me/reviews").mkdir(parents=True)
    source = {"name": f"{tmp_path}/me/reviews", "revision": "none", "digest": "d" * 64}
    reading = SimpleNamespace(
        model=SimpleNamespace(quantization="none"), tokenize=SimpleNamespace(template="{text}", max_length=9)
    )
    written = card_module.of_export(
        {"task": Task(("ham", "spam"), ("text",), None), "model": {**source, "name": "microsoft/phi-2"}, "data": source,
         "reading": reading, "rows": 2, "truncated": 0, "special": False, "left_out": 0, "own": Agreement(1, 0, 0, 0),
         "example": "x", "merges": {"original": Agreement(1, 0, 0, 0)}, "chosen": "original", "dtype": "bfloat16"}
    )  # fmt: skip
    assert str(tmp_path) not in written and "On 2 test rows of reviews:" in written
    assert ModelCard(written).data.eval_results[0].dataset_type == "reviews"


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
    cached = tmp_path / "cached"  # DVC may make its outs links to its cache, whose files nobody may write
    cached.write_text("{}")
    cached.chmod(0o444)
    (tmp_path / "outs/adapter").mkdir()
    (tmp_path / "outs/adapter/adapter_config.json").symlink_to(cached)
    subprocess.run(["bash", "-ec", PUBLISH], cwd=tmp_path, check=True)
    folder = tmp_path / "publish"
    assert ModelCard.load(folder / "README.md").data.to_dict()["model-index"]
    assert (folder / "adapter_config.json").is_file() and not (folder / "adapter_config.json").is_symlink()
    assert PUBLISH in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("below", ["", "demo/"])
def test_git_leaves_the_folder_to_publish_alone(below):
    done = subprocess.run(["git", "check-ignore", "--quiet", f"{below}publish/README.md"], cwd=ROOT)
    if done.returncode == 128:
        pytest.skip("the project is not in a Git repository")
    assert done.returncode == 0
