"""The demo's adapter, merged by `tools.export`. transformers loads it without this project, and LitServe serves it."""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import safetensors.torch
from helpers.processes import free_port
from helpers.project import ROOT
from helpers.stages import StartedModule, run_module, stage_env
from helpers.tables import CLASSES
from huggingface_hub import ModelCard
from peft.tuners.lora import LoraLayer
from transformers import AutoTokenizer

from stages.data.tokenization import encode_rows
from stages.runtime.errors import UserError
from tools import export

pytestmark = pytest.mark.slow

DOCUMENT = (ROOT / "docs/sharing.md").read_text()
SERVER = re.search(r"```python\n((?:(?!```).)*litserve.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)[1]
TEMPLATE = "Premise: {}\nHypothesis: {}\nLabel:"
FRESH = """
import contextlib, io, json, sys
def run(code):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()
request = json.load(sys.stdin)
printed = [run(code) for code in request.pop("codes")]
from transformers import pipeline
classify = pipeline("text-classification", sys.argv[1])
answers = {name: classify(texts, top_k=None, batch_size=size) for name, (texts, size) in request.items()}
assert not {"stages", "tools", "bitsandbytes"} & set(sys.modules)
assert classify.model.dtype.__str__() == "torch.bfloat16"
print(json.dumps([answers, printed]))
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
    """What a new process without this project computes.

    Returns:
        probabilities {"batches" (all rows) | "alone" (those of `pick_rows`): [rows, classes]}, and {"printed": what the
        code that `export` printed prints, and what the code in its card prints}
    """
    (out, printed), texts = exported, texts_of(rows)
    block = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    codes = [printed[printed.index("from transformers") :], block.replace("path/to/this/folder", str(out))]
    request = {"codes": codes, "batches": [texts, 64], "alone": [[texts[row] for row in pick_rows(texts)], 1]}
    process = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, str(out)], input=json.dumps(request), capture_output=True,
        text=True, cwd=tmp_path_factory.mktemp("elsewhere"), env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    answers, printed = json.loads(process.stdout)
    return {name: np.array([by_class(row) for row in found]) for name, found in answers.items()} | {"printed": printed}


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    """The address of the server in docs/serving.md, started as its reader does. SIGTERM ends it, with its workers."""
    pytest.importorskip("litserve")
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "serve.py").write_text(SERVER)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "serve.py", str(exported[0]), str(port)], cwd=folder, stdout=log, stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1"}, start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        while ask(f"{address}/health")[0] != 200:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"{address}/predict"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(60) == 0, (folder / "log").read_text()
        while any(map(is_alive, workers)):
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def few_rows(demo, tmp_path_factory):
    """A folder with what `tools.export` reads, but with 40 test rows."""
    folder = tmp_path_factory.mktemp("few_rows")
    shutil.copytree(demo / "outs", folder / "outs")
    (folder / "assets").symlink_to(demo / "assets")
    path = folder / "outs/tokenized/test.parquet"
    rows = pd.read_parquet(path)[:40]
    path.unlink()
    rows.to_parquet(path)
    return folder


@pytest.fixture
def in_demo(few_rows, monkeypatch):
    """Change into a folder such as demo/, as the command does: (adapter, some of its rows)."""
    monkeypatch.chdir(few_rows)
    adapter = export.Adapter.read(Path("outs/adapter"))
    rows = export.FilledRows.read(adapter)
    some = export.FilledRows(rows.texts[:40], rows.ids[:40], rows.gold[:40], 0)
    return adapter, some


def run_export(demo, *arguments):
    return run_module("tools.export", arguments, demo, stage_env(PYTHONPATH=str(demo.parent)))


def is_alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE


def ask(address, body=None):
    """Send a request -> (status, answer); without a server: (0, "")."""
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def ask_in_turn(address, pairs):
    """Send rows one after another, each with a key that no template names -> the answers."""
    bodies = (json.dumps({"premise": premise, "hypothesis": hypothesis, "id": 1}) for premise, hypothesis in pairs)
    answers = [ask(address, body.encode()) for body in bodies]
    assert {status for status, _ in answers} == {200}, answers
    return [json.loads(answer) for _, answer in answers]


def texts_of(rows):
    return [TEMPLATE.format(row.text_premise, row.text_hypothesis) for row in rows.itertuples()]


def pick_rows(texts):
    """Every tenth row, and the shortest and the longest."""
    lengths = [len(text) for text in texts]
    return sorted({*range(0, len(texts), 10), int(np.argmin(lengths)), int(np.argmax(lengths))})


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


def test_the_printed_code_and_the_code_in_the_card_run(fresh):
    first, second = fresh["printed"]
    assert first == second and any(name in first for name in CLASSES)


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
        "README.md", "classifier.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
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


def test_a_killed_export_leaves_no_folder_and_the_next_one_succeeds(demo, few_rows, tmp_path):
    """It is killed after it saved the weights and before it named the folder, while it checks what it wrote."""
    out = tmp_path / "out"
    out.mkdir()
    process = StartedModule("tools.export", [out], few_rows, stage_env(PYTHONPATH=str(demo.parent)))
    while not (left := list(tmp_path.glob(".out.*.tmp/model.safetensors"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.iterdir()) == [] and left[0].exists()
    process = run_module("tools.export", [out], few_rows, stage_env(PYTHONPATH=str(demo.parent)))
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


def test_a_server_gives_each_of_64_clients_its_own_answers(server, rows, fresh):
    """They equal those of the pipeline called row by row. Prints how many rows a second it answers."""
    numbers = pick_rows(texts_of(rows))[:320]
    expected = fresh["alone"][: len(numbers)]
    pairs = rows[["text_premise", "text_hypothesis"]].to_numpy()[numbers].tolist()
    start = time.perf_counter()
    ask_in_turn(server, pairs[:64])
    seconds = [time.perf_counter() - start]
    with ThreadPoolExecutor(64) as clients:
        start = time.perf_counter()
        answers = list(clients.map(lambda client: ask_in_turn(server, pairs[client::64]), range(64)))
        seconds.append(time.perf_counter() - start)
    one_by_one, batched = 64 / seconds[0], len(pairs) / seconds[1]
    print(f"{one_by_one:.0f} rows/s one by one, {batched:.0f} rows/s from 64 clients")
    assert batched > one_by_one
    served = [answers[row % 64][row // 64] for row in range(len(pairs))]
    probabilities = np.array([[answer["probabilities"][name] for name in CLASSES] for answer in served])
    assert np.abs(probabilities - expected).max() < 0.05, "a batch of rows of other lengths rounds otherwise"
    assert [answer["prediction"] for answer in served] == [CLASSES[row] for row in probabilities.argmax(1)]


REJECTED = {
    "not JSON": (b'{"premise":', 422),
    "not UTF-8": (b'{"premise": "\xff"}', 400),
    "nested too deep": (b"[" * 100_000, 400),
    "a list": (b"[1]", 422),
    "no hypothesis": (b'{"premise": "A man sleeps."}', 422),
    "a number": (b'{"premise": "A man sleeps.", "hypothesis": 1}', 422),
    "half a character": (b'{"premise": "A man sleeps.", "hypothesis": "\\ud800"}', 422),
    "empty": (b'{"premise": "", "hypothesis": " "}', 422),
    "a long text": (json.dumps({"premise": "long " * 2001, "hypothesis": "text"}).encode(), 422),
    "a large body": (json.dumps({"premise": "a", "hypothesis": "b", "id": "long " * 200_000}).encode(), 413),
}


def test_a_bad_request_is_rejected_and_fails_no_other_one(server, rows, fresh):
    """They arrive together with good requests, and would be in the same batch."""
    good = json.dumps(
        dict(zip(("premise", "hypothesis"), rows.loc[0, ["text_premise", "text_hypothesis"]], strict=True))
    )
    bodies = [body for bad, _ in REJECTED.values() for body in (bad, good.encode(), good.encode())]
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = list(clients.map(lambda body: ask(server, body), bodies))
    assert dict(zip(REJECTED, [status for status, _ in answers[::3]], strict=True)) == {
        name: status for name, (_, status) in REJECTED.items()
    }
    assert all(len(answer) < 200 and "detail" in json.loads(answer) for _, answer in answers[::3]), "no text comes back"
    for status, answer in [*answers[1::3], *answers[2::3]]:
        assert status == 200
        assert json.loads(answer)["probabilities"] == pytest.approx(
            dict(zip(CLASSES, fresh["batches"][0], strict=True)), abs=0.05
        )


def run_server_file(folder, tmp_path, monkeypatch):
    """The functions of the server in docs/serving.md, without a server."""
    pytest.importorskip("litserve")
    (tmp_path / "serve.py").write_text(SERVER)
    monkeypatch.setattr(sys, "argv", ["serve.py", str(folder), "8000"])
    return runpy.run_path(str(tmp_path / "serve.py"))


def test_a_server_truncates_as_training_does(exported, in_demo, rows, tmp_path, monkeypatch):
    """The name of a special token is text, braces too."""
    serve = run_server_file(exported[0], tmp_path, monkeypatch)
    rng = np.random.default_rng(0)
    odd = ["中文字符测试", "   ", "1234567890 ", "ünïcødé 😀 ", "<|endoftext|>", "{premise}", "aaaaaaaaaaaa"]
    pieces = [*rows["text_premise"], *rows["text_hypothesis"], *odd * 40]
    pairs = [["".join(rng.choice(pieces, rng.integers(1, 12))) for _ in range(2)] for _ in range(100)]
    template = TEMPLATE.format("{premise}", "{hypothesis}")
    table = pd.DataFrame(pairs, columns=["text_premise", "text_hypothesis"])
    texts, _, lengths = encode_rows(table, in_demo[0].tokenizer, template, 128)
    assert 30 < sum(length > 128 for length in lengths) < 90
    for (premise, hypothesis), text in zip(pairs, texts, strict=True):
        row = serve["check"]({"premise": premise, "hypothesis": hypothesis})
        assert serve["Classifier"]().decode_request(row) == text


def test_a_server_rejects_the_name_of_a_special_token_if_the_template_has_special_tokens(
    exported, tmp_path, monkeypatch
):
    from fastapi import HTTPException

    folder = shutil.copytree(exported[0], tmp_path / "model")
    settings = json.loads((folder / "classifier.json").read_text())
    (folder / "classifier.json").write_text(json.dumps(settings | {"template": "<|endoftext|>{premise} {hypothesis}"}))
    AutoTokenizer.from_pretrained(folder, split_special_tokens=False).save_pretrained(folder)
    check = run_server_file(folder, tmp_path, monkeypatch)["check"]
    row = {"premise": "A man sleeps.", "hypothesis": "He is <|endoftext|> awake."}
    with pytest.raises(HTTPException, match="the name of a special token") as error:
        check(row)
    assert error.value.status_code == 422
    row["hypothesis"] = "He is awake."
    assert check(row) == row
