"""`tools.evaluate` with the demo's run: other columns and labels, its own test rows, SNLI, and a second adapter."""

import json
import random
import re
import runpy
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.project import DEMO, SHARED
from helpers.stages import error_line, run_module
from helpers.tables import CLASSES
from safetensors.numpy import load_file, save_file

from stages.runtime.errors import UserError
from tools.evaluate import finished_run

pytestmark = pytest.mark.slow

OTHER_NAMES = dict(zip(CLASSES, ("yes", "maybe", "no"), strict=True))
SNLI = SHARED / "data/snli/test.parquet"
FLAGS = ["--column", "premise=sentence1", "--column", "hypothesis=sentence2", "--label", "gold_label"]
FLAGS += [flag for name, other in OTHER_NAMES.items() for flag in ("--class", f"{other}={name}")]


def rename(frame, names):
    """Rows of the demo's data or of SNLI with the columns of SNLI's own files, and with class names."""
    labels = frame["label"].map(dict(enumerate(names)) | {-1: "-"})
    return pd.DataFrame({"sentence1": frame["premise"], "sentence2": frame["hypothesis"], "gold_label": labels})


def make_second_set(rows):
    """New rows of the demo's toy world; each fifth premise has two hypotheses."""
    rng, pair = random.Random(7), runpy.run_path(str(DEMO / "make/world.py"))["pair"]
    drawn = [(*pair(rng, number % 3), number % 3) for number in range(rows)]
    frame = rename(pd.DataFrame(drawn, columns=["premise", "hypothesis", "label"]), OTHER_NAMES.values())
    return pd.concat([frame, frame[:1].assign(gold_label="-")])


def spoil_adapter(source, target):
    """Copy an adapter, with a LoRA that changes nothing."""
    shutil.copytree(source, target)
    weights = load_file(target / "adapter_model.safetensors")
    save_file(
        {name: np.zeros_like(value) if "lora_B" in name else value for name, value in weights.items()},
        target / "adapter_model.safetensors",
    )


@pytest.fixture(scope="module")
def demo(repro):
    """The demo's folder as it was committed. Tests of experiments leave it with the results of another run."""
    repro.clone.git("checkout", "--", "demo")
    assert repro.clone.dvc("checkout").returncode == 0
    return repro.clone.folder / "demo"


@pytest.fixture(scope="module")
def evaluations(repro, demo, tmp_path_factory):
    """The outcome of one command for all sets, and the folder that it has written."""
    top = tmp_path_factory.mktemp("evaluate")
    make_second_set(90).to_csv(top / "second.csv", index=False, sep=";")
    own = pd.read_parquet(demo / "assets/everyday-nli/test.parquet")
    rename(own, OTHER_NAMES.values()).to_json(top / "own.jsonl", orient="records", lines=True)
    names = ["second.csv", "own.jsonl"]
    if SNLI.exists():
        rename(pd.read_parquet(SNLI)[:120], CLASSES).to_parquet(top / "snli.parquet")
        names.append("snli.parquet")
    spoil_adapter(demo / "outs/adapter", top / "spoilt")
    arguments = [*(top / name for name in names), *FLAGS, "--adapter", top / "spoilt", "--out", top / "evaluations"]
    before = repro.clone.git("status", "--porcelain")
    done = run_module("tools.evaluate", arguments, demo, repro.clone.env | {"BLANK_FIGURES": "1"})
    assert done.returncode == 0, done.stderr
    assert repro.clone.git("status", "--porcelain") == before, "the run's own files are as before"
    return done, top / "evaluations"


def read(folder, name):
    return json.loads((folder / name / "details.json").read_text())


def test_the_runs_own_test_rows_under_other_names_have_the_runs_results(demo, evaluations):
    """Byte for byte: the same probabilities, references, scores, intervals and counts."""
    _, folder = evaluations
    for name in ("details.json", "label_errors.csv", "plots/confusion_reference.csv"):
        assert (folder / "own" / name).read_bytes() == (demo / "metrics" / name).read_bytes(), name
    assert "1,000 of its 1,000 rows are also in the own test set" in (folder / "sets.md").read_text()


def test_a_second_set_has_its_own_report(evaluations):
    _, folder = evaluations
    results = read(folder, "second")
    assert results["tuned"]["rows"] == 90 and results["tuned"]["accuracy"] > 0.9
    assert results["data"]["train"]["kept"] == 1000 and results["data"]["test"]["unlabelled"] == 1
    assert results["data"]["test"]["in_train"].keys() == {"rows", "groups"}
    assert {"probe", "zero_shot", "untrained_head", "bag_of_words"} <= results["comparison"]["references"].keys()
    page = (folder / "second/report.html").read_text().replace("<wbr>", "")
    short = (folder / "second/report.md").read_text()
    for text in (page, short):
        assert "The test rows are the 90 labelled rows of" in text and "trained on assets/everyday-nli" in text
    assert short.startswith("# What was tuning worth? nano-phi on second.csv\n")
    assert "Base and tuned model, one after the other" in page
    record = json.loads((folder / "second/evaluation.json").read_text())
    assert record["columns"] == {"premise": "sentence1", "hypothesis": "sentence2"} and record["group"] == "sentence1"
    assert record["classes"] == {other: name for name, other in OTHER_NAMES.items()}


