"""The recorder of memory and load, and files that are whole or not there."""

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

from stages.runtime import files, usage_samples
from stages.runtime import usage_recorder as recorder_module
from stages.runtime.errors import UserError
from stages.runtime.usage_recorder import Recorder, read_versions
from stages.runtime.usage_samples import FIELDS

CPU = torch.device("cpu")


def test_samples_come_at_their_interval_and_know_their_phase(tmp_path):
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


def test_on_a_cpu_the_summary_is_the_process_own_memory():
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
    """NVML of a machine with two GPUs, of which torch sees the second alone, as its cuda:0."""
    used = {"GPU-first": 1e9, "GPU-second": 2e9}
    fakes = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: list(used)[index],
        "nvmlDeviceGetHandleByUUID": lambda uuid: {name: name for name in used}[uuid],
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=used[handle], total=8e9),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=50),
        "nvmlDeviceGetPowerUsage": lambda handle: 300_000,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(recorder_module.pynvml, name, fake)
    properties = SimpleNamespace(uuid="second", name="second")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5e9, 8e9))


def test_the_gpu_that_is_read_is_the_one_that_torch_sees(two_gpus):
    with Recorder(torch.device("cuda", 0), interval=10) as recorder:
        recorder.mark("now")
    now = recorder.marks["now"]
    assert (now["memory_gb"], now["memory_total_gb"], now["utilization_percent"], now["power_w"]) == (2, 8, 50, 300)
    assert recorder.summary() == {
        "name": "second", "now": 2, "end": 2, "peak": 2, "peak_allocated": 0, "peak_reserved": 0, "total": 8
    }  # fmt: skip


