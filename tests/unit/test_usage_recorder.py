"""The usage recorder: samples of memory, utilization and power, on one GPU, on several and on a CPU."""

import csv
import json
import os
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers.processes import free_port
from helpers.project import ROOT

from stages.runtime import usage_recorder, usage_samples
from stages.runtime.usage_recorder import Recorder, read_versions
from stages.runtime.usage_samples import FIELDS

CPU = torch.device("cpu")


def test_samples_have_the_interval_and_their_phase(tmp_path):
    with Recorder(CPU, interval=0.02) as recorder:
        time.sleep(0.1)
        recorder.mark("loaded")
        time.sleep(0.1)
    recorder.save(tmp_path / "run", {"resumed": False})
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run == {"resumed": False, "gpu": recorder.summary(), "versions": read_versions(CPU)}
    with open(tmp_path / "run/usage.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*FIELDS, "gpu", "memory_sum_gb"]
    assert {row["phase"] for row in rows} == {"start", "loaded"}
    assert len(rows) >= 6
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert all(float(row["memory_gb"]) > 0.01 for row in rows)
    assert all(row["gpu"] == "0" and row["memory_sum_gb"] == row["memory_gb"] for row in rows)


def test_on_a_cpu_the_summary_is_the_memory_of_the_process():
    with Recorder(CPU, interval=10) as recorder:
        recorder.mark("before")
        block = torch.ones(50_000_000)  # 0.2 GB
        recorder.mark("after")
    summary = recorder.summary()
    assert summary["name"] == "cpu"
    assert summary["after"] - summary["before"] == pytest.approx(block.nbytes / 1e9, abs=0.05)
    assert summary["peak"] >= summary["after"]
    assert set(summary) == {"name", "before", "after", "end", "peak"}


@pytest.fixture
def two_gpus(monkeypatch):
    """NVML of a machine with two GPUs. PyTorch sees only the second one, as cuda:0."""
    memory = {"GPU-first": 1e9, "GPU-second": 2e9}
    functions = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: list(memory)[index],
        "nvmlDeviceGetHandleByUUID": lambda uuid: {name: name for name in memory}[uuid],
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=memory[handle], total=8e9),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=50),
        "nvmlDeviceGetPowerUsage": lambda handle: 300_000,
    }
    for name, function in functions.items():
        monkeypatch.setattr(usage_recorder.pynvml, name, function)
    properties = SimpleNamespace(uuid="second", name="second")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5e9, 8e9))


def test_nvml_reads_the_gpu_that_torch_sees(two_gpus):
    with Recorder(torch.device("cuda", 0), interval=10) as recorder:
        recorder.mark("now")
    now = recorder.marks["now"]
    assert (now["memory_gb"], now["memory_total_gb"], now["utilization_percent"], now["power_w"]) == (2, 8, 50, 300)
    assert recorder.summary() == {
        "name": "second", "now": 2, "end": 2, "peak": 2, "peak_allocated": 0, "peak_reserved": 0, "total": 8
    }  # fmt: skip


