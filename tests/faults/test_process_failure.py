"""If a rank, torchrun or dvc fails, all ranks end within seconds. The reason is printed once."""

import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from helpers.processes import alive, free_port, run_on_forked_ranks, try_on_forked_ranks, wait_for
from helpers.project import ROOT
from helpers.stages import StartedModule, run_module, stage_env
from helpers.training_folder import adapter_bytes, prepare

from stages.training import checkpoints

pytestmark = pytest.mark.slow
TORCHRUN = "helpers.forked_torchrun"
SCRIPT = """
import os, pathlib, signal, sys, time
import stages
import torch
from stages.runtime import errors, distributed

def main():
    distributed.init_process_group(torch.device("cpu"))
    pathlib.Path(f"rank{distributed.rank()}").write_text(str(os.getpid()))
    distributed.all_gather("connected")
"""


def write_stage(folder, *lines):
    """Write a stage that runs `lines` when all ranks are connected."""
    code = SCRIPT + "".join(f"    {line}\n" for line in lines) + "\nerrors.run(main)\n"
    (folder / "stage.py").write_text(code)


def run(folder, *lines, ranks=2, **env):
    """Run `lines` on ranks that are forks of torchrun -> (its outcome, seconds)."""
    write_stage(folder, *lines)
    start = time.monotonic()
    done = run_module(TORCHRUN, [f"--nproc-per-node={ranks}", "stage.py"], folder, with_helpers(**env))
    return done, time.monotonic() - start


def with_helpers(**env):
    """`stage_env`, where Python finds `helpers`."""
    env = stage_env(**env)
    return {**env, "PYTHONPATH": f"{env['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"}


def test_an_error_of_all_ranks_is_printed_once(tmp_path):
    prepare(tmp_path / "run", train__batch_size=0)
    done, _ = run(tmp_path / "run", "from stages.runtime import params", "params.load()")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "train.batch_size" in lines[0], done.stderr
    assert done.returncode == 1


def test_ranks_whose_training_diverges_stop_together(tmp_path):
    folder = prepare(tmp_path / "run", train__learning_rate=1e6)
    done = try_on_forked_ranks(2, [f"train_qlora:{folder}"], MAY_FAIL="1")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "the loss of epoch 1 is NaN or infinite" in lines[0], done.stderr
    assert "epoch 1 of 3" in done.stdout and "epoch 2 of 3" not in done.stdout
    assert done.returncode == 1 and not (folder / "outs/checkpoints").exists()


def test_an_error_of_all_ranks_but_rank_0_is_printed_once(tmp_path):
    """Rank 0 only loses its connection, and its traceback would hide the reason."""
    fails = 'if distributed.rank() > 0: raise errors.UserError("not rank 0")'
    done, seconds = run(tmp_path, fails, "distributed.all_gather(1)", ranks=3)
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == ["error: not rank 0"]
    assert "Connection closed" not in done.stderr
    assert "traceback : error: not rank 0" in done.stderr, "torchrun's report names the cause"
    assert done.returncode == 1 and seconds < 40
    assert alive(int(path.read_text()) for path in tmp_path.glob("rank?")) == []


def test_a_killed_rank_ends_the_others(tmp_path):
    killed = "if distributed.rank() == 1: os.kill(os.getpid(), signal.SIGKILL)"
    done, seconds = run(tmp_path, killed, "distributed.all_gather(1)")
    assert "SIGKILL" in done.stderr and done.returncode == 1 and seconds < 40
    assert alive(int(path.read_text()) for path in tmp_path.glob("rank?")) == []


def test_ranks_end_with_their_launcher(tmp_path):
    write_stage(tmp_path, "time.sleep(100)")
    launcher = StartedModule(TORCHRUN, ["--nproc-per-node=2", "stage.py"], tmp_path, with_helpers())
    files = [tmp_path / "rank0", tmp_path / "rank1"]
    wait_for(lambda: all(path.exists() and path.read_text() for path in files))
    launcher.kill()
    wait_for(lambda: not alive(int(path.read_text()) for path in files), 5)


def test_nothing_outlives_a_killed_dvc(tmp_path):
    """DVC runs the stage as in dvc.yaml: torchrun replaces the shell and starts two ranks, all in new processes."""
    write_stage(tmp_path, "time.sleep(100)")
    command = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train_qlora"]["cmd"]
    launcher = f"{sys.executable} -m torch.distributed.run --nproc-per-node=2"
    command = command.replace("${launcher}", launcher).replace("-m stages.train_qlora", "stage.py")
    assert command.endswith("--nproc-per-node=2 stage.py")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train_qlora": {"cmd": command}}}))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    dvc = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=tmp_path, env=stage_env())
    files = [tmp_path / "rank0", tmp_path / "rank1"]
    wait_for(lambda: all(path.exists() and path.read_text() for path in files))
    children = [child.pid for child in psutil.Process(dvc.pid).children(recursive=True)]
    assert len(children) >= 3, "torchrun and two ranks"
    dvc.kill()
    dvc.wait()
    wait_for(lambda: not alive(children), 15)


def test_ranks_do_not_start_after_their_dvc_has_ended(tmp_path):
    """DVC was killed while torchrun started."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    done, _ = run(tmp_path, "pass", DVC_STAGE="train_qlora", DVC_PID=str(ended.pid))
    assert "error: the `dvc` that started this stage has ended" in done.stderr
    assert done.returncode == 1 and not list(tmp_path.glob("rank?"))


def test_ranks_with_different_code_do_not_run(tmp_path):
    """As on two machines that do not share a folder."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "stages/analyze.py").open("a") as file:
        file.write("\n# edited\n")
    folder = prepare(tmp_path / "run")
    done = try_on_forked_ranks(2, [f"eval_base:{folder}"], OTHER_CODE=str(tmp_path), MAY_FAIL="1")
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: not the same on all ranks: parameters, base, versions, kind of GPU, training and test rows, "
        "adapter or the code; give every machine the same files and versions"
    ]
    assert done.returncode == 1
    assert not (folder / "outs/results").exists()


def test_a_tool_does_not_run_on_several_ranks():
    env = stage_env(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")
    done = subprocess.run([sys.executable, "-m", "tools.verify", "--help"], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: a command in tools/ is one process, and the environment says that 2 were ")


def agents(folder):
    """Start torchrun twice with one rank each, as on two machines that share a file system."""
    arguments = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two-machines",
                 f"--rdzv-endpoint=127.0.0.1:{free_port()}", "-m", "stages.train_qlora"]  # fmt: skip
    return [StartedModule(TORCHRUN, arguments, folder, with_helpers()) for _ in range(2)]


def test_a_training_that_lost_one_of_two_machines_resumes_later(tmp_path):
    folder = prepare(tmp_path / "run", train__epochs=8)
    first, second = agents(folder)
    wait_for(lambda: list(folder.glob(f"outs/checkpoints/*/checkpoint-*/{checkpoints.WHOLE}")))
    pids = [p.pid for agent in (first, second) for p in psutil.Process(agent.pid).children(recursive=True)]
    second.kill()
    for agent in (first, second):
        wait_for(lambda agent=agent: agent.poll() is not None)
        assert agent.returncode != 0
    assert alive(pids) == []
    assert not (folder / "outs/adapter").exists()
    assert run_on_forked_ranks(2, [f"train_qlora:{folder}"]).count("resuming from") == 1
    assert "adapter_model.safetensors" in adapter_bytes(folder)