def test_the_pictures_that_the_short_report_shows_are_there(evaluations):
    _, folder = evaluations
    pictures = re.findall(r'src="(.*?)"', (folder / "second/report.md").read_text())
    assert len(pictures) == 8 and all((folder / "second" / picture).exists() for picture in pictures)


def test_the_table_has_a_line_for_each_set(evaluations):
    done, folder = evaluations
    written = (folder / "sets.md").read_text()
    assert written.split("\n\n", 1)[1] in done.stdout
    lines = [line.strip("| ").split(" | ") for line in written.splitlines() if line.startswith("| ")]
    own, second, same = lines[2:5]
    assert own[0] == "everyday-nli (own test set)" and own[-1] == "–"
    assert second[0] == "[second](second/report.md)" and second[1] == "90"
    assert same[1:-1] == own[1:-1] and same[-1].startswith("+0.0 (−")
    gap = float(second[-1].split(" ")[0].replace("−", "-"))
    accuracies = [read(folder, name)["tuned"]["accuracy"] for name in ("second", "own")]
    assert gap == pytest.approx(100 * (accuracies[0] - accuracies[1]), abs=0.051)


def test_adapters_are_compared_on_the_same_rows(evaluations):
    """The second one has the trained head on the frozen base, which is far worse."""
    _, folder = evaluations
    section = (folder / "sets.md").read_text().split("## Adapters on own\n")[1].split("\n## ")[0]
    first, second = (line.strip("| ").split(" | ") for line in section.splitlines()[3:5])
    assert first[0] == "outs/adapter" and first[2] == "–"
    assert second[0].endswith("spoilt") and second[2].startswith("−") and second[3] == "<0.001"


@pytest.mark.skipif(not SNLI.exists(), reason="no ../shared")
def test_real_snli_rows_are_scored(evaluations):
    """The toy model knows nothing about real English, and says so."""
    _, folder = evaluations
    results = read(folder, "snli")
    assert results["tuned"]["rows"] > 110 and 0.2 < results["tuned"]["accuracy"] < 0.6
    assert results["data"]["test"]["in_train"]["rows"] == 0
    assert results["tuned"]["groups"] < results["tuned"]["rows"] / 2, "each premise has three hypotheses"


def test_training_rows_and_exchanged_labels_raise_an_alarm(repro, demo, tmp_path):
    train = pd.read_parquet(demo / "assets/everyday-nli/train.parquet").query("label >= 0")[:60]
    rename(train, ("no", "maybe", "yes")).to_csv(tmp_path / "seen.csv", index=False)
    done = run_module(
        "tools.evaluate", [tmp_path / "seen.csv", *FLAGS, "--out", tmp_path / "out"], demo,
        repro.clone.env | {"BLANK_FIGURES": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alarms = re.findall(r"^WARNING: seen: (.*)", done.stdout, re.MULTILINE)
    assert any(alarm.startswith("All 60 test rows are duplicates of training rows") for alarm in alarms)
    assert any(alarm.startswith("The labels seem to be exchanged") for alarm in alarms)
    assert "All 60 test rows are duplicates" in (tmp_path / "out/seen/report.html").read_text()


def test_an_error_writes_nothing(repro, demo, tmp_path):
    before = repro.clone.git("status", "--porcelain")
    done = run_module("tools.evaluate", ["assets/everyday-nli", "--out", tmp_path / "out"], demo, repro.clone.env)
    assert "integers without names: 0 (334 rows), 1 (333 rows), 2 (333 rows)" in error_line(done)
    assert not (tmp_path / "out").exists() and repro.clone.git("status", "--porcelain") == before


@pytest.fixture
def workspace(demo, tmp_path, monkeypatch):
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(demo / name, tmp_path)
    shutil.copytree(demo / "outs", tmp_path / "outs")
    monkeypatch.chdir(tmp_path)
    finished_run.check_workspace()
    return tmp_path


def test_parameters_of_another_run_are_rejected(workspace):
    parameters = workspace / "params.yaml"
    parameters.write_text(parameters.read_text().replace("epochs: 5", "epochs: 6"))
    with pytest.raises(UserError, match=r"train\.epochs is 6 in params.yaml, but the results are those of 5"):
        finished_run.check_workspace()


def test_outs_of_another_run_are_rejected(workspace):
    spoilt = workspace / "outs/adapter/classifier.json"
    spoilt.chmod(0o644)
    spoilt.write_text(spoilt.read_text() + " ")
    with pytest.raises(UserError, match=r"outs/adapter: missing, or not the one of dvc.lock; run `dvc repro`"):
        finished_run.check_workspace()
