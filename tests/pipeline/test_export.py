"""The pipeline's own adapter, merged and handed on: opened by plain transformers, in a process that knows no more."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
from helpers.project import ROOT
from helpers.stages import stage_env
from helpers.tables import CLASSES
from huggingface_hub import ModelCard
from peft.tuners.lora import LoraLayer
from transformers import AutoTokenizer

from stages.runtime.errors import UserError
from tools import export

pytestmark = pytest.mark.slow

DOCUMENT = (ROOT / "docs/sharing.md").read_text()
TEMPLATE = "Premise: {}\nHypothesis: {}\nLabel:"
FRESH = """
import json, sys
from transformers import pipeline
ask = pipeline("text-classification", sys.argv[1])
asked = json.load(sys.stdin)
answers = {name: ask(asked["texts"], top_k=None, batch_size=size) for name, size in asked["batches"].items()}
assert not {"stages", "tools", "bitsandbytes"} & set(sys.modules)
assert ask.model.dtype.__str__() == "torch.bfloat16"
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def demo(repro):
    restored = repro.clone.dvc("checkout")  # tests of refused runs, before these, leave the clone without some outs
    assert restored.returncode == 0, restored.stderr
    return repro.clone.folder / "demo"


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory):
    """(folder, what was printed)."""
    out = tmp_path_factory.mktemp("exported") / "handed on"
    done = command(demo, out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def rows(demo):
    """The test rows with the adapter's answers by `eval_lora`."""
    return pd.read_parquet(demo / "outs/results/tuned/predictions.parquet")


@pytest.fixture(scope="module")
def fresh(exported, rows, tmp_path_factory):
    """What a fresh process answers: {"batches" | "alone": probabilities [rows, classes]}."""
    asked = {"texts": texts_of(rows), "batches": {"batches": 32, "alone": 1}}
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, str(exported[0])], input=json.dumps(asked), capture_output=True, text=True,
        cwd=tmp_path_factory.mktemp("elsewhere"), env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    return {name: np.array([by_class(row) for row in found]) for name, found in answers.items()}


@pytest.fixture
def in_demo(demo, monkeypatch):
    """This process works in the clone's demo/, as the command does; -> (adapter, some of its rows)."""
    monkeypatch.chdir(demo)
    adapter = export.Adapter.read(Path("outs/adapter"))
    every = export.Rows.read(adapter)
    some = export.Rows(every.texts[:40], every.ids[:40], every.gold[:40], 0)
    return adapter, some


def command(demo, *arguments, start="run"):
    call = [sys.executable, "-m", "tools.export", *map(str, arguments)]
    how = {"cwd": demo, "env": stage_env(PYTHONPATH=str(demo.parent)), "text": True}
    if start == "popen":
        return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
    return subprocess.run(call, capture_output=True, **how)


def texts_of(rows):
    return [TEMPLATE.format(row.text_premise, row.text_hypothesis) for row in rows.itertuples()]


def by_class(answer):
    scores = {each["label"]: each["score"] for each in answer}
    assert set(scores) == set(CLASSES)
    return [scores[name] for name in CLASSES]


def test_a_fresh_process_answers_as_the_adapter_on_4_bits(fresh, rows):
    """Of the difference, rounding to bfloat16 is all."""
    expected = rows[[f"p_{name}" for name in CLASSES]].to_numpy()
    apart = np.abs(fresh["batches"] - expected)
    assert apart.max() < 0.2 and apart.mean() < 0.001
    assert (fresh["batches"].argmax(1) != rows["prediction"]).sum() <= 3


def test_a_row_gets_the_same_answer_beside_longer_ones(fresh):
    """The token that pads is the one that the model looks for, and stands on the right."""
    assert fresh["batches"] == pytest.approx(fresh["alone"], abs=0.05)
    assert np.abs(fresh["batches"] - fresh["alone"]).mean() < 1e-3


def test_what_is_printed_is_what_a_fresh_process_finds(exported, fresh, rows):
    """Accuracy, flips and largest difference, counted anew from answers and the pipeline's own predictions."""
    printed = exported[1]
    line = re.search(
        r"merged into the dequantised weights: accuracy ([\d.]+)%, answers flipped: (\d+), .* ([\d.]+) apart", printed
    )
    answers = fresh["batches"].argmax(1)
    assert float(line[1]) == pytest.approx(100 * (answers == rows["label"]).mean(), abs=0.21)
    assert abs(int(line[2]) - (answers != rows["prediction"]).sum()) <= 2
    largest = np.abs(fresh["batches"] - rows[[f"p_{name}" for name in CLASSES]].to_numpy()).max()
    assert float(line[3]) == pytest.approx(largest, abs=0.03)
    tuned = (rows["label"] == rows["prediction"]).mean()
    assert f"adapter on its own base: accuracy {tuned:.1%}\n" in printed and printed.startswith("1,000 test rows\n")


