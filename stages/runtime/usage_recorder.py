"""What a stage uses while it runs, once a second: GPU memory, load and power; on a CPU its own memory and load.

Each rank samples its own GPU; the first one gets what all have seen, and writes it.
"""

import contextlib
import importlib.metadata
import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pynvml
import torch

from stages.runtime import distributed, usage_samples
from stages.runtime.files import atomic_folder, write_csv, write_json
from stages.runtime.usage_samples import FIELDS

GB = 1e9
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "triton")


class Recorder:
    """Samples in a daemon thread between `with` and its end; `mark` reads at a named moment.

    Ranks leave the block together, unless an exception ends it.

    Args:
        device: torch.device that the stage works on.
        interval: seconds between samples.

    Attributes:
        samples: of this rank: list of dicts with `FIELDS`; a value that can't be known is None.
        marks: of this rank: {moment: sample}.
    """

    def __init__(self, device: torch.device, interval: float = 1.0):
        self.device, self.interval = device, interval
        self.samples, self.marks, self.phase = [], {}, "start"
        self._stop = threading.Event()
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._handle = _nvml_handle(device)

    def __enter__(self):
        self._start, self._date = time.perf_counter(), time.time()
        self._thread = threading.Thread(target=self._sample_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, error=None, *_):
        self._stop.set()
        self._thread.join()
        self.mark("end")
        if error is None:
            self._gathered = distributed.all_gather((self._date, self.samples, self._own_summary()))

    def mark(self, moment: str) -> None:
        """Read now, under a name; the samples that follow belong to the phase of that name."""
        self.marks[moment] = self._read()
        self.samples.append(self.marks[moment])
        self.phase = moment

    def elapsed_seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def save(self, folder: str | Path, figures: dict) -> None:
        """Write the samples (usage.csv) and the figures of the run (run.json): what differs when it is run again.

        Of all ranks, after the block; only the first one writes.

        Args:
            folder: a new one, or one to replace.
            figures: {name: number} of what the stage itself measured; memory and versions are added.
        """
        if not distributed.is_main():
            return
        with atomic_folder(folder) as temporary:
            write_csv(temporary / "usage.csv", self._table())
            run = figures | {"gpu": self.summary(), "versions": read_versions(self.device)}
            write_json(temporary / "run.json", run)

    def summary(self) -> dict:
        """Memory in GB at each moment, the highest seen, and torch's own peaks; the GPU's name.

        After the block, on the first rank. What each figure is of several GPUs says `usage_samples.summarize`.
        """
        return usage_samples.summarize([own for *_, own in self._gathered], self._table()["memory_sum_gb"])

    def _table(self):
        starts, taken, _ = zip(*self._gathered, strict=True)
        return usage_samples.merge_samples(starts, taken)

    def _own_summary(self):
        used = {moment: sample["memory_gb"] for moment, sample in self.marks.items()}
        result = {"name": "cpu", **used, "peak": max(sample["memory_gb"] for sample in self.samples)}
        if self.device.type == "cuda":
            result["name"] = torch.cuda.get_device_name(self.device)
            result["peak_allocated"] = round(torch.cuda.max_memory_allocated(self.device) / GB, 4)
            result["peak_reserved"] = round(torch.cuda.max_memory_reserved(self.device) / GB, 4)
            result["total"] = self.samples[0]["memory_total_gb"]
        return {key: value for key, value in result.items() if value is not None}

    def _sample_on(self):
        while not self._stop.is_set():
            self.samples.append(self._read())
            self._stop.wait(self.interval)

    def _read(self):
        sample = dict.fromkeys(FIELDS)
        sample.update(seconds=round(self.elapsed_seconds(), 3), phase=self.phase)
        if self.device.type == "cpu":
            sample["memory_gb"] = round(self._process.memory_info().rss / GB, 4)
            sample["utilization_percent"] = round(self._process.cpu_percent() / (os.cpu_count() or 1), 1)
            return sample
        sample["allocated_gb"] = round(torch.cuda.memory_allocated(self.device) / GB, 4)
        sample["reserved_gb"] = round(torch.cuda.memory_reserved(self.device) / GB, 4)
        used, total = self._memory()
        sample["memory_gb"], sample["memory_total_gb"] = round(used / GB, 4), round(total / GB, 4)
        for field, read in (
            ("utilization_percent", lambda: pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
            ("power_w", lambda: pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000),
        ):
            with contextlib.suppress(pynvml.NVMLError):  # not every GPU tells
                sample[field] = read() if self._handle else None
        return sample

    def _memory(self):
        """Bytes in use and in all, of the whole GPU."""
        if self._handle:
            with contextlib.suppress(pynvml.NVMLError):
                memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
                return memory.used, memory.total
        # No NVML (WSL, some containers), or none that tells (MIG, Jetson): the driver's own count through torch.
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free, total


def _nvml_handle(device):
    """NVML's handle of a torch device, found by UUID: NVML does not know CUDA_VISIBLE_DEVICES. None without NVML."""
    if device.type != "cuda":
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None


def read_versions(device: torch.device) -> dict[str, str]:
    """{name: version} of what computes a run's numbers besides this repository's code, and the kind of its device."""
    found = {"python": "{}.{}".format(*sys.version_info)}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # Triton comes with PyTorch for CUDA alone
            found[library] = importlib.metadata.version(library)
    if device.type == "cuda":
        return found | {"gpu": torch.cuda.get_device_name(device)}
    return found | {"cpu": torch.backends.cpu.get_cpu_capability()}  # instructions by which PyTorch chooses its kernels
