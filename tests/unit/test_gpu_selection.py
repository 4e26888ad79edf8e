"""A GPU for each process: real processes and real locks, with stand-ins for what CUDA shows."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import yaml
from helpers.project import COMMITTED, ROOT
from helpers.stages import stage_env

from stages.runtime import gpu_selection
from stages.runtime.stage_table import GPU_STAGES

START = """
import os, sys, time
from stages.runtime import gpu_selection
gpu_selection.POLL_SECONDS = 0.05
gpu_selection.list_visible_gpus = lambda: sys.argv[1].split()
"""
TAKE = f"""{START}
gpu_selection.select_gpu()
print("shown", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
"""
KEEP = f"{TAKE}\nsys.stdin.read()"


@pytest.fixture
def start(tmp_path):
    """Start a process to which CUDA would show these GPUs; its locks are this test's. Ends with the test."""
    started = []

    def begin(names, code=KEEP, **env):
        env = stage_env(TMPDIR=str(tmp_path), PYTHONUNBUFFERED="", **env)
        process = subprocess.Popen(
            [sys.executable, "-c", code, names], env=env, cwd=tmp_path, start_new_session=True, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # ranks may still wait for each other
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def line(process):
    """The next line that a process prints."""
    return process.stdout.readline().rstrip("\n")


def finish(process):
    """What a process still prints when it may end; it ends well."""
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 0, said
    return said


def test_each_process_takes_a_gpu_that_none_holds_and_is_shown_no_other(start):
    first, second = (start("GPU-a GPU-b") for _ in range(2))
    assert {line(first), line(second)} == {"shown GPU-a", "shown GPU-b"}


def test_where_none_is_free_one_line_says_who_holds_them_and_a_killed_one_holds_none(start):
    first = start("GPU-a GPU-b")
    assert line(first) == "shown GPU-a"
    second = start("GPU-a GPU-b")
    assert line(second) == "shown GPU-b"
    third = start("GPU-a GPU-b")
    assert line(third) == (
        f"waiting for a GPU: GPU-a is held by process {first.pid}, GPU-b is held by process {second.pid}"
    )
    time.sleep(0.3)  # it looks again, and says nothing more
    second.send_signal(signal.SIGKILL)
    assert line(third) == "shown GPU-b"
    assert line(start("GPU-a GPU-b")).startswith(f"waiting for a GPU: GPU-a is held by process {first.pid}, ")


def test_the_only_gpu_is_locked_too(start):
    first = start("GPU-a")
    assert line(first) == "shown None"
    second = start("GPU-a")
    assert line(second) == f"waiting for a GPU: GPU-a is held by process {first.pid}"
    finish(first)
    assert line(second) == "shown None"


def test_where_cuda_shows_none_nothing_is_locked(start, tmp_path):
    assert finish(start("")) == "shown None\n"
    assert list(tmp_path.iterdir()) == []


def test_slices_that_are_named_are_chosen_from_though_cuda_shows_one(start):
    slices = "MIG-GPU-a/1/0, MIG-b"
    first, second = (start("GPU-of-the-first-slice", CUDA_VISIBLE_DEVICES=slices) for _ in range(2))
    assert {line(first), line(second)} == {"shown MIG-GPU-a/1/0", "shown MIG-b"}


def test_a_slice_has_one_lock_whether_it_is_named_or_shown(start):
    first = start("", CUDA_VISIBLE_DEVICES="MIG-b")
    assert line(first) == "shown MIG-b"
    assert line(start("GPU-b")) == f"waiting for a GPU: GPU-b is held by process {first.pid}"


@pytest.mark.parametrize(
    "child",
    ["if not os.fork(): time.sleep(60)", "import subprocess; subprocess.Popen(['sleep', '60'], close_fds=False)"],
    ids=["fork", "program"],
)
def test_a_child_that_lives_longer_holds_nothing(start, child):
    first = start("GPU-a", f"{TAKE}\n{child}\nprint('begun', flush=True)\nsys.stdin.read()")
    assert [line(first), line(first)] == ["shown None", "begun"]
    (left,) = psutil.Process(first.pid).children()
    try:
        first.kill()
        first.wait()
        assert line(start("GPU-a")) == "shown None"
        assert left.is_running() and left.status() != psutil.STATUS_ZOMBIE
    finally:
        left.kill()


def test_a_process_uses_the_gpu_of_the_one_that_started_it(start):
    again = "gpu_selection.select_gpu(); import subprocess; "
    again += "subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]])"
    code = f"sys_argv = {TAKE!r}; import sys; sys.argv.append(sys_argv)\n{TAKE}\n{again}"
    assert finish(start("GPU-a GPU-b", code)) == "shown GPU-a\nshown GPU-a\n"


def test_a_folder_of_another_user_is_refused(start):
    first = start("GPU-a")
    assert line(first) == "shown None"
    code = f"""{START}
mine = os.getuid()
folder, other = gpu_selection._lock_folder(), f"gpus-in-use-{{mine + 1}}"
folder.rename(folder.with_name(other))
gpu_selection._lock_folder.cache_clear()
os.getuid = lambda: mine + 1
gpu_selection.select_gpu()
"""
    second = start("GPU-a", code)
    assert second.communicate(timeout=30)[0].endswith(
        "the folder of GPU locks, belongs to another user; set TMPDIR to a folder of your own\n"
    )
    assert second.returncode == 1


# --- under a launcher ---

LAUNCHER = f"""{START}
rounds, here = int(sys.argv[2]), int(sys.argv[3])
names = gpu_selection.list_visible_gpus()
for number in range(rounds):
    for rank in range(here):
        if not os.fork():
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(here), LOCAL_WORLD_SIZE=str(here),
                TORCHELASTIC_RESTART_COUNT=str(number),
            )
            gpu_selection.select_gpu()
            begun = time.monotonic()
            time.sleep(0.02)
            shown = os.environ.get("CUDA_VISIBLE_DEVICES")
            os.write(1, f"held {{number}} {{names[rank]}} {{begun}} {{time.monotonic()}} {{shown}}\\n".encode())
            os._exit(0)
    for rank in range(here):
        os.wait()
"""


def launch(start, names, rounds, here):
    code = LAUNCHER.replace("sys.argv[2]", str(rounds)).replace("sys.argv[3]", str(here))
    return start(names, code)


def held(said):
    """[(round, GPU, begun, ended)] of what ranks printed."""
    lines = [text.split() for text in said.splitlines() if text.startswith("held ")]
    assert {text[-1] for text in lines} <= {"None"}, "ranks are shown all GPUs"
    return [(int(number), name, float(begun), float(ended)) for _, number, name, begun, ended, _ in lines]


def test_two_runs_of_two_ranks_never_hold_half_each(start):
    """Twenty times, on the same GPUs in the other order; each rank by its number, all of a run at once."""
    rounds = 20
    runs = [launch(start, names, rounds, 2) for names in ("GPU-a GPU-b", "GPU-b GPU-a")]
    said = [finish(run) for run in runs]
    found = [held(text) for text in said]
    for lines in found:
        for number in range(rounds):
            of_round = [entry for entry in lines if entry[0] == number]
            assert sorted(entry[1] for entry in of_round) == ["GPU-a", "GPU-b"]
            assert max(entry[2] for entry in of_round) - min(entry[2] for entry in of_round) < 2
    for name in ("GPU-a", "GPU-b"):
        spans = sorted(entry[2:] for lines in found for entry in lines if entry[1] == name)
        assert len(spans) == 2 * rounds
        assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(spans))
    waited = [text for text in "".join(said).splitlines() if not text.startswith("held ")]
    assert waited and all(text.startswith("waiting for a GPU: GPU-") for text in waited)


def test_no_rank_goes_on_before_all_have_their_gpu(start):
    other = start("GPU-b")
    assert line(other) == "shown None"
    run = launch(start, "GPU-a GPU-b", 1, 2)
    assert line(run) == f"waiting for a GPU: GPU-b is held by process {other.pid}"
    time.sleep(0.3)
    ended = time.monotonic()
    finish(other)
    said = finish(run)
    assert [entry[1] for entry in sorted(held(said))] == ["GPU-a", "GPU-b"]
    assert all(entry[2] > ended for entry in held(said))


def test_more_ranks_than_gpus_are_left_to_the_stage(start, tmp_path):
    code = f"{START}\ngpu_selection.select_gpu()\nprint(list(__import__('pathlib').Path('.').iterdir()))"
    env = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    assert finish(start("GPU-a GPU-b", code, **env)) == "[]\n"


# --- who asks for one ---


def test_the_stages_that_ask_are_those_that_compute_on_a_device():
    """`download` has the parameter too: it says at once that there is no GPU, and holds none."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(GPU_STAGES) == {name for name, stage in stages.items() if "device" in stage.get("params", [])} - {
        "download"
    }


@pytest.mark.parametrize(("text", "takes"), [("cuda", True), ("cpu", False), ("tpu", False), (None, False)])
def test_params_yaml_says_whether(tmp_path, monkeypatch, text, takes):
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    if text:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw | {"device": text}))
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr(gpu_selection, "select_gpu", lambda: taken.append(True))
    gpu_selection.select_gpu_from_params()
    assert bool(taken) == takes


@pytest.mark.parametrize(
    ("stage", "asks"),
    [("train_qlora", True), ("demo/dvc.yaml:eval_lora", True), ("dvc.yaml:tokenize", False), ("analyze", False)],
)
def test_a_stage_asks_before_the_libraries_are_imported(tmp_path, stage, asks):
    code = """
import importlib, os, sys
stage = os.environ.pop("DVC_STAGE")
import stages
from stages.runtime import gpu_selection
def select(): print("asked", sorted({"torch", "bitsandbytes"} & sys.modules.keys()))
gpu_selection.select_gpu_from_params = select
os.environ["DVC_STAGE"] = stage
importlib.reload(stages)
"""
    env = stage_env(DVC_STAGE=stage, DVC_PID=str(os.getpid()))
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("asked []\n" if asks else "", "")


def test_a_sweep_asks_once_its_variants_are_checked_and_before_cuda_is(tmp_path):
    shutil.copy(COMMITTED / "demo/params.yaml", tmp_path)
    code = """
import sys
from pathlib import Path
from stages.runtime import gpu_selection
from tools import sweep
def hold(): sys.exit("asked" + " too late" * ("bitsandbytes" in sys.modules))
gpu_selection.select_gpu_from_params = hold
try:
    sweep.sweep(["lora.r=0"], Path.cwd())
except gpu_selection.UserError:
    print("refused", file=sys.stderr)
sweep.sweep(["seed=1"], Path.cwd())
"""
    run = {"env": stage_env(), "cwd": tmp_path, "capture_output": True, "text": True}
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], check=True, **run)
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t", "commit", "-qm", "t"], check=True, **run)
    assert subprocess.run([sys.executable, "-c", code], **run).stderr == "refused\nasked\n"


# --- what CUDA shows ---

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return STATE; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7 + ordinal; return 0; }
int cuDeviceGetUuid_v2(char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = 16 * (device - 6) + i;
    return 0;
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to build a stand-in of the driver")
@pytest.mark.parametrize(
    ("state", "names"),
    [(0, ["GPU-10111213-1415-1617-1819-1a1b1c1d1e1f", "GPU-20212223-2425-2627-2829-2a2b2c2d2e2f"]), (100, [])],
)
def test_the_driver_is_asked_for_uuids_in_its_order(tmp_path, monkeypatch, state, names):
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", f"-DSTATE={state}", "-o", library, tmp_path / "driver.c"]
    subprocess.run(command, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert gpu_selection.list_visible_gpus() == names


@pytest.mark.parametrize(
    ("count", "shown", "asked"), [(1, None, False), (1, "0", True), (2, None, True), (0, None, True)]
)
def test_where_there_is_no_choice_cuda_is_not_asked(tmp_path, monkeypatch, count, shown, asked):
    """It would take half a second of each stage."""
    for number in range(count):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t NVIDIA L4\nGPU UUID: \t GPU-{number}a-b\nBus Type: \t PCIe\n")
    if not count:  # nothing has used it yet
        (tmp_path / "one").mkdir()
        (tmp_path / "one/information").write_text("GPU UUID: \t GPU-????????-????\n")
    monkeypatch.setattr(gpu_selection, "DRIVER_FOLDER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="GPU-asked\n"))
    assert gpu_selection.list_visible_gpus() == (["GPU-asked"] if asked else ["GPU-0a-b"])


def test_without_a_driver_that_can_tell_nothing_is_shown(tmp_path, monkeypatch):
    (tmp_path / "libcuda.so.1").write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert gpu_selection.list_visible_gpus() == []
