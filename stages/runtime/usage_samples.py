"""Combine the samples that the ranks of a run have recorded, each of its own GPU."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

FIELDS = [
    "seconds",
    "phase",
    "memory_gb",
    "memory_total_gb",
    "utilization_percent",
    "power_w",
    "allocated_gb",
    "reserved_gb",
]


def merge_samples(starts: Sequence[float], samples: Sequence[list[dict[str, Any]]]) -> pd.DataFrame:
    """One table of the samples of all GPUs, sorted by time.

    Args:
        starts: when the recorder of each GPU started, in seconds since 1970 by the clock of its machine.
        samples: of each GPU, dicts with `FIELDS`. `seconds` is the time since its own start.

    Returns:
        The columns `FIELDS`, with `seconds` since the first start, and two more. `gpu` is the rank of the GPU, on a CPU
        of the process. `memory_sum_gb` is the memory in use on all GPUs, by the latest sample of each; it is missing
        until each has one.
    """
    first = min(starts)
    rows = [
        {**sample, "seconds": round(sample["seconds"] + start - first, 3), "gpu": gpu}
        for gpu, (start, gpu_samples) in enumerate(zip(starts, samples, strict=True))
        for sample in gpu_samples
    ]
    table = pd.DataFrame(rows, columns=[*FIELDS, "gpu"]).sort_values("seconds", kind="stable", ignore_index=True)
    latest = pd.DataFrame({gpu: table["memory_gb"].where(table["gpu"] == gpu) for gpu in range(len(samples))}).ffill()
    return table.assign(memory_sum_gb=latest.sum(axis=1, skipna=False).round(4))


def summarize(summaries: Sequence[dict[str, Any]], memory_sum: pd.Series) -> dict[str, Any]:
    """Combine the summaries of all GPUs. The summary of a single GPU is returned as it is.

    Args:
        summaries: of each GPU, its name and memory in GB: {"name", "peak", marked moments, other peaks; on a GPU
            "total"}.
        memory_sum: the column `memory_sum_gb` of `merge_samples`.

    Returns:
        The same keys. At each moment and for each peak: the highest of any GPU. `total`: the smallest, since the run
        needs GPUs of that size. `name`: the different names. Two keys are added for several GPUs: `count`, their
        number, and `peak_sum`, the highest memory of all GPUs together at one time.
    """
    if len(summaries) == 1:
        return summaries[0]
    table = pd.DataFrame(summaries)
    names = {"name": ", ".join(table.pop("name").unique()), "count": len(summaries)}
    total = {"total": table["total"].min()} if "total" in table else {}
    return names | table.max().to_dict() | total | {"peak_sum": memory_sum.max()}
