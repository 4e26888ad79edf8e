"""The commands of docs/sharing.md that share a run and an experiment, run by DVC on a pipeline of one stage.

And the command of docs/use.md that copies the adapter of another run.
"""

import re
import shlex
import subprocess
from types import SimpleNamespace

import pytest
import yaml
from helpers.project import ROOT
from helpers.stages import run_module, stage_env

pytestmark = pytest.mark.slow

SECTION = re.search(r"## Results, by Git and DVC\n(.*?)\n## ", (ROOT / "docs/sharing.md").read_text(), re.DOTALL)[1]
SHARE, EXPERIMENT = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
STORE = "/path/of/a/shared/folder"
GET = re.findall(r"^(dvc get .*?) *#", (ROOT / "docs/use.md").read_text(), re.MULTILINE)
PIPELINE = "stages:\n  make:\n    cmd: cp params.yaml out\n    params: [r]\n    outs: [out]\n"


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    """Two clones. The first ran the experiment `before`, then the document's commands, then the experiment `after`.

    Returns:
        namespace with `second` (the second clone's folder) and `in_second` (a function that runs commands there)
    """
    top = tmp_path_factory.mktemp("sharing")
    who = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = stage_env(DVC_NO_ANALYTICS="1", DVC_SITE_CACHE_DIR=str(top / "site"), **who)

    def run_one(folder, command):
        if command.startswith("dvc "):
            return run_module("dvc", shlex.split(command, comments=True)[1:], top / folder, env)
        return subprocess.run(["bash", "-ec", command], cwd=top / folder, env=env, capture_output=True, text=True)

    def run(folder, lines):
        """Run commands until one fails -> the outcome of the last one. `dvc` runs in forks."""
        for command in re.split(r" && |\n", lines.strip()):
            done = run_one(folder, command)
            if done.returncode:
                break
        return done

    def check(folder, lines):
        done = run(folder, lines)
        assert done.returncode == 0, done.stdout + done.stderr

    check(".", "git init -q --bare -b main origin && git clone -q origin first 2>&1 && mkdir store")
    (top / "first/dvc.yaml").write_text(PIPELINE)
    (top / "first/params.yaml").write_text("r: 16\n")
    check("first", "dvc init -q && dvc repro -q && git add . && git commit -qm one && git push -q -u origin HEAD:main")
    check("first", "dvc exp run -q -n before -S r=4 && git restore . && dvc checkout -q")
    check("first", "dvc exp run -q -n of_readme -S r=8")
    assert SHARE.count(STORE) == 1
    check("first", SHARE.replace(STORE, str(top / "store")))
    check("first", "dvc exp run -q -n after -S r=2 && git restore . && dvc checkout -q")
    push, pull = (line for line in EXPERIMENT.splitlines() if line.startswith("dvc exp"))
    for name in ("before", "after"):
        check("first", push.replace("NAME", name))
    check(".", "git clone -q origin second")
    for name in ("before", "after"):
        check("second", pull.replace("NAME", name).partition("#")[0])
    return SimpleNamespace(second=top / "second", in_second=lambda lines: run("second", lines))


def test_a_second_clone_gets_the_outs_and_runs_nothing(clones):
    assert clones.in_second("dvc pull").returncode == 0
    done = clones.in_second("dvc repro")
    assert done.returncode == 0, done.stderr
    assert "Running stage" not in done.stdout
    assert (clones.second / "out").read_text() == "r: 8\n"


def test_a_second_clone_applies_an_experiment_that_ran_after_the_remotes_commit(clones):
    assert "dvc exp apply NAME" in EXPERIMENT
    done = clones.in_second("dvc exp apply after")
    assert done.returncode == 0, done.stderr
    assert (clones.second / "out").read_text() == "r: 2\n"


def test_an_experiment_that_ran_before_the_remotes_commit_has_no_files_as_readme_says(clones):
    assert "the push sends no file" in " ".join(SECTION.split())
    done = clones.in_second("git restore . && dvc exp apply before")
    assert "Checkout failed" in done.stderr


def test_the_adapter_of_a_run_in_demo_is_copied_from_the_cache(repro, tmp_path):
    """DVC looks for a path in a revision from the root of the Git repository, not from demo/."""
    at_root, in_demo = (command.replace("adapters/NAME", str(tmp_path / "NAME")).split()[1:] for command in GET)
    assert at_root[2] == "outs/adapter"
    copied = repro.clone.dvc(*(word.replace("NAME", "HEAD") for word in in_demo))
    assert copied.returncode == 0, copied.stderr
    lock = yaml.safe_load(repro.clone.git("show", "HEAD:demo/dvc.lock"))
    (adapter,) = (out for out in lock["stages"]["train_qlora"]["outs"] if out["path"] == "outs/adapter")
    files = [path.stat().st_size for path in (tmp_path / "HEAD").iterdir()]
    assert (len(files), sum(files)) == (adapter["nfiles"], adapter["size"])
