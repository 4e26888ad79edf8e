"""A stage lives as long as the program that started it by DVC, whatever that program is called."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dvc
import psutil
import pytest
import yaml
from helpers.project import ROOT
from helpers.stages import stage_env

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
RUNS = "from stages.runtime import errors; errors.run(lambda: print('ran'))"
# A stage that has begun and goes on importing: what `python -m stages.x` is for its first seconds.
SLOW_IMPORTS = "import stages, pathlib, time; pathlib.Path('begun').touch(); time.sleep(60)"


@pytest.fixture
def pipeline(tmp_path):
    """A DVC repository of one stage, which does what `code` says -> its folder."""

    def make(code):
        command = PIPELINE["stages"]["download"]["cmd"].replace("${root}", str(ROOT))
        command = command.replace("python -m stages.download", f'{sys.executable} -c "{code}"')
        (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"one": {"cmd": command}}}))
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
        return tmp_path

    return make


def program(title, folder, **options):
    """A Python program that runs the pipeline by DVC's API under a title of its own, as Airflow or Celery would."""
    (folder / "task.py").write_text("from dvc.repo import Repo\nRepo().reproduce()\n")
    packages = Path(dvc.__file__).parents[1]  # by its own name, Python would find its virtual environment
    env = stage_env(PYTHONPATH=f"{ROOT}{os.pathsep}{packages}")
    command = ["bash", "-c", f"exec -a {title} {sys.executable} task.py"]
    return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **options)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_every_stage_hands_over_dvcs_number_and_takes_the_shells_place():
    for stage in PIPELINE["stages"].values():
        assert stage["cmd"].startswith("exec env DVC_PID=$PPID ")


def test_a_stage_runs_from_a_program_with_a_title_of_its_own(pipeline):
    run = program("airflow-task-runner", pipeline(RUNS), stdout=subprocess.PIPE, text=True)
    assert "ran" in run.communicate()[0]
    assert run.returncode == 0


@pytest.mark.parametrize("title", ["dvc", "airflow-task-runner"])
def test_a_stage_ends_with_its_program_while_it_still_imports(pipeline, title):
    folder = pipeline(SLOW_IMPORTS)
    run = program(title, folder)
    try:
        wait_for((folder / "begun").exists, 60)
        (stage,) = psutil.Process(run.pid).children()
        run.kill()  # not reaped: it stays behind as a zombie, as under a careless parent
        wait_for(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, 5)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


@pytest.mark.parametrize("told", [True, False], ids=["number known", "gone before the shell read it"])
def test_a_stage_whose_dvc_is_gone_does_not_begin(tmp_path, told):
    gone = subprocess.Popen(["true"])
    gone.wait()
    env = stage_env(DVC_STAGE="one", **({"DVC_PID": str(gone.pid)} if told else {}))
    code = "import time; time.sleep(1); import stages; print('begun')"
    # The shell ends at once, and the stage is adopted by a process of another session.
    command = f'{sys.executable} -c "{code}" >out 2>&1 & echo $! >pid'
    subprocess.run(["setsid", "bash", "-c", command], cwd=tmp_path, env=env, check=True)
    stage = int((tmp_path / "pid").read_text())
    wait_for(lambda: not psutil.pid_exists(stage) or psutil.Process(stage).status() == psutil.STATUS_ZOMBIE, 30)
    line = "error: the `dvc` that started this stage has ended; run `dvc repro` again\n"
    assert (tmp_path / "out").read_text() == line
