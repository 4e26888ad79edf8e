"""How a GPU is chosen, with real processes and real locks. The list of CUDA's GPUs is simulated."""

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
SELECT = f"""{START}
gpu_selection.select_gpu()
print("visible", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
"""
HOLD = f"{SELECT}\nsys.stdin.read()"


@pytest.fixture
def start(tmp_path):
    """Function that starts a process to which CUDA shows these GPUs. The locks and the process end with the test."""
    processes = []

    def begin(gpus, code=HOLD, **env):
        env = stage_env(TMPDIR=str(tmp_path), PYTHONUNBUFFERED="", **env)
        process = subprocess.Popen(
            [sys.executable, "-c", code, gpus], env=env, cwd=tmp_path, start_new_session=True, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        processes.append(process)
        return process

    yield begin
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # ranks may still wait for each other
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def line(process):
    """The next line that a process prints."""
    return process.stdout.readline().rstrip("\n")


def finish(process):
    """Let a process end, and return the rest of its output. Its exit code must be 0."""
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0, output
    return output


def test_each_process_locks_a_free_gpu_and_sees_only_that_one(start):
    first, second = (start("GPU-a GPU-b") for _ in range(2))
    assert {line(first), line(second)} == {"visible GPU-a", "visible GPU-b"}


def test_without_a_free_gpu_a_process_prints_the_holders_and_waits_until_one_is_killed(start):
    first = start("GPU-a GPU-b")
    assert line(first) == "visible GPU-a"
    second = start("GPU-a GPU-b")
    assert line(second) == "visible GPU-b"
    third = start("GPU-a GPU-b")
    assert line(third) == (
        f"waiting for a GPU: GPU-a is held by process {first.pid}, GPU-b is held by process {second.pid}"
    )
    time.sleep(0.3)  # it tries again, without printing another line
    second.send_signal(signal.SIGKILL)
    assert line(third) == "visible GPU-b"
    assert line(start("GPU-a GPU-b")).startswith(f"waiting for a GPU: GPU-a is held by process {first.pid}, ")


def test_the_only_gpu_is_locked_too(start):
    first = start("GPU-a")
    assert line(first) == "visible None"
    second = start("GPU-a")
    assert line(second) == f"waiting for a GPU: GPU-a is held by process {first.pid}"
    finish(first)
    assert line(second) == "visible None"


def test_without_visible_gpus_nothing_is_locked(start, tmp_path):
    assert finish(start("")) == "visible None\n"
    assert list(tmp_path.iterdir()) == []


def test_every_mig_slice_in_cuda_visible_devices_can_be_chosen(start):
    slices = "MIG-GPU-a/1/0, MIG-b"
    first, second = (start("GPU-first-slice", CUDA_VISIBLE_DEVICES=slices) for _ in range(2))
    assert {line(first), line(second)} == {"visible MIG-GPU-a/1/0", "visible MIG-b"}


def test_a_mig_slice_has_one_lock_under_both_of_its_names(start):
    first = start("", CUDA_VISIBLE_DEVICES="MIG-b")
    assert line(first) == "visible MIG-b"
    assert line(start("GPU-b")) == f"waiting for a GPU: GPU-b is held by process {first.pid}"


@pytest.mark.parametrize(
    "child",
    ["if not os.fork(): time.sleep(60)", "import subprocess; subprocess.Popen(['sleep', '60'], close_fds=False)"],
    ids=["fork", "program"],
)
def test_a_child_that_outlives_the_process_holds_no_lock(start, child):
    first = start("GPU-a", f"{SELECT}\n{child}\nprint('started', flush=True)\nsys.stdin.read()")
    assert [line(first), line(first)] == ["visible None", "started"]
    (survivor,) = psutil.Process(first.pid).children()
    try:
        first.kill()
        first.wait()
        assert line(start("GPU-a")) == "visible None"
        assert survivor.is_running() and survivor.status() != psutil.STATUS_ZOMBIE
    finally:
        survivor.kill()


def test_a_child_process_uses_its_parents_gpu(start):
    again = "gpu_selection.select_gpu(); import subprocess; "
    again += "subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]])"
    code = f"sys_argv = {SELECT!r}; import sys; sys.argv.append(sys_argv)\n{SELECT}\n{again}"
    assert finish(start("GPU-a GPU-b", code)) == "visible GPU-a\nvisible GPU-a\n"


def test_a_lock_folder_of_another_user_is_rejected(start):
    first = start("GPU-a")
    assert line(first) == "visible None"
    code = f"""{START}
user = os.getuid()
folder, other = gpu_selection._lock_folder(), f"gpus-in-use-{{user + 1}}"
folder.rename(folder.with_name(other))
gpu_selection._lock_folder.cache_clear()
os.getuid = lambda: user + 1
gpu_selection.select_gpu()
"""
    second = start("GPU-a", code)
    assert second.communicate(timeout=30)[0].endswith(
        "the folder of GPU locks, belongs to another user; set TMPDIR to a folder of your own\n"
    )
    assert second.returncode == 1


# --- under a launcher ---

LAUNCHER = f"""{START}
rounds, ranks = int(sys.argv[2]), int(sys.argv[3])
gpus = gpu_selection.list_visible_gpus()
for number in range(rounds):
    for rank in range(ranks):
        if not os.fork():
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
                TORCHELASTIC_RESTART_COUNT=str(number),
            )
            gpu_selection.select_gpu()
            start = time.monotonic()
            time.sleep(0.02)
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            os.write(1, f"held {{number}} {{gpus[rank]}} {{start}} {{time.monotonic()}} {{visible}}\\n".encode())
            os._exit(0)
    for rank in range(ranks):
        os.wait()
"""


def launch(start, gpus, rounds, ranks):
    code = LAUNCHER.replace("sys.argv[2]", str(rounds)).replace("sys.argv[3]", str(ranks))
    return start(gpus, code)


def read_spans(output):
    """[(round, GPU, start, end)] of the locks that ranks held, from their output."""
    lines = [text.split() for text in output.splitlines() if text.startswith("held ")]
    assert {fields[-1] for fields in lines} <= {"None"}, "ranks see all GPUs"
    return [(int(number), gpu, float(start), float(end)) for _, number, gpu, start, end, _ in lines]


def test_two_runs_of_two_ranks_never_hold_one_gpu_each(start):
    """Twenty rounds. Both runs use the same two GPUs, in opposite orders, and need both at the same time."""
    rounds = 20
    runs = [launch(start, gpus, rounds, 2) for gpus in ("GPU-a GPU-b", "GPU-b GPU-a")]
    outputs = [finish(run) for run in runs]
    spans_of_runs = [read_spans(output) for output in outputs]
    for spans in spans_of_runs:
        for number in range(rounds):
            of_round = [span for span in spans if span[0] == number]
            assert sorted(span[1] for span in of_round) == ["GPU-a", "GPU-b"]
            assert max(span[2] for span in of_round) - min(span[2] for span in of_round) < 2
    for gpu in ("GPU-a", "GPU-b"):
        times = sorted(span[2:] for spans in spans_of_runs for span in spans if span[1] == gpu)
        assert len(times) == 2 * rounds
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    other_lines = [text for text in "".join(outputs).splitlines() if not text.startswith("held ")]
    assert other_lines and all(text.startswith("waiting for a GPU: GPU-") for text in other_lines)


def test_no_rank_continues_before_all_have_their_gpu(start):
    other = start("GPU-b")
    assert line(other) == "visible None"
    run = launch(start, "GPU-a GPU-b", 1, 2)
    assert line(run) == f"waiting for a GPU: GPU-b is held by process {other.pid}"
    time.sleep(0.3)
    end_of_other = time.monotonic()
    finish(other)
    spans = read_spans(finish(run))
    assert [span[1] for span in sorted(spans)] == ["GPU-a", "GPU-b"]
    assert all(span[2] > end_of_other for span in spans)


def test_with_more_ranks_than_gpus_nothing_is_locked_and_the_stage_reports_it(start, tmp_path):
    code = f"{START}\ngpu_selection.select_gpu()\nprint(list(__import__('pathlib').Path('.').iterdir()))"
    env = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    assert finish(start("GPU-a GPU-b", code, **env)) == "[]\n"


# --- which processes select a GPU ---


def test_the_stages_that_select_a_gpu_are_those_with_the_parameter_device():
    """Except `download`, which only warns early if there is no GPU."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(GPU_STAGES) == {name for name, stage in stages.items() if "device" in stage.get("params", [])} - {
        "download"
    }


@pytest.mark.parametrize(("device", "selects"), [("cuda", True), ("cpu", False), ("tpu", False), (None, False)])
def test_a_gpu_is_selected_if_params_yaml_has_device_cuda(tmp_path, monkeypatch, device, selects):
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    if device:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw | {"device": device}))
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(gpu_selection, "select_gpu", lambda: calls.append(True))
    gpu_selection.select_gpu_from_params()
    assert bool(calls) == selects


@pytest.mark.parametrize(
    ("stage", "selects"),
    [("train_qlora", True), ("demo/dvc.yaml:eval_lora", True), ("dvc.yaml:tokenize", False), ("analyze", False)],
)
def test_a_stage_selects_its_gpu_before_it_imports_the_libraries(tmp_path, stage, selects):
    code = """
import importlib, os, sys
stage = os.environ.pop("DVC_STAGE")
import stages
from stages.runtime import gpu_selection
def select(): print("selected", sorted({"torch", "bitsandbytes"} & sys.modules.keys()))
gpu_selection.select_gpu_from_params = select
os.environ["DVC_STAGE"] = stage
importlib.reload(stages)
"""
    env = stage_env(DVC_STAGE=stage, DVC_PID=str(os.getpid()))
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("selected []\n" if selects else "", "")


def test_a_sweep_selects_a_gpu_after_its_variants_are_checked_and_before_cuda_is_asked(tmp_path):
    shutil.copy(COMMITTED / "demo/params.yaml", tmp_path)
    code = """
import sys
from pathlib import Path
from stages.runtime import gpu_selection
from tools import sweep
def select(): sys.exit("selected" + " too late" * ("bitsandbytes" in sys.modules))
gpu_selection.select_gpu_from_params = select
try:
    sweep.sweep(["lora.r=0"], Path.cwd())
except gpu_selection.UserError:
    print("rejected", file=sys.stderr)
sweep.sweep(["seed=1"], Path.cwd())
"""
    run = {"env": stage_env(), "cwd": tmp_path, "capture_output": True, "text": True}
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], check=True, **run)
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t", "commit", "-qm", "t"], check=True, **run)
    assert subprocess.run([sys.executable, "-c", code], **run).stderr == "rejected\nselected\n"


# --- which GPUs CUDA shows ---

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


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to build a stand-in for the driver")
@pytest.mark.parametrize(
    ("state", "names"),
    [(0, ["GPU-10111213-1415-1617-1819-1a1b1c1d1e1f", "GPU-20212223-2425-2627-2829-2a2b2c2d2e2f"]), (100, [])],
)
def test_uuids_are_those_of_the_driver_in_its_order(tmp_path, monkeypatch, state, names):
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", f"-DSTATE={state}", "-o", library, tmp_path / "driver.c"]
    subprocess.run(command, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert gpu_selection.list_visible_gpus() == names


@pytest.mark.parametrize(
    ("count", "visible", "asked"), [(1, None, False), (1, "0", True), (2, None, True), (0, None, True)]
)
def test_on_a_machine_with_one_gpu_cuda_is_not_asked(tmp_path, monkeypatch, count, visible, asked):
    """Asking takes half a second in each stage."""
    for number in range(count):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t NVIDIA L4\nGPU UUID: \t GPU-{number}a-b\nBus Type: \t PCIe\n")
    if not count:  # a GPU that nothing has used yet
        (tmp_path / "one").mkdir()
        (tmp_path / "one/information").write_text("GPU UUID: \t GPU-????????-????\n")
    monkeypatch.setattr(gpu_selection, "DRIVER_FOLDER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="GPU-asked\n"))
    assert gpu_selection.list_visible_gpus() == (["GPU-asked"] if asked else ["GPU-0a-b"])


def test_without_a_usable_driver_no_gpu_is_visible(tmp_path, monkeypatch):
    (tmp_path / "libcuda.so.1").write_text("not a library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert gpu_selection.list_visible_gpus() == []
