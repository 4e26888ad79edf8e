"""`tools.export`: how it measures and chooses a merge, what it rejects, and what it writes."""

import ast
import contextlib
import io
import json
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import bitsandbytes
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import random_adapter
from helpers.damage import edit_json, edit_weights
from helpers.parameters import manifest_of, unpinned_params
from helpers.project import CPU, NANO, ROOT
from helpers.tables import CLASSES, LABELS
from huggingface_hub import ModelCard, constants
from sklearn.metrics import f1_score
from transformers import AutoTokenizer

from stages.data.batching import TokenizedRows
from stages.data.chat import apply_chat
from stages.data.labels import MultiLabel, SingleLabel
from stages.data.task import Task
from stages.data.tokenization import encode_rows, load_configured_tokenizer, load_tokenizer
from stages.model.adapter import add_lora, save_adapter, save_tokenizer
from stages.model.adapter_files import make_settings
from stages.model.base import load_base
from stages.runtime import files, params
from stages.runtime.errors import UserError
from tools import export
from tools.export import Agreement
from tools.lock_params import hash_out
from tools.predict import __main__ as predict

USE, SERVING = ((ROOT / f"docs/{name}.md").read_text() for name in ("use", "serving"))
SWAPPED_CLASSES = {"0": "neutral", "1": CLASSES[0], "2": CLASSES[2]}
TEXTS = [f"Premise: A man {'is ' * n}sleeping.\nHypothesis: A dog is outside.\nLabel:" for n in range(1, 9)]


def test_flips_are_counted_against_the_adapter_and_accuracy_against_gold():
    expected = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    probabilities = np.array([[0.8, 0.2], [0.4, 0.6], [0.2, 0.8], [0.6, 0.4]])
    agreement = Agreement.measure(probabilities, expected, np.array([0, 1, 1, 1]), SingleLabel(("a", "b")))
    assert agreement == Agreement({"accuracy": 0.75}, flips=2, mean=pytest.approx(0.15), largest=pytest.approx(0.3))


def test_an_answer_with_several_labels_is_flipped_if_one_label_is():
    expected = np.array([[0.9, 0.4], [0.6, 0.7], [0.2, 0.3]])
    probabilities = np.array([[0.8, 0.6], [0.6, 0.9], [0.4, 0.4]])
    gold = np.array([[True, True], [True, True], [False, True]])
    agreement = Agreement.measure(probabilities, expected, gold, MultiLabel(("a", "b")))
    assert agreement.scores == pytest.approx({"accuracy": 2 / 3, "f1_micro": 8 / 9}) and agreement.flips == 1


def test_macro_f1_is_first_if_the_classes_of_the_rows_are_uneven():
    gold, predicted = np.array([0] * 8 + [1] * 2), np.array([0] * 7 + [1] * 2 + [0])
    agreement = Agreement.measure(np.eye(2)[predicted], np.eye(2)[gold], gold, SingleLabel(("a", "b")))
    assert agreement.scores == pytest.approx({"f1_macro": f1_score(gold, predicted, average="macro"), "accuracy": 0.8})
    about = {
        "task": Task(("a", "b"), "{text}", None), "rows": 10, "left_out": 0, "adapter": agreement, "chosen": "original",
        "merges": {"original": agreement}, "dtype": "bfloat16", "example": "x",
    }  # fmt: skip
    lines = export.summarize(about, 1, Path("out"))
    assert lines[1] == f"adapter on its own base: macro F1 {agreement.scores['f1_macro']:.1%}, accuracy 80.0%"
    assert lines[2].startswith(f"merged into the original weights: {lines[1].split(': ')[1]}, answers flipped: 2, ")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_are_rejected(value):
    with pytest.raises(UserError, match="in bfloat16 the merged model's probabilities are not all finite"):
        Agreement.measure(np.array([[value, 0.5]]), np.array([[0.5, 0.5]]), np.array([0]), LABELS)


@pytest.mark.parametrize(
    ("original", "dequantised", "chosen"),
    [((1, 0.2), (2, 0.1), "original"), ((2, 0.1), (1, 0.2), "dequantised"), ((1, 0.2), (1, 0.1), "dequantised"),
     ((0, 0.1), (0, 0.2), "original")],
)  # fmt: skip
def test_the_closer_merge_has_fewer_flips_then_the_smaller_mean(original, dequantised, chosen):
    merges = {"original": original, "dequantised": dequantised}
    agreements = {name: Agreement({}, *flips_and_mean, largest=0.5) for name, flips_and_mean in merges.items()}
    assert export.choose_merge(agreements) == chosen


