"""The whole demo pipeline under DVC, in a temporary clone: run, run again, experiments, mistakes."""

import json
import time
from types import SimpleNamespace

import pytest
import yaml
from helpers.imports import ALLOWED, modules_of, too_many
from helpers.project import COMMITTED

pytestmark = pytest.mark.slow

MADE = ("outs",)
STAGES = ["download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"]


def outs(clone):
    """Files that the stages made, by name."""
    folder = clone.folder / "demo"
    return {str(p.relative_to(folder)) for top in MADE for p in (folder / top).rglob("*")}


@pytest.fixture(scope="module")
def experiment(repro):
    """`dvc exp run` with another rank, after a whole run; one epoch, to be quick."""
    done = repro.clone.dvc("exp", "run", "-S", "lora.r=8", "-S", "train.epochs=1")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = {
        name: repro.clone.dvc(*command.split())
        for name, command in {
            "metrics": "metrics diff --json",
            "params": "params diff --json",
            "plots show": "plots show --out shown",
            "plots diff": "plots diff --out compared",
            "experiments": "exp show --json",
        }.items()
    }
    return SimpleNamespace(run=done, metrics=repro.clone.metrics(), seen=seen)


@pytest.fixture(scope="module")
def back(repro, experiment):
    """The first parameters again."""
    epochs = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())["train"]["epochs"]
    done = repro.clone.dvc("exp", "run", "-S", "lora.r=16", "-S", f"train.epochs={epochs}")
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(run=done, metrics=repro.clone.metrics())


@pytest.fixture(scope="module")
def refused(repro, back):
    """A value that is no number."""
    before = outs(repro.clone)
    done = repro.clone.dvc("exp", "run", "-S", "lora.r=abc")
    after = outs(repro.clone)
    repro.clone.git("checkout", "--", "demo/params.yaml")
    return SimpleNamespace(run=done, before=before, after=after)


def test_a_first_run_runs_every_stage_and_makes_every_out(repro):
    assert repro.run.ran == STAGES
    for path in (
        "outs/splits/train.parquet", "outs/data_source.json", "outs/base_model.json", "outs/tokenized/test.parquet",
        "outs/data_summary.json", "outs/results/base/predictions.parquet", "outs/results/train/steps.csv",
        "outs/results/tuned/predictions.parquet", "outs/measurements/base/run.json",
        "outs/adapter/adapter_model.safetensors",
    ):  # fmt: skip
        assert (repro.clone.folder / "demo" / path).is_file(), path
    assert {"summary", "details", "stages"} <= set(repro.metrics)
    assert {"data", "base", "train", "tuned", "comparison"} == set(repro.metrics["details"])


def test_tuning_turns_a_base_at_chance_into_a_classifier(repro):
    assert repro.metrics["summary"]["accuracy_base"] <= 0.45
    assert repro.metrics["summary"]["accuracy_tuned"] >= 0.85


def test_the_metrics_agree_with_one_another(repro):
    details = repro.metrics["details"]
    base, tuned, analysis = (details[name] for name in ("base", "tuned", "comparison"))
    rows = base["rows"]
    assert rows == tuned["rows"] == details["data"]["test"]["kept"]
    assert sum(analysis[fate] for fate in ("both_right", "fixed", "broken", "both_wrong")) == rows
    assert analysis["accuracy_gain"] == pytest.approx(tuned["accuracy"] - base["accuracy"])
    assert (analysis["both_right"] + analysis["fixed"]) / rows == pytest.approx(tuned["accuracy"])
    assert {"stored", "total", "trainable"} <= set(details["train"]["parameters"])


def test_git_ignores_what_dvc_keeps(repro):
    changed = [line[3:] for line in repro.status.splitlines()]
    assert [name for name in changed if not name.startswith(("demo/metrics/", "demo/dvc.lock"))] == []


def test_a_second_run_runs_nothing(repro):
    """Before any experiment: the test asks for no other fixture, and the others come after."""
    done = repro.clone.dvc("repro")
    assert done.returncode == 0
    assert done.ran == []


def test_another_rank_trains_again_and_nothing_before(experiment):
    assert experiment.run.ran == ["train_qlora", "eval_lora", "analyze"]
    for stage in ("download", "tokenize", "eval_base"):
        assert f"'{stage}' didn't change, skipping" in experiment.run.stdout


def test_metrics_diff_shows_the_change(repro, experiment):
    changed = json.loads(experiment.seen["metrics"].stdout)
    trainable = changed["metrics/summary.json"]["parameters_trained"]
    assert trainable["old"] == repro.metrics["details"]["train"]["parameters"]["trainable"]
    assert trainable["new"] == experiment.metrics["details"]["train"]["parameters"]["trainable"] < trainable["old"]
    assert "accuracy_base" not in changed["metrics/summary.json"], "the base is the same"


