"""benchmarks/: the parts that a CPU can run. The measurements need a GPU."""

import functools
import importlib.util
import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers.families import save_family
from helpers.project import COMMITTED, CPU, DEMO, NANO, ROOT
from helpers.stages import run_module, stage_env
from torch.autograd import DeviceType
from transformers import Trainer, TrainingArguments
from transformers.models.gemma3 import modeling_gemma3

from stages.runtime import params
from stages.runtime.errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare
import gpu_timing
import profile_step
import recipes
import several_gpus
import speed_tables


@pytest.fixture(scope="module")
def inputs():
    p = params.load(COMMITTED / "demo/params.yaml")
    return recipes.load_inputs(NANO, DEMO / "assets/everyday-nli", p)


def use_cpu(monkeypatch):
    monkeypatch.setattr(recipes, "DEVICE", CPU)
    monkeypatch.setattr(recipes, "TrainingArguments", functools.partial(TrainingArguments, use_cpu=True))


def names(lines):
    return [(recipe.name, size) for recipe, size in lines]


def test_each_recipe_has_a_row_in_the_table():
    assert sorted(recipe.name for recipe in recipes.RECIPES) == sorted(speed_tables.NAMES)


def test_the_plan_has_all_recipes_except_those_on_request_and_the_first_again():
    planned = names(compare.plan(None, None, torch_compile=False))
    assert planned == [
        *[(r.name, size) for size in (16, 128) for r in recipes.RECIPES if size in r.batch_sizes and not r.on_request],
        ("notebook", 16),
    ]
    with_it = names(compare.plan(None, None, torch_compile=True))
    assert set(with_it) - set(planned) == {("trainer, compiled", 16)} and with_it[-1] == ("notebook", 16)


def test_a_plan_of_named_recipes_has_only_these():
    only = ["ours", "trainer, compiled", "evaluation, ours"]
    assert names(compare.plan(only, None, torch_compile=False)) == [
        ("ours", 16), ("trainer, compiled", 16), ("ours", 128)
    ]  # fmt: skip
    assert names(compare.plan(["ours, eager"], [64, 8], torch_compile=False)) == [
        ("ours, eager", 64), ("ours, eager", 8)
    ]  # fmt: skip
    assert compare.plan(["evaluation, ours"], None, torch_compile=False) == []


def test_rows_are_repeated_up_to_the_requested_number(inputs):
    rows = several_gpus.all_rows(inputs, DEMO / "assets/everyday-nli", 2500)
    assert len(rows) == 2500
    period = next(n for n in range(1, 2500) if (rows.labels[n:] == rows.labels[:-n]).all())
    assert len(inputs.rows["ours"]) <= period <= 1010, "all labelled rows of the folder"
    assert rows[period]["input_ids"].tolist() == rows[0]["input_ids"].tolist()


@pytest.mark.parametrize(
    ("rows", "batch_size", "passes", "timing"),
    [
        (1000, 16, 3, (189, 9, 7)),
        (1000, 128, 3, (24, 2, 4)),
        (1000, 128, 0.25, (2, 2, 4)),
        (999, 16, 0.25, (16, 9, 7)),
        (1000, 33, 1, (31, 31, 1)),  # a prime number of steps
    ],
)
def test_the_timed_steps_pass_over_the_rows_once(rows, batch_size, passes, timing):
    result = gpu_timing.Timing.of(rows, batch_size, passes)
    assert result == gpu_timing.Timing(*timing)
    timed = result.steps - result.warm_up
    assert (timed - 1) * batch_size < rows <= timed * batch_size


class Event(float):
    """A CUDA event at some milliseconds."""

    def elapsed_time(self, later):
        return later - self


def test_whole_blocks_are_timed_after_the_warm_up(monkeypatch):
    """The steps end at 1, 4, 9, 16 … ms."""
    now, waits = [0], []
    monkeypatch.setattr(gpu_timing, "mark", lambda: Event(now[0]))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    timing = gpu_timing.Timing(warm_up=3, block=2, blocks=2)
    watch = gpu_timing.Clock(timing)
    watch.on_train_begin(None, SimpleNamespace(global_step=0), None)
    for step in range(1, timing.steps + 1):
        now[0] = step**2
        watch.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert watch.blocks() == [(25 - 9) / 2, (49 - 25) / 2]
    assert gpu_timing.spans(watch.first) == [1]
    assert not waits