def test_a_merge_is_accepted_if_rounding_explains_the_difference():
    export.check_merge(Agreement({}, 3, mean=0.01, largest=0.3))
    with pytest.raises(UserError, match=r"probabilities differ by 0\.2 in the mean \(1,200 predictions flipped\)"):
        export.check_merge(Agreement({}, 1200, mean=0.2, largest=0.3))


def test_a_disk_that_is_too_full_is_rejected_before_anything_is_written(tmp_path, monkeypatch):
    folders = []
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: folders.append(folder) or usage(2_000_000_000))
    export.check_space(tmp_path / "new/deeper/out", 1_000_000_000)
    with pytest.raises(UserError, match=r"out: needs 5\.6 GB, but its disk has 2\.0 GB free"):
        export.check_space(tmp_path / "new/deeper/out", 2_779_000_000)
    assert folders == [tmp_path] * 2


def test_an_empty_folder_and_a_new_one_are_accepted(tmp_path):
    export.check_vacant(tmp_path)
    export.check_vacant(tmp_path / "new")


def test_an_error_of_the_disk_is_reported_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"out: not written \(.*No space left"), export.write_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def make_adapter(folder, template=None, base=NANO):
    """Write an adapter with random weights.

    Args:
        template: None: the demo's.
        base: folder of the base model.
    """
    raw = unpinned_params()
    raw["tokenize"]["template"] = template or raw["tokenize"]["template"]
    p, manifest = params.Params.model_validate(raw), manifest_of(base)
    tokenizer = load_configured_tokenizer(manifest, p.tokenize.template)
    model = add_lora(load_base(manifest, p.model, LABELS, CPU, 42, tokenizer), p.lora, 42)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tokenizer, manifest, make_settings(p, Task(CLASSES, p.tokenize.template, None)), folder)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """(adapter with random weights, rows, merged folder, probabilities by the merged model in memory)."""
    top = tmp_path_factory.mktemp("merged")
    make_adapter(top / "adapter")
    adapter = export.Adapter.read(top / "adapter")
    rows = export.FilledRows(TEXTS, adapter.tokenizer(TEXTS)["input_ids"], np.zeros(len(TEXTS), int), 0)
    adapter.merge_into("dequantised").save_pretrained(top / "out")
    save_tokenizer(adapter.tokenizer, top / "out")
    return adapter, rows, top / "out", export.predict_with_merge(adapter, "dequantised", rows)


def change_pad_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(7)
    tokenizer.save_pretrained(folder)


def test_a_folder_that_was_written_correctly_passes_the_check(merged):
    adapter, rows, out, expected = merged
    export.check_written(out, adapter, rows, expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_weights(f, "score", lambda w: None), "predicts differently"),
        (lambda f: edit_weights(f, "q_proj.weight", lambda w: None), "predicts differently"),
        (lambda f: edit_weights(f, "fc1.weight", lambda w: 1.5 * w), "predicts differently"),
        (lambda f: edit_weights(f, "fc1.weight", lambda w: w.T), "not usable"),
        (lambda f: edit_json(f, "config.json", hidden_act="relu"), "predicts differently"),
        (lambda f: edit_json(f, "config.json", pad_token_id=None), "not usable"),
        (lambda f: edit_json(f, "config.json", pad_token_id=5), "predicts differently"),
        (lambda f: edit_json(f, "config.json", id2label=SWAPPED_CLASSES), "predicts differently"),
        (lambda f: edit_json(f, "config.json", id2label={"0": "a", "1": "b", "2": "c"}), "not usable"),
        (lambda f: edit_json(f, "config.json", problem_type="multi_label_classification"), "predicts differently"),
        (lambda f: edit_json(f, "tokenizer_config.json", padding_side="left"), "predicts differently"),
        (change_pad_token, "predicts differently"),
    ],
)  # fmt: skip
def test_a_folder_that_was_not_written_correctly_is_rejected(merged, tmp_path, damage, message):
    adapter, rows, out, expected = merged
    folder = shutil.copytree(out, tmp_path / "out")
    damage(folder)
    with pytest.raises(
        UserError, match=rf"not written: loaded by transformers' pipeline, the merged model .*{message}"
    ):
        export.check_written(folder, adapter, rows, expected)


