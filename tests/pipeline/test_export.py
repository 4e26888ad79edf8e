"""The demo's adapter, merged by `tools.export` and loaded by transformers in a process without this project."""

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
from helpers.stages import run_module, stage_env
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
classify = pipeline("text-classification", sys.argv[1])
request = json.load(sys.stdin)
answers = {name: classify(texts, top_k=None, batch_size=size) for name, (texts, size) in request.items()}
assert not {"stages", "tools", "bitsandbytes"} & set(sys.modules)
assert classify.model.dtype.__str__() == "torch.bfloat16"
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def demo(repro):
    restored = repro.clone.dvc("checkout")  # earlier tests of failed runs leave the clone without some outs
    assert restored.returncode == 0, restored.stderr
    return repro.clone.folder / "demo"


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory):
    """(folder, printed text)."""
    out = tmp_path_factory.mktemp("exported") / "handed on"
    process = run_export(demo, out)
    assert process.returncode == 0, process.stderr
    return out, process.stdout


@pytest.fixture(scope="module")
def rows(demo):
    """The test rows with the adapter's predictions from `eval_lora`."""
    return pd.read_parquet(demo / "outs/results/tuned/predictions.parquet")


@pytest.fixture(scope="module")
def fresh(exported, rows, tmp_path_factory):
    """Probabilities by a new process: {"batches" (all rows) | "alone" (those of `pick_rows`): [rows, classes]}."""
    texts = texts_of(rows)
    request = {"batches": [texts, 32], "alone": [[texts[row] for row in pick_rows(texts)], 1]}
    process = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, str(exported[0])], input=json.dumps(request), capture_output=True,
        text=True, cwd=tmp_path_factory.mktemp("elsewhere"), env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout)
    return {name: np.array([by_class(row) for row in found]) for name, found in answers.items()}


@pytest.fixture
def in_demo(demo, monkeypatch):
    """Change into the clone's demo/, as the command does: (adapter, some of its rows)."""
    monkeypatch.chdir(demo)
    adapter = export.Adapter.read(Path("outs/adapter"))
    rows = export.FilledRows.read(adapter)
    some = export.FilledRows(rows.texts[:40], rows.ids[:40], rows.gold[:40], 0)
    return adapter, some


def run_export(demo, *arguments):
    return run_module("tools.export", arguments, demo, stage_env(PYTHONPATH=str(demo.parent)))


def texts_of(rows):
    return [TEMPLATE.format(row.text_premise, row.text_hypothesis) for row in rows.itertuples()]


def pick_rows(texts):
    """Every third row, and the shortest and the longest."""
    lengths = [len(text) for text in texts]
    return sorted({*range(0, len(texts), 3), int(np.argmin(lengths)), int(np.argmax(lengths))})


def by_class(answer):
    scores = {each["label"]: each["score"] for each in answer}
    assert set(scores) == set(CLASSES)
    return [scores[name] for name in CLASSES]


def test_a_new_process_predicts_as_the_adapter_on_its_4_bit_base(fresh, rows):
    """Only rounding to bfloat16 makes a difference."""
    expected = rows[[f"p_{name}" for name in CLASSES]].to_numpy()
    difference = np.abs(fresh["batches"] - expected)
    assert difference.max() < 0.2 and difference.mean() < 0.001
    assert (fresh["batches"].argmax(1) != rows["prediction"]).sum() <= 3


def test_padding_does_not_change_a_prediction(fresh, rows):
    """The pad token is the one that the model looks for, and it is on the right."""
    apart = np.abs(fresh["batches"][pick_rows(texts_of(rows))] - fresh["alone"])
    assert apart.max() < 0.05 and apart.mean() < 1e-3


def test_the_printed_figures_are_those_of_a_new_process(exported, fresh, rows):
    """Accuracy, flips and largest difference, computed from its probabilities and the predictions of `eval_lora`."""
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


def test_readme_shows_the_printed_text(exported):
    block = re.search(r"```\n\$ python -m tools.export .*\n((?:.*\n)+?)…\n```", DOCUMENT)[1]
    number = r"\d+(?:\.\d+)?"
    shown, printed = block.splitlines(), exported[1].splitlines()[: block.count("\n")]
    assert [re.sub(number, "N", line) for line in shown] == [re.sub(number, "N", line) for line in printed]
    shares = [[float(share) for share in re.findall(r"([\d.]+)%", "".join(lines))] for lines in (shown, printed)]
    assert shares[0] == pytest.approx(shares[1], abs=1)


