"""`tools.export --adapter-only`: what the published folder has, and what is rejected before anything is written."""

import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import safetensors.numpy
from helpers import finished_run, hub_server
from helpers.damage import edit_json
from helpers.hub_uploads import find_card_errors
from helpers.parameters import manifest_of
from helpers.project import NANO
from helpers.stages import run_stage_in_each
from huggingface_hub import ModelCard, constants
from numpy import zeros

from stages.model.adapter_files import digest_adapter
from stages.runtime import files
from stages.runtime.errors import UserError
from tools import export

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = "my reviews ü"  # JSON writes it as \u00fc
ON_HUB = {"name": "tests/nano", "revision": COMMIT}


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory):
    """Two finished runs: `on_hub` with a base on the hub, `local` with base and data in folders of this machine.

    The adapters have real files with few weights. DVC's cache holds them, and outs/adapter has links to it.
    """
    top = tmp_path_factory.mktemp("publish")
    (top / "base").mkdir()
    for file in NANO.iterdir():
        shutil.copy(file, top / "base")
    for name in ("on_hub", "local"):
        (top / DATA).mkdir(exist_ok=True)
        folder = finished_run.make(top / name, data=str(top / DATA), rows=40)
        manifest = manifest_of(top / "base") | (ON_HUB if name == "on_hub" else {})
        files.write_json(folder / "outs/base_model.json", manifest)
        link_adapter(folder, manifest)
    done = run_stage_in_each("analyze", [top / "on_hub", top / "local"])
    assert [outcome.returncode for outcome in done.values()] == [0, 0], done
    return top


def link_adapter(folder, manifest):
    """Write an adapter as `train_qlora` and DVC do, and the digest that `eval_lora` writes."""
    (cache := folder / "cache").mkdir()
    contents = {
        "base.json": manifest,
        "classifier.json": {
            "classes": list(finished_run.NLI), "seed": 42, "template": "{premise} {hypothesis}", "max_length": 128,
            "model": {"quantization": "nf4", "precision": "auto", "hidden_act": None, "head_init": "seeded"},
            "batches": {"padding": "none", "multiple_of": 1, "order": "grouped"},
        },
        "adapter_config.json": {
            "peft_type": "LORA", "task_type": "SEQ_CLS", "r": 16, "lora_alpha": 64, "target_modules": ["fc1"],
            "base_model_name_or_path": manifest["name"], "revision": manifest["revision"],
        },
        "validation.json": {"rows": 50, "probability_quantiles": [0.5], "best_threshold": None},
    }  # fmt: skip
    for name, content in contents.items():
        (cache / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    safetensors.numpy.save_file({"score.weight": zeros((3, 8), "float32")}, cache / "adapter_model.safetensors")
    (folder / "outs/adapter").mkdir()
    for path in cache.iterdir():
        path.chmod(0o444)
        (folder / "outs/adapter" / path.name).symlink_to(path)
    edit_json(folder / "outs/results/tuned", "summary.json", adapter=digest_adapter(folder / "outs/adapter"))


@pytest.fixture
def publish(workspaces, monkeypatch, tmp_path, capsys):
    """A function that runs the tool in a workspace -> (the folder that it wrote, what it printed)."""

    def publish(workspace, *options):
        monkeypatch.chdir(workspaces / workspace)
        monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "publish"), "--adapter-only", *options])
        export.main()
        return tmp_path / "publish", capsys.readouterr().out

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    return publish


def refused(publish, tmp_path, match, *arguments):
    with pytest.raises(UserError, match=match):
        publish(*arguments)
    assert not list(tmp_path.glob("*publish*")), "nothing is written"


@pytest.fixture
def serve(monkeypatch):
    """A function that serves files as tests/nano on the hub."""
    with hub_server.Hub() as served:

        def serve(files):
            served.add("models", "tests/nano", COMMIT, files)
            monkeypatch.setattr(constants, "ENDPOINT", served.url)

        yield serve


