"""benchmarks/startup.py: how it reads the time stamps, and a short run in which the stages write them."""

import json
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from helpers.project import COMMITTED, DEMO, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import startup

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
    times = startup.split_stages(startup.parse(TRAINING.splitlines()), wall=22.0)
    assert times == {"wall": 22.0, "dvc": 22.0 - 16.25 - 3, "stages": PARTS}


def test_the_table_has_medians_with_extremes_and_the_state_of_the_bytecode():
    runs = []
    for wall in (22.0, 21.0, 25.0):
        stamps = startup.parse(TRAINING.splitlines())
        later = [(s, m, t + (wall - 22 if s == "analyze" and m == "ended" else 0)) for s, m, t in stamps]
        runs.append(startup.split_stages(later, wall) | {"processor": wall / 2})
    machine = {"gpu": None, "cores": 2, "bytecode_of_torch_is_there": False, "bytecode_is_written": True}
    assert startup.table({"machine": machine, "commands": {"dvc repro": runs}}) == (
        "no GPU, 2 cores; PyTorch's bytecode missing, bytecode writing on\n"
        "\n"
        "`dvc repro`: 22.0 s (21.0 to 25.0, 3 runs), 11.0 s of CPU time\n"
        "\n"
        "| seconds | start | load | work | save | all |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| train_qlora | 3.0 | 1.5 | 10.5 | 1.2 | 16.2 |\n"
        "| analyze | 1.0 | 0.0 | 2.0 | 0.0 | 3.0 |\n"
        "| DVC |  |  |  |  | 2.8 |"
    )


@pytest.mark.parametrize("name", ["startup-demo", "startup-h200"])
def test_the_document_has_the_tables_of_the_results(name):
    result = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    assert startup.table(result) in (ROOT / "docs/startup.md").read_text()


def test_folders_replace_model_and_data(tmp_path):
    path = tmp_path / "params.yaml"
    for folders in ((None, None), (tmp_path, DEMO)):
        before = (COMMITTED / "params.yaml").read_text()
        path.write_text(before)
        startup.set_sources(path, *folders)
        if folders == (None, None):
            assert path.read_text() == before
    values, original = yaml.safe_load(path.read_text()), yaml.safe_load(before)
    for key, folder in (("model", tmp_path), ("data", DEMO)):
        assert (values[key].pop("folder"), values[key].pop("digest")) == (str(folder), None)
        del original[key]["folder"], original[key]["digest"]
    assert values == original


@pytest.mark.slow
def test_the_stages_write_time_stamps(tmp_path):
    folder = startup.copy_checkout(ROOT, tmp_path / "repository") / "demo"
    assert not (folder / "dvc.lock").exists() and not (folder / "outs/results").exists()
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["data"] |= {"train_rows": 64, "validation_rows": 16, "test_rows": 16}
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    startup.commit(folder)
    times = startup.time_command(folder, ["repro", "eval_base"])
    assert list(times["stages"]) == ["download", "tokenize", "eval_base"]
    for stage, parts in times["stages"].items():
        model = stage == "eval_base"
        assert parts["start"] > 0.1 and parts["work"] > 0.01
        assert (parts["load"] > 0.01) == (parts["save"] > 0) == model
    assert times["dvc"] > 0.1 and times["processor"] > 1
    assert sum(sum(parts.values()) for parts in times["stages"].values()) + times["dvc"] == pytest.approx(
        times["wall"], abs=0.02
    )
    status = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
    assert status.stdout == "?? demo/dvc.lock\n", "DVC keeps the outs"


def test_a_failed_command_prints_its_output(tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    with pytest.raises(SystemExit, match=r"(?s)not inside of a DVC repository.*error: dvc repro: exit code"):
        startup.time_command(tmp_path, ["repro"])


def test_the_verification_of_the_adapter_is_stamped(monkeypatch, tmp_path):
    monkeypatch.setenv("STARTUP_STAMPS", str(tmp_path / "stamps"))
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:train_qlora")
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    patches = runpy.run_path(str(startup.STAMPS / "sitecustomize.py"))["PATCHES"]
    module = SimpleNamespace(verify_saved_adapter=verify_saved.verify_saved_adapter)
    patches[verify_saved.__name__](module)
    with pytest.raises(TypeError):
        module.verify_saved_adapter()
    stamps = startup.parse((tmp_path / "stamps").read_text().splitlines())
    assert [stamp[:2] for stamp in stamps] == [("train_qlora", f"{when}_readback") for when in ("before", "after")]