def test_a_gpu_that_nvml_cannot_read_is_read_by_torch(two_gpus, monkeypatch):
    def fail(handle):
        raise usage_recorder.pynvml.NVMLError(usage_recorder.pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage"):
        monkeypatch.setattr(usage_recorder.pynvml, name, fail)
    with Recorder(torch.device("cuda", 0), interval=10) as recorder:
        recorder.mark("now")
    now = recorder.marks["now"]
    assert (now["memory_gb"], now["memory_total_gb"], now["utilization_percent"], now["power_w"]) == (3, 8, None, None)


def test_the_sampling_thread_ends_with_the_block_also_after_an_error():
    with pytest.raises(RuntimeError), Recorder(CPU, interval=0.01) as recorder:
        raise RuntimeError
    count = len(recorder.samples)
    time.sleep(0.05)
    assert len(recorder.samples) == count
    assert not recorder._thread.is_alive()


def sample(seconds, memory):
    return dict.fromkeys(FIELDS) | {"seconds": seconds, "memory_gb": memory}


def test_samples_of_several_gpus_have_one_clock_and_a_sum():
    """The recorder of the second GPU started 1.5 s before that of the first."""
    first = [sample(0.0, 4.0), sample(1.0, 5.0), sample(1.0, 6.0), sample(2.0, 1.0)]
    second = [sample(0.0, 10.0), sample(3.0, 20.0)]
    table = usage_samples.merge_samples([1001.5, 1000.0], [first, second])
    assert list(zip(table["gpu"], table["seconds"], table["memory_gb"], strict=True)) == [
        (1, 0.0, 10.0), (0, 1.5, 4.0), (0, 2.5, 5.0), (0, 2.5, 6.0), (1, 3.0, 20.0), (0, 3.5, 1.0)
    ]  # fmt: skip
    assert table["memory_sum_gb"].isna().tolist() == [True] + 5 * [False], "no sum until each GPU has a sample"
    assert table["memory_sum_gb"].tolist()[1:] == [14, 15, 16, 26, 21]


def test_the_summary_of_several_gpus_has_the_highest_peak_and_the_highest_sum_at_one_time():
    """The GPUs have their peaks at different times, so the sum of the peaks was never in use."""
    first = {"name": "H100", "loaded": 1.0, "peak": 6.0, "peak_allocated": 3.0, "total": 80.0}
    second = {"name": "H100", "loaded": 2.0, "peak": 5.0, "peak_allocated": 4.0, "total": 40.0}
    memory_sum = pd.Series([float("nan"), 7.0, 8.5, 2.0])
    summary = {
        "name": "H100", "count": 2, "loaded": 2.0, "peak": 6.0, "peak_allocated": 4.0, "total": 40.0, "peak_sum": 8.5
    }  # fmt: skip
    assert usage_samples.summarize([first, second], memory_sum) == summary
    assert usage_samples.summarize([first, second | {"name": "A100"}], memory_sum)["name"] == "H100, A100"
    assert usage_samples.summarize([first], memory_sum) == first


def start_rank(rank, port, folder, code):
    """Start one of two ranks. It runs `code` in `folder`; the code can use `rank`, torch, distributed and Recorder."""
    head = "import time, torch\nfrom stages.runtime import distributed\n"
    head += "from stages.runtime.usage_recorder import Recorder\n"
    head += 'distributed.init_process_group(torch.device("cpu")); rank = distributed.rank()\n'
    env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port),
                        "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-c", head + textwrap.dedent(code)]
    return subprocess.Popen(command, env=env, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def two_ranks(tmp_path):
    """Function that starts two ranks, each in its own folder -> (folders, processes)."""
    processes = []

    def start(code):
        port = free_port()
        folders = [tmp_path / "first", tmp_path / "second"]
        for rank, folder in enumerate(folders):
            folder.mkdir()
            processes.append(start_rank(rank, port, folder, code))
        return folders, processes

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_rank_0_writes_the_samples_of_both_ranks(two_ranks):
    """Rank 1 starts later, uses more memory and runs longer."""
    folders, processes = two_ranks("""
        time.sleep(rank)
        with Recorder(torch.device("cpu"), interval=0.05) as recorder:
            recorder.mark("before")
            block = torch.ones([25_000_000, 75_000_000][rank])  # 0.1 and 0.3 GB
            recorder.mark("after")
            time.sleep(0.5 * rank)
        open("left_at", "w").write(str(time.time()))
        recorder.save("run", {"seconds": 1})
        open("memory", "w").write(str(recorder.marks["after"]["memory_gb"]))
    """)
    errors = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert not (folders[1] / "run").exists()
    usage = pd.read_csv(folders[0] / "run/usage.csv")
    assert usage["seconds"].is_monotonic_increasing
    start, end = (usage.groupby("gpu")["seconds"].agg(kind) for kind in ("min", "max"))
    assert start[0] < 0.1 and 0.9 < start[1] < 3
    assert end[1] - start[1] > 0.5 and start[0] == usage["seconds"].min()
    assert (usage["gpu"] == 1).sum() > 5
    left_at = [float((folder / "left_at").read_text()) for folder in folders]
    assert abs(left_at[0] - left_at[1]) < 1, "both ranks leave the block together"

    run = json.loads((folders[0] / "run/run.json").read_text())
    summary, memory = run["gpu"], [float((folder / "memory").read_text()) for folder in folders]
    assert run["seconds"] == 1 and summary["name"] == "cpu" and summary["count"] == 2
    assert set(summary) == {"name", "count", "before", "after", "end", "peak", "peak_sum"}
    assert memory[1] > memory[0] + 0.1 and summary["after"] == memory[1] <= summary["peak"]
    assert summary["peak_sum"] == usage["memory_sum_gb"].max() == pytest.approx(sum(memory), abs=0.05)


def test_an_error_in_one_rank_does_not_wait_for_the_other(two_ranks):
    _, (first, second) = two_ranks("""
        with Recorder(torch.device("cpu")):
            if rank == 1:
                raise RuntimeError("rank 1")
            time.sleep(1000)
    """)
    assert "RuntimeError: rank 1" in second.communicate(timeout=100)[1]
    assert second.returncode == 1 and first.poll() is None


def test_a_peak_that_is_reset_after_a_mark_still_counts(monkeypatch):
    """`train_qlora` resets PyTorch's peaks, to measure a step, after the base has been loaded."""
    recorder = Recorder(CPU)
    recorder.device = torch.device("cuda", 0)
    monkeypatch.setattr(recorder, "_read_sample", lambda: {"memory_gb": 1.0, "memory_total_gb": 2.0})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    for peak in (3e9, 1e9):
        for name in ("max_memory_allocated", "max_memory_reserved"):
            monkeypatch.setattr(torch.cuda, name, lambda _, peak=peak: peak)
        recorder.mark("loaded")
    summary = recorder._summarize_rank()
    assert summary["peak_allocated"] == summary["peak_reserved"] == 3
