"""The demo pipeline under DVC, in a temporary clone: a run, a second run, experiments, invalid values."""

import json
import time
from types import SimpleNamespace

import pytest
from helpers.imports import ALLOWED, modules_of, too_many

pytestmark = pytest.mark.slow

STAGES = ["download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"]


def outs(clone):
    """Paths of all files and folders in demo/outs."""
    folder = clone.folder / "demo"
    return {str(path.relative_to(folder)) for path in (folder / "outs").rglob("*")}


@pytest.fixture(scope="module")
def experiment(short_run):
    """`dvc exp run` with another `lora.r`, and what DVC's commands print afterwards."""
    done = short_run.clone.dvc("exp", "run", "-S", "lora.r=8")
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = {
        name: short_run.clone.dvc(*command.split())
        for name, command in {
            "metrics": "metrics diff --json",
            "params": "params diff --json",
            "plots show": "plots show --out shown",
            "plots diff": "plots diff --out compared",
            "experiments": "exp show --json",
        }.items()
    }
    return SimpleNamespace(run=done, metrics=short_run.clone.metrics(), outputs=outputs)


@pytest.fixture(scope="module")
def back(short_run, experiment):
    """An experiment with the first `lora.r` again."""
    done = short_run.clone.dvc("exp", "run", "-S", "lora.r=16")
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(run=done, metrics=short_run.clone.metrics())


@pytest.fixture(scope="module")
def rejected(short_run, back):
    """An experiment with a value that is not a number, and the outs before and after it."""
    before = outs(short_run.clone)
    done = short_run.clone.dvc("exp", "run", "-S", "lora.r=abc")
    after = outs(short_run.clone)
    short_run.clone.git("checkout", "--", "demo/params.yaml")
    return SimpleNamespace(run=done, before=before, after=after)


def test_the_first_run_runs_every_stage_and_writes_every_out(short_run):
    assert short_run.run.ran == STAGES
    for path in (
        "outs/splits/train.parquet", "outs/data_source.json", "outs/base_model.json", "outs/tokenized/test.parquet",
        "outs/data_summary.json", "outs/results/base/predictions.parquet", "outs/results/train/steps.csv",
        "outs/results/tuned/predictions.parquet", "outs/measurements/base/run.json",
        "outs/adapter/adapter_model.safetensors",
    ):  # fmt: skip
        assert (short_run.clone.folder / "demo" / path).is_file(), path


def test_the_metrics_have_all_parts(repro):
    assert {"summary", "details", "stages"} <= set(repro.metrics)
    assert {"data", "base", "train", "tuned", "comparison", "calibration"} <= set(repro.metrics["details"])


def test_tuning_was_worth_it(repro):
    """The base knows a part of the task: a linear probe on it is the best reference, far below the tuned model."""
    comparison = repro.metrics["details"]["comparison"]
    assert (comparison["verdict"], comparison["best"]) == ("worth it", "probe")
    assert comparison["references"]["untrained_head"]["accuracy"] <= 0.45
    assert comparison["references"]["probe"]["accuracy"] <= 0.75
    assert repro.metrics["summary"]["accuracy"] >= 0.85


def test_the_metrics_agree_with_each_other(repro):
    details = repro.metrics["details"]
    tuned, comparison, summary = details["tuned"], details["comparison"], repro.metrics["summary"]
    outcomes, best = comparison["outcomes"], comparison["references"][comparison["best"]]
    rows = tuned["rows"]
    assert rows == comparison["rows"] == details["data"]["test"]["kept"] == sum(outcomes.values())
    assert best["difference"]["value"] == pytest.approx(tuned["accuracy"] - best["accuracy"])
    assert (outcomes["both_right"] + outcomes["fixed"]) / rows == pytest.approx(tuned["accuracy"])
    assert summary["gain_accuracy"] == best["difference"]["value"]
    assert summary["best_reference_accuracy"] == best["accuracy"]
    assert len(summary) <= 16
    assert {"stored", "total", "trainable"} <= set(details["train"]["parameters"])


def test_git_ignores_the_files_that_dvc_caches(short_run):
    changed = [line[3:] for line in short_run.status.splitlines()]
    assert [name for name in changed if not name.startswith(("demo/metrics/", "demo/dvc.lock"))] == []


def test_a_second_run_runs_nothing(short_run):
    """This test must precede the experiments, which change the workspace."""
    done = short_run.clone.dvc("repro")
    assert done.returncode == 0
    assert done.ran == []


def test_another_lora_rank_trains_again_and_runs_no_earlier_stage(experiment):
    assert experiment.run.ran == ["train_qlora", "eval_lora", "analyze"]
    for stage in ("download", "tokenize", "eval_base"):
        assert f"'{stage}' didn't change, skipping" in experiment.run.stdout


def test_metrics_diff_shows_the_change(short_run, experiment):
    changed = json.loads(experiment.outputs["metrics"].stdout)
    trainable = changed["metrics/summary.json"]["parameters_trained"]
    assert trainable["old"] == short_run.metrics["details"]["train"]["parameters"]["trainable"]
    assert trainable["new"] == experiment.metrics["details"]["train"]["parameters"]["trainable"] < trainable["old"]
    assert "best_reference_accuracy" not in changed["metrics/summary.json"], "the base is the same"


