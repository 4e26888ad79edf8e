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
import memory_holder
import profile_step
import random_model
import recipes
import several_gpus
import speed_tables
import what_fits


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
    watch.start()
    for step in range(1, timing.steps + 1):
        now[0] = step**2
        watch.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert watch.blocks() == [(25 - 9) / 2, (49 - 25) / 2]
    assert gpu_timing.spans(watch.first) == [1]
    assert not waits


def test_the_rows_of_the_timed_steps_are_counted(monkeypatch):
    """A step's batch has two parts: a row of as many tokens as the step's number, and one of ten."""
    monkeypatch.setattr(gpu_timing, "mark", Event)
    timing = gpu_timing.Timing(warm_up=2, block=1, blocks=3)
    clock = gpu_timing.Clock(timing)
    collate = clock.count_lengths(lambda rows, tokens: (len(rows), tokens))
    for step in range(1, timing.steps + 1):
        assert collate([{"input_ids": [0] * step}], tokens=99) == (1, 99)
        collate([{"input_ids": [0] * 10}], tokens=99)
        clock.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert clock.timed_lengths() == [[3], [10], [4], [10], [5], [10]]


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


def test_a_failed_line_has_its_error(inputs, monkeypatch):
    def fail(*_):
        raise ValueError("no such shape\nmore")

    monkeypatch.setattr(gpu_timing, "time_training", fail)
    line = compare.time_recipe(inputs, recipes.RECIPES[0], 16)
    assert line == {"variant": "notebook", "batch_size": 16, "error": "ValueError: no such shape"}
    assert compare.try_evaluation("ours", fail, inputs) == [{"variant": "ours", "error": line["error"]}]


def test_longer_texts_have_evenly_spaced_lengths(inputs):
    longer = recipes.with_long_texts(inputs, 512, 160)
    lengths = sorted(longer.rows["ours"].lengths)
    assert lengths == sorted(round(10.24 + i * (512 - 10.24) / 159) for i in range(160))
    assert (longer.rows["ours"].lengths != lengths).any(), "sorted, so batches would not be random"
    assert longer.rows["ours"].tokens[:20].tolist() == inputs.rows["ours"].tokens[:20].tolist()
    assert longer.params.tokenize.max_length == 512
    assert [recipes.long_batch_size(texts) for texts in (64, 512, 1024, 2048, 8192)] == [16, 16, 16, 8, 2]


def test_a_plan_for_longer_texts_has_the_recipes_that_can_train_them():
    assert names(compare.plan_long(2048, None, None)) == [("trainer at its best", 8), ("ours", 8)]
    assert names(compare.plan_long(512, ["ours, checkpointing"], [4])) == [("ours, checkpointing", 4)]


