"""tools.verify: how it compares two locks and what it reports; the committed metrics match the committed lock."""

import copy
import hashlib

import pytest
import yaml
from helpers.project import COMMITTED, ROOT

from stages.runtime.errors import UserError
from tools import verify

LOCK = yaml.safe_load((COMMITTED / "demo/dvc.lock").read_text())["stages"]
VERSIONS = {name: {"versions": {"torch": "2.13.0", "cpu": "AVX2"}} for name in ("base", "train", "tuned")}


def change_hash(kind, path):
    """The committed lock with another hash for one dep or out, in each stage that lists it."""
    stages = copy.deepcopy(LOCK)
    files = [file for stage in stages.values() for file in stage[kind] if file["path"] == path]
    assert files
    for file in files:
        file["md5"] = "0" * 32
    return stages


def report(lock, versions=VERSIONS):
    """The lines that the tool prints for a run with this lock."""
    differences = {name: verify.compare_stage(LOCK[name], stage) for name, stage in lock.items()}
    return verify.describe(differences, VERSIONS, versions)


def test_equal_results_are_listed_by_stage():
    lines = report(LOCK)
    assert lines[3] == "train_qlora: equal: outs/adapter, outs/results/train"
    assert "DIFFERENT" not in "".join(lines)
    assert lines[-1].startswith("Every result is byte for byte")


@pytest.mark.parametrize("path", ["outs/measurements/train", "metrics/summary.json", "metrics/report.html"])
def test_measurements_are_not_compared(path):
    assert report(change_hash("outs", path)) == report(LOCK)


def test_the_first_different_stage_is_reported_with_what_differs_before_it():
    lock = change_hash("outs", "outs/results/train")
    for file in lock["analyze"]["outs"]:
        file["md5"] = "0" * 32
    lines = report(lock, VERSIONS | {"train": {"versions": {"torch": "2.14.0", "cpu": "AVX2"}}})
    assert "train_qlora: DIFFERENT: outs/results/train" in lines
    assert lines[-1].startswith("The first stage to differ is train_qlora.")
    assert "torch: 2.13.0 then, 2.14.0 now" in lines[-1]


def test_without_a_recorded_difference_the_machine_is_named():
    assert "So the cause is the machine" in report(change_hash("outs", "outs/results/base"))[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lock: lock["eval_base"]["deps"].append({"path": "stages/model", "md5": "x"}), "code: stages/model"),
        (lambda lock: lock["eval_base"]["params"]["params.yaml"].update(seed=7), "params: seed"),
        (lambda lock: lock["eval_base"].update(cmd="torchrun it"), "-m stages.eval_base then, torchrun it now"),
    ],
    ids=["code", "parameters", "launcher"],
)
def test_a_difference_in_code_parameters_or_command_is_reported(change, words):
    lock = change_hash("outs", "outs/results/base")
    change(lock)
    assert words in report(lock)[-1]


@pytest.mark.parametrize("measured", [{"processes": 2}, {"gpu": {"count": 2}}], ids=["CPU", "GPU"])
def test_another_number_of_processes_is_reported(measured):
    versions = {name: run | measured for name, run in VERSIONS.items()}
    assert "processes: 1 then, 2 now" in report(change_hash("outs", "outs/results/base"), versions)[-1]


def test_another_plan_of_the_gpus_memory_is_reported():
    kept, dequantized = ("a dequantized copy of the weights", "weights dequantized at each use")
    runs = [{"train": VERSIONS["train"] | {"memory_plan": plan}} for plan in (kept, dequantized)]
    differences = {"train_qlora": verify.compare_stage(LOCK["train_qlora"], LOCK["train_qlora"]) | {"outs": ["it"]}}
    assert f"memory plan: {kept} then, {dequantized} now" in verify.describe(differences, *runs)[-1]


def test_without_a_committed_run_the_error_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"dvc\.lock: not in the last commit"):
        verify.read_committed("dvc.lock")


def test_these_outs_are_measurements_and_all_others_results():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs = [out if isinstance(out, str) else next(iter(out)) for stage in stages.values() for out in stage["outs"]]
    measured = {out for out in outs if verify.is_measured(out)}
    assert measured == {
        "outs/measurements/base", "outs/measurements/train", "outs/measurements/tuned",
        "metrics/summary.json", "metrics/measurements", "metrics/report.html",
    }  # fmt: skip


def test_the_committed_metrics_are_those_of_the_committed_lock():
    """verify compares locks, so it would not notice a report of another run."""
    hashes = {out["path"]: out["md5"] for out in LOCK["analyze"]["outs"] if not out["md5"].endswith(".dir")}
    assert {"metrics/summary.json", "metrics/details.json", "metrics/report.md"} <= set(hashes)
    for path, md5 in hashes.items():
        assert hashlib.md5((COMMITTED / "demo" / path).read_bytes()).hexdigest() == md5, path