def test_params_diff_shows_the_change(experiment):
    changed = json.loads(experiment.seen["params"].stdout)["params.yaml"]
    assert changed["lora.r"] == {"old": 16, "new": 8, "diff": -8}


@pytest.mark.parametrize(("command", "out"), [("plots show", "shown"), ("plots diff", "compared")])
def test_plots_are_written_without_a_warning(repro, experiment, command, out):
    done = experiment.seen[command]
    assert done.returncode == 0
    assert "warning" not in (done.stdout + done.stderr).lower()
    page = (repro.clone.folder / "demo" / out / "index.html").read_text()
    for title in ("Loss by epoch", "Validation accuracy", "Base", "Tuned"):
        assert title in page


def test_exp_show_lists_both(experiment):
    shown = json.loads(experiment.seen["experiments"].stdout)
    ranks = set()

    def walk(value):
        if isinstance(value, dict):
            if "lora" in value and isinstance(value["lora"], dict):
                ranks.add(value["lora"]["r"])
            for below in value.values():
                walk(below)
        elif isinstance(value, list):
            for below in value:
                walk(below)

    walk(shown)
    assert ranks == {8, 16}


def test_an_experiment_keeps_the_link_to_the_code(repro, experiment):
    """DVC would commit a copy of the code in its place; after `dvc exp apply` no change of stages/ would be seen."""
    commits = repro.clone.git("for-each-ref", "--format=%(objectname)", "refs/exps").split()
    assert commits
    for commit in commits:
        assert repro.clone.git("ls-tree", commit, "demo/stages").startswith("120000 blob")


def test_the_old_rank_comes_back_from_the_run_cache_without_training(repro, back):
    assert "train_qlora" not in back.run.ran
    assert "eval_lora" not in back.run.ran
    assert "'train_qlora' is cached - skipping run, checking out outputs" in back.run.stdout
    assert back.metrics == repro.metrics


def test_a_value_that_is_no_number_is_one_line(refused):
    assert refused.run.returncode != 0
    printed = (refused.run.stdout + refused.run.stderr).splitlines()
    errors = [line for line in printed if line.startswith("error: ")]
    assert len(errors) == 1, printed
    assert errors[0].startswith("error: params.yaml: lora.r: ")
    assert any("exited with 1" in line for line in printed)
    assert not any("Traceback" in line for line in printed)


def test_a_refused_run_writes_nothing(refused):
    new = refused.after - refused.before
    assert new == set()
    gone = refused.before - refused.after
    assert all(name.startswith(("outs/adapter", "outs/results/train", "outs/measurements/train")) for name in gone), (
        "DVC takes a stage's outs away first"
    )


def test_what_dvc_took_away_before_a_refused_run_comes_back_by_checkout(repro, refused):
    """DVC removes a stage's outs before it starts the stage, so a refusal leaves none."""
    gone = refused.before - refused.after
    assert {"outs/adapter/adapter_model.safetensors", "outs/measurements/train/run.json"} <= gone
    done = repro.clone.dvc("checkout")
    assert done.returncode == 0, done.stderr
    assert outs(repro.clone) == refused.before
    assert "up to date" in repro.clone.dvc("status").stdout


def test_parameters_never_reach_a_shell(repro, refused):
    done = repro.clone.dvc("exp", "run", "-S", "model.name='$(touch pwned)'", "-S", "data.name='`touch pwned`'")
    repro.clone.git("checkout", "--", "demo/params.yaml")
    assert done.returncode != 0
    assert "error: " in done.stdout + done.stderr
    assert list(repro.clone.folder.rglob("pwned")) == []
    assert "Traceback" not in done.stdout + done.stderr


def test_the_root_without_hub_and_gpu_stops_in_seconds_with_one_line(repro, tmp_path):
    start = time.monotonic()
    nothing = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = repro.clone.dvc_in_new_processes("repro", below=".", HF_HUB_OFFLINE="0", **nothing)
    assert time.monotonic() - start < 60
    assert done.returncode != 0
    printed = (done.stdout + done.stderr).splitlines()
    errors = [line for line in printed if line.startswith("error: ")]
    assert len(errors) == 1, printed
    assert "stanfordnlp/snli" in errors[0]
    assert "make demo" in errors[0]
    assert not any("Traceback" in line for line in printed)
    assert [file for name in MADE for file in (repro.clone.folder / name).rglob("*")] == []


@pytest.mark.parametrize("stage", ALLOWED)
def test_no_stage_imports_a_slow_library_while_it_runs(repro, stage):
    modules = modules_of(repro.reads[f"{stage}.files"])
    assert "pandas" in modules, "or this test sees nothing"
    assert too_many(stage, modules) == set()