def test_a_gpu_whose_nvml_does_not_tell_is_read_through_torch(two_gpus, monkeypatch):
    def refuse(handle):
        raise recorder_module.pynvml.NVMLError(recorder_module.pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage"):
        monkeypatch.setattr(recorder_module.pynvml, name, refuse)
    with Recorder(torch.device("cuda", 0), interval=10) as recorder:
        recorder.mark("now")
    now = recorder.marks["now"]
    assert (now["memory_gb"], now["memory_total_gb"], now["utilization_percent"], now["power_w"]) == (3, 8, None, None)


def test_the_sampling_thread_ends_with_the_block_even_after_an_error():
    with pytest.raises(RuntimeError), Recorder(CPU, interval=0.01) as recorder:
        raise RuntimeError
    count = len(recorder.samples)
    time.sleep(0.05)
    assert len(recorder.samples) == count
    assert not recorder._thread.is_alive()


def sample(seconds, memory):
    return dict.fromkeys(FIELDS) | {"seconds": seconds, "memory_gb": memory}


def test_samples_of_several_gpus_stand_on_one_clock_and_are_summed():
    """The second GPU's recorder started 1.5 s before the first one's."""
    first = [sample(0.0, 4.0), sample(1.0, 5.0), sample(1.0, 6.0), sample(2.0, 1.0)]
    second = [sample(0.0, 10.0), sample(3.0, 20.0)]
    table = usage_samples.merge_samples([1001.5, 1000.0], [first, second])
    assert list(zip(table["gpu"], table["seconds"], table["memory_gb"], strict=True)) == [
        (1, 0.0, 10.0), (0, 1.5, 4.0), (0, 2.5, 5.0), (0, 2.5, 6.0), (1, 3.0, 20.0), (0, 3.5, 1.0)
    ]  # fmt: skip
    assert table["memory_sum_gb"].isna().tolist() == [True] + 5 * [False], "half of the GPUs is no sum"
    assert table["memory_sum_gb"].tolist()[1:] == [14, 15, 16, 26, 21]


def test_several_gpus_are_summed_up_by_the_fullest_and_by_all_at_one_time():
    """Their peaks are at different times, so that their sum was never in use."""
    own = {"name": "H100", "loaded": 1.0, "peak": 6.0, "peak_allocated": 3.0, "total": 80.0}
    other = {"name": "H100", "loaded": 2.0, "peak": 5.0, "peak_allocated": 4.0, "total": 40.0}
    memory_sum = pd.Series([float("nan"), 7.0, 8.5, 2.0])
    together = {
        "name": "H100", "count": 2, "loaded": 2.0, "peak": 6.0, "peak_allocated": 4.0, "total": 40.0, "peak_sum": 8.5
    }  # fmt: skip
    assert usage_samples.summarize([own, other], memory_sum) == together
    assert usage_samples.summarize([own, other | {"name": "A100"}], memory_sum)["name"] == "H100, A100"
    assert usage_samples.summarize([own], memory_sum) == own


def start_rank(rank, port, folder, code):
    """A process that is one of two ranks, runs code in a folder, and knows its `rank`."""
    begin = "import time, torch\nfrom stages.runtime import distributed\n"
    begin += "from stages.runtime.usage_recorder import Recorder\n"
    begin += 'distributed.init_process_group(torch.device("cpu")); rank = distributed.rank()\n'
    env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port),
                        "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-c", begin + textwrap.dedent(code)]
    return subprocess.Popen(command, env=env, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def two_ranks(tmp_path):
    """Function that starts two ranks, each in a folder of its own -> the folders and processes."""
    started = []

    def start(code):
        port = free_port()
        folders = [tmp_path / "first", tmp_path / "second"]
        for rank, folder in enumerate(folders):
            folder.mkdir()
            started.append(start_rank(rank, port, folder, code))
        return folders, started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_first_of_two_ranks_writes_what_both_have_sampled(two_ranks):
    """The second starts later, takes more memory, and is longer at work."""
    folders, processes = two_ranks("""
        time.sleep(rank)
        with Recorder(torch.device("cpu"), interval=0.05) as recorder:
            recorder.mark("before")
            block = torch.ones([25_000_000, 75_000_000][rank])  # 0.1 and 0.3 GB
            recorder.mark("after")
            time.sleep(0.5 * rank)
        open("left", "w").write(str(time.time()))
        recorder.save("run", {"seconds": 1})
        open("own", "w").write(str(recorder.marks["after"]["memory_gb"]))
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
    left = [float((folder / "left").read_text()) for folder in folders]
    assert abs(left[0] - left[1]) < 1, "the first one leaves the block when the second one is ready"

    run = json.loads((folders[0] / "run/run.json").read_text())
    memory, own = run["gpu"], [float((folder / "own").read_text()) for folder in folders]
    assert run["seconds"] == 1 and memory["name"] == "cpu" and memory["count"] == 2
    assert set(memory) == {"name", "count", "before", "after", "end", "peak", "peak_sum"}
    assert own[1] > own[0] + 0.1 and memory["after"] == own[1] <= memory["peak"]
    assert memory["peak_sum"] == usage["memory_sum_gb"].max() == pytest.approx(sum(own), abs=0.05)


def test_an_error_in_one_rank_does_not_wait_for_the_other(two_ranks):
    _, (first, second) = two_ranks("""
        with Recorder(torch.device("cpu")):
            if rank == 1:
                raise RuntimeError("this one")
            time.sleep(1000)
    """)
    assert "RuntimeError: this one" in second.communicate(timeout=100)[1]
    assert second.returncode == 1 and first.poll() is None


def test_a_file_is_whole_or_not_there(tmp_path):
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(RuntimeError), files.atomic_file(tmp_path / "out.json") as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert (tmp_path / "out.json").read_text() == "old"


def test_a_folder_is_whole_or_not_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(RuntimeError), files.atomic_folder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
    with files.atomic_folder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_numbers_that_are_not_finite_are_left_out_of_json(tmp_path):
    values = {"a": float("nan"), "b": {"c": float("inf"), "d": 1.5}, "e": [1, 2]}
    files.write_json(tmp_path / "metrics.json", values)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"b": {"d": 1.5}, "e": [1, 2]}


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more", b"\x00" * 100])
def test_an_unreadable_out_of_an_earlier_stage_is_one_line(tmp_path, content):
    for name, read in (("table.parquet", files.read_table), ("value.json", files.read_json)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*run `dvc repro`"):
            read(tmp_path / name)


def test_a_cut_parquet_file_is_one_line(tmp_path):
    pd.DataFrame({"a": range(1000)}).to_parquet(tmp_path / "table.parquet")
    whole = (tmp_path / "table.parquet").read_bytes()
    (tmp_path / "table.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"table\.parquet"):
        files.read_table(tmp_path / "table.parquet")
