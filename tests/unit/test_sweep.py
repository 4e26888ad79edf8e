"""tools.sweep: the meaning of `-S`, rejected values, and trainings in one process that equal those in new processes."""

import gc
import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
import yaml
from helpers.project import COMMITTED, ROOT
from helpers.stages import run_stage_in_each
from helpers.training_folder import adapter_bytes, prepare

from stages import train_qlora
from stages.model.base_cache import cache_base
from stages.runtime import shutdown
from stages.runtime.errors import UserError
from tools import sweep


@pytest.mark.parametrize(
    ("overrides", "variants"),
    [
        (["lora.r=4,8", "seed=1,2"], [("lora.r=4", "seed=1"), ("lora.r=4", "seed=2"), ("lora.r=8", "seed=1"),
                                      ("lora.r=8", "seed=2")]),
        (["train.epochs=range(1,4)"], [("train.epochs=1",), ("train.epochs=2",), ("train.epochs=3",)]),
        (["lora.target_modules=[q_proj,v_proj],[fc1]"], [("lora.target_modules=[q_proj,v_proj]",),
                                                         ("lora.target_modules=[fc1]",)]),
        (["data.label=[a,b],[a,b,c]"], [("data.label=[a,b]",), ("data.label=[a,b,c]",)]),
        (["tokenize.template='{a}, {b}'", "seed=1"], [("tokenize.template='{a}, {b}'", "seed=1")]),
        (["other.yaml:a.b=1,2"], [("other.yaml:a.b=1",), ("other.yaml:a.b=2",)]),
        (["seed=1,1"], [("seed=1",)]),
    ],
)  # fmt: skip
def test_lists_and_ranges_give_each_combination_once(overrides, variants):
    assert sweep.variants_of(overrides) == variants


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "f1_micro"])
def test_the_score_of_a_variant_is_its_leading_metric(folder, metric):
    (folder / "metrics").mkdir()
    scores = {"accuracy": 0.5, "f1_macro": 0.25, "f1_micro": 0.75}
    (folder / "metrics/summary.json").write_text(json.dumps(scores | {f"gain_{metric}": 0.1}))
    assert sweep.read_score() == (metric, f"{scores[metric]:.4f}")


@pytest.mark.parametrize("override", ["seed", "seed=[1", "seed=glob(*)"])
def test_an_invalid_override_is_named(override):
    with pytest.raises(UserError, match="-S seed"):
        sweep.variants_of([override])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(COMMITTED / "demo/params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (("seed=1", "lora.r=0"), r"^-S seed=1 lora.r=0: params.yaml: lora.r: .*greater than or equal to 1"),
        (("train.keep=worst",), r"params.yaml: train.keep: .*'best' or 'last'"),
        (("lora.rank=4",), r"^-S lora.rank=4: params.yaml: lora.rank: unknown key: correct or remove it$"),
        (("lora={rank: 4}",), "params.yaml: lora.rank: unknown key"),
        (("seed=1", "~lora.r"), "params.yaml: lora.r: missing"),
        (("+lora.rank=4",), "params.yaml: lora.rank: unknown key"),
        (("nowhere.yaml:a=1",), "nowhere.yaml"),
        (("launcher=torchrun",), "params.yaml: launcher: torchrun; .* add -S launcher=python"),
    ],
)
def test_a_bad_value_is_reported_with_its_variant_and_changes_no_file(folder, variant, message):
    before = (folder / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=message):
        sweep.check(variant, folder)
    assert (folder / "params.yaml").read_bytes() == before


def test_a_valid_variant_changes_no_file(folder):
    before = (folder / "params.yaml").read_bytes()
    sweep.check(("lora.r=4", "train.learning_rate=2e-5"), folder)
    assert (folder / "params.yaml").read_bytes() == before


def test_the_cause_of_a_failed_run_is_the_stages_own_error_line():
    def chain(*errors):
        for outer, inner in itertools.pairwise(errors):
            outer.__cause__ = inner
        return errors[0]

    assert sweep.cause(chain(RuntimeError("of DVC"), UserError("lora.r:\ntoo large"), ValueError("x"))) == (
        "lora.r: too large"
    )
    assert sweep.cause(chain(RuntimeError("of DVC"), ValueError("first\nsecond"))) == "ValueError: first"