def card_with(metadata):
    return {"README.md": f"---\n{metadata}\n---\n# nano\n".encode()}


def test_of_a_base_on_the_hub_all_files_are_copied_and_the_card_gets_its_licence(publish, workspaces, serve):
    serve(card_with("license: other\nlicense_name: nano-1.0\nlicense_link: LICENSE"))
    folder, printed = publish("on_hub")
    cached = workspaces / "on_hub/cache"
    assert {path.name for path in folder.iterdir()} == {"README.md", *(path.name for path in cached.iterdir())}
    for path in cached.iterdir():
        copy = folder / path.name
        assert copy.read_bytes() == path.read_bytes() and not copy.is_symlink() and copy.stat().st_mode & 0o200
    before = ModelCard.load(workspaces / "on_hub/metrics/model_card.md")
    after = ModelCard.load(folder / "README.md")
    assert after.text == before.text
    assert after.data.to_dict() == before.data.to_dict() | {"license": "other", "license_name": "nano-1.0"}
    assert "license: other, as in the card of tests/nano\n" in printed
    assert printed.splitlines()[-1] == f"hf upload OWNER/NAME {folder}"


@pytest.mark.parametrize("metadata", ["tags: [a]", "license: unknown", "license: mine", "license: [mit]", "a: [", None])
def test_a_licence_is_never_guessed(publish, tmp_path, serve, metadata):
    if metadata:  # else the hub gives no answer
        serve(card_with(metadata))
    refused(publish, tmp_path, "^--license: missing, and no card of tests/nano names a licence", "on_hub")


def test_an_unknown_licence_is_rejected_and_the_closest_named(publish, tmp_path):
    refused(publish, tmp_path, "^--license: Apache 2.0: .*; allowed: apache-2.0", "on_hub", "--license", "Apache 2.0")


def test_a_base_in_a_local_folder_gets_its_name_on_the_hub_in_all_files(publish, workspaces):
    folder, printed = publish("local", "--base-model", "tests/nano", "--license", "mit")
    base, config = (json.loads((folder / name).read_text()) for name in ("base.json", "adapter_config.json"))
    assert base == manifest_of(workspaces / "base") | {"name": "tests/nano", "revision": None}
    assert config["base_model_name_or_path"] == "tests/nano" and config["revision"] is None
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "tests/nano" and card.data.license == "mit"
    assert f"- base model: `tests/nano, SHA-256 of its files {base['digest']}`\n" in card.text
    assert '    "tests/nano",\n    config=' in card.text
    assert "base model: tests/nano (not compared with the files on the hub: " in printed


def test_no_published_file_has_a_path_or_a_test_text(publish, workspaces):
    """The hub takes the name of the data in the card, although the folder's name has a space."""
    folder, _ = publish("local", "--base-model", "tests/nano", "--license", "mit")
    contents = {path.name: path.read_text(errors="replace") for path in folder.iterdir()}
    card = (workspaces / "local/metrics/model_card.md").read_text()
    assert str(workspaces) in card, "the card in metrics/ has the base's path"
    assert not [name for name, text in contents.items() if str(workspaces) in text or str(Path.home()) in text]
    rows = pd.read_parquet(workspaces / "local/outs/tokenized/test.parquet")
    assert not [text for text in rows["text_premise"] if any(text in content for content in contents.values())]
    assert find_card_errors(contents["README.md"].encode()) == []
    assert ModelCard(contents["README.md"]).data.eval_results[0].dataset_type == "my-reviews"


@pytest.mark.parametrize(
    ("workspace", "options", "match"),
    [
        ("local", [], r"base\.json: name: /.*/base is a folder of this machine, .*--base-model OWNER/NAME"),
        ("local", ["--base-model", "nano"], "--base-model: nano: allowed: OWNER/NAME"),
        ("local", ["--base-model", "a/b/c"], "--base-model: .*a/b/c"),
        ("on_hub", ["--base-model", "tests/nano"], "--base-model: tests/nano, but .* trained on tests/nano of the hub"),
    ],
)
def test_the_base_must_have_a_name_on_the_hub(publish, tmp_path, workspace, options, match):
    refused(publish, tmp_path, match, workspace, "--license", "mit", *options)