@pytest.mark.parametrize(
    "recipe", [r for r in recipes.RECIPES if r.make_trainer != recipes.train_liger], ids=lambda r: r.name
)
def test_each_recipe_trains(inputs, monkeypatch, recipe):
    use_cpu(monkeypatch)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)  # minutes on a CPU
    trainer = recipe.make_trainer(inputs, batch_size=4, steps=1)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.state.global_step == 1
    changed = {n for n, p in trainer.model.named_parameters() if n in before and not torch.equal(p, before[n])}
    assert {n for n in before if "lora_B" in n} <= changed  # A has no gradient yet: B is zero
    assert any("score" in n for n in changed) == (recipe.name != "notebook"), "the notebook freezes the head"
    assert bool(compiled) == (recipe.name == "trainer, compiled")


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_recipes_train_other_families(monkeypatch, tmp_path, family):
    use_cpu(monkeypatch)
    p = params.load(COMMITTED / "params.yaml").model_copy(update={"device": "cpu"})  # the root's GELU; Llama has SiLU
    other = recipes.load_inputs(save_family(family, tmp_path), DEMO / "assets/everyday-nli", p)
    for recipe in recipes.RECIPES:
        if recipe.name in ("notebook", "trainer at its best", "ours"):
            trainer = recipe.make_trainer(other, batch_size=4, steps=1)
            trainer.train()
            assert trainer.model.config.model_type == family and trainer.state.global_step == 1


def test_liger_patches_the_decoder_during_training_only(monkeypatch, tmp_path):
    """Liger needs a GPU, so a stub replaces it. Like Liger it changes the model and the family's module."""
    use_cpu(monkeypatch)
    p = params.load(COMMITTED / "demo/params.yaml")
    gemma = recipes.load_inputs(save_family("gemma3_text", tmp_path), DEMO / "assets/everyday-nli", p)
    module, rotary, used = modeling_gemma3, modeling_gemma3.apply_rotary_pos_emb, []

    def patch(model, config):
        assert isinstance(model, modeling_gemma3.Gemma3TextModel) and config == {"fused_linear_cross_entropy": False}
        module.apply_rotary_pos_emb = lambda *args, **kwargs: used.append(1) or rotary(*args, **kwargs)

    monkeypatch.setattr(recipes, "apply_liger_kernel", patch)
    trainer = recipes.train_peer(gemma, batch_size=4, steps=1, trainer=recipes.LigerTrainer)
    assert module.apply_rotary_pos_emb is rotary
    trainer.train()
    assert used and trainer.state.global_step == 1 and module.apply_rotary_pos_emb is rotary


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_liger_replaces_norms_and_mlps_but_not_the_classifiers_forward(monkeypatch, tmp_path):
    use_cpu(monkeypatch)
    p, data = params.load(COMMITTED / "demo/params.yaml"), DEMO / "assets/everyday-nli"
    gemma = recipes.load_inputs(save_family("gemma3_text", tmp_path), data, p)
    trainer, seen = recipes.train_liger(gemma, batch_size=4, steps=1), []
    forward = trainer.model.get_base_model().forward
    monkeypatch.setattr(Trainer, "train", lambda self: seen.append(repr(self.model)))
    trainer.train()
    assert "LigerRMSNorm" in seen[0] and "LigerGEGLUMLP" in seen[0] and "Gemma3RMSNorm" not in seen[0]
    assert trainer.model.get_base_model().forward == forward


def test_a_missing_liger_or_an_unsupported_family_is_an_error_in_the_results(inputs, monkeypatch):
    liger = next(recipe for recipe in recipes.RECIPES if recipe.name == "trainer with Liger Kernel")
    monkeypatch.setattr(gpu_timing, "clean", lambda: None)
    monkeypatch.setattr(recipes, "is_liger_kernel_available", lambda: False)
    line = compare.time_recipe(inputs, liger, 16)
    assert line == {"variant": liger.name, "batch_size": 16, "error": "liger-kernel is not installed"}
    monkeypatch.setattr(recipes, "is_liger_kernel_available", lambda: True)
    families = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None})
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", families)
    assert compare.time_recipe(inputs, liger, 16)["error"] == "Liger Kernel does not support phi"
    header, _, row = speed_tables.training([line])
    assert "liger-kernel is not installed" in row and row.count("|") == header.count("|")


def test_the_frozen_weights_are_those_of_the_quantized_layers(inputs, monkeypatch):
    monkeypatch.setattr(recipes, "DEVICE", CPU)
    base = recipes.our_base(inputs)
    packed = sum(p.numel() for p in base.parameters() if p.dtype == torch.uint8)  # two weights a byte
    assert recipes.frozen_weights(NANO) == 2 * packed > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_the_error_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["compare.py", str(NANO), str(DEMO), "--out", str(tmp_path / "out.json")])
    with pytest.raises(UserError, match="PyTorch sees no CUDA GPU"):
        compare.main()
    monkeypatch.setattr(sys, "argv", ["profile_step.py", str(NANO), str(DEMO)])
    with pytest.raises(UserError, match="PyTorch sees no CUDA GPU"):
        profile_step.main()
    assert not (tmp_path / "out.json").exists()


