"""What `make verify` makes of two locks; the committed metrics are those that the committed lock names."""

import copy
import hashlib

import pytest
import yaml
from helpers.project import COMMITTED, ROOT

from stages.runtime.errors import UserError
from tools import verify

LOCK = yaml.safe_load((COMMITTED / "demo/dvc.lock").read_text())["stages"]
VERSIONS = {name: {"versions": {"torch": "2.13.0", "cpu": "AVX2"}} for name in ("base", "train", "tuned")}


def edited(kind, path):
    """The committed lock with another hash for one file of a kind, in each stage that has it."""
    stages = copy.deepcopy(LOCK)
    files = [file for stage in stages.values() for file in stage[kind] if file["path"] == path]
    assert files
    for file in files:
        file["md5"] = "0" * 32
    return stages


def said(now, versions=VERSIONS):
    differing = {name: verify.differences(LOCK[name], stage) for name, stage in now.items()}
    return verify.lines(differing, VERSIONS, versions)


def test_equal_results_are_named_stage_by_stage():
    lines = said(LOCK)
    assert lines[3] == "train_qlora: equal: outs/adapter, outs/results/train"
    assert "DIFFERENT" not in "".join(lines)
    assert lines[-1].startswith("Every result is byte for byte")


@pytest.mark.parametrize("path", ["outs/measurements/train", "metrics/summary.json", "metrics/report.html"])
def test_what_was_measured_differs_at_will(path):
    assert said(edited("outs", path)) == said(LOCK)


def test_the_first_stage_to_differ_is_named_with_what_differs_before_it():
    now = edited("outs", "outs/results/train")
    for file in now["analyze"]["outs"]:
        file["md5"] = "0" * 32
    lines = said(now, VERSIONS | {"train": {"versions": {"torch": "2.14.0", "cpu": "AVX2"}}})
    assert "train_qlora: DIFFERENT: outs/results/train" in lines
    assert lines[-1].startswith("The first stage to differ is train_qlora.")
    assert "torch: 2.13.0 then, 2.14.0 now" in lines[-1]


def test_where_nothing_else_differs_it_is_the_machine():
    assert "so it is the machine" in said(edited("outs", "outs/results/base"))[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda now: now["eval_base"]["deps"].append({"path": "stages/model", "md5": "x"}), "code: stages/model"),
        (lambda now: now["eval_base"]["params"]["params.yaml"].update(seed=7), "params: seed"),
        (lambda now: now["eval_base"].update(cmd="torchrun it"), "-m stages.eval_base then, torchrun it now"),
    ],
    ids=["code", "parameters", "launcher"],
)
def test_other_code_and_other_parameters_are_named(change, words):
    now = edited("outs", "outs/results/base")
    change(now)
    assert words in said(now)[-1]


@pytest.mark.parametrize("measured", [{"processes": 2}, {"gpu": {"count": 2}}], ids=["CPU", "GPU"])
def test_another_number_of_processes_is_named(measured):
    versions = {name: run | measured for name, run in VERSIONS.items()}
    assert "processes: 1 then, 2 now" in said(edited("outs", "outs/results/base"), versions)[-1]


def test_a_folder_without_a_committed_run_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"dvc\.lock: the last commit has none here"):
        verify.of_git("dvc.lock")


def test_every_out_is_a_result_or_measured_and_not_both():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs = [out if isinstance(out, str) else next(iter(out)) for stage in stages.values() for out in stage["outs"]]
    measured = {out for out in outs if verify.is_measured(out)}
    assert measured == {
        "outs/measurements/base", "outs/measurements/train", "outs/measurements/tuned",
        "metrics/summary.json", "metrics/measurements", "metrics/report.html",
    }  # fmt: skip


def test_the_committed_metrics_are_those_of_the_committed_lock():
    """verify compares locks: a report of another run beside the lock would pass it."""
    hashes = {out["path"]: out["md5"] for out in LOCK["analyze"]["outs"] if not out["md5"].endswith(".dir")}
    assert {"metrics/summary.json", "metrics/details.json", "metrics/report.md"} <= set(hashes)
    for path, md5 in hashes.items():
        assert hashlib.md5((COMMITTED / "demo" / path).read_bytes()).hexdigest() == md5, path
