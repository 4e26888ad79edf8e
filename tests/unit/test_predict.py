"""Predictions by a trained adapter: by arguments, JSON lines, interactively, and with plain transformers and peft."""

import contextlib
import io
import json
import re
import selectors
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import finished_run, tokenizers
from helpers.blank_figures import leave_figures_blank
from helpers.damage import edit_json
from helpers.parameters import manifest_of
from helpers.project import NANO, ROOT
from helpers.random_adapter import make_adapter
from helpers.stages import StartedModule, error_line, run_in_each, run_module, stage_env
from helpers.tables import CLASSES, LABELS
from sklearn.metrics import f1_score
from transformers import AutoConfig, AutoTokenizer

from stages import analyze
from stages.data.chat import apply_chat
from stages.data.labels import SingleLabel
from stages.data.tokenization import encode_rows, load_configured_tokenizer, load_tokenizer
from stages.model.validation_summary import BestThreshold, ValidationSummary
from stages.runtime import errors, params
from tools import answer_rules
from tools.predict import __main__ as predict

DOCUMENT = (ROOT / "docs/use.md").read_text()
COLUMNS = ("premise", "hypothesis")

PAIRS = [
    ("A man is sleeping in the park.", "A man is awake."),
    ("Two dogs are running.", "Animals are outside."),
    ("A girl is reading a book.", "The girl likes the book, and she reads it in the garden."),
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("trained") / "adapter")


def run(capsys, monkeypatch, arguments, lines=None):
    """Run `predict` in this process -> its output."""
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((lines or "").encode())))
    predict.main()
    return capsys.readouterr().out


def test_a_row_of_json_lines_without_a_text_has_no_prediction(adapter, capsys, monkeypatch):
    pairs = [PAIRS[0], ("", " "), (None, None), ("", PAIRS[0][1]), PAIRS[0]]
    lines = [json.dumps({"premise": premise, "hypothesis": hypothesis}) for premise, hypothesis in pairs]
    answers = [
        json.loads(line) for line in run(capsys, monkeypatch, ["--adapter", adapter], "\n".join(lines)).splitlines()
    ]
    assert [answer["prediction"] is None for answer in answers] == [False, True, True, False, False]
    assert [answer["probabilities"] is None for answer in answers] == [False, True, True, False, False]
    assert answers[0] == answers[4]


def test_the_texts_may_be_arguments(adapter, capsys, monkeypatch):
    answer = predict.load_predictor(adapter, base_only=False)(PAIRS[:1])[0]
    label, *lines = run(capsys, monkeypatch, [*PAIRS[0], "--adapter", adapter]).splitlines()
    assert label == answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert [line.split() for line in lines] == [[f"{p:.1%}", name] for name, p in answer["probabilities"].items()]


def test_a_text_that_is_too_long_is_reported(adapter, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["predict", "A man sleeps. " * 100, "He rests.", "--adapter", str(adapter)])
    predict.main()
    assert re.search(r"^1 of 1 rows have more than 128 tokens \(the longest has \d+\)", capsys.readouterr().err)