@pytest.mark.parametrize("into", ["original", "dequantised"])
def test_a_merge_that_predicts_differently_is_rejected(in_demo, tmp_path, monkeypatch, into):
    """The merge leaves out LoRA's scale."""
    load_adapter = export.load_adapter

    def load_unscaled(*arguments):
        model = load_adapter(*arguments)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.scaling["default"] = 1.0
        return model

    monkeypatch.setattr(export, "load_adapter", load_unscaled)
    with pytest.raises(UserError, match="does not predict as the adapter does"):
        export.export(tmp_path / "out", Path("outs/adapter"), into)
    assert list(tmp_path.iterdir()) == []


def test_the_printed_code_and_the_code_in_the_card_run(exported, tmp_path):
    out, printed = exported
    lines = printed[printed.index("from transformers") :]
    block = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    codes = [lines, block.replace("path/to/this/folder", str(out))]
    code = f"for code in {codes}:\n    exec(code, {{}})\n    print('end')"
    process = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    first, second, rest = process.stdout.split("end\n")
    assert first == second and any(name in first for name in CLASSES) and not rest


def test_the_hubs_classes_read_the_card(exported):
    card = ModelCard.load(exported[0] / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-classification"
    (result,) = card.data.eval_results
    assert f"merged into the dequantised weights: accuracy {result.metric_value:.1%}," in exported[1]


def test_the_folder_has_no_trace_of_4_bits_and_of_this_machine(exported, demo):
    out = exported[0]
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert config["hidden_act"] == "gelu_pytorch_tanh", "params.yaml replaces it"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for path in out.iterdir():
        assert path.stat().st_mode == (out / "config.json").stat().st_mode, "others can read it too"
        if path.suffix != ".safetensors":
            assert str(demo) not in path.read_text() and str(out) not in path.read_text()
    assert not [path for path in out.parent.iterdir() if path != out]


def test_the_name_of_a_special_token_in_a_text_is_read_as_text(exported, in_demo):
    """If a user truncates a text that is too long, the end of the template remains."""
    adapter, _ = in_demo
    tokenizer = AutoTokenizer.from_pretrained(exported[0])
    text = TEMPLATE.format("A man <|endoftext|> sleeps.", "He is awake.")
    ids = tokenizer(text)["input_ids"]
    assert ids == adapter.tokenizer(text, split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in ids
    end = tokenizer("\nLabel:")["input_ids"]
    cut = tokenizer(TEMPLATE.format("long " * 500, "text"), truncation=True)["input_ids"]
    assert len(cut) == 128 and cut[-len(end) :] == end


def test_the_other_merge_can_be_written(exported, in_demo, tmp_path, capsys):
    """It has other weights in the layers with LoRA, and only there."""
    out = tmp_path / "out"
    export.export(out, Path("outs/adapter"), "original")
    assert "out: merged into the original weights, 0.00111 GB" in capsys.readouterr().out
    original, dequantised = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (out, exported[0]))
    other = {name for name in original if not original[name].equal(dequantised[name])}
    assert other == {
        name for name in original if name.endswith(("proj.weight", "dense.weight", "fc1.weight", "fc2.weight"))
    }


@pytest.mark.parametrize("what", ["a folder with a file", "a file"])
def test_a_file_and_a_folder_that_is_not_empty_are_left_unchanged(demo, tmp_path, what):
    out = tmp_path / "out"
    file = out / "file.txt" if what == "a folder with a file" else out
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    process = run_export(demo, out)
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr == f"error: {out}: exists and is not an empty folder; allowed: a new or an empty folder\n"
    assert file.read_text() == "mine"


def test_a_killed_export_leaves_no_folder_and_the_next_one_succeeds(demo, tmp_path):
    """It is killed after it saved the weights and before it named the folder, while it checks what it wrote."""
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.export", str(out)], cwd=demo, env=stage_env(PYTHONPATH=str(demo.parent)),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (left := list(tmp_path.glob(".out.*.tmp/model.safetensors"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.iterdir()) == [] and left[0].exists()
    process = run_export(demo, out)
    assert process.returncode == 0, process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
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
def test_another_base_and_rows_of_another_task_are_rejected(demo, tmp_path, name, damage, message):
    folder = shutil.copytree(demo / "outs/adapter", tmp_path / "adapter")
    saved = json.loads((folder / name).read_text())
    damage(saved)
    (folder / name).write_text(json.dumps(saved))
    process = run_export(demo, tmp_path / "out", "--adapter", folder)
    assert process.returncode == 1 and message in process.stderr and process.stderr.count("\n") == 1, process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