def test_a_tokenizer_that_reads_the_name_of_a_special_token_as_the_token_is_rejected(merged, tmp_path):
    adapter, _, out, _ = merged
    texts = ["A man <|endoftext|> sleeps."]
    rows = export.FilledRows(texts, adapter.tokenizer(texts)["input_ids"], np.zeros(1, int), 0)
    folder = shutil.copytree(out, tmp_path / "out")
    edit_json(folder, "tokenizer_config.json", split_special_tokens=False)
    with pytest.raises(UserError, match="tokenizes 1 of 1 texts differently"):
        export.check_written(folder, adapter, rows, np.full((1, 3), 1 / 3))


def test_without_quantisation_there_is_one_merge(merged, tmp_path):
    folder = shutil.copytree(merged[0].folder, tmp_path / "adapter")
    settings = json.loads((folder / "classifier.json").read_text())
    settings["model"]["quantization"] = "none"
    edit_json(folder, "classifier.json", **settings)
    assert export.Adapter.read(folder).merges == ("original",)
    with pytest.raises(UserError, match=r"--merge: dequantised, but .* trained on weights that are not quantised"):
        export.export(tmp_path / "out", folder, "dequantised")


def test_the_option_base_names_the_folder_of_the_base(merged, tmp_path, monkeypatch):
    folder = shutil.copytree(merged[0].folder, tmp_path / "adapter")
    edit_json(folder, "base.json", name="assets/nano-phi")
    monkeypatch.chdir(tmp_path)
    adapter = export.Adapter.read(folder, NANO)
    assert adapter.manifest["name"] == "assets/nano-phi", "the card names the base as base.json does"
    assert (export.predict_with_merge(adapter, "dequantised", merged[1]) == merged[3]).all()
    monkeypatch.setattr(sys, "argv", ["export", "out", "--adapter", str(folder), "--base", "nowhere"])
    with pytest.raises(UserError, match=r"^--base: no folder nowhere"):
        export.main()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(("a", "b"), "{premise}{hypothesis}", None), "classes: a, b, but .* has entailment, neutral"),
        (Task(CLASSES[::-1], "{premise}{hypothesis}", None), "classes: contradiction, neutral, entailment, but"),
        (Task(CLASSES, "{text}", None), "columns: text, but .* has premise, hypothesis"),
        (Task(CLASSES, "{premise}{hypothesis}", None, multi_label=True), "multi_label: True, but .* has False"),
    ],
)
def test_rows_of_another_task_are_rejected(merged, tmp_path, monkeypatch, task, message):
    monkeypatch.chdir(tmp_path)
    task.write("outs/task.json")
    files.write_json("outs/data_source.json", {"name": "data", "revision": None, "digest": "d" * 64})
    with pytest.raises(UserError, match=rf"outs/task\.json: {message}"):
        export.export(tmp_path / "out", merged[0].folder, None)


def test_a_chat_template_is_exported_and_predict_gives_its_answers(nano_copy, tmp_path, monkeypatch, capsys):
    """The tokenizer adds BOS to a text, but not to the chat template, which has none."""
    path = nano_copy / "tokenizer.json"
    processor = json.loads(path.read_text())["post_processor"]
    bos = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    processor["special_tokens"] = {"<|endoftext|>": bos}
    processor["single"].insert(0, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}})
    edit_json(nano_copy, "tokenizer.json", post_processor=processor)
    (nano_copy / "chat_template.jinja").write_text("Q: {{ messages[0].content | trim }}\nA:")
    base = load_tokenizer(manifest_of(nano_copy))
    raw = {"template": "Is {premise} also {hypothesis}?", "max_length": 128, "chat": True, "system": None}
    template = apply_chat(base, params.Tokenize.model_validate(raw), "nano")
    rows = pd.DataFrame({"text_premise": ["a man ", " sleeps"], "text_hypothesis": "a dog", "label": [0, 1]})
    make_adapter(tmp_path / "adapter", template, nano_copy)
    monkeypatch.chdir(tmp_path)
    Path("outs/tokenized").mkdir(parents=True)
    Task(CLASSES, template, None).write("outs/task.json")
    files.write_json("outs/data_source.json", {"name": "data", "revision": None, "digest": "d" * 64})
    rows.to_parquet("outs/tokenized/test.parquet")
    export.export(tmp_path / "out", tmp_path / "adapter", "dequantised")
    texts, ids, _ = encode_rows(rows, base, template, 128)
    assert base(texts[0])["input_ids"] == [0, *ids[0]] and ids[0].count(0) == 0
    assert AutoTokenizer.from_pretrained("out")(texts)["input_ids"] == ids
    assert AutoTokenizer.from_pretrained("adapter")(texts)["input_ids"] == ids
    capsys.readouterr()
    block = re.search(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)[1]
    exec(block.replace("path/to/this/folder", "out"), names := {})
    assert names["text"].startswith("Q: Is Two dogs") and names["text"].endswith("?\nA:")
    (answer,) = predict.load_predictor(Path("adapter"), base_only=False)([list(names["texts"].values())])
    (exported,) = ast.literal_eval(capsys.readouterr().out)
    assert exported["label"] == answer["label"]
    assert exported["score"] == pytest.approx(answer["probabilities"][answer["label"]], abs=0.05)


