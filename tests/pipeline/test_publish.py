"""The demo's adapter on a hub: exported, uploaded by `hf upload`, pulled by its revision, opened by plain PEFT."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import hub_server
from helpers.project import NANO
from helpers.stages import run_module, stage_env
from huggingface_hub import ModelCard, constants

from tools import export
from tools.predict import __main__ as predict

pytestmark = pytest.mark.slow

BASE, BASE_COMMIT, ADAPTER = "tests/nano", "0123456789abcdef0123456789abcdef01234567", "tests/nano-for-nli"
TOKEN = "hf_ThisTokenMustNeverBeSeen"


@pytest.fixture(scope="module")
def published(repro, tmp_path_factory):
    """The demo's adapter, exported and uploaded by the command that the tool prints; then another card was uploaded.

    Returns:
        namespace with `top`, `folder` (the exported one), `served` (the hub), `hub` (its variables) and `commit`
    """
    assert repro.clone.dvc("checkout").returncode == 0
    top, demo = tmp_path_factory.mktemp("published"), repro.clone.folder / "demo"
    with hub_server.Hub() as served, pytest.MonkeyPatch.context() as patch:
        served.add("models", BASE, BASE_COMMIT, {path.name: path.read_bytes() for path in NANO.iterdir()})
        hub = {"HF_ENDPOINT": served.url, "HF_HOME": str(top / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        patch.setattr(constants, "ENDPOINT", served.url)
        printed = export_here(demo, top / "publish", "--base-model", BASE, "--license", "mit")
        upload = printed.splitlines()[-1].replace("OWNER/NAME", ADAPTER)
        assert upload.startswith("hf upload tests/")
        env = {**os.environ, **hub, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_TOKEN": TOKEN}
        done = subprocess.run(["bash", "-c", upload], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr + printed
        commit, _ = served.repos["models", ADAPTER]
        card = served.repos["models", ADAPTER][1]["README.md"]
        served.commit("models", ADAPTER, "f" * 40, {"README.md": card + b"\nA later commit.\n"})
        yield SimpleNamespace(top=top, folder=top / "publish", served=served, hub=hub, commit=commit)


def export_here(demo, out, *options):
    """Run `tools.export --adapter-only` in this process, where the hub's address can be changed -> what it printed."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(demo)
        patch.setattr(sys, "argv", ["export", str(out), "--adapter-only", *options])
        export.main()
    return printed.getvalue()


def test_the_card_has_licence_and_base_and_passes_the_hubs_validation(published):
    card = ModelCard.load(published.folder / "README.md")
    card.validate()
    assert card.data.license == "mit" and card.data.base_model == BASE
    assert f'    "{BASE}",\n    revision="{BASE_COMMIT}",\n' in card.text
    assert f"- base model: `{BASE}, revision {BASE_COMMIT}, SHA-256" in card.text
    card.data.license = "MIT License"
    with pytest.raises(ValueError, match="license"):
        card.validate()


def test_plain_peft_opens_the_repository_and_predicts_as_tools_predict(published):
    """The code is the one in the card, with the adapter's name on the hub. The base comes from the hub too."""
    block = re.search(r"```python\n(.*?)```", (published.folder / "README.md").read_text(), re.DOTALL)[1]
    for before, after in (
        ("from_pretrained(base, folder)", f'from_pretrained(base, "{ADAPTER}", revision="{published.commit}")'),
        ("path/to/this/folder", "pulled"),
    ):
        assert block.count(before) == 1
        block = block.replace(before, after)
    (published.top / "pull_and_predict.py").write_text(
        "import bitsandbytes.nn.modules as layers\nfrom huggingface_hub import snapshot_download\n"
        # On a CPU with AVX512-BF16, bitsandbytes rounds to bfloat16. `predict` turns this off, so it is off here too.
        "layers.has_avx512bf16 = lambda: False\n"
        f'snapshot_download("{ADAPTER}", revision="{published.commit}", local_dir="pulled")\n{block}'
    )
    done = run_module("pull_and_predict", [], published.top, stage_env(**published.hub))
    assert done.returncode == 0, done.stderr
    assert published.served.seen[BASE, "get", "model.safetensors"] == 1

    pulled = published.top / "pulled"
    contents = [
        {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        for folder in (pulled, published.folder)
    ]
    assert contents[0] == contents[1]

    label, _, probabilities = done.stdout.strip().partition(" ")
    (answer,) = predict.load_predictor(pulled, base_only=False, base=NANO)(
        [["Two dogs are running in the park.", "Animals are outside."]]
    )
    assert label == answer["label"]
    assert json.loads(probabilities) == pytest.approx(list(answer["probabilities"].values()), abs=1e-4)