def test_the_readme_shows_what_is_printed(exported):
    block = re.search(r"```\n\$ python -m tools.export .*\n((?:.*\n)+?)…\n```", DOCUMENT)[1]
    number = r"\d+(?:\.\d+)?"
    shown, printed = block.splitlines(), exported[1].splitlines()[: block.count("\n")]
    assert [re.sub(number, "N", line) for line in shown] == [re.sub(number, "N", line) for line in printed]
    shares = [[float(share) for share in re.findall(r"([\d.]+)%", "".join(lines))] for lines in (shown, printed)]
    assert shares[0] == pytest.approx(shares[1], abs=1)


@pytest.mark.parametrize("into", ["original", "dequantised"])
def test_a_merge_that_is_not_the_adapter_is_refused(in_demo, tmp_path, monkeypatch, into):
    """LoRA's scale is left out."""
    right = export.load_adapter

    def unscaled(*arguments):
        model = right(*arguments)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.scaling["default"] = 1.0
        return model

    monkeypatch.setattr(export, "load_adapter", unscaled)
    with pytest.raises(UserError, match="does not answer as the adapter does"):
        export.export(tmp_path / "out", Path("outs/adapter"), into)
    assert list(tmp_path.iterdir()) == []


def test_the_lines_that_are_printed_and_those_of_the_card_run(exported, tmp_path):
    out, printed = exported
    lines = printed[printed.index("from transformers") :]
    block = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    answers = []
    for code in (lines, block.replace("path/to/this/folder", str(out))):
        done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert answers[0] == answers[1] and any(name in answers[0] for name in CLASSES)


def test_the_card_is_the_hubs(exported):
    card = ModelCard.load(exported[0] / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-classification"
    (result,) = card.data.eval_results
    assert f"merged into the dequantised weights: accuracy {result.metric_value:.1%}," in exported[1]


def test_nothing_of_4_bits_and_nothing_of_this_machine_is_left(exported, demo):
    out = exported[0]
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert config["hidden_act"] == "gelu_pytorch_tanh", "params.yaml exchanged it"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for path in out.iterdir():
        assert path.stat().st_mode == (out / "config.json").stat().st_mode, "others may read it too"
        if path.suffix != ".safetensors":
            assert str(demo) not in path.read_text() and str(out) not in path.read_text()
    assert not [path for path in out.parent.iterdir() if path != out]


def test_a_special_tokens_name_in_a_text_is_text(exported, in_demo):
    """And of a text that is too long, the template's end stays, should its user have it cut."""
    adapter, _ = in_demo
    words = AutoTokenizer.from_pretrained(exported[0])
    text = TEMPLATE.format("A man <|endoftext|> sleeps.", "He is awake.")
    ids = words(text)["input_ids"]
    assert ids == adapter.tokenizer(text, split_special_tokens=True)["input_ids"]
    assert words.eos_token_id not in ids
    end = words("\nLabel:")["input_ids"]
    cut = words(TEMPLATE.format("long " * 500, "text"), truncation=True)["input_ids"]
    assert len(cut) == 128 and cut[-len(end) :] == end


def test_the_other_merge_can_be_had(exported, in_demo, tmp_path, capsys):
    """It has other weights in the layers that LoRA tuned, and in no others."""
    out = tmp_path / "out"
    export.export(out, Path("outs/adapter"), "original")
    assert "out: merged into the original weights, 0.00111 GB" in capsys.readouterr().out
    ours, theirs = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (out, exported[0]))
    other = {name for name in ours if not ours[name].equal(theirs[name])}
    assert other == {
        name for name in ours if name.endswith(("proj.weight", "dense.weight", "fc1.weight", "fc2.weight"))
    }


@pytest.mark.parametrize("what", ["a folder with a file", "a file"])
def test_what_is_there_is_left_alone(demo, tmp_path, what):
    out = tmp_path / "out"
    mine = out / "mine.txt" if what == "a folder with a file" else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    done = command(demo, out)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: {out}: is there already; allowed: a new or an empty folder\n"
    assert mine.read_text() == "mine"


def test_killed_it_leaves_no_folder_and_the_next_one_goes_well(demo, tmp_path):
    """Killed between the weights' saving and the folder's name, where it reads back what it wrote."""
    out = tmp_path / "out"
    out.mkdir()
    process = command(demo, out, start="popen")
    while not (left := list(tmp_path.glob(".out.*.tmp/model.safetensors"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.iterdir()) == [] and left[0].exists()
    done = command(demo, out)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        (
            "base.json",  # of a base with other weights
            lambda saved: saved["files"]["model.safetensors"].update(sha256="0" * 64),
            "nano-phi/model.safetensors: missing or changed since `download` read it",
        ),
        ("classifier.json", lambda saved: saved.update(classes=["a", "b", "c"]), "outs/task.json: classes: entailment"),
    ],
    ids=["another base", "another task"],
)
def test_the_adapter_belongs_to_its_base_and_the_rows_to_its_task(demo, tmp_path, name, damage, said):
    folder = shutil.copytree(demo / "outs/adapter", tmp_path / "adapter")
    saved = json.loads((folder / name).read_text())
    damage(saved)
    (folder / name).write_text(json.dumps(saved))
    done = command(demo, tmp_path / "out", "--adapter", folder)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
