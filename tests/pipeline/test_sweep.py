"""tools.sweep with DVC: killed and resumed, with variants that fail; its experiments equal those of `dvc exp run`."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from helpers.clone import SHORT, Clone
from helpers.stages import StartedModule, run_module

from tools.verify import is_measured

pytestmark = pytest.mark.slow

SWEEP = ("-S", "lora.r=4,8", "-S", "train.learning_rate=0.001,1e+30")  # the second learning rate diverges


def start_sweep(clone, *arguments):
    """Start a sweep, which can be killed."""
    return StartedModule("tools.sweep", arguments, clone.folder / "demo", clone.env, stdout=subprocess.PIPE)


def run_sweep(clone, *arguments, below="demo"):
    """Run a sweep to its end -> its outcome."""
    return run_module("tools.sweep", arguments, clone.folder / below, clone.env)


def workspace(clone):
    """({file: bytes} except files in .git and .dvc, Git's status, commit and stash, the branch)."""
    paths = [path for path in clone.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    files = {path: path.read_bytes() for path in paths if not {".git", ".dvc", "__pycache__"} & set(path.parts)}
    status = (clone.git("status", "--porcelain"), clone.git("rev-parse", "HEAD"), clone.git("stash", "list"))
    return files, status, clone.git("symbolic-ref", "HEAD")


def experiments(clone):
    """{name: commit} of the recorded experiments."""
    prefix = f"refs/exps/{clone.git('rev-parse', 'HEAD')[:2]}/"  # `exp apply` has references outside this prefix
    listing = clone.git("for-each-ref", "--format=%(refname) %(objectname)", prefix).splitlines()
    return {line.split()[0].rpartition("/")[2]: line.split()[1] for line in listing}


def outs(clone, revision=None):
    """{stage: {path: hash}} of the results in the workspace's lock, or in an experiment's."""
    path = "demo/dvc.lock"
    text = clone.git("show", f"{revision}:{path}") if revision else (clone.folder / path).read_text()
    stages = yaml.safe_load(text)["stages"]
    return {
        name: {out["path"]: out["md5"] for out in stage["outs"] if not is_measured(out["path"])}
        for name, stage in stages.items()
    }


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A sweep that is killed in its third variant, the state it leaves, and the same sweep run again."""
    clone = Clone(tmp_path_factory.mktemp("sweep"), figures=False)
    clone.change_params(SHORT)  # each variant must have this change of the workspace
    (clone.folder / "demo/mine.txt").write_text("a file that Git does not track\n")
    before = workspace(clone)
    copies = clone.folder / "demo/.dvc/tmp/exps/sweep"

    first = start_sweep(clone, *SWEEP)
    printed = [first.stdout.readline(), first.stdout.readline()]
    time.sleep(1)  # the third variant is running
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    killed = SimpleNamespace(
        printed=printed,
        workspace=workspace(clone),
        experiments=experiments(clone),
        copies=[p.name for p in copies.iterdir()],
    )
    killed.pid = first.pid
    again = run_sweep(clone, *SWEEP)
    after = workspace(clone)
    return SimpleNamespace(
        clone=clone, before=before, killed=killed, again=again, lines=again.stdout.splitlines(), after=after,
        experiments=experiments(clone), copies=list(copies.iterdir()),
    )  # fmt: skip


def name_in(line):
    """The name of the experiment in a variant's line."""
    return line.partition(" (")[0].rpartition(", ")[2]


def test_a_kill_leaves_the_workspace_unchanged_and_finished_variants_recorded(story):
    assert story.killed.workspace == story.before
    assert story.killed.copies == [str(story.killed.pid)], "else it was not killed while it ran"
    assert list(story.killed.experiments) == [name_in(story.killed.printed[0])]


def test_the_same_command_resumes_and_records_no_variant_twice(story):
    assert story.lines[0].endswith("ran analyze)"), "its outs are in Git, so DVC's run cache does not hold them"
    assert name_in(story.lines[0]) == name_in(story.killed.printed[0])
    assert len(story.experiments) == 2
    assert story.experiments.items() >= story.killed.experiments.items()


def test_afterwards_the_workspace_is_unchanged_and_no_copy_is_left(story):
    assert story.after == story.before
    assert story.copies == []


def test_a_diverged_variant_is_reported_and_the_others_run(story):
    assert story.again.returncode == 1
    assert [": FAILED: " in line for line in story.lines[:4]] == [False, True, False, True]
    assert (
        "[2/4] lora.r=4 train.learning_rate=1e+30: FAILED: params.yaml: train.learning_rate: 1e+30: " in story.lines[1]
    )
    assert "training diverged" in story.lines[1]
    assert "error: 2 of 4 variants failed" in story.again.stderr
    assert "Traceback" not in story.again.stderr


def test_variants_share_the_stages_that_are_equal_for_them(story):
    ran = [line.rpartition("ran ")[2] for line in story.killed.printed]
    assert ran[0] == "download, tokenize, eval_base, train_qlora, eval_lora, analyze)\n"
    assert ran[1] == "train_qlora)\n"
    assert story.lines[2].endswith("ran train_qlora, eval_lora, analyze)")


def test_the_table_lists_experiments_parameters_and_scores(story):
    table = story.lines[5:10]
    assert table[0].split() == ["experiment", "lora.r", "train.learning_rate", "accuracy"]
    assert table[2].split() == ["-", "4", "1e+30", "-"]
    assert table[3].split()[:3] == [name_in(story.lines[2]), "8", "0.001"]
    shown = csv.DictReader(story.clone.dvc("exp", "show", "--csv").stdout.splitlines())
    (score,) = (row["accuracy"] for row in shown if row["Experiment"] == name_in(story.lines[2]))
    assert table[3].split()[3] == f"{float(score):.4f}"


def test_the_alarms_of_the_reports_are_below_the_table(story):
    for name, commit in story.experiments.items():
        alarms = json.loads(story.clone.git("show", f"{commit}:demo/metrics/details.json"))["alarms"]
        assert alarms, "of so few rows"
        for alarm in alarms:
            (line,) = (line for line in story.lines[10:] if line.endswith(f": {alarm}"))
            assert line.startswith("Alarm in the report of ") and name in line


def test_an_experiment_has_the_workspaces_changes_and_its_own(story):
    params = yaml.safe_load(story.clone.git("show", f"{story.experiments[name_in(story.lines[2])]}:demo/params.yaml"))
    assert params["lora"]["r"] == 8 and params["train"]["epochs"] == 1 and params["data"]["train_rows"] == 96


def test_an_applied_experiment_gives_the_same_results_in_a_run_of_its_own(story):
    """The third variant ran in one process after a successful and a failed one. The results are equal byte for byte."""
    clone = story.clone
    name = name_in(story.lines[2])
    expected = outs(clone, story.experiments[name])
    applied = clone.dvc("exp", "apply", name)
    assert applied.returncode == 0, applied.stderr
    assert clone.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    done = clone.dvc("repro", "--force", "--single-item", "train_qlora", "eval_lora")
    assert done.ran == ["train_qlora", "eval_lora"], done.stdout + done.stderr
    assert outs(clone) == expected
    assert expected["train_qlora"].keys() == {"outs/adapter", "outs/results/train"}


@pytest.mark.parametrize("below", ["demo", "."])
def test_one_invalid_value_rejects_the_whole_sweep_in_one_line(story, below):
    before = workspace(story.clone)
    done = run_sweep(story.clone, "-S", "lora.r=4,0", below=below)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: -S lora.r=0: params.yaml: lora.r: ")
    assert workspace(story.clone) == before
    assert len(experiments(story.clone)) == 2


@pytest.fixture(scope="module")
def own_folders(tmp_path_factory):
    """A clone with relative paths to a file of data and to the folder of a model. Git tracks neither."""
    clone = Clone(tmp_path_factory.mktemp("own"), figures=False)
    assets = clone.folder / "demo/assets"
    shutil.copytree(assets / "nano-phi", clone.folder / "demo/mine/nano")
    pd.read_parquet(assets / "everyday-nli/train.parquet").to_csv(clone.folder / "pairs.csv", index=False)
    folders = {"data.folder": "../pairs.csv", "data.digest": None, "model.folder": "./mine/nano", "model.digest": None}
    splits = {"train": "train[:60%]", "validation": "train[60%:80%]", "test": "train[80%:]"}
    clone.change_params(SHORT | folders | {"data.splits": splits})
    return clone


def test_relative_folders_that_git_does_not_track_are_found_and_recorded_as_written(own_folders):
    done = run_sweep(own_folders, "-S", "lora.r=4")
    assert done.returncode == 0, done.stdout + done.stderr
    ((name, commit),) = experiments(own_folders).items()
    deps = {dep["path"] for dep in yaml.safe_load(own_folders.git("show", f"{commit}:demo/dvc.lock"))["stages"][
        "download"]["deps"]}  # fmt: skip
    assert {"../pairs.csv", "./mine/nano"} <= deps
    own_folders.git("stash", "--quiet")
    applied = own_folders.dvc("exp", "apply", name)
    assert applied.returncode == 0, applied.stderr
    assert own_folders.dvc("repro").ran == [], "as after `dvc exp run`"
    assert list((own_folders.folder / "demo/.dvc/tmp/exps/sweep").iterdir()) == []


def test_a_path_out_of_the_repository_is_rejected_in_one_line_before_any_stage_runs(own_folders):
    shutil.copytree(own_folders.folder / "demo/mine/nano", own_folders.folder.parent / "nano")
    done = run_sweep(own_folders, "-S", "model.folder=../../nano")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: -S model.folder=../../nano: params.yaml: model.folder: ../../nano: is outside the rep"
    )
    assert line.endswith(f"set the whole path, {own_folders.folder.parent}/nano")


def test_a_folder_of_which_git_tracks_only_some_files_is_rejected(own_folders):
    """The copy would have only those, and the variants would be trained on fewer rows."""
    more = own_folders.folder / "demo/assets/everyday-nli/train_2.parquet"
    shutil.copy(more.with_name("train.parquet"), more)
    done = run_sweep(own_folders, "-S", "data.folder=assets/everyday-nli")
    more.unlink()
    assert done.returncode == 1 and done.stdout == ""
    assert (
        f"Git tracks only some of its files, and not {more.name}; " in done.stderr and str(more.parent) in done.stderr
    )


def test_if_every_variant_fails_no_comparison_is_suggested(own_folders):
    done = run_sweep(own_folders, "-S", "data.label=nothing,none")
    assert done.returncode == 1
    assert "error: 2 of 2 variants failed" in done.stderr and "-S" not in done.stderr
    assert "dvc exp" not in done.stdout