def results(folder):
    """{file: its bytes} of a training's adapter and curves."""
    curves = {path.name: path.read_bytes() for path in (folder / "outs/results/train").iterdir()}
    return adapter_bytes(folder) | curves


def count_4bit_layers():
    """All 4-bit layers in memory."""
    gc.collect()
    return sum(isinstance(each, bnb.nn.Linear4bit) for each in gc.get_objects())


def train_stage(folder):
    """The stage in a folder, as DVC hands it over."""
    command = "exec env DVC_PID=$PPID python -m stages.train_qlora"
    return SimpleNamespace(name="train_qlora", cmd=command, wdir=str(folder))


VARIANTS = {
    "first": {"lora__r": 4, "seed": 1},
    "other layers": {
        "seed": 2, "train__class_weights": "balanced", "train__keep": "last", "lora__target_modules": ["fc1"],
        "train__gradient_checkpointing": True, "train__freeze_head": True,
    },
    "unquantised": {"seed": 1, "model__quantization": "none"},
    "first again": {"lora__r": 4, "seed": 1},
}  # fmt: skip


def test_trainings_in_one_process_equal_those_in_new_processes_and_free_their_memory(tmp_path):
    one_process, own_process = (
        {name: prepare(tmp_path / process / name, train__epochs=1, **changes) for name, changes in VARIANTS.items()}
        for process in ("one", "own")
    )
    for name, done in run_stage_in_each("train_qlora", own_process.values()).items():
        assert done.returncode == 0, f"{name}: {done.stderr}"
    before = count_4bit_layers()
    with cache_base() as base_cache:
        run = sweep.InProcess(None, base_cache.check)
        for name, folder in one_process.items():
            run(train_stage(folder))
            assert results(folder) == results(own_process[name]), name
            cached = sum(isinstance(module, bnb.nn.Linear4bit) for module in base_cache.model.modules())
            assert cached == (0 if name == "unquantised" else 18)
            assert count_4bit_layers() == before + cached
    assert run.stages == ["train_qlora"] * len(VARIANTS)


def test_a_stage_leaves_threads_environment_and_folder_unchanged(tmp_path, monkeypatch):
    seen_by_stage = []

    def main():
        seen_by_stage.append((torch.get_num_threads(), os.environ.get("OF_A_STAGE"), Path.cwd()))
        torch.set_num_threads(3)
        os.environ["OF_A_STAGE"] = "set"

    monkeypatch.setattr(train_qlora, "main", main)
    threads, here = torch.get_num_threads(), Path.cwd()
    run = sweep.InProcess(None, lambda: None)
    for _ in range(2):
        run(train_stage(tmp_path))
        assert Path.cwd() == here
    torch.set_num_threads(threads)
    assert seen_by_stage == [(threads, None, tmp_path)] * 2


def test_ctrl_c_in_a_training_reaches_the_sweep_which_removes_its_copy(tmp_path, monkeypatch):
    def main():
        with shutdown.graceful("train_qlora", str):
            signal.raise_signal(signal.SIGINT)
            time.sleep(10)

    monkeypatch.setattr(train_qlora, "main", main)
    with pytest.raises(KeyboardInterrupt):
        sweep.InProcess(None, lambda: None)(train_stage(tmp_path))


def test_a_stage_that_changes_the_base_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(train_qlora, "main", lambda: None)

    def check():
        raise RuntimeError("weights have changed")

    with pytest.raises(RuntimeError, match="weights have changed"):
        sweep.InProcess(None, check)(train_stage(tmp_path))


def test_dvc_itself_runs_any_other_command(tmp_path):
    commands = []
    run = sweep.InProcess(lambda stage, dry, run_env: commands.append(stage.cmd), lambda: None)
    run(SimpleNamespace(name="mine", cmd="python mine.py", wdir=str(tmp_path)))
    assert commands == ["python mine.py"] and run.stages == ["mine"]


def test_each_stages_command_is_recognised():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    commands = {name: stage["cmd"].replace("${launcher}", "python") for name, stage in stages.items()}
    assert all(sweep.COMMAND.fullmatch(command)[1] == f"stages.{name}" for name, command in commands.items())