def test_results_are_added_to_those_of_an_earlier_call(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(sys, "argv", ["compare.py", "first"])
    out = tmp_path / "new/results.json"
    results = compare.open_results(out, add=True, commit="abc", model="phi-2")
    out.write_text(json.dumps(results | {"training": [{"variant": "ours"}]}))
    monkeypatch.setattr(sys, "argv", ["compare.py", "second"])
    added = compare.open_results(out, add=True, commit="def", model="llama")
    assert added["training"] == [{"variant": "ours"}] and (added["model"], added["commit"]) == ("phi-2", "abc")
    assert added["command"] == "python compare.py first\npython compare.py second"
    assert "training" not in compare.open_results(out, add=False, commit="def", model="llama")


def test_weights_left_out_of_a_model_are_those_that_would_have_been_written(monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "DEVICE", CPU)
    shape, p = save_family("llama", tmp_path / "shape"), params.load(COMMITTED / "demo/params.yaml")
    bases = []
    for name, option in (("written", []), ("left-out", ["--no-weights"])):
        arguments = ["random_model.py", str(shape), str(tmp_path / name), "--layers", "3", *option]
        monkeypatch.setattr(sys, "argv", arguments)
        random_model.main()
        assert bool(list((tmp_path / name).glob("*.safetensors"))) == (name == "written")
        bases.append(recipes.our_base(recipes.load_inputs(tmp_path / name, DEMO / "assets/everyday-nli", p)))
    written, left_out = (dict(base.named_parameters()) for base in bases)
    assert list(written) == list(left_out) and all(torch.equal(written[name], left_out[name]) for name in written)
    assert bases[0].config.num_hidden_layers == 3
    queries = [written[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in range(3)]
    assert queries[0].data_ptr() != queries[1].data_ptr(), "layers that share a quantised weight would save memory"


def test_the_shapes_have_the_published_numbers_of_weights():
    counts = {}
    for name, config in random_model.SHAPES.items():
        with torch.device("meta"):
            counts[name] = sum(p.numel() for p in random_model.AutoModelForCausalLM.from_config(config).parameters())
    assert counts == {"llama-3-8b": 8_030_261_248, "qwen3-14b": 14_768_307_200}


def test_a_shape_without_a_tokenizer_is_rejected(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["random_model.py", "llama-3-8b", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        random_model.main()
    assert "--tokenizer: llama-3-8b has none" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_memory_holder_leaves_the_requested_memory_free():
    """It frees what it held before it allocates: 10 GB are free, and never more than 8 can be held."""
    held = []

    class Memory:
        def __init__(self, size):
            if sum(held) + size > 8e9:
                raise torch.OutOfMemoryError
            self.size = size
            held.append(size)

        def __del__(self):
            if hasattr(self, "size"):
                held.remove(self.size)

    answers = memory_holder.hold(["4\n", "2.5", "1", "12", "4"], 10 * 10**9, Memory)
    assert [(answer, sum(held)) for answer in answers] == [
        ("holds 6000000000", 6e9), ("holds 7500000000", 7.5e9), ("cannot hold 9000000000", 0), ("holds 0", 0),
        ("holds 6000000000", 6e9),
    ]  # fmt: skip


def test_what_fits_trains_the_sizes_with_the_least_memory_first(monkeypatch):
    command = ["what_fits.py", "model", "data", "--out", "out", "--free-gb", "16", "8", "--fp16-gb", "16"]
    monkeypatch.setattr(sys, "argv", [*command, "--texts", "snli", "512"])
    assert what_fits.list_lines(what_fits.read_arguments()) == [
        (8, "auto", "snli"), (8, "auto", 512), (16, "auto", "snli"), (16, "auto", 512),
        (16, "fp16", "snli"), (16, "fp16", 512),
    ]  # fmt: skip


class Holder:
    def leave_free(self, gb):
        assert gb == 8


class Plan(SimpleNamespace):
    def __str__(self):
        return "a plan"


TIMED = {"ms_median": 22.5, "peak_allocated_gb": 5.1, "peak_reserved_gb": 6.0, "parts_per_step": 2.0}


def fake_training(monkeypatch, outcome, validation=None):
    """`measure` with a training that has this outcome: an exception, or figures."""
    trainer = SimpleNamespace(
        captured_step=SimpleNamespace(plan=Plan(keep_weights=False, checkpointing=True, max_tokens=300)),
        evaluate=lambda: _raise(validation) if validation else None,
    )

    def time_training(make_trainer, timing):
        make_trainer(timing.steps)
        return _raise(outcome) if isinstance(outcome, Exception) else dict(outcome)

    monkeypatch.setattr(recipes, "train_ours", lambda *_: trainer)
    monkeypatch.setattr(gpu_timing, "time_training", time_training)
    monkeypatch.setattr(gpu_timing, "clean", lambda: None)
    monkeypatch.setattr(gpu_timing, "memory", lambda: {"peak_allocated_gb": 5.5, "peak_reserved_gb": 6.5})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1.0e9, 140e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 6.25e9)


def _raise(error):
    raise error


def test_a_line_of_what_fits_has_plan_time_and_memory_of_training_and_validation(inputs, monkeypatch):
    fake_training(monkeypatch, TIMED)
    line = what_fits.measure(inputs, 16, Holder(), 8)
    assert line["ms_median"] == 22.5 and line["peak_allocated_gb"] == 5.5
    assert line["used_gb"] == pytest.approx(6.5 + (8 - 1 - 6.25)), "PyTorch's peak, and what it does not count"
    assert (line["plan"], line["keep_weights"], line["checkpointing"]) == ("a plan", False, True)


def test_more_memory_changes_nothing_only_after_the_largest_plan():
    largest = fit(keep_weights=True)
    assert speed_tables.is_largest(largest)
    for change in ({"keep_weights": False}, {"checkpointing": True}, {"parts_per_step": 2.0}, {"error": "no"}):
        assert not speed_tables.is_largest(largest | change)
    assert not speed_tables.is_largest({"ms_median": 1.0}), "an earlier version of the code has no plan"


@pytest.mark.parametrize(
    ("outcome", "validation", "error"),
    [
        (torch.OutOfMemoryError("CUDA"), None, "out of memory"),
        (TIMED, torch.OutOfMemoryError("CUDA"), "out of memory"),
        (UserError("model: phi-2 does not fit"), None, "UserError: model: phi-2 does not fit"),
    ],
)
def test_a_line_of_what_fits_that_fails_has_its_error(inputs, monkeypatch, outcome, validation, error):
    fake_training(monkeypatch, outcome, validation)
    line = what_fits.measure(inputs, 16, Holder(), 8)
    assert line["error"] == error and line["plan"] == "a plan" and "ms_median" not in line


def fit(**values):
    line = {"model": "phi-2", "free_gb": 8, "texts": "snli", "precision": "auto", "keep_weights": False}
    return line | TIMED | {"checkpointing": False, "used_gb": 6.2, "parts_per_step": 1.0} | values


def test_the_table_of_what_fits_has_a_cell_for_each_size():
    lines = [
        fit(texts=512, parts_per_step=3.9, checkpointing=True, ms_median=140.2),
        fit(free_gb=16, keep_weights=True, ms_median=13.96, used_gb=10.96),
        fit(free_gb=16, texts=512, parts_per_step=2.0),
        {"model": "llama-3-8b", "free_gb": 8, "texts": 2048, "precision": "auto", "error": "out of memory"},
        fit(free_gb=24, texts=512),
        fit(free_gb=16, precision="fp16"),
    ]
    assert list(speed_tables.fits({"lines": lines})) == [
        "| model | texts | 8 GB free | 16 GB free | 24 GB free |",
        "| --- | --- | --- | --- | --- |",
        "| phi-2's shape | to 512 tokens | 140 ms, 6.2 GB: checkpointed, 4 parts | 22.5 ms, 6.2 GB: 2 parts "
        "| 22.5 ms, 6.2 GB |",
        "| phi-2's shape | SNLI |  | 14.0 ms, 11.0 GB: kept | as with 16 GB |",
        "| Llama-3-8B's shape | to 2,048 tokens | out of memory |  |  |",
        "| phi-2's shape, fp16 | SNLI |  | 22.5 ms, 6.2 GB |  |",
    ]  # fmt: skip
    lines.append(fit(model="qwen3-14b"))  # README has models with all kinds of texts only
    lines.insert(0, fit(texts=2048, keep_weights=True, ms_median=321))
    assert list(speed_tables.cards({"lines": lines}))[-6:] == [
        "| free memory | phi-2's shape | Llama-3-8B's shape |",
        "| --- | ---: | ---: |",
        "| 8 GB | not measured / 140 / 321 | not measured / not measured / – |",
        "| 16 GB | 14.0 / 22.5 / 321 | not measured |",
        "| 24 GB | 14.0 / 22.5 / 321 | not measured |",
        "| 40 GB | 14.0 / not measured / 321 | not measured |",
    ]
    assert "out of memory" in "\n".join(what_fits.table([line | {"used_gb": 6.0} for line in lines]))


def test_longer_texts_and_other_models_are_in_a_table_of_their_own():
    results = json.loads((ROOT / "benchmarks/results/h100.json").read_text())
    line = results["training"][3] | {"model": "llama-3-8b", "texts": 2048, "batch_size": 8}
    failed = {
        "model": results["model"],
        "texts": 512,
        "variant": "trainer at its best",
        "batch_size": 16,
        "error": "no",
    }
    table = list(speed_tables.others(results | {"training": [*results["training"], line, failed]}))
    assert table[2].startswith("| Llama-3-8B's shape | to 2,048 tokens | 8 | **ours** | 16.9 | 939 | 32,338 | 9.0 |")
    assert table[3].startswith("| phi-2's shape | to 512 tokens | 16 | HF Trainer | no |") and len(table) == 4
    assert len({row.count("|") for row in table}) == 1
    newest, turns = (json.loads(path.read_text()) for path in (speed_tables.RESULTS, speed_tables.TURNS))
    more = newest | {"training": [*newest["training"], line, failed]}
    first, second = (speed_tables.blocks(some, None, None, turns)["training"] for some in (more, newest))
    assert first == second


def test_the_times_on_another_gpu_are_the_last_column():
    results = json.loads((ROOT / "benchmarks/results/h100.json").read_text())
    header, _, first, *_, last = speed_tables.training(results["training"], results["training"], "H100")
    assert header.endswith("| H100, ms a step |") and first.endswith("| 317 |") and last.endswith("|  |")
    header, _, base, _ = speed_tables.evaluation(results["evaluation"], results["evaluation"], "H100")
    assert header.endswith("| H100, rows/s |") and base.endswith("| 3,071 |")


def test_a_block_of_a_document_is_replaced_and_the_rest_stays():
    text = "a\n<!-- step -->\nold\n<!-- end -->\nb\n<!-- other -->\nkept\n<!-- end -->\n"
    filled = "a\n<!-- step -->\n\nnew\n\n<!-- end -->\nb\n<!-- other -->\nkept\n<!-- end -->\n"
    assert speed_tables.fill(text, {"step": "new"}) == speed_tables.fill(filled, {"step": "new"}) == filled


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
