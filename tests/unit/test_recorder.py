"""The recorder of memory and load, and files that are whole or not there."""

import csv
import json
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from stages.runtime import files
from stages.runtime import recorder as recorder_module
from stages.runtime.errors import UserError
from stages.runtime.recorder import FIELDS, Recorder, versions

CPU = torch.device("cpu")


def test_samples_come_at_their_interval_and_know_their_phase(tmp_path):
    with Recorder(CPU, interval=0.02) as recorder:
        time.sleep(0.1)
        recorder.mark("loaded")
        time.sleep(0.1)
    recorder.save(tmp_path / "run", {"resumed": False})
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run == {"resumed": False, "gpu": recorder.summary(), "versions": versions(CPU)}
    with open(tmp_path / "run/usage.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == FIELDS
    assert {row["phase"] for row in rows} == {"start", "loaded"}
    assert len(rows) >= 6
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert all(float(row["memory_gb"]) > 0.01 for row in rows)


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
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="second"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5e9, 8e9))


def test_the_gpu_that_is_read_is_the_one_that_torch_sees(two_gpus):
    with Recorder(torch.device("cuda", 0), interval=10) as recorder:
        recorder.mark("now")
    now = recorder.marks["now"]
    assert (now["memory_gb"], now["memory_total_gb"], now["utilization_percent"], now["power_w"]) == (2, 8, 50, 300)


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


def test_a_file_is_whole_or_not_there(tmp_path):
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(RuntimeError), files.new_file(tmp_path / "out.json") as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert (tmp_path / "out.json").read_text() == "old"


def test_a_folder_is_whole_or_not_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "out") as temporary:
        (temporary / "new").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
    with files.new_folder(tmp_path / "out") as temporary:
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
