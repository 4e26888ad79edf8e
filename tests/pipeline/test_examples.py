"""Everyday DVC and Git around the small pipeline: what must not run again, and no warning where nothing is wrong.

One story, told in order: a run, an experiment, Git's stash and branches, another machine.
"""

import copy
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from helpers.clone import Clone
from helpers.parameters import set_key
from helpers.project import ROOT

from tools.verify import is_measured

pytestmark = pytest.mark.slow

SMALL = {"data.train_rows": 96, "data.validation_rows": 30, "data.test_rows": 60, "train.epochs": 1}


def quiet(clone, *command):
    """Run `dvc`: it must succeed, and warn of nothing."""
    done = clone.dvc(*command)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert not [word for word in ("WARNING", "ERROR", "warning:", "No file hash info") if word in printed], printed
    return done


def up_to_date(clone):
    """`dvc repro` finds nothing changed: it runs no stage, and takes nothing from the cache."""
    return "Data and pipelines are up to date." in quiet(clone, "repro").stdout


def lock(clone):
    return yaml.safe_load((clone.folder / "demo/dvc.lock").read_text())["stages"]


def verify(clone):
    """Run the tool as `make verify` does."""
    command = [sys.executable, "-m", "tools.verify"]
    return subprocess.run(command, cwd=clone.folder / "demo", env=clone.env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """What each step of the story left: {step: outcome}."""
    top = tmp_path_factory.mktemp("everyday")
    clone, told = Clone(top), {}
    path = clone.folder / "demo/params.yaml"
    raw = yaml.safe_load(path.read_text())
    for key, value in SMALL.items():
        set_key(raw, key, value)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    quiet(clone, "remote", "add", "--default", "store", str(top / "store"))  # an experiment's own commit must have it
    quiet(clone, "repro")
    clone.commit("a run")
    told["first"] = up_to_date(clone)
    told["status"] = quiet(clone, "status").stdout
    told["graph"] = quiet(clone, "dag").stdout

    told["experiment"] = quiet(clone, "exp", "run", "-S", "lora.r=8", "--name", "r8")
    told["metrics diff"] = quiet(clone, "metrics", "diff").stdout
    told["experiment again"] = up_to_date(clone)
    command = re.search(r"^dvc (exp show .*?)  +#", (ROOT / "docs/comparing-runs.md").read_text(), re.MULTILINE)[1]
    told["shown"] = clone.dvc(*shlex.split(command), "--no-pager", COLUMNS="160").stdout
    clone.git("stash")
    quiet(clone, "checkout")
    told["stashed"] = up_to_date(clone)
    quiet(clone, "exp", "apply", "r8")
    told["applied"] = up_to_date(clone)
    clone.git("checkout", "--", ".")
    clone.git("stash", "pop")
    quiet(clone, "checkout")
    told["popped"] = up_to_date(clone)
    clone.git("switch", "--quiet", "--create", "r8")
    clone.commit("r = 8")
    clone.git("switch", "--quiet", "-")
    quiet(clone, "checkout")
    told["other branch"] = up_to_date(clone)

    quiet(clone, "push", "--all-branches")
    clone.git("clone", "--quiet", "--bare", str(clone.folder), str(top / "bare"))
    clone.git("remote", "add", "origin", str(top / "bare"))
    quiet(clone, "exp", "push", "origin", "r8")

    other = copy.copy(clone)
    other.folder = top / "other"
    clone.git("clone", "--quiet", str(top / "bare"), str(other.folder))
    quiet(other, "pull")
    told["pulled"] = up_to_date(other)
    quiet(other, "exp", "pull", "origin", "r8")
    quiet(other, "exp", "apply", "r8")
    told["pulled experiment"] = up_to_date(other)
    told["pulled rank"] = yaml.safe_load((other.folder / "demo/params.yaml").read_text())["lora"]["r"]

    before = lock(clone)
    told["verified"] = verify(clone)
    told["locks"] = before, lock(clone)
    return SimpleNamespace(clone=clone, **{name.replace(" ", "_"): outcome for name, outcome in told.items()})


@pytest.mark.parametrize(
    "step",
    ["first", "experiment_again", "stashed", "applied", "popped", "other_branch", "pulled", "pulled_experiment"],
)
def test_nothing_runs_again(story, step):
    assert getattr(story, step)


def test_an_experiment_of_a_teammate_is_applied(story):
    assert story.pulled_rank == 8


def test_readmes_table_of_experiments_fits_160_columns(story):
    lines = story.shown.splitlines()
    assert max(map(len, lines)) <= 160
    assert "…" not in story.shown, "a column that did not fit"
    assert "loss_validation" in lines[1] and "lora.r" in lines[1]
    assert any("[r8]" in line for line in lines)


def test_the_status_is_one_line(story):
    assert story.status.strip() == "Data and pipelines are up to date."


def test_the_graph_shows_one_pipeline(story):
    for stage in ("download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"):
        assert story.graph.count(f" {stage} ") == 1


def test_an_experiment_runs_what_depends_on_its_parameter_alone(story):
    assert story.experiment.ran == ["train_qlora", "eval_lora", "analyze"]


def test_the_log_of_a_training_is_a_line_an_epoch(story):
    printed = story.experiment.stdout + story.experiment.stderr
    epochs = [line for line in printed.splitlines() if line.startswith("epoch 1 of 1: training loss ")]
    assert len(epochs) == 1
    assert "\r" not in printed, "a bar, in a file"
    assert "{'" not in printed, "a dictionary of the Trainer's"


def test_metrics_diff_fits_a_screen_and_shows_scores_first(story):
    lines = story.metrics_diff.splitlines()
    assert len(lines) <= 20
    names = [line.split()[1] for line in lines[1:]]
    assert "loss_train" in names and "seconds_train" in names
    first_measured = next(i for i, name in enumerate(names) if name.startswith(("peak_gb", "seconds")))
    assert all(name.startswith(("peak_gb", "seconds")) for name in names[first_measured:])


def test_a_run_by_force_finds_every_result_equal(story):
    """On the same machine a lock differs from itself in what was measured, and the tool says so in words."""
    assert story.verified.returncode == 0, story.verified.stdout + story.verified.stderr
    assert story.verified.stdout.splitlines()[-1].startswith(
        "Every result is byte for byte that of the committed dvc.lock"
    )
    before, after = story.locks
    files = {
        stage: [{file["path"]: file["md5"] for file in entry[stage]["outs"]} for entry in (before, after)]
        for stage in before
    }
    changed = {path for old, new in files.values() for path in new if old[path] != new[path]}
    assert changed >= {"outs/measurements/base", "outs/measurements/train", "outs/measurements/tuned"}, (
        "or it was not run"
    )
    assert all(is_measured(path) for path in changed)