def test_json_lines_are_predicted_in_batches(adapter, capsys, monkeypatch):
    """There are more lines than in a batch, of different lengths. Their order and their other keys do not change."""
    pairs = PAIRS * (predict.BATCH_SIZE // len(PAIRS) + 2)
    lines = [json.dumps({"premise": p, "hypothesis": h, "id": i}) for i, (p, h) in enumerate(pairs)]
    printed = run(capsys, monkeypatch, ["--adapter", adapter], "\n\n".join(lines) + "\n").splitlines()
    assert not any(printed[1::2]), "an empty line keeps its place"
    answers = [json.loads(line) for line in printed[::2]]
    assert [answer["id"] for answer in answers] == list(range(len(pairs)))
    predictor = predict.load_predictor(adapter, base_only=False)
    for pair, answer in zip(pairs, answers, strict=True):
        (single,) = predictor([pair])
        assert answer["prediction"] == single["label"]
        assert answer["probabilities"] == pytest.approx(single["probabilities"], abs=1e-4)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_input_without_lines_has_no_answers(adapter, capsys, monkeypatch):
    assert run(capsys, monkeypatch, ["--adapter", adapter], "") == ""
    assert run(capsys, monkeypatch, ["--adapter", adapter], "\n") == "\n"


def test_base_only_predicts_without_the_adapter(adapter):
    base = predict.load_predictor(adapter, base_only=True)(PAIRS)
    tuned = predict.load_predictor(adapter, base_only=False)(PAIRS)
    assert base == predict.load_predictor(adapter, base_only=True)(PAIRS)  # the head is seeded
    assert all(b["probabilities"] != t["probabilities"] for b, t in zip(base, tuned, strict=True))


def test_untuned_predicts_without_the_adapter(adapter, capsys, monkeypatch):
    (answer,) = predict.load_predictor(adapter, base_only=True)(PAIRS[:1])
    printed = run(capsys, monkeypatch, [*PAIRS[0], "--untuned", "--adapter", adapter])
    assert printed == predict.format_answer(answer) + "\n"


def test_an_interactive_session_ends_with_an_empty_line(capsys, monkeypatch):
    typed = iter(["A man sleeps.", "He rests.", "", "not read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    predict.answer_interactively(lambda pairs: [{"label": f"{pairs[0]}", "probabilities": {"neutral": 0.5}}], COLUMNS)
    assert "['A man sleeps.', 'He rests.']\n   50.0% neutral" in capsys.readouterr().out
    assert next(typed) == "not read"


@pytest.mark.parametrize("line", ["{", "[]", '{"premise": "a"}', '{"premise": 1}'])
def test_the_error_names_the_number_of_a_bad_line(line):
    with pytest.raises(errors.UserError, match="standard input, line 7: "):
        predict.parse_line(7, line.encode(), COLUMNS)


BAD_LINES = {
    "bytes that are not UTF-8": (b'{"premise": "caf\xe9", "hypothesis": "a"}', "not UTF-8"),
    "an escaped half of a character": (rb'{"premise": "a\ud800", "hypothesis": "a"}', "not valid text"),
    "half of a character in another key": (
        rb'{"premise": "a", "hypothesis": "b", "note": ["\udfff"]}',
        "not valid text",
    ),
    "too many open brackets": (b"[" * 100_000, "nested too deep"),
    "too many brackets in another key": (
        b'{"premise": "a", "hypothesis": "b", "note": %s}' % (b"[" * 100_000 + b"]" * 100_000),
        "nested too deep",
    ),
    "a missing column": (b'{"premise": "a"}', "no 'hypothesis'; this adapter reads 'premise' and 'hypothesis'"),
    "a number": (b'{"premise": "a", "hypothesis": 5}', "hypothesis: must be text"),
    "a list": (b"[]", "must be an object with 'premise' and 'hypothesis'"),
    "a number that JSON does not have": (b'{"premise": "a", "hypothesis": "b", "note": 1e999}', "not JSON"),
    "the key of the prediction": (
        b'{"premise": "a", "hypothesis": "b", "prediction": 1}',
        "has the key 'prediction', which the answer uses",
    ),
    "the key of the probabilities": (
        b'{"premise": "a", "hypothesis": "b", "probabilities": 1}',
        "the key 'probabilities'",
    ),
}


@pytest.mark.parametrize("line, message", BAD_LINES.values(), ids=BAD_LINES)
def test_the_error_says_what_is_wrong_with_a_line(line, message):
    with pytest.raises(errors.UserError, match="standard input, line 7: ") as caught:
        predict.parse_line(7, line, COLUMNS)
    assert message in str(caught.value) and len(str(caught.value)) < 200


class FakePredictor:
    """Predicts neutral for each pair, and records the sizes of its batches."""

    def __init__(self):
        self.batch_sizes = []

    def __call__(self, pairs):
        self.batch_sizes.append(len(pairs))
        return [{"label": "neutral", "probabilities": {"neutral": 0.5}} for _ in pairs]


def number_lines(count):
    return [json.dumps({"premise": "a", "hypothesis": "b", "id": i}) for i in range(count)]


@pytest.mark.parametrize("bad", [6, 65, 130])
def test_lines_before_a_bad_one_are_answered(capsys, bad):
    lines = number_lines(140)
    lines[bad - 1] = "{"
    with pytest.raises(errors.UserError, match=f"standard input, line {bad}: not JSON"):
        predict.answer_lines(FakePredictor(), COLUMNS, io.BytesIO("\n".join(lines).encode()))
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == list(range(bad - 1))


def test_a_large_file_is_predicted_in_full_batches(capsys):
    predictor = FakePredictor()
    lines = number_lines(3 * predict.BATCH_SIZE + 5)
    predict.answer_lines(predictor, COLUMNS, io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
    assert predictor.batch_sizes == [predict.BATCH_SIZE] * 3 + [5]
    assert len(capsys.readouterr().out.splitlines()) == len(lines)


@pytest.mark.parametrize("parts", [[b"ab", b"c\nd", b"\n\ne", b"f"], [b"abc\n", b"d\n\nef\n"]])
def test_lines_are_complete_however_the_input_is_split(parts):
    chunks = iter(parts)
    reads = list(predict.read_whole_lines(SimpleNamespace(read1=lambda size: next(chunks, b""))))
    assert [line for lines in reads for line in lines if line] == [b"abc", b"d", b"ef"]


def test_an_answer_has_all_keys_of_its_line(capsys):
    line = {"premise": "a", "hypothesis": "b", "label": 2, "note": {"label": None}}
    predict.answer_lines(FakePredictor(), COLUMNS, io.BytesIO(json.dumps(line).encode()))
    answer = json.loads(capsys.readouterr().out)
    assert answer == line | {"prediction": "neutral", "probabilities": {"neutral": 0.5}}


def test_lines_are_utf8_in_every_locale(adapter, monkeypatch):
    line = '{"premise": "Zoë is asleep.", "hypothesis": "她睡着了。"}'
    monkeypatch.setattr(sys, "argv", ["predict", "--adapter", str(adapter)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line.encode()), encoding="ascii"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    predict.main()
    printed = sys.stdout.buffer.getvalue().decode()
    assert json.loads(printed).items() >= json.loads(line).items() and "她睡着了。" in printed


@contextlib.contextmanager
def predict_process(adapter, *arguments, **streams):
    """`predict` in a fork, which is killed at the end."""
    arguments = [*arguments, "--adapter", adapter]
    process = StartedModule("tools.predict", arguments, ROOT, stage_env(), stdout=subprocess.PIPE, **streams)
    try:
        yield process
    finally:
        process.kill()


def test_a_program_that_waits_for_each_answer_receives_it(adapter):
    with predict_process(adapter, stdin=subprocess.PIPE) as process, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        for line in number_lines(3):
            print(line, file=process.stdin, flush=True)
            assert selector.select(timeout=120), "no answer while the input is open"
            assert json.loads(process.stdout.readline()).items() > json.loads(line).items()
        process.stdin.write(number_lines(1)[0])  # the last line needs no line break
        process.stdin.close()
        assert json.loads(process.stdout.read())["id"] == 0
        assert process.wait() == 0


@pytest.mark.parametrize("arguments", [PAIRS[0], ()], ids=["arguments", "lines"])
def test_predict_ends_without_a_message_when_its_output_is_closed(adapter, tmp_path, arguments):
    lines = tmp_path / "pairs.jsonl"
    lines.write_text("\n".join(number_lines(200)))
    with predict_process(adapter, *arguments, stdin=lines, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        log = process.stderr.read()
        assert process.wait() == 1
    assert not any(word in log for word in ("Traceback", "BrokenPipe", "Exception", "error")), log


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_an_error(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(errors.UserError, match="standard output: No space left on device"):
            predict.print_now("entailment")


@pytest.mark.parametrize(
    "pair, message",
    [
        (("", ""), "premise and hypothesis: must be text that is not empty"),
        ((" ", "\t\n"), "premise and hypothesis: must be text that is not empty"),
        (("caf\udce9", "A man sleeps."), "premise: not valid text"),
        (("A man sleeps.", "\ud800"), "hypothesis: not valid text"),
    ],
)
def test_an_argument_that_is_not_valid_text_is_named(adapter, capsys, monkeypatch, pair, message):
    with pytest.raises(errors.UserError, match=message):
        run(capsys, monkeypatch, [*pair, "--adapter", adapter])


def test_typed_input_that_is_not_valid_text_is_named(monkeypatch):
    typed = iter(["caf\udce9", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    with pytest.raises(errors.UserError, match="premise: not valid text"):
        predict.answer_interactively(FakePredictor(), COLUMNS)


DAMAGED = {
    "no seed": ("classifier.json", lambda saved: saved.pop("seed"), "seed: missing"),
    "no section": ("classifier.json", lambda saved: saved.pop("batches"), "batches: missing"),
    "a template without a column": (
        "classifier.json", lambda saved: saved.update(template="Label:"), "template: ",
    ),
    "no classes": ("classifier.json", lambda saved: saved.pop("classes"), "classes: missing"),
    "a single class": ("classifier.json", lambda saved: saved.update(classes=["neutral"]), "classes: "),
    "an unknown key of a section": (
        "classifier.json", lambda saved: saved["model"].update(adapter="b"), "model.adapter: unknown key",
    ),
    "no digest": ("base.json", lambda saved: saved.pop("digest"), "digest: missing"),
    "a list of files": ("base.json", lambda saved: saved.update(files=["config.json"]), "files: "),
    "a size in words": (
        "base.json", lambda saved: saved["files"]["config.json"].update(size="small"), "files.config.json.size: ",
    ),
    "an unknown key": ("base.json", lambda saved: saved.update(base="b"), "base: unknown key"),
    "no alpha": ("adapter_config.json", lambda saved: saved.pop("lora_alpha"), "lora_alpha: missing"),
    "a rank as text": ("adapter_config.json", lambda saved: saved.update(r="16"), "r: "),
    "a switch as text": ("adapter_config.json", lambda saved: saved.update(use_rslora="no"), "use_rslora: "),
    "another method": ("adapter_config.json", lambda saved: saved.update(peft_type="IA3"), "peft_type: "),
    "a key of a later PEFT": ("adapter_config.json", lambda saved: saved.update(use_x=True), "use_x: unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("file, damage, message", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_of_the_adapter_is_named_with_its_key(adapter, tmp_path, file, damage, message):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    saved = json.loads((folder / file).read_text())
    damage(saved)
    (folder / file).write_text(json.dumps(saved))
    with pytest.raises(errors.UserError) as caught:
        predict.load_predictor(folder, base_only=False)
    assert f"{folder / file}: {message}" in str(caught.value)


@pytest.mark.parametrize("file", ["classifier.json", "base.json", "adapter_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\xff"])
def test_a_file_of_the_adapter_that_is_not_json_is_named(adapter, tmp_path, file, text):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / file).write_text(text, encoding="latin-1")
    with pytest.raises(errors.UserError) as caught:
        predict.load_predictor(folder, base_only=False)
    assert str(caught.value).startswith(f"{folder / file}: ") and len(str(caught.value)) < 300


@pytest.mark.parametrize("texts", [["a"], ["a", "b", "c"]])
def test_more_or_fewer_texts_than_columns_are_an_error(adapter, capsys, monkeypatch, texts):
    with pytest.raises(SystemExit, match="2"):
        run(capsys, monkeypatch, [*texts, "--adapter", adapter])
    assert f"this adapter reads 2: premise, hypothesis; texts given: {len(texts)}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
    """An adapter with many classes and one text column."""
    classes = tuple(f"topic {number}" for number in range(77))
    return make_adapter(tmp_path_factory.mktemp("topics") / "adapter", classes, "Text: {Body Text}\nTopic:")


def test_the_adapter_has_its_own_columns_and_classes(topics, capsys, monkeypatch):
    (line,) = run(capsys, monkeypatch, ["--adapter", topics], '{"Body Text": "A man sleeps.", "id": 1}\n').splitlines()
    answer = json.loads(line)
    assert list(answer["probabilities"]) == [f"topic {number}" for number in range(77)]
    assert answer["prediction"] == max(answer["probabilities"], key=answer["probabilities"].get)
    with pytest.raises(errors.UserError, match=r"line 1: no 'Body Text'; this adapter reads 'Body Text'$"):
        run(capsys, monkeypatch, ["--adapter", topics], '{"premise": "A man sleeps."}\n')


def test_only_the_most_likely_of_many_classes_are_shown(topics, capsys, monkeypatch):
    label, *lines = run(capsys, monkeypatch, ["A man sleeps.", "--adapter", topics]).splitlines()
    assert lines[0].endswith(f"% {label}") and lines[-1].strip() == "72 less likely"
    percentages = [float(line.split("%")[0]) for line in lines[:-1]]
    assert len(percentages) == predict.MOST_SHOWN and percentages == sorted(percentages, reverse=True)


def test_a_null_is_the_empty_text_as_in_training(adapter, capsys, monkeypatch):
    lines = [json.dumps({"premise": "A man sleeps.", "hypothesis": text}) for text in (None, "")]
    null, empty = map(json.loads, run(capsys, monkeypatch, ["--adapter", adapter], "\n".join(lines)).splitlines())
    assert null.pop("hypothesis") is None and empty.pop("hypothesis") == ""
    assert null == empty


def test_one_of_two_texts_may_be_empty(adapter, capsys, monkeypatch):
    assert run(capsys, monkeypatch, ["A man sleeps.", "", "--adapter", adapter])


def test_a_missing_adapter_is_an_error_of_one_line(tmp_path):
    done = run_in_each(["tools.predict.__main__"], [tmp_path], ["a", "b"])[tmp_path.name]
    assert "outs/adapter: no such folder" in error_line(done)


@pytest.fixture
def moved(adapter, tmp_path, monkeypatch):
    """The adapter in another folder. Its base model was in a relative folder, which does not exist here."""
    folder = shutil.copytree(adapter, tmp_path / "moved")
    edit_json(folder, "base.json", name="assets/nano-phi")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_error_about_a_missing_base_folder_has_its_whole_path(moved, tmp_path):
    with pytest.raises(errors.UserError) as caught:
        predict.load_predictor(moved, base_only=False)
    line = str(caught.value)
    assert f"there is no folder {tmp_path}/assets/nano-phi" in line and "--base FOLDER" in line
    assert "network" not in line and "http" not in line


@pytest.mark.parametrize("revision", [None, "ef382358ec9e382308935a992d908de099b64c23"], ids=["folder", "hub"])
def test_base_names_the_folder_of_the_base_model(moved, adapter, capsys, monkeypatch, revision):
    edit_json(moved, "base.json", revision=revision)
    printed = run(capsys, monkeypatch, [*PAIRS[0], "--adapter", moved, "--base", NANO])
    assert printed == run(capsys, monkeypatch, [*PAIRS[0], "--adapter", adapter])


@pytest.mark.parametrize("change", ["other", "gone", "one more"])
def test_the_error_about_another_base_model_names_the_file(moved, tmp_path, capsys, monkeypatch, change):
    base = shutil.copytree(NANO, tmp_path / "other")
    if change == "other":
        edit_json(base, "config.json", rope_theta=5.0)
    elif change == "gone":
        (base / "config.json").unlink()
    else:
        (base / "more.json").write_text("{}")
    with pytest.raises(errors.UserError) as caught:
        run(capsys, monkeypatch, [*PAIRS[0], "--adapter", moved, "--base", base])
    name = "more.json" if change == "one more" else "config.json"
    assert str(caught.value).startswith(f"--base: {base / name}: ")


def test_a_missing_folder_after_base_is_an_error_that_mentions_untuned(moved, tmp_path, capsys, monkeypatch):
    """In earlier versions, `--base` was the name of `--untuned`."""
    with pytest.raises(errors.UserError, match=r"^--base: no folder A man sleeps\.; .*--untuned"):
        run(capsys, monkeypatch, ["--base", "A man sleeps.", "He rests.", "--adapter", moved])


def test_a_copied_adapter_works_without_params_yaml(adapter, tmp_path):
    copy = shutil.copytree(adapter, tmp_path / "elsewhere")
    done = run_in_each(["tools.predict.__main__"], [tmp_path], [*PAIRS[0], "--adapter", copy])[tmp_path.name]
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == predict.load_predictor(adapter, base_only=False)(PAIRS[:1])[0]["label"]


# --- answers left out, and the threshold of two classes ---


def validation_rows(classes=3, rows=200, seed=0):
    """(gold, probabilities) of random rows; every probability is a whole number of 1e-6."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.5), rows).round(6)
    return rng.integers(0, classes, rows), probabilities


def copy_with_summary(adapter, folder, **changes):
    """Copy an adapter, and add validation.json."""
    shutil.copytree(adapter, folder)
    summary = ValidationSummary.measure(*validation_rows(), SingleLabel(("no", "yes")))
    summary.model_copy(update=changes).write(folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An adapter with two classes."""
    return make_adapter(tmp_path_factory.mktemp("pair") / "adapter", ("no", "yes"))


def spread(first, last):
    return np.linspace(first, last, 101).tolist()


def test_an_answer_below_the_given_probability_is_left_out_and_keeps_its_probabilities(adapter, capsys, monkeypatch):
    lines = "".join(json.dumps(dict(zip(COLUMNS, pair, strict=True))) + "\n" for pair in PAIRS)
    everything = [json.loads(line) for line in run(capsys, monkeypatch, ["--adapter", adapter], lines).splitlines()]
    tops = [max(answer["probabilities"].values()) for answer in everything]
    at_least = sorted(tops)[1]
    assert len(set(tops)) == len(PAIRS)
    printed = run(capsys, monkeypatch, ["--adapter", adapter, "--at-least", at_least], lines)
    expected = [a if top >= at_least else a | {"prediction": None} for a, top in zip(everything, tops, strict=True)]
    assert [json.loads(line) for line in printed.splitlines()] == expected


def test_a_terminal_shows_why_there_is_no_answer(adapter, capsys, monkeypatch):
    plain = run(capsys, monkeypatch, [*PAIRS[0], "--adapter", adapter]).splitlines()
    lines = run(capsys, monkeypatch, [*PAIRS[0], "--adapter", adapter, "--at-least", "1"]).splitlines()
    assert re.fullmatch(r"no answer: \d\d\.\d% is below 100\.0%", lines[0])
    assert lines[1:] == plain[1:]


def test_the_reason_never_says_that_a_number_is_below_itself():
    assert answer_rules.explain_missing(0.89996, 0.9) == "no answer: 89.9960% is below 90.0000%"
    assert answer_rules.explain_missing(0.8, 0.9) == "no answer: 80.0% is below 90.0%"


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.755, 0.9, 1])
def test_coverage_is_the_share_of_the_validation_rows_that_are_answered(coverage):
    gold, probabilities = validation_rows()
    at_least = ValidationSummary.measure(gold, probabilities, SingleLabel(("no", "yes"))).find_probability(coverage)
    assert (probabilities.max(axis=1) >= at_least).mean() == pytest.approx(coverage, abs=0.006)


def test_coverage_chooses_the_probability_and_prints_it(adapter, tmp_path, capsys, monkeypatch):
    (top,) = (max(a["probabilities"].values()) for a in predict.load_predictor(adapter, base_only=False)(PAIRS[:1]))
    for name, quantiles, answered in (("above", spread(top, 1), False), ("below", spread(0, top), True)):
        folder = copy_with_summary(adapter, tmp_path / name, probability_quantiles=quantiles)
        monkeypatch.setattr(sys, "argv", ["predict", *PAIRS[0], "--adapter", str(folder), "--coverage", "0.5"])
        predict.main()
        output = capsys.readouterr()
        assert output.out.startswith("no answer: ") != answered
        assert f"--coverage 0.5: no answer below {quantiles[50]:.4%}. This share of the 200" in output.err


def test_the_best_threshold_moves_answers_of_two_classes_only_if_asked(pair, tmp_path, capsys, monkeypatch):
    (answer,) = predict.load_predictor(pair, base_only=False)(PAIRS[:1])
    yes = answer["probabilities"]["yes"]
    assert answer["label"] == ("yes" if yes > 0.5 else "no")
    for name, value, label in (("lower", yes - 1e-6, "yes"), ("equal", yes, "no")):
        threshold = BestThreshold(value=value, f1_macro=0.7)
        folder = copy_with_summary(pair, tmp_path / name, best_threshold=threshold)
        arguments = [*PAIRS[0], "--adapter", str(folder)]
        assert run(capsys, monkeypatch, arguments).splitlines()[0] == answer["label"]
        monkeypatch.setattr(sys, "argv", ["predict", *arguments, "--best-threshold"])
        predict.main()
        output = capsys.readouterr()
        assert output.out.splitlines()[0] == label
        assert f"--best-threshold: yes if its probability is above {value:.4%}" in output.err


def test_the_summary_has_the_best_threshold_of_two_classes_and_its_score(tmp_path):
    gold, probabilities = validation_rows(classes=2)
    gold = np.where(np.arange(200) % 9, 0, (probabilities[:, 1] > 0.2).astype(int))
    ValidationSummary.measure(gold, probabilities, SingleLabel(("no", "yes"))).write(tmp_path)
    summary = ValidationSummary.read(tmp_path)
    answers = probabilities[:, 1] > summary.best_threshold.value
    assert summary.best_threshold.f1_macro == pytest.approx(f1_score(gold, answers, average="macro"))
    others = [f1_score(gold, probabilities[:, 1] > other, average="macro") for other in np.linspace(0, 1, 50)]
    assert summary.best_threshold.f1_macro >= max(others) > others[0]
    assert ValidationSummary.measure(*validation_rows(classes=3), LABELS).best_threshold is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coverage", "0.9"], r"validation\.json: missing; an earlier version made this adapter"),
        (["--coverage", "0.9", "--untuned"], "^--coverage: uses the tuned model's validation rows; remove --untuned"),
        (["--best-threshold", "--untuned"], "^--best-threshold: uses the tuned model's validation rows"),
    ],
)
def test_an_option_that_the_adapter_cannot_serve_is_an_error_of_one_line(
    adapter, capsys, monkeypatch, options, message
):
    with pytest.raises(errors.UserError, match=message):
        run(capsys, monkeypatch, [*PAIRS[0], "--adapter", adapter, *options])


def test_three_classes_have_no_best_threshold(adapter, tmp_path, capsys, monkeypatch):
    folder = copy_with_summary(adapter, tmp_path / "adapter", best_threshold=None)
    with pytest.raises(errors.UserError, match=r"^--best-threshold: needs an adapter with 2 classes; this one has 3$"):
        run(capsys, monkeypatch, [*PAIRS[0], "--adapter", folder, "--best-threshold"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at-least", "90"], "argument --at-least: must be a number from 0 to 1, not '90'"),
        (["--coverage", "nan"], "argument --coverage: must be a number from 0 to 1, not 'nan'"),
        (["--at-least", "0.9", "--coverage", "0.5"], "not allowed with argument --at-least"),
        (["--at-least", "0.9", "--best-threshold"], "not allowed with argument --at-least"),
    ],
)
def test_options_that_are_no_shares_or_contradict_are_an_error(adapter, capsys, monkeypatch, options, message):
    with pytest.raises(SystemExit, match="2"):
        run(capsys, monkeypatch, [*PAIRS[0], "--adapter", adapter, *options])
    assert message in capsys.readouterr().err


def test_a_damaged_summary_is_named_with_its_key(adapter, tmp_path, capsys, monkeypatch):
    folder = copy_with_summary(adapter, tmp_path / "adapter")
    edit_json(folder, "validation.json", probability_quantiles=[0.5])
    with pytest.raises(errors.UserError, match=r"validation\.json: probability_quantiles: "):
        run(capsys, monkeypatch, [*PAIRS[0], "--adapter", folder, "--coverage", "0.5"])


def find_python_block(text):
    """The only block of Python in a Markdown text."""
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return block


def write_card(folder, template=None, **model_settings):
    """The model card of a fake run, with some keys of the section `model` changed."""
    finished_run.make(folder, model="microsoft/phi-2")
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    raw["model"] |= model_settings
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_blank(patch.setattr)
        analyze.main()
    return (folder / "metrics/model_card.md").read_text()


def run_plain(block, folder, adapter):
    """Run a block in its own process, with our model and adapter -> (label, probabilities)."""
    for name, path in (("microsoft/phi-2", NANO), (re.search(r'Path\("(.+/.+)"\)', block)[1], adapter)):
        assert block.count(f'"{name}"') == 1
        block = block.replace(f'"{name}"', f'"{path}"')
    # On a CPU with AVX512-BF16, bitsandbytes rounds to bfloat16. `predict` turns this off, so it is off here too.
    start = "import bitsandbytes.nn.modules as layers, transformers\nlayers.has_avx512bf16 = lambda: False\n"
    start += "transformers.logging.set_verbosity_warning()\n"  # its default; a fork has inherited another
    (folder / "plain.py").write_text(f"{start}{block}")
    done = run_module("plain", [], folder, stage_env())
    assert done.returncode == 0, done.stderr
    assert re.search(r"score.weight +\| MISSING", done.stderr), "the document says so"
    label, _, probabilities = done.stdout.strip().partition(" ")
    return label, json.loads(probabilities)


SPECIAL = "<|endoftext|>Premise: {premise}<|endoftext|>Hypothesis: {hypothesis}\nLabel:"
PLAIN = {
    "document": ({}, lambda folder, **settings: DOCUMENT),
    "document, special tokens in the template": ({"template": SPECIAL}, lambda folder, **settings: DOCUMENT),
    "card": ({}, write_card),
    "card, not quantised": ({"quantization": "none"}, write_card),
}


@pytest.mark.parametrize("settings, text", PLAIN.values(), ids=PLAIN)
def test_plain_transformers_and_peft_predict_the_same(tmp_path, monkeypatch, settings, text):
    adapter = make_adapter(tmp_path / "adapter", **settings)
    assert AutoConfig.from_pretrained(adapter).id2label == dict(enumerate(CLASSES))
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    label, probabilities = run_plain(find_python_block(text(tmp_path / "run", **settings)), tmp_path, adapter)
    (answer,) = predict.load_predictor(adapter, base_only=False)(
        [("Two dogs are running in the park.", "Animals are outside.")]
    )
    assert label == answer["label"]
    assert probabilities == pytest.approx(list(answer["probabilities"].values()), abs=1e-4)


def test_plain_transformers_and_peft_read_any_text_as_text(adapter, capsys, monkeypatch):
    """Braces and the name of a special token are text, as in `predict`."""
    block = find_python_block(DOCUMENT)
    pair = {"premise": "{hypothesis} <|endoftext|>", "hypothesis": "{premise} {0}"}
    block, times = re.subn(r"^texts = .*$", lambda line: f"texts = {pair}", block, flags=re.MULTILINE)
    assert times == 1
    block = block.replace("microsoft/phi-2", str(NANO)).replace("outs/adapter", str(adapter))
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    exec(block, {})
    _, _, probabilities = capsys.readouterr().out.strip().partition(" ")
    (answer,) = predict.load_predictor(adapter, base_only=False)([tuple(pair.values())])
    assert json.loads(probabilities) == pytest.approx(list(answer["probabilities"].values()), abs=1e-4)


CARD = (ROOT / "stages/report/templates/model_card.md").read_text()
CHAT = "<|im_start|>user\nPremise: {premise} {hypothesis}<|im_end|>\n<|im_start|>assistant\n"
LLAMA = "<s>[INST] {premise}\n{hypothesis}[INST]"
BASES = {
    "ChatML": (tokenizers.chatml, CHAT),
    "Llama's": (tokenizers.metaspace, LLAMA),
    **{f"chat template of {model}": (partial(tokenizers.chat, model), None) for model in ("Llama 3.2", "Gemma 2")},
}


@pytest.mark.parametrize("block", [find_python_block(DOCUMENT), find_python_block(CARD)], ids=["document", "card"])
@pytest.mark.parametrize(("base", "template"), BASES.values(), ids=BASES)
def test_plain_transformers_makes_the_tokens_of_training(tmp_path, block, base, template):
    base().save_pretrained(tmp_path / "base")
    manifest = manifest_of(tmp_path / "base")
    if template is None:
        raw = {"template": "Is it {premise} or {hypothesis}?", "max_length": 500, "chat": True, "system": None}
        template = apply_chat(load_tokenizer(manifest), params.Tokenize.model_validate(raw), "m")
    (adapter := tmp_path / "adapter").mkdir()
    load_configured_tokenizer(manifest, template).save_pretrained(adapter)
    (adapter / "classifier.json").write_text(json.dumps({"template": template}))
    lines = block[block.index("tokenizer = ") : block.index("with torch")]

    def tokens_of(**texts):
        code, times = re.subn(r"^texts = .*$", lambda line: f"texts = {texts}", lines, flags=re.MULTILINE)
        names = {"AutoTokenizer": AutoTokenizer, "folder": adapter, "json": json, "re": re}
        assert times == 1
        exec(code, scope := {**names, "model": SimpleNamespace(device="cpu")})
        return scope["ids"][0].tolist()

    pair = {"premise": " A man is sleeping.", "hypothesis": "in the {premise}"}
    row = pd.DataFrame([{f"text_{column}": value for column, value in pair.items()}])
    (expected,) = encode_rows(row, load_tokenizer(manifest), template, 500)[1]
    assert tokens_of(**pair) == expected
    with pytest.raises(AssertionError, match="a text holds the name of a special token"):
        tokens_of(premise="A", hypothesis=re.search(r"<[^>]*>", template)[0])
