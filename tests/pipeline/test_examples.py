"""README's DVC and Git commands on the demo pipeline: no stage runs again without need, and no command warns.

The fixture `story` runs them in order: a run, an experiment, Git's stash and branches, a second machine.
"""

import contextlib
import copy
import io
import re
import shlex
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import yaml
from helpers.clone import SHORT, Clone
from helpers.project import ROOT

import tools.verify
from tools.verify import is_measured

pytestmark = pytest.mark.slow


def run_quietly(clone, *command):
    """Run `dvc`, which must succeed without a warning -> its outcome."""
    done = clone.dvc(*command)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert not [word for word in ("WARNING", "ERROR", "warning:", "No file hash info") if word in printed], printed
    return done


def up_to_date(clone):
    """Whether `dvc repro` finds every stage unchanged: it runs none and restores none from the cache."""
    return "Data and pipelines are up to date." in run_quietly(clone, "repro").stdout


def lock(clone):
    return yaml.safe_load((clone.folder / "demo/dvc.lock").read_text())["stages"]


def verify(clone):
    """Run the tool, with the clone's `dvc` for the new process that it starts -> its outcome."""
    commands, printed = [], io.StringIO()

    def run(command, check):
        commands.append(command)
        return clone.dvc(*command[3:])

    with contextlib.ExitStack() as patches:
        patches.enter_context(contextlib.chdir(clone.folder / "demo"))
        patches.enter_context(mock.patch.object(sys, "argv", ["verify"]))
        patches.enter_context(mock.patch.object(tools.verify, "subprocess", SimpleNamespace(run=run)))
        patches.enter_context(contextlib.redirect_stdout(printed))
        ended = patches.enter_context(pytest.raises(SystemExit))
        tools.verify.main()
    assert commands == [[sys.executable, "-m", "dvc", "repro", "--force"]]
    return SimpleNamespace(code=ended.value.code, printed=printed.getvalue())


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """The commands in order -> namespace with the outcome of each step."""
    top = tmp_path_factory.mktemp("everyday")
    clone, outcomes = Clone(top, figures=False), {}
    clone.change_params(SHORT)
    run_quietly(clone, "remote", "add", "--default", "store", str(top / "store"))  # each experiment's commit needs it
    run_quietly(clone, "repro")
    clone.commit("a run")
    outcomes["first"] = up_to_date(clone)
    outcomes["status"] = run_quietly(clone, "status").stdout
    outcomes["graph"] = run_quietly(clone, "dag").stdout

    outcomes["experiment"] = run_quietly(clone, "exp", "run", "-S", "lora.r=8", "--name", "r8")
    outcomes["metrics diff"] = run_quietly(clone, "metrics", "diff").stdout
    outcomes["experiment again"] = up_to_date(clone)
    command = re.search(r"^dvc (exp show .*?)  +#", (ROOT / "docs/comparing-runs.md").read_text(), re.MULTILINE)[1]
    outcomes["shown"] = clone.dvc(*shlex.split(command), "--no-pager", COLUMNS="160").stdout
    clone.git("stash")
    run_quietly(clone, "checkout")
    outcomes["stashed"] = up_to_date(clone)
    run_quietly(clone, "exp", "apply", "r8")
    outcomes["applied"] = up_to_date(clone)
    clone.git("checkout", "--", ".")
    clone.git("stash", "pop")
    run_quietly(clone, "checkout")
    outcomes["popped"] = up_to_date(clone)
    clone.git("switch", "--quiet", "--create", "r8")
    clone.commit("r = 8")
    clone.git("switch", "--quiet", "-")
    run_quietly(clone, "checkout")
    outcomes["other branch"] = up_to_date(clone)

    run_quietly(clone, "push", "--all-branches")
    clone.git("clone", "--quiet", "--bare", str(clone.folder), str(top / "bare"))
    clone.git("remote", "add", "origin", str(top / "bare"))
    run_quietly(clone, "exp", "push", "origin", "r8")

    other = copy.copy(clone)
    other.folder = top / "other"
    clone.git("clone", "--quiet", str(top / "bare"), str(other.folder))
    run_quietly(other, "pull")
    outcomes["pulled"] = up_to_date(other)
    run_quietly(other, "exp", "pull", "origin", "r8")
    run_quietly(other, "exp", "apply", "r8")
    outcomes["pulled experiment"] = up_to_date(other)
    outcomes["pulled rank"] = yaml.safe_load((other.folder / "demo/params.yaml").read_text())["lora"]["r"]

    before = lock(clone)
    outcomes["verified"] = verify(clone)
    outcomes["locks"] = before, lock(clone)
    return SimpleNamespace(clone=clone, **{name.replace(" ", "_"): outcome for name, outcome in outcomes.items()})


@pytest.mark.parametrize(
    "step",
    ["first", "experiment_again", "stashed", "applied", "popped", "other_branch", "pulled", "pulled_experiment"],
)
def test_no_stage_runs_again(story, step):
    assert getattr(story, step)


def test_another_clone_applies_the_experiment(story):
    assert story.pulled_rank == 8


def test_readmes_table_of_experiments_fits_160_columns(story):
    lines = story.shown.splitlines()
    assert max(map(len, lines)) <= 160
    assert "…" not in story.shown, "a column is cut"
    assert "loss_validation" in lines[1] and "lora.r" in lines[1]
    assert any("[r8]" in line for line in lines)


def test_the_status_is_one_line(story):
    assert story.status.strip() == "Data and pipelines are up to date."


def test_the_graph_shows_one_pipeline(story):
    for stage in ("download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"):
        assert story.graph.count(f" {stage} ") == 1


def test_an_experiment_runs_only_the_stages_that_depend_on_its_parameter(story):
    assert story.experiment.ran == ["train_qlora", "eval_lora", "analyze"]


def test_a_training_logs_one_line_per_epoch(story):
    printed = story.experiment.stdout + story.experiment.stderr
    epochs = [line for line in printed.splitlines() if line.startswith("epoch 1 of 1: training loss ")]
    assert len(epochs) == 1
    assert "\r" not in printed, "a progress bar"
    assert "{'" not in printed, "a dictionary that the Trainer printed"


def test_metrics_diff_fits_a_screen_and_shows_scores_first(story):
    lines = story.metrics_diff.splitlines()
    assert len(lines) <= 20
    names = [line.split()[1] for line in lines[1:]]
    assert "loss_train" in names and "seconds_train" in names
    first_measured = next(i for i, name in enumerate(names) if name.startswith(("peak_gb", "seconds")))
    assert all(name.startswith(("peak_gb", "seconds")) for name in names[first_measured:])


def test_verify_finds_every_result_equal(story):
    """On the same machine only measurements differ from the committed lock."""
    assert story.verified.code == 0, story.verified.printed
    assert story.verified.printed.splitlines()[-1].startswith(
        "Every result is byte for byte that of the committed dvc.lock"
    )
    before, after = story.locks
    files = {
        stage: [{file["path"]: file["md5"] for file in entry[stage]["outs"]} for entry in (before, after)]
        for stage in before
    }
    changed = {path for old, new in files.values() for path in new if old[path] != new[path]}
    assert changed >= {"outs/measurements/base", "outs/measurements/train", "outs/measurements/tuned"}, (
        "else no stage ran again"
    )
    assert all(is_measured(path) for path in changed)