def test_the_card_of_another_adapter_is_rejected(publish, workspaces, tmp_path):
    other = shutil.copytree(workspaces / "on_hub/outs/adapter", tmp_path / "other")
    (other / "validation.json").chmod(0o644)
    (other / "validation.json").write_text("{}")
    options = ("on_hub", "--license", "mit", "--adapter", str(other))
    refused(
        publish, tmp_path, r"^metrics/model_card\.md: describes another adapter than .*other; run `dvc repro`", *options
    )


def test_a_missing_card_is_an_error(publish, workspaces, tmp_path, monkeypatch):
    shutil.copytree(workspaces / "on_hub/outs/adapter", tmp_path / "outs/adapter")
    monkeypatch.setattr(export.publish, "CARD", tmp_path / "none.md")
    refused(publish, tmp_path, r"none\.md: no such file; run `dvc repro`", "on_hub", "--license", "mit")


@pytest.mark.parametrize("path", ["{home}/reviews.csv", "{workspace}", "{cache}/models--a", "{data}", "/tmp/a"])
def test_a_file_with_a_path_of_this_machine_is_rejected(publish, workspaces, tmp_path, path):
    workspace = shutil.copytree(workspaces / "on_hub", workspaces / f"private{len(list(workspaces.iterdir()))}")
    path = path.format(home=Path.home(), workspace=workspace, cache=tmp_path / "hf", data=workspaces / DATA)
    card = workspace / "metrics/model_card.md"
    before = digest_adapter(workspace / "outs/adapter")
    (workspace / "outs/adapter/validation.json").chmod(0o644)
    edit_json(workspace / "outs/adapter", "validation.json", note=path)
    card.write_text(card.read_text().replace(before, digest_adapter(workspace / "outs/adapter")))
    match = f"^the adapter's validation.json: has the path {re.escape(path[:4])}.* of this machine"
    refused(publish, tmp_path, match, workspace.name, "--license", "mit")


def test_the_base_on_the_hub_is_compared_and_its_commit_pinned(publish, workspaces, serve):
    serve({path.name: path.read_bytes() for path in NANO.iterdir()})
    folder, printed = publish("local", "--base-model", "tests/nano", "--license", "mit")
    assert json.loads((folder / "base.json").read_text())["revision"] == COMMIT
    assert json.loads((folder / "adapter_config.json").read_text())["revision"] == COMMIT
    text = (folder / "README.md").read_text()
    assert f'    "tests/nano",\n    revision="{COMMIT}",\n    config=' in text and "not compared" not in printed


@pytest.mark.parametrize("change", ["other weights", "missing", "no repository"])
def test_a_base_on_the_hub_with_other_files_is_rejected(publish, tmp_path, serve, change):
    """The adapter would predict wrongly on it."""
    contents = {path.name: path.read_bytes() for path in NANO.iterdir()}
    weights = contents.pop("model.safetensors")
    if change == "other weights":
        contents["model.safetensors"] = bytes([weights[0] ^ 1]) + weights[1:]
    name, match = "tests/nano", r"its model\.safetensors is not the file that the adapter was trained on"
    if change == "no repository":
        name, match = "tests/none", "the hub answers: .*; correct the name, upload the base, or set HF_TOKEN"
    serve(contents)
    refused(publish, tmp_path, rf"^--base-model: {name}: {match}", "local", "--base-model", name, "--license", "mit")


def test_the_merge_cannot_be_chosen_for_an_adapter_only(publish, capsys):
    with pytest.raises(SystemExit):
        publish("on_hub", "--merge", "original")
    assert "--merge: not allowed with argument --adapter-only" in capsys.readouterr().err
