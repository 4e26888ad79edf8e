"""A sweep by the real DVC: killed, run again, with variants that fail; its experiments are those of `dvc exp run`."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml
from helpers.clone import Clone
from helpers.parameters import set_key, use
from helpers.stages import run_module

from tools.verify import is_measured

pytestmark = pytest.mark.slow

SMALL = {"data.train_rows": 96, "data.validation_rows": 30, "data.test_rows": 60, "train.epochs": 1}
SWEEP = ("-S", "lora.r=4,8", "-S", "train.learning_rate=0.001,1e+30")  # every second one diverges


def command(*arguments):
    return [sys.executable, "-m", "tools.sweep", *arguments]


def swept(clone, *arguments, below="demo"):
    """Run a sweep to its end."""
    return run_module("tools.sweep", arguments, clone.folder / below, clone.env)


def workspace(clone):
    """{file: bytes} of all that is not in .git or in a folder of DVC's own, and what Git says of it."""
    paths = [path for path in clone.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    files = {path: path.read_bytes() for path in paths if not {".git", ".dvc", "__pycache__"} & set(path.parts)}
    status = (clone.git("status", "--porcelain"), clone.git("rev-parse", "HEAD"), clone.git("stash", "list"))
    return files, status, clone.git("symbolic-ref", "HEAD")


def experiments(clone):
    """{name: commit} of those that are recorded."""
    place = f"refs/exps/{clone.git('rev-parse', 'HEAD')[:2]}/"  # beside these, `exp apply` keeps what it does itself
    listed = clone.git("for-each-ref", "--format=%(refname) %(objectname)", place).splitlines()
    return {line.split()[0].rpartition("/")[2]: line.split()[1] for line in listed}


def outs(clone, revision=None):
    """{stage: {path: hash}} of the results in a lock, in the workspace's or in that of an experiment."""
    path = "demo/dvc.lock"
    text = clone.git("show", f"{revision}:{path}") if revision else (clone.folder / path).read_text()
    stages = yaml.safe_load(text)["stages"]
    return {
        name: {out["path"]: out["md5"] for out in stage["outs"] if not is_measured(out["path"])}
        for name, stage in stages.items()
    }


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """What a sweep left that was killed in its third variant, and the same one run again."""
    clone = Clone(tmp_path_factory.mktemp("sweep"))
    path = clone.folder / "demo/params.yaml"
    raw = yaml.safe_load(path.read_text())
    for key, value in SMALL.items():
        set_key(raw, key, value)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))  # a change of the workspace that the variants have to have
    (clone.folder / "demo/mine.txt").write_text("a file that Git does not know\n")
    before = workspace(clone)
    copies = clone.folder / "demo/.dvc/tmp/exps/sweep"

    first = subprocess.Popen(
        command(*SWEEP), cwd=clone.folder / "demo", env=clone.env, stdout=subprocess.PIPE, text=True
    )
    said = [first.stdout.readline(), first.stdout.readline()]
    time.sleep(1)  # into the third
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    killed = SimpleNamespace(
        said=said, workspace=workspace(clone), experiments=experiments(clone), copies=[p.name for p in copies.iterdir()]
    )
    killed.pid = first.pid
    again = swept(clone, *SWEEP)
    after = workspace(clone)
    return SimpleNamespace(
        clone=clone, before=before, killed=killed, again=again, lines=again.stdout.splitlines(), after=after,
        experiments=experiments(clone), copies=list(copies.iterdir()),
    )  # fmt: skip


def name_in(line):
    """The experiment that a variant's line names."""
    return line.partition(" (")[0].rpartition(", ")[2]


def test_a_kill_leaves_the_workspace_as_it_was_and_what_was_done_recorded(story):
    assert story.killed.workspace == story.before
    assert story.killed.copies == [str(story.killed.pid)], "or it was not killed on its way"
    assert list(story.killed.experiments) == [name_in(story.killed.said[0])]


def test_the_same_command_goes_on_and_records_nothing_twice(story):
    assert story.lines[0].endswith("ran analyze)"), "its outs are in Git, and DVC's run cache leaves it out"
    assert name_in(story.lines[0]) == name_in(story.killed.said[0])
    assert len(story.experiments) == 2
    assert story.experiments.items() >= story.killed.experiments.items()


def test_afterwards_the_workspace_is_as_it_was_and_no_copy_is_left(story):
    assert story.after == story.before
    assert story.copies == []