def test_params_diff_shows_the_change(experiment):
    changed = json.loads(experiment.outputs["params"].stdout)["params.yaml"]
    assert changed["lora.r"] == {"old": 16, "new": 8, "diff": -8}


@pytest.mark.parametrize(("command", "out"), [("plots show", "shown"), ("plots diff", "compared")])
def test_plots_are_written_without_a_warning(short_run, experiment, command, out):
    done = experiment.outputs[command]
    assert done.returncode == 0
    assert "warning" not in (done.stdout + done.stderr).lower()
    page = (short_run.clone.folder / "demo" / out / "index.html").read_text()
    for title in ("Loss by epoch", "Validation accuracy", "Best reference", "Tuned"):
        assert title in page


def test_exp_show_lists_both_runs(experiment):
    shown = json.loads(experiment.outputs["experiments"].stdout)
    lora_ranks = set()

    def walk(value):
        if isinstance(value, dict):
            if "lora" in value and isinstance(value["lora"], dict):
                lora_ranks.add(value["lora"]["r"])
            for child in value.values():
                walk(child)
        elif isinstance(value, list):
            for child in value:
                walk(child)

    walk(shown)
    assert lora_ranks == {8, 16}


def test_an_experiment_keeps_the_link_to_the_code(short_run, experiment):
    """DVC could commit a copy of the code instead. After `dvc exp apply`, DVC would then miss changes of stages/."""
    commits = short_run.clone.git("for-each-ref", "--format=%(objectname)", "refs/exps").split()
    assert commits
    for commit in commits:
        assert short_run.clone.git("ls-tree", commit, "demo/stages").startswith("120000 blob")


def test_the_first_lora_rank_comes_from_the_run_cache_without_training(short_run, back):
    assert "train_qlora" not in back.run.ran
    assert "eval_lora" not in back.run.ran
    assert "'train_qlora' is cached - skipping run, checking out outputs" in back.run.stdout
    assert back.metrics == short_run.metrics


def test_a_value_that_is_not_a_number_is_one_error_line(rejected):
    assert rejected.run.returncode != 0
    printed = (rejected.run.stdout + rejected.run.stderr).splitlines()
    errors = [line for line in printed if line.startswith("error: ")]
    assert len(errors) == 1, printed
    assert errors[0].startswith("error: params.yaml: lora.r: ")
    assert any("exited with 1" in line for line in printed)
    assert not any("Traceback" in line for line in printed)


def test_a_rejected_run_writes_nothing(rejected):
    new = rejected.after - rejected.before
    assert new == set()
    removed = rejected.before - rejected.after
    own_outs = ("outs/adapter", "outs/results/train", "outs/measurements/train")
    assert all(name.startswith(own_outs) for name in removed), "DVC removes a stage's outs before it starts the stage"


def test_checkout_restores_the_outs_that_dvc_removed_before_a_rejected_run(short_run, rejected):
    """DVC removes a stage's outs before it starts the stage, so none are left after the error."""
    removed = rejected.before - rejected.after
    assert {"outs/adapter/adapter_model.safetensors", "outs/measurements/train/run.json"} <= removed
    done = short_run.clone.dvc("checkout")
    assert done.returncode == 0, done.stderr
    assert outs(short_run.clone) == rejected.before
    assert "up to date" in short_run.clone.dvc("status").stdout


@pytest.mark.parametrize(
    "changes",
    [["model.folder='$(touch pwned)'"], ["data.folder=from_hub", "data.name='`touch pwned`'", "data.revision=main"]],
    ids=["folder", "name"],
)
def test_parameters_never_reach_a_shell(short_run, rejected, changes):
    done = short_run.clone.dvc("exp", "run", "download", *(part for change in changes for part in ("-S", change)))
    short_run.clone.git("checkout", "--", "demo/params.yaml")
    assert done.returncode != 0
    assert "touch pwned" in done.stderr
    assert list(short_run.clone.folder.rglob("pwned")) == []
    assert "Traceback" not in done.stdout + done.stderr


def test_at_the_root_a_run_without_hub_and_gpu_stops_in_seconds_with_one_error_line(short_run, tmp_path):
    start = time.monotonic()
    no_hub_no_gpu = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = short_run.clone.dvc_in_new_processes("repro", below=".", HF_HUB_OFFLINE="0", **no_hub_no_gpu)
    assert time.monotonic() - start < 60
    assert done.returncode != 0
    printed = (done.stdout + done.stderr).splitlines()
    errors = [line for line in printed if line.startswith("error: ")]
    assert len(errors) == 1, printed
    assert "stanfordnlp/snli" in errors[0]
    assert "make demo" in errors[0]
    assert not any("Traceback" in line for line in printed)
    assert list((short_run.clone.folder / "outs").rglob("*")) == []


@pytest.mark.parametrize("stage", ALLOWED)
def test_no_stage_imports_a_slow_library_that_it_does_not_use(short_run, stage):
    modules = modules_of(short_run.reads[f"{stage}.files"])
    assert "pandas" in modules, "else this test checks nothing"
    assert too_many(stage, modules) == set()
