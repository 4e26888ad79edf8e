"""`tools.predict IN --out OUT`: predictions, a run that is killed, and what is an error before the model is loaded."""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers.random_adapter import make_adapter
from helpers.stages import StartedModule, stage_env
from helpers.tables import LABELS

from stages.data.labels import SingleLabel
from stages.model.classifier import Classifier
from stages.model.validation_summary import BestThreshold, ValidationSummary
from stages.runtime import errors
from tools.predict import __main__ as predict
from tools.predict import predict_rows

ROWS = 60
PARTS = {"PART": 16, "BATCH": 5}
COLUMNS = ("premise", "hypothesis")
CLASSES = ("entailment", "neutral", "contradiction")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = make_adapter(tmp_path_factory.mktemp("trained") / "adapter")
    probabilities = np.random.default_rng(0).dirichlet(np.full(3, 0.5), 200).round(6)
    ValidationSummary.measure(np.arange(200) % 3, probabilities, LABELS).write(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(adapter):
    """The classifier, which is loaded once for all tests in this process."""
    return predict.load_classifier(adapter, base_only=False)


@pytest.fixture
def work(tmp_path, monkeypatch, adapter, loaded):
    """A folder with rows.csv, and `predict` with small parts, saved after each batch.

    `work.run` runs it; `work.batches` lists the sizes of the batches that the model has computed; `work.fail_at` is a
    number of them, after which the next one fails as a kill would.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict_rows, "PART", PARTS["PART"])
    monkeypatch.setattr(predict_rows, "SAVE_SECONDS", 0)
    monkeypatch.setattr(predict, "load_classifier", lambda *_: loaded)
    state = SimpleNamespace(batches=[], fail_at=None, folder=tmp_path)
    compute = Classifier.compute_batch_logits

    def count(self, examples):
        if len(state.batches) == state.fail_at:
            raise KeyboardInterrupt
        state.batches.append(len(examples))
        return compute(self, examples)

    def run(*arguments):
        state.batches.clear()
        command = ["predict", *arguments, "--adapter", adapter, "--batch-size", PARTS["BATCH"]]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        predict.main()
        return sum(state.batches)

    state.run = run
    monkeypatch.setattr(Classifier, "compute_batch_logits", count)
    make_rows().to_csv(tmp_path / "rows.csv", index=False)
    return state


def make_rows(rows=ROWS, seed=0):
    """Rows of different lengths. Two have no text, one is too long for the model."""
    random = np.random.default_rng(seed)
    words = ["man", "dog", "sleeps", "runs", "a", "park", "in", "not"]
    table = pd.DataFrame(
        {name: [" ".join(random.choice(words, random.integers(1, 20))) for _ in range(rows)] for name in COLUMNS}
    )
    table.loc[[3, 17], list(COLUMNS)] = [[None, " "], [None, None]]
    table.loc[20, "premise"] = "word " * 500
    table.loc[19, "hypothesis"] = " "
    return table.assign(id=[f"{row:03}" for row in range(rows)])


def read(path):
    return pd.read_csv(path, dtype={"id": str}, keep_default_na=False)


def left_over(folder):
    """Hidden files and folders, of progress and of temporary files."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_rows_get_the_answers_of_the_other_ways_in_the_order_of_the_file(work, adapter, loaded, capsys):
    assert work.run("rows.csv", "--out", "out.csv", "--all") == ROWS - 2
    written, rows = read("out.csv"), read("rows.csv")
    pd.testing.assert_frame_equal(written[rows.columns], rows)
    texts = rows[list(COLUMNS)].to_numpy().tolist()
    kept = [row for row in range(ROWS) if row not in (3, 17)]
    for row, answer in zip(kept, predict.predict_rows(*loaded, [texts[row] for row in kept]), strict=True):
        probabilities = [float(written[f"p_{name}"][row]) for name in CLASSES]
        assert probabilities == pytest.approx(list(answer["probabilities"].values()), abs=1e-4)
        assert written["prediction"][row] == answer["label"]
        assert float(written["probability"][row]) == max(probabilities)
    assert (written.loc[[3, 17], ["prediction", "probability", "p_neutral"]] == "").all(axis=None)
    lines = capsys.readouterr().out.splitlines()
    counts = written["prediction"].value_counts()
    assert lines[0].startswith("out.csv: 60 rows: ") and f"{counts['neutral']} neutral" in lines[0]
    assert lines[1] == "2 rows have no text, so they have no prediction"
    assert lines[2] == "rows with an empty text next to others, which are predicted as in training: 1"
    assert re.match(r"1 of 60 rows have more than 128 tokens \(the longest has [\d,]+\)", lines[3])
    assert left_over(work.folder) == []


@pytest.mark.parametrize("moments", [[0], [1], [4], [7, 3], [1, 1, 1, 1, 1]], ids=str)
def test_a_run_that_is_killed_and_repeated_writes_the_same_bytes(work, capsys, moments):
    assert work.run("rows.csv", "--out", "whole.csv", "--all") == ROWS - 2
    printed = capsys.readouterr().out.splitlines()[1:]
    total = 0
    for work.fail_at in moments:
        with pytest.raises(KeyboardInterrupt):
            work.run("rows.csv", "--out", "out.csv", "--all")
        total += sum(work.batches)
        assert not (work.folder / "out.csv").exists()
    work.fail_at = None
    total += work.run("rows.csv", "--out", "out.csv", "--all")
    assert (work.folder / "out.csv").read_bytes() == (work.folder / "whole.csv").read_bytes()
    assert total == ROWS - 2, "a finished batch was computed again, or one was left out"
    assert capsys.readouterr().out.splitlines()[-3:] == printed, "rows that are cut or have no text are counted once"
    assert left_over(work.folder) == []


def killed(work, *arguments, after=5):
    work.fail_at = after
    with pytest.raises(KeyboardInterrupt):
        work.run("rows.csv", "--out", "out.csv", *arguments)
    work.fail_at = None
    assert len(work.batches) == after


@pytest.mark.parametrize(
    "change", [["--all"], ["--at-least", "0.9"], ["--coverage", "0.5"], ["--out", "out.parquet"]], ids=" ".join
)
def test_options_that_change_no_probability_do_not_predict_again(work, change):
    killed(work)
    done = sum(work.batches)
    assert work.run("rows.csv", "--out", "out.csv", *change) == ROWS - 2 - done
    assert left_over(work.folder) == []


def test_progress_that_was_copied_in_part_is_not_used(work):
    """The missing logits would be read as zeros."""
    killed(work)
    (logits,) = work.folder.glob(".predict-*/logits-0.f32")
    logits.write_bytes(logits.read_bytes()[:-4])
    assert work.run("rows.csv", "--out", "out.csv") == ROWS - 2


def test_another_input_adapter_or_column_starts_anew_and_removes_the_old_progress(work, adapter, tmp_path):
    killed(work)
    first = left_over(work.folder)
    with open("rows.csv", "a") as file:
        file.write("a man,a dog,060\n")
    killed(work)
    second = left_over(work.folder)
    assert len(first) == len(second) == 1 and first != second
    swapped = ["--column", "premise=hypothesis", "--column", "hypothesis=premise"]
    assert work.run("rows.csv", "--out", "out.csv", *swapped) == ROWS + 1 - 2
    assert left_over(work.folder) == []


def test_the_columns_are_mapped(work):
    table = make_rows()
    table.rename(columns={"premise": "first", "hypothesis": "premise"}).to_parquet("other.parquet")
    work.run("rows.csv", "--out", "out.csv")
    work.run("other.parquet", "--out", "mapped.csv", "--column", "premise=first", "--column", "hypothesis=premise")
    new = ["prediction", "probability"]
    pd.testing.assert_frame_equal(read("out.csv")[new], read("mapped.csv")[new])
    with pytest.raises(errors.UserError, match=r"no column hypothesis; it has first, premise, id; .*--column hypoth"):
        work.run("other.parquet", "--out", "new.csv")


def test_a_row_below_the_probability_has_no_answer(work, capsys):
    work.run("rows.csv", "--out", "out.csv")
    top = read("out.csv")["probability"].replace("", "nan").astype(float)
    at_least = top.median()
    work.run("rows.csv", "--out", "sure.csv", "--at-least", at_least)
    sure = read("sure.csv")
    assert ((sure["prediction"] != "") == (top >= at_least)).all()
    pd.testing.assert_series_equal(sure["probability"], read("out.csv")["probability"])
    assert f"{int((top < at_least).sum())} without an answer" in capsys.readouterr().out


def test_the_best_threshold_gives_the_probability_of_the_class_that_it_chooses(tmp_path, monkeypatch):
    folder = make_adapter(tmp_path / "adapter", ("no", "yes"))
    summary = ValidationSummary.measure(np.arange(200) % 2, np.full((200, 2), 0.5), SingleLabel(("no", "yes")))
    summary.model_copy(update={"best_threshold": BestThreshold(value=0.0, f1_macro=0.7)}).write(folder)
    make_rows().head(3).to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    out = str(tmp_path / "out.jsonl")
    monkeypatch.setattr(
        sys,
        "argv",
        ["p", f"{tmp_path}/rows.jsonl", "--out", out, "--adapter", str(folder), "--all", "--best-threshold"],
    )
    predict.main()
    for line in open(out):  # noqa: SIM115
        answer = json.loads(line)
        assert answer["prediction"] == "yes" and answer["probability"] == answer["p_yes"]


def test_a_folder_becomes_a_folder_and_continues_after_a_kill(work):
    (work.folder / "in/sub").mkdir(parents=True)
    make_rows(21).to_csv("in/b.csv", index=False)
    make_rows(21, seed=1).to_parquet("in/sub/a.parquet")
    make_rows(21, seed=2).to_json("in/c.jsonl", orient="records", lines=True)
    assert work.run("in", "--out", "whole") == 3 * 19
    files = {str(path.relative_to("whole")): path.read_bytes() for path in Path("whole").rglob("*.*")}
    assert [*sorted(files)] == ["b.csv", "c.jsonl", "sub/a.parquet"]
    for work.fail_at in (4, 2, 1, 3):  # the first part has 14 rows with a text, the second of each file 5
        with pytest.raises(KeyboardInterrupt):
            work.run("in", "--out", "out")
    work.fail_at = None
    work.run("in", "--out", "out")
    assert {str(path.relative_to("out")): path.read_bytes() for path in Path("out").rglob("*.*")} == files
    pd.testing.assert_frame_equal(pd.read_parquet("out/sub/a.parquet")[[*COLUMNS, "id"]], make_rows(21, seed=1))


ERRORS = {
    "no file": (["no.csv", "--out", "o.csv"], r"^no\.csv: no such file or folder"),
    "an ending": (["rows.csv", "--out", "o.txt"], r"^--out: o\.txt: allowed: a name that ends in \.parquet"),
    "a workbook": (["rows.csv", "--out", "o.xlsx"], "not a format that is written"),
    "the input": (["rows.csv", "--out", "rows.csv", "--force"], "^--out: rows.csv is the input"),
    "in the input": ([".", "--out", "o"], "^--out: o is the input, in it or around it"),
    "an old file": (["rows.csv", "--out", "old.csv"], "^--out: old.csv exists; name another path, or add --force"),
    "a folder for a file": (["rows.csv", "--out", "old.d.csv", "--force"], "old.d.csv is a folder, unlike the input"),
    "a file for a folder": (["in", "--out", "old.csv", "--force"], "old.csv is a file, unlike the input"),
    "a table's name for a folder": (["in", "--out", "o.parquet"], "o.parquet: the files of in go to a folder"),
    "the present folder": (["owner/name", "--out", ".", "--force"], "^--out: \\. has .* in it, which would be lost"),
    "no folder": (["rows.csv", "--out", "old.csv/o.csv"], "^--out: old.csv/o.csv: File exists; name another path"),
    "another column": (["rows.csv", "--out", "o.csv", "--column", "text=a"], "^--column text=a: the template has no"),
    "a column that is there": (["taken.csv", "--out", "o.csv", "--all"], "taken.csv: has a column p_neutral"),
    "only a header": (["header.csv", "--out", "o.csv"], "header.csv: the file has no rows"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_comes_before_the_model_is_loaded_and_leaves_nothing(work, monkeypatch, arguments, message):
    monkeypatch.setattr(predict, "load_classifier", lambda *_: pytest.fail("loaded"))
    for name, content in {
        "old.csv": "x", "taken.csv": "premise,hypothesis,p_neutral\na,b,c\n", "header.csv": "premise,hypothesis\n",
    }.items():  # fmt: skip
        Path(name).write_text(content)
    for name in ("in", "old.d.csv"):
        Path(name).mkdir()
    shutil.copy("rows.csv", "in")
    before = sorted(work.folder.iterdir())
    with pytest.raises(errors.UserError, match=message):
        work.run(*arguments)
    assert sorted(work.folder.iterdir()) == before


def test_an_error_of_the_users_comes_before_pytorch_is_imported(adapter, tmp_path):
    """The imports take 10 s. One new process runs all three commands."""
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    commands = {
        "no.csv --out o.csv": "no.csv: no such file",
        "other.csv --out o.csv": "no column premise",
        "one_text": "texts given: 1",
    }
    code = f"""
import sys
from tools.predict import __main__
for command in {list(commands)}:
    sys.argv[1:] = [*command.split(), "--adapter", {str(adapter)!r}]
    try:
        __main__.main()
    except (Exception, SystemExit) as error:
        print(error, file=sys.stderr)
    print("torch" in sys.modules, "peft" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=stage_env(), capture_output=True, text=True)
    assert done.stdout == 3 * "False False\n" and all(message in done.stderr for message in commands.values())


USAGE = {
    "two inputs": (["a.csv", "b.csv", "--out", "o.csv"], "--out needs one file, folder or data set; given: 2"),
    "no out": (["rows.csv"], "rows.csv is a file; to label a file's rows, name it and add --out OUT"),
    "a wrong name": (["row.csv"], "row.csv is named like a file, but there is none; to label a file's rows, name it"),
    "an option of --out": (["a", "b", "--batch-size", "5"], "--batch-size is only for --out OUT"),
    "columns without --out": (["a", "b", "--column", "a=b"], "--column is only for --out OUT"),
    "no rows": (["rows.csv", "--out", "o.csv", "--batch-size", "0"], "--batch-size: must be at least 1"),
    "two characters": (["rows.csv", "--out", "o.csv", "--sep", "ab"], "--sep: must be one character, not 'ab'"),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE.values(), ids=USAGE)
def test_options_that_contradict_each_other_are_an_error(work, adapter, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["predict", *arguments, "--adapter", str(adapter)])
    with pytest.raises(SystemExit, match="2"):
        predict.main()
    assert message in capsys.readouterr().err


def test_force_replaces_a_file_only_when_the_new_one_is_complete(work):
    Path("out.csv").write_text("old")
    work.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        work.run("rows.csv", "--out", "out.csv", "--force")
    assert Path("out.csv").read_text() == "old"
    work.fail_at = None
    work.run("rows.csv", "--out", "out.csv", "--force")
    assert len(read("out.csv")) == ROWS


def test_two_processes_for_the_same_file_are_an_error(work):
    killed(work)
    (folder,) = (path for path in work.folder.iterdir() if path.name.startswith(".predict"))
    with open(folder / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for arguments in ([], ["--column", "premise=hypothesis"]):  # the same progress; other progress, the same file
            with pytest.raises(errors.UserError, match=r"another process predicts these rows for out\.csv; wait"):
                work.run("rows.csv", "--out", "out.csv", *arguments)


def test_outputs_that_are_not_finite_are_an_error(work, monkeypatch):
    compute = Classifier.compute_batch_logits
    monkeypatch.setattr(Classifier, "compute_batch_logits", lambda *arguments: compute(*arguments) * float("nan"))
    with pytest.raises(
        errors.UserError, match=r"rows\.csv: the model's outputs for row \d+, counted from 0, are not finite"
    ):
        work.run("rows.csv", "--out", "out.csv")


def test_a_process_that_is_killed_goes_on(adapter, loaded, tmp_path, monkeypatch):
    """SIGKILL to a process: the file is that of an undisturbed run, of another process."""
    make_rows(200).to_csv(tmp_path / "rows.csv", index=False)
    code = "from tools.predict import __main__, predict_rows; predict_rows.SAVE_SECONDS = 0; __main__.main()"
    (tmp_path / "save_often.py").write_text(code)
    arguments = ["rows.csv", "--adapter", str(adapter), "--batch-size", "8", "--out"]

    def start():
        log = tmp_path / "log"
        return StartedModule("save_often", [*arguments, "out/out.csv"], tmp_path, stage_env(), stdout=log, stderr=log)

    process = start()
    deadline = time.monotonic() + 240
    while not any(json.loads(file.read_text())["computed"] > 16 for file in tmp_path.glob("out/.predict-*/state.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "out/out.csv").exists()
    (tmp_path / "log").unlink()
    assert start().wait() == 0
    log = (tmp_path / "log").read_text()
    assert re.search(r"^\d+ rows are predicted already; continuing$", log, re.M), log
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "load_classifier", lambda *_: loaded)
    monkeypatch.setattr(sys, "argv", ["predict", *arguments, "whole.csv"])
    predict.main()
    assert Path("out/out.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert [path.name for path in Path("out").iterdir()] == ["out.csv"]
