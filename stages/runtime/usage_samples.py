"""What the recorders of a run's GPUs saw, put together."""

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
    """The samples of all GPUs, in the order of their time.

    Args:
        starts: of each GPU's recorder, in seconds since 1970, by its own machine's clock.
        samples: of each GPU: dicts with `FIELDS`, `seconds` since its own start.

    Returns:
        `FIELDS`, `seconds` since the first of the starts; `gpu`, the rank whose GPU (on a CPU: whose process) it is;
        `memory_sum_gb`, in use on all of them at that time, by the latest sample of each; missing until each has one.
    """
    first = min(starts)
    rows = [
        {**sample, "seconds": round(sample["seconds"] + start - first, 3), "gpu": gpu}
        for gpu, (start, taken) in enumerate(zip(starts, samples, strict=True))
        for sample in taken
    ]
    whole = pd.DataFrame(rows, columns=[*FIELDS, "gpu"]).sort_values("seconds", kind="stable", ignore_index=True)
    latest = pd.DataFrame({gpu: whole["memory_gb"].where(whole["gpu"] == gpu) for gpu in range(len(samples))}).ffill()
    return whole.assign(memory_sum_gb=latest.sum(axis=1, skipna=False).round(4))


def summarize(each: Sequence[dict[str, Any]], memory_sum: pd.Series) -> dict[str, Any]:
    """Memory in GB of all GPUs, from each one's own summary; of one GPU alone, that summary.

    Args:
        each: {"name", "peak", moments and other peaks; "total" on a GPU} of each.
        memory_sum: `memory_sum_gb` of `table`.

    Returns:
        the same keys: at each moment, and of each peak, the highest of any one GPU; `total`, of the smallest: whether
        the run fits GPUs of a size. Of several GPUs also their number, `count`, and `peak_sum`, the highest sum of all
        GPUs' memory at one time: what the run took as a whole. `name` lists the kinds there are.
    """
    if len(each) == 1:
        return each[0]
    found = pd.DataFrame(each)
    names = {"name": ", ".join(found.pop("name").unique()), "count": len(each)}
    total = {"total": found["total"].min()} if "total" in found else {}
    return names | found.max().to_dict() | total | {"peak_sum": memory_sum.max()}