def test_a_template_with_special_tokens_is_exported(tmp_path, monkeypatch, capsys):
    """The pipeline reads them as training did. It would read a special token's name in a text as the token.

    `export` leaves such a row out, and the code in the card rejects it.
    """
    template = "<|endoftext|>{premise}<|endoftext|>{hypothesis}\nLabel:"
    premises = ["A man is sleeping.", "Two <|endoftext|> dogs.", "A girl is reading. " * 60]
    rows = pd.DataFrame({"text_premise": premises, "text_hypothesis": "A man is awake.", "label": [0, 1, 2]})
    make_adapter(tmp_path / "adapter", template)
    monkeypatch.chdir(tmp_path)
    Path("outs/tokenized").mkdir(parents=True)
    Task(CLASSES, "{premise}{hypothesis}", None).write("outs/task.json")
    files.write_json("outs/data_source.json", {"name": "data", "revision": None, "digest": "d" * 64})
    rows.to_parquet("outs/tokenized/test.parquet")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    export.export(tmp_path / "out", tmp_path / "adapter", "original", None, "tests/nano", "mit")
    metadata = ModelCard.load("out/README.md").data
    assert metadata.base_model == "tests/nano" and metadata.license == "mit"
    assert (
        "2 test rows\n1 more were left out: their texts have the name of a special token\n" in capsys.readouterr().out
    )
    exported, base = AutoTokenizer.from_pretrained("out"), load_tokenizer(manifest_of(NANO))
    texts, ids, lengths = encode_rows(rows, base, template, 128)
    assert exported([texts[0], texts[2]])["input_ids"] == [ids[0], ids[2]] and [length > 128 for length in lengths] == [
        False,
        False,
        True,
    ]
    block = re.search(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)[1]
    block = block.replace("path/to/this/folder", "out")
    exec(block, {})
    assert any(name in capsys.readouterr().out for name in CLASSES)
    with pytest.raises(AssertionError, match="a text holds the name of a special token"):
        exec(re.sub("(?m)^assert text == .*$", "", block.replace("Animals", "<|endoftext|>")), {})


