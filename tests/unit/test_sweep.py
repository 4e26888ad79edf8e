"""tools.sweep: what `-S` means, what is refused, and that a stage in a process with others does what it does alone."""

import gc
import itertools
import os
import shutil
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
        (["tokenize.template='{a}, {b}'", "seed=1"], [("tokenize.template='{a}, {b}'", "seed=1")]),
        (["other.yaml:a.b=1,2"], [("other.yaml:a.b=1",), ("other.yaml:a.b=2",)]),
        (["seed=1,1"], [("seed=1",)]),
    ],
)  # fmt: skip
def test_lists_and_ranges_give_each_combination_once(overrides, variants):
    assert sweep.variants_of(overrides) == variants


@pytest.mark.parametrize("override", ["seed", "seed=[1", "seed=glob(*)"])
def test_what_dvc_can_not_read_is_named(override):
    with pytest.raises(UserError, match="-S seed"):
        sweep.variants_of([override])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(COMMITTED / "demo/params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        (("seed=1", "lora.r=0"), r"^-S seed=1 lora.r=0: params.yaml: lora.r: .*greater than or equal to 1"),
        (("train.keep=worst",), r"params.yaml: train.keep: .*'best' or 'last'"),
        (("lora.rank=4",), "lora.rank|'rank'"),
        (("+lora.rank=4",), "params.yaml: lora.rank: unknown key"),
        (("nowhere.yaml:a=1",), "nowhere.yaml"),
        (("launcher=torchrun",), "params.yaml: launcher: torchrun; .* add -S launcher=python"),
    ],
)
def test_a_bad_value_is_named_with_its_variant_and_nothing_is_changed(folder, variant, said):
    before = (folder / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=said):
        sweep.check(variant)
    assert (folder / "params.yaml").read_bytes() == before


def test_a_good_variant_leaves_the_parameters_as_they_were(folder):
    before = (folder / "params.yaml").read_bytes()
    sweep.check(("lora.r=4", "train.learning_rate=2e-5"))
    assert (folder / "params.yaml").read_bytes() == before


def test_the_cause_of_a_failed_run_is_the_stages_own_line():
    def raised(*errors):
        for outer, inner in itertools.pairwise(errors):
            outer.__cause__ = inner
        return errors[0]

    assert sweep.cause(raised(RuntimeError("of DVC"), UserError("lora.r:\ntoo large"), ValueError("x"))) == (
        "lora.r: too large"
    )
    assert sweep.cause(raised(RuntimeError("of DVC"), ValueError("first\nsecond"))) == "ValueError: first"


def made(folder):
    """{file: its bytes} of what a training found."""
    found = {path.name: path.read_bytes() for path in (folder / "outs/results/train").iterdir()}
    return adapter_bytes(folder) | found


def live_layers():
    gc.collect()
    return sum(isinstance(thing, bnb.nn.Linear4bit) for thing in gc.get_objects())


def train_in(folder):
    """A stage as DVC hands it over."""
    command = "exec env DVC_PID=$PPID python -m stages.train_qlora"
    return SimpleNamespace(name="train_qlora", cmd=command, wdir=str(folder))


VARIANTS = {
    "first": {"lora__r": 4, "seed": 1},
    "balanced": {"seed": 2, "train__class_weights": "balanced", "train__keep": "last"},
    "other layers": {
        "lora__target_modules": ["fc1"], "train__gradient_checkpointing": True, "train__freeze_head": True,
    },
    "unquantised": {"seed": 1, "model__quantization": "none"},
    "first again": {"lora__r": 4, "seed": 1},
}  # fmt: skip


def test_trainings_one_after_another_are_those_that_run_alone_and_free_their_memory(tmp_path):
    folders, others = (
        {name: prepare(tmp_path / where / name, train__epochs=1, **changes) for name, changes in VARIANTS.items()}
        for where in ("here", "alone")
    )
    for name, done in run_stage_in_each("train_qlora", others.values()).items():
        assert done.returncode == 0, f"{name}: {done.stderr}"
    before = live_layers()
    with cache_base() as kept:
        run = sweep.InProcess(None, kept.check)
        for name, folder in folders.items():
            run(train_in(folder))
            assert made(folder) == made(others[name]), name
            kept_layers = sum(isinstance(module, bnb.nn.Linear4bit) for module in kept.model.modules())
            assert kept_layers == (0 if name == "unquantised" else 18)
            assert live_layers() == before + kept_layers
    assert run.stages == ["train_qlora"] * len(VARIANTS)


def test_threads_environment_and_folder_of_a_stage_end_with_it(tmp_path, monkeypatch):
    found = []

    def main():
        found.append((torch.get_num_threads(), os.environ.get("OF_A_STAGE"), Path.cwd()))
        torch.set_num_threads(3)
        os.environ["OF_A_STAGE"] = "set"

    monkeypatch.setattr(train_qlora, "main", main)
    threads, here = torch.get_num_threads(), Path.cwd()
    run = sweep.InProcess(None, lambda: None)
    for _ in range(2):
        run(train_in(tmp_path))
        assert Path.cwd() == here
    torch.set_num_threads(threads)
    assert found == [(threads, None, tmp_path)] * 2


def test_what_a_stage_did_to_the_base_fails_it(tmp_path, monkeypatch):
    monkeypatch.setattr(train_qlora, "main", lambda: None)

    def changed():
        raise RuntimeError("weights have changed")

    with pytest.raises(RuntimeError, match="weights have changed"):
        sweep.InProcess(None, changed)(train_in(tmp_path))


def test_another_command_is_left_to_dvc(tmp_path):
    left = []
    run = sweep.InProcess(lambda stage, dry, run_env: left.append(stage.cmd), lambda: None)
    run(SimpleNamespace(name="mine", cmd="python mine.py", wdir=str(tmp_path)))
    assert left == ["python mine.py"] and run.stages == ["mine"]


def test_every_stage_of_the_pipeline_runs_in_the_process():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    commands = {name: stage["cmd"].replace("${launcher}", "python") for name, stage in stages.items()}
    assert all(sweep.COMMAND.fullmatch(command)[1] == f"stages.{name}" for name, command in commands.items())
