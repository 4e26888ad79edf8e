"""A stage ends when the program that started it by DVC has ended, whatever the name of that program is."""

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
# A stage that still imports, as `python -m stages.x` does in its first seconds.
SLOW_IMPORTS = "import stages, pathlib, time; pathlib.Path('started').touch(); time.sleep(60)"


@pytest.fixture
def pipeline(tmp_path):
    """Function that creates a DVC repository with one stage, which runs `code` -> its folder."""

    def make(code):
        command = PIPELINE["stages"]["download"]["cmd"].replace("${root}", str(ROOT))
        command = command.replace("python -m stages.download", f'{sys.executable} -c "{code}"')
        (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"one": {"cmd": command}}}))
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
        return tmp_path

    return make


def program(title, folder, **options):
    """Start a Python program that sets its own process title and runs DVC by its API, as Airflow and Celery do."""
    (folder / "task.py").write_text("from dvc.repo import Repo\nRepo().reproduce()\n")
    packages = Path(dvc.__file__).parents[1]  # with another argv[0] Python does not find its virtual environment
    env = stage_env(PYTHONPATH=f"{ROOT}{os.pathsep}{packages}")
    command = ["bash", "-c", f"exec -a {title} {sys.executable} task.py"]
    return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **options)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds} s"
        time.sleep(0.02)


def test_every_stage_passes_dvcs_process_number_and_replaces_the_shell():
    for stage in PIPELINE["stages"].values():
        assert stage["cmd"].startswith("exec env DVC_PID=$PPID ")


def test_a_program_with_its_own_title_can_run_a_stage(pipeline):
    run = program("airflow-task-runner", pipeline(RUNS), stdout=subprocess.PIPE, text=True)
    assert "ran" in run.communicate()[0]
    assert run.returncode == 0


@pytest.mark.parametrize("title", ["dvc", "airflow-task-runner"])
def test_a_stage_ends_with_its_program_during_the_imports(pipeline, title):
    folder = pipeline(SLOW_IMPORTS)
    run = program(title, folder)
    try:
        wait_for((folder / "started").exists, 60)
        (stage,) = psutil.Process(run.pid).children()
        run.kill()  # nobody waits for it, so it becomes a zombie
        wait_for(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, 5)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


@pytest.mark.parametrize("has_number", [True, False], ids=["number known", "ended before the shell read it"])
def test_a_stage_does_not_start_after_its_dvc_has_ended(tmp_path, has_number):
    ended = subprocess.Popen(["true"])
    ended.wait()
    env = stage_env(DVC_STAGE="one", **({"DVC_PID": str(ended.pid)} if has_number else {}))
    code = "import time; time.sleep(1); import stages; print('started')"
    # The shell ends immediately, and a process of another session adopts the stage.
    command = f'{sys.executable} -c "{code}" >out 2>&1 & echo $! >pid'
    subprocess.run(["setsid", "bash", "-c", command], cwd=tmp_path, env=env, check=True)
    stage = int((tmp_path / "pid").read_text())
    wait_for(lambda: not psutil.pid_exists(stage) or psutil.Process(stage).status() == psutil.STATUS_ZOMBIE, 30)
    line = "error: the `dvc` that started this stage has ended; run `dvc repro` again\n"
    assert (tmp_path / "out").read_text() == line