# --- several labels a row ---


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A workspace with an adapter that answers with several labels, and its export `out`: (folder, printed text)."""
    folder, text = tmp_path_factory.mktemp("several"), io.StringIO()
    random_adapter.make_adapter(folder / "outs/adapter", multi_label=True)
    template = json.loads((folder / "outs/adapter/classifier.json").read_text())["template"]
    rows = pd.DataFrame({"text_premise": ["A man sleeps.", "Two dogs.", "A girl is reading."]})
    rows = rows.assign(text_hypothesis="A man is awake.", label=[[0, 2], [], [1]], input_ids=[[5], [6], [7]])
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.chdir(folder)
        Path("outs/tokenized").mkdir()
        Task(CLASSES, template, None, multi_label=True).write("outs/task.json")
        files.write_json("outs/data_source.json", {"name": "data", "revision": None, "digest": "d" * 64})
        rows.to_parquet("outs/tokenized/test.parquet")
        export.export(Path("out").resolve(), Path("outs/adapter"), None)
    return folder, text.getvalue()


def probabilities_of(folder, texts):
    """{label: probability} by the adapter on its base."""
    adapter = export.Adapter.read(folder / "outs/adapter")
    rows = TokenizedRows.from_lists(adapter.tokenizer(texts)["input_ids"], np.zeros((len(texts), 3), bool))
    return [dict(zip(CLASSES, row, strict=True)) for row in adapter.load_on_base().predict(rows, 1)]


def test_an_adapter_that_was_trained_on_other_rows_is_rejected(several, tmp_path, monkeypatch):
    """As after a run that ended before the training: the test rows may be some that the adapter was trained on."""
    monkeypatch.chdir(several[0])
    training = {"outs": [{"path": "outs/adapter", "md5": hash_out(Path("outs/adapter"))}]}
    lock = {"stages": {"train_qlora": training | {"deps": [{"path": "outs/tokenized", "md5": "of other rows"}]}}}
    files.write_json("dvc.lock", lock)
    try:
        with pytest.raises(UserError, match="outs/adapter: not trained on the rows that outs/tokenized has now"):
            export.export(tmp_path / "out", Path("outs/adapter"), None)
    finally:
        Path("dvc.lock").unlink()


def test_an_export_with_several_labels_prints_micro_f1_and_code_that_prints_them(several, capsys, monkeypatch):
    folder, text = several
    assert re.search(r"^3 test rows\nadapter on its own base: micro F1 [\d.]+%, subset accuracy [\d.]+%\n", text)
    monkeypatch.chdir(folder)
    block = re.search(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)[1]
    for code in (text[text.index("from transformers") :], block.replace("path/to/this/folder", "out")):
        exec(code, names := {})
        printed = ast.literal_eval(capsys.readouterr().out)
    (expected,) = probabilities_of(folder, [names["text"]])
    assert {each["label"]: each["score"] for each in printed} == pytest.approx(
        {label: p for label, p in expected.items() if p > 0.5}, abs=0.1
    )
    assert 0 < len(printed) < 3, "a threshold that this test would not notice"


def test_the_card_of_an_export_with_several_labels_has_micro_f1_and_subset_accuracy(several):
    folder, text = several
    card = ModelCard.load(folder / "out/README.md")
    f1, accuracy = re.search(r"the original weights: micro F1 ([\d.]+)%, subset accuracy ([\d.]+)%", text).groups()
    assert "| | micro F1 | subset accuracy | predictions that" in card.text
    assert re.search(rf"the original weights(, this folder)? \| {f1}% \| {accuracy}% \|", card.text)
    results = {result.metric_name: (result.metric_type, result.metric_args) for result in card.data.eval_results}
    assert results == {"Subset accuracy": ("accuracy", None), "Micro F1": ("f1", {"average": "micro"})}


def test_the_code_of_the_docs_and_the_server_answer_with_several_labels(several, capsys, monkeypatch):
    folder, _ = several
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    monkeypatch.chdir(folder)
    plain, server = (re.search(r"```python\n(.*?)```", text, re.DOTALL)[1] for text in (USE, SERVING))
    answer = re.search(r"write `(.*?)` instead of `(.*?)`. Its labels are\s+`(.*?)`", USE)
    replacements = {answer[2]: answer[1], "model.config.id2label[int(probabilities.argmax())]": answer[3]}
    for old, new in (replacements | {"microsoft/phi-2": str(NANO)}).items():
        assert plain.count(old) == 1
        plain = plain.replace(old, new)
    exec(plain, names := {})
    labels, _, values = capsys.readouterr().out.strip().rpartition("] [")
    (expected,) = probabilities_of(folder, [names["text"]])
    assert ast.literal_eval(f"[{values}") == pytest.approx(list(expected.values()), abs=1e-4)
    assert ast.literal_eval(f"{labels}]") == [label for label, p in expected.items() if p > 0.5]

    pytest.importorskip("litserve")
    monkeypatch.setattr(sys, "argv", ["serve.py", "out", "8000"])
    exec(server, names := {})
    classifier = names["Classifier"]()
    classifier.setup("cpu")
    texts = [classifier.decode_request(names["check"]({"premise": "A man.", "hypothesis": "A dog."})), "Two dogs"]
    for found, expected in zip(classifier.predict(texts), probabilities_of(folder, texts), strict=True):
        assert found["probabilities"] == pytest.approx(expected, abs=0.1)
        assert sorted(found["prediction"]) == sorted(label for label, p in found["probabilities"].items() if p > 0.5)