def test_a_profile_lists_the_gpus_kernels_longest_first_each_in_one_kind():
    with torch.profiler.profile() as cpu_profile:
        torch.ones(2).sum()
    assert profile_step.kernels(cpu_profile.key_averages(), 1) == []

    def event(name, count, us, device=DeviceType.CUDA, annotation=False):
        return SimpleNamespace(
            key=name, count=count, self_device_time_total=us, device_type=device, is_user_annotation=annotation
        )

    profiled = profile_step.kernels(
        [
            event("void at::native::elementwise_kernel<4, GeluFunctor>", 5, 100),
            event("nvjet_tst_128x64_bf16", 50, 2500),
            event("sm90_xmma_gemm_bf16", 10, 500),
            event("_dropout_kernel", 25, 1000),
            event("Optimizer.step#AdamW.step", 5, 9999, annotation=True),
            event("aten::mm", 5, 9999, DeviceType.CPU),
        ],
        steps=5,
    )
    assert [(k.count, k.ms) for k in profiled] == [(10, 0.5), (5, 0.2), (2, 0.1), (1, 0.02)]
    kinds = {k.name: (k.count, pytest.approx(k.ms)) for k in profile_step.sum_by_kind(profiled) if k.count}
    assert kinds == {
        "matrix products": (12, 0.6), "others, most of Triton": (5, 0.2), "others, of PyTorch": (1, 0.02)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "allowed"), [(("--only", "theirs"), "'ours, eager'"), (("--batch-sizes", "16", "0"), "1 and more")]
)
def test_a_wrong_option_prints_the_allowed_values(monkeypatch, capsys, option, allowed):
    monkeypatch.setattr(sys, "argv", ["compare.py", "model", "data", "--out", "none", *option])
    with pytest.raises(SystemExit):
        compare.read_arguments()
    assert allowed in capsys.readouterr().err.splitlines()[-1]


def test_the_code_of_another_checkout_is_rejected(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    compare.check_code()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="set PYTHONPATH"):
        compare.check_code()
    with pytest.raises(UserError, match="name it with --commit"):
        compare.commit()  # no repository


def test_a_partial_result_is_shown_without_the_missing_parts(capsys):
    """A result of `--only ours` has no notebook to compare with, no evaluation and no limits."""
    results = json.loads((ROOT / "benchmarks/results/h100.json").read_text())
    ours = next(r for r in results["training"] if r["variant"] == "ours") | {"first_step_seconds": 4.25}
    speed_tables.show({"training": [ours], "evaluation": []})
    shown = capsys.readouterr().out
    assert f"{ours['ms_per_step']:.2f}" in shown and "4.2" in shown and "limits" not in shown
    header, _, row = speed_tables.training([ours])
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["first step, s"] == "4.2" and cells["times the notebook"] == ""


def test_variants_are_trained_and_tested_for_each_seed(tmp_path):
    """The nano model on a CPU, two variants with one seed. A second call has nothing left to run."""
    real = ROOT / "benchmarks/real"
    small = [
        "device=cpu",
        "threads=1",
        "data.train_rows=48",
        "data.validation_rows=16",
        "data.test_rows=64",
        "train.epochs=1",
    ]
    arguments = [
        NANO, DEMO / "assets/everyday-nli", tmp_path, "ours", "template",
        "--seeds", "42", *(word for value in small for word in ("--set", value)),
    ]  # fmt: skip
    done = run_module("run", arguments, real, stage_env())
    assert done.returncode == 0, done.stderr
    assert sorted(line.split(":")[0] for line in done.stdout.splitlines()) == [
        "ours 42", "template 42"
    ]  # fmt: skip
    assert run_module("run", arguments, real, stage_env()).stdout == ""
    (tmp_path / "into").mkdir()
    assert run_module("collect", [tmp_path, tmp_path / "into"], real, stage_env()).returncode == 0
    table = pd.read_parquet(tmp_path / "into/predictions.parquet")
    assert list(table) == [
        "row", "gold", "group", "untrained_head 42", "zero_shot 42", "probe 42", "ours 42", "template 42"
    ]  # fmt: skip
    results = json.loads((tmp_path / "into/results.json").read_text())
    for run in results["runs"]:
        answers = table["{setting} {seed}".format(**run)]
        assert run["accuracy"] == pytest.approx((answers == table["gold"]).mean()) and run["rows"]["train"] <= 48
    assert set(results["times"]) == {"ours", "template"}
    assert (table["ours 42"] != table["template 42"]).any(), "the run ignored the variant's change"