def test_a_variant_that_diverges_is_named_and_the_others_go_on(story):
    assert story.again.returncode == 1
    assert [": FAILED: " in line for line in story.lines[:4]] == [False, True, False, True]
    assert (
        "[2/4] lora.r=4 train.learning_rate=1e+30: FAILED: params.yaml: train.learning_rate: 1e+30: " in story.lines[1]
    )
    assert "training diverged" in story.lines[1]
    assert "error: 2 of 4 variants failed" in story.again.stderr
    assert "Traceback" not in story.again.stderr


def test_a_stage_runs_once_for_all_variants_that_have_it_in_common(story):
    ran = [line.rpartition("ran ")[2] for line in story.killed.said]
    assert ran[0] == "download, tokenize, eval_base, train_qlora, eval_lora, analyze)\n"
    assert ran[1] == "train_qlora)\n"
    assert story.lines[2].endswith("ran train_qlora, eval_lora, analyze)")


def test_the_table_names_experiments_parameters_and_scores(story):
    table = story.lines[5:10]
    assert table[0].split() == ["experiment", "lora.r", "train.learning_rate", "accuracy_tuned"]
    assert table[2].split() == ["-", "4", "1e+30", "-"]
    assert table[3].split()[:3] == [name_in(story.lines[2]), "8", "0.001"]
    shown = csv.DictReader(story.clone.dvc("exp", "show", "--csv").stdout.splitlines())
    (score,) = (row["accuracy_tuned"] for row in shown if row["Experiment"] == name_in(story.lines[2]))
    assert table[3].split()[3] == f"{float(score):.4f}"


def test_an_experiment_has_the_changes_of_the_workspace_and_its_own(story):
    params = yaml.safe_load(story.clone.git("show", f"{story.experiments[name_in(story.lines[2])]}:demo/params.yaml"))
    assert params["lora"]["r"] == 8 and params["train"]["epochs"] == 1 and params["data"]["train_rows"] == 96


def test_applied_and_run_alone_every_result_is_the_same_to_the_byte(story):
    """The third variant, which followed a good and a failed one in its process."""
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
def test_one_bad_value_refuses_the_whole_sweep_in_one_line(story, below):
    before = workspace(story.clone)
    done = swept(story.clone, "-S", "lora.r=4,0", below=below)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: -S lora.r=0: params.yaml: lora.r: ")
    assert workspace(story.clone) == before
    assert len(experiments(story.clone)) == 2


@pytest.fixture(scope="module")
def own_folders(tmp_path_factory):
    """A clone with relative paths to data outside of it and to a model inside it, which Git does not have."""
    clone = Clone(tmp_path_factory.mktemp("own"))
    assets = clone.folder / "demo/assets"
    shutil.copytree(assets / "everyday-nli", clone.folder.parent / "pairs")
    shutil.copytree(assets / "nano-phi", clone.folder / "demo/mine/nano")
    path = clone.folder / "demo/params.yaml"
    raw = yaml.safe_load(path.read_text())
    for key, value in SMALL.items():
        set_key(raw, key, value)
    use(raw, "data", "../../pairs")
    use(raw, "model", "./mine/nano")
    raw["watch"]["model"] = "mine/nano"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return clone


def test_relative_folders_that_git_does_not_have_are_found_and_recorded_as_they_are_written(own_folders):
    done = swept(own_folders, "-S", "lora.r=4")
    assert done.returncode == 0, done.stdout + done.stderr
    ((name, commit),) = experiments(own_folders).items()
    deps = {dep["path"] for dep in yaml.safe_load(own_folders.git("show", f"{commit}:demo/dvc.lock"))["stages"][
        "download"]["deps"]}  # fmt: skip
    assert {"../../pairs", "mine/nano"} <= deps
    own_folders.git("stash", "--quiet")
    applied = own_folders.dvc("exp", "apply", name)
    assert applied.returncode == 0, applied.stderr
    assert own_folders.dvc("repro").ran == [], "what `dvc exp run` itself would have done"
    assert list((own_folders.folder / "demo/.dvc/tmp/exps/sweep").iterdir()) == []


def test_where_every_variant_failed_nothing_is_there_to_compare(own_folders):
    done = swept(own_folders, "-S", "data.label=nothing,none")
    assert done.returncode == 1
    assert "error: 2 of 2 variants failed" in done.stderr and "-S" not in done.stderr
    assert "dvc exp" not in done.stdout
