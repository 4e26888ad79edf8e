"""Sample a stage while it runs: memory, utilization and power of its GPU, or on a CPU what its process uses.

Each rank samples its own GPU. Rank 0 writes the samples of all ranks.
"""

import contextlib
import importlib.metadata
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pynvml
import torch

from stages.runtime import distributed, usage_samples
from stages.runtime.files import atomic_folder, write_csv, write_json
from stages.runtime.usage_samples import FIELDS

GB = 1e9
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "triton")


class Recorder:
    """Context manager that samples in a daemon thread. `mark` adds a sample at a named moment.

    All ranks leave the block together, unless an exception ends it.

    Args:
        device: what the stage computes on.
        interval: seconds between samples.

    Attributes:
        samples: dicts with `FIELDS`, of this rank. A value that can't be read is None.
        marks: {moment: sample}, of this rank.
        phase: name of the phase of the next samples: the last marked moment, or one that the caller has set.
    """

    def __init__(self, device: torch.device, interval: float = 1.0) -> None:
        self.device, self.interval = device, interval
        self.samples: list[dict[str, Any]] = []
        self.marks: dict[str, dict[str, Any]] = {}
        self.phase = "start"
        self._peaks = {"peak_allocated": 0.0, "peak_reserved": 0.0}
        self._stop = threading.Event()
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._handle = _nvml_handle(device)

    def __enter__(self) -> "Recorder":
        self._start, self._start_time = time.perf_counter(), time.time()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None = None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.mark("end")
        if error is None:
            self._of_ranks = distributed.all_gather((self._start_time, self.samples, self._summarize_rank()))

    def mark(self, moment: str) -> None:
        """Add a sample now, and begin the phase of this name."""
        self.marks[moment] = self._read_sample()
        self.samples.append(self.marks[moment])
        self.phase = moment
        if self.device.type == "cuda":  # PyTorch's peaks may be reset before the next mark, to measure a training step
            self._peaks = {
                "peak_allocated": max(self._peaks["peak_allocated"], torch.cuda.max_memory_allocated(self.device)),
                "peak_reserved": max(self._peaks["peak_reserved"], torch.cuda.max_memory_reserved(self.device)),
            }

    def elapsed_seconds(self) -> float:
        """Seconds since the start of the block."""
        return time.perf_counter() - self._start

    def save(self, folder: str | Path, figures: dict) -> None:
        """Write usage.csv, the samples, and run.json, the figures of this run. Both differ between runs.

        All ranks call this after the block. Rank 0 writes.

        Args:
            folder: is created, or replaced.
            figures: {name: value}, which the stage has measured. Memory and versions are added.
        """
        if not distributed.is_main():
            return
        with atomic_folder(folder) as temporary:
            write_csv(temporary / "usage.csv", self.merge_ranks())
            write_json(temporary / "run.json", self.describe(figures))

    def describe(self, figures: dict) -> dict:
        """The content of run.json; arguments: as for `save`. Rank 0 calls this after the block."""
        return figures | {"gpu": self.summary(), "versions": read_versions(self.device)}

    def summary(self) -> dict:
        """Name of the GPU, its memory in GB at each marked moment, the highest sample, and PyTorch's own peaks.

        Rank 0 calls this after the block. `usage_samples.summarize` combines the figures of several GPUs.
        """
        summaries = [summary for *_, summary in self._of_ranks]
        return usage_samples.summarize(summaries, self.merge_ranks()["memory_sum_gb"])

    def merge_ranks(self) -> pd.DataFrame:
        """The samples of all ranks, as in usage.csv. Rank 0 calls this after the block."""
        starts, samples, _ = zip(*self._of_ranks, strict=True)
        return usage_samples.merge_samples(starts, samples)

    def _summarize_rank(self) -> dict[str, Any]:
        memory = {moment: sample["memory_gb"] for moment, sample in self.marks.items()}
        result: dict[str, Any] = {"name": "cpu", **memory, "peak": max(sample["memory_gb"] for sample in self.samples)}
        if self.device.type == "cuda":
            result["name"] = torch.cuda.get_device_name(self.device)
            result |= {name: round(peak / GB, 4) for name, peak in self._peaks.items()}
            result["total"] = self.samples[0]["memory_total_gb"]
        return {key: value for key, value in result.items() if value is not None}

    def _sample_until_stopped(self) -> None:
        while not self._stop.is_set():
            self.samples.append(self._read_sample())
            self._stop.wait(self.interval)

    def _read_sample(self) -> dict[str, Any]:
        sample: dict[str, Any] = dict.fromkeys(FIELDS)
        sample.update(seconds=round(self.elapsed_seconds(), 3), phase=self.phase)
        if self.device.type == "cpu":
            sample["memory_gb"] = round(self._process.memory_info().rss / GB, 4)
            sample["utilization_percent"] = round(self._process.cpu_percent() / (os.cpu_count() or 1), 1)
            return sample
        sample["allocated_gb"] = round(torch.cuda.memory_allocated(self.device) / GB, 4)
        sample["reserved_gb"] = round(torch.cuda.memory_reserved(self.device) / GB, 4)
        used, total = self._read_memory()
        sample["memory_gb"], sample["memory_total_gb"] = round(used / GB, 4), round(total / GB, 4)
        for field, read in (
            ("utilization_percent", lambda: pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
            ("power_w", lambda: pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000),
        ):
            with contextlib.suppress(pynvml.NVMLError):  # some GPUs do not report it
                sample[field] = read() if self._handle else None
        return sample

    def _read_memory(self) -> tuple[int, int]:
        """Bytes of the GPU in use, by all processes, and its total."""
        if self._handle:
            with contextlib.suppress(pynvml.NVMLError):
                memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
                return memory.used, memory.total
        # Without NVML (WSL, some containers) or where it reports nothing (MIG, Jetson): the driver's count, by PyTorch.
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free, total


def _nvml_handle(device: torch.device) -> Any:
    """NVML's handle of a device, or None without NVML. By UUID, because NVML ignores CUDA_VISIBLE_DEVICES."""
    if device.type != "cuda":
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return None


def read_versions(device: torch.device) -> dict[str, str]:
    """{name: version} of Python and the libraries that compute a run's numbers, and the kind of its GPU or CPU."""
    versions = {"python": "{}.{}".format(*sys.version_info)}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # Triton comes only with PyTorch for CUDA
            versions[library] = importlib.metadata.version(library)
    if device.type == "cuda":
        return versions | {"gpu": torch.cuda.get_device_name(device)}
    return versions | {"cpu": torch.backends.cpu.get_cpu_capability()}  # PyTorch chooses its kernels by it
