"""benchmarks/startup.py: what it makes of the time stamps, and a short run in which the stages write them."""

import json
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from helpers.project import COMMITTED, DEMO, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import wait

from stages.model import verify_saved

TRAINING = """\
train_qlora launched 100
train_qlora begun 103
train_qlora before_loading 103.5
train_qlora loaded 105
train_qlora before_training 105.5
train_qlora after_training 115
train_qlora end 115.25
train_qlora before_readback 115.5
train_qlora after_readback 116
train_qlora ended 116.25
analyze launched 117
analyze begun 118
analyze ended 120
"""
PARTS = {
    "train_qlora": {"start": 3.0, "load": 1.5, "work": 10.5, "save": 1.25, "readback": 0.5},
    "analyze": {"start": 1.0, "load": 0.0, "work": 2.0, "save": 0.0},
}


def test_time_stamps_become_the_parts_of_each_stage():
    found = wait.split(wait.parse(TRAINING.splitlines()), wall=22.0)
    assert found == {"wall": 22.0, "dvc": 22.0 - 16.25 - 3, "stages": PARTS}


def test_the_table_has_medians_with_extremes_and_says_whether_bytecode_is_there():
    runs = []
    for wall in (22.0, 21.0, 25.0):
        stamps = wait.parse(TRAINING.splitlines())
        later = [(s, m, t + (wall - 22 if s == "analyze" and m == "ended" else 0)) for s, m, t in stamps]
        runs.append(wait.split(later, wall) | {"processor": wall / 2})
    machine = {"gpu": None, "cores": 2, "bytecode_of_torch_is_there": False, "bytecode_is_written": True}
    assert wait.table({"machine": machine, "commands": {"dvc repro": runs}}) == (
        "no GPU, 2 cores; PyTorch's bytecode missing, bytecode written\n"
        "\n"
        "`dvc repro`: 22.0 s (21.0 to 25.0, 3 runs), 11.0 s of the processor\n"
        "\n"
        "| seconds | start | load | work | save | all |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| train_qlora | 3.0 | 1.5 | 10.5 | 1.2 | 16.2 |\n"
        "| analyze | 1.0 | 0.0 | 2.0 | 0.0 | 3.0 |\n"
        "| DVC |  |  |  |  | 2.8 |"
    )


@pytest.mark.parametrize("name", ["startup-demo", "startup-h100"])
def test_the_document_has_the_tables_of_the_result(name):
    result = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    assert wait.table(result) in (ROOT / "docs/speed.md").read_text()


def test_folders_take_the_place_of_model_and_data(tmp_path):
    path = tmp_path / "params.yaml"
    for folders in ((None, None), (tmp_path, DEMO)):
        before = (COMMITTED / "params.yaml").read_text()
        path.write_text(before)
        wait.use(path, *folders)
        if folders == (None, None):
            assert path.read_text() == before
    values, was = yaml.safe_load(path.read_text()), yaml.safe_load(before)
    for key, folder in (("model", tmp_path), ("data", DEMO)):
        assert (values[key].pop("name"), values[key].pop("revision")) == (str(folder), "none")
        assert values["watch"].pop(key) == str(folder)
        was[key].pop("name"), was[key].pop("revision"), was["watch"].pop(key)
    assert values == was


@pytest.mark.slow
def test_the_stages_stamp_their_moments(tmp_path):
    folder = wait.copy_of(ROOT, tmp_path / "repository") / "demo"
    assert not (folder / "dvc.lock").exists() and not (folder / "outs/results").exists()
    wait.commit(folder)
    found = wait.timed(folder, ["repro", "eval_base"])
    assert list(found["stages"]) == ["download", "tokenize", "eval_base"]
    for stage, parts in found["stages"].items():
        model = stage == "eval_base"
        assert parts["start"] > 0.1 and parts["work"] > 0.01
        assert (parts["load"] > 0.01) == (parts["save"] > 0) == model
    assert found["dvc"] > 0.1 and found["processor"] > 1
    assert sum(sum(parts.values()) for parts in found["stages"].values()) + found["dvc"] == pytest.approx(
        found["wall"], abs=0.02
    )
    status = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
    assert status.stdout == "?? demo/dvc.lock\n", "the stages' results are DVC's"


def test_a_command_that_fails_shows_what_it_said(tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    with pytest.raises(SystemExit, match=r"(?s)not inside of a DVC repository.*error: dvc repro: exit code"):
        wait.timed(tmp_path, ["repro"])


def test_reading_back_is_stamped(monkeypatch, tmp_path):
    monkeypatch.setenv("WAIT_STAMPS", str(tmp_path / "stamps"))
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:train_qlora")
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    stamped = runpy.run_path(str(wait.STAMPS / "sitecustomize.py"))["STAMPED"]
    module = SimpleNamespace(verify_saved_adapter=verify_saved.verify_saved_adapter)
    stamped[verify_saved.__name__](module)
    with pytest.raises(TypeError):
        module.verify_saved_adapter()
    stamps = wait.parse((tmp_path / "stamps").read_text().splitlines())
    assert [stamp[:2] for stamp in stamps] == [("train_qlora", f"{when}_readback") for when in ("before", "after")]
