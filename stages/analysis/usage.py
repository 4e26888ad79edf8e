"""What a run measured of itself: seconds, memory, load. No result: it differs when the same is run again."""

from typing import Any

import pandas as pd


def figures(run: dict[str, Any]) -> dict[str, Any]:
    """The figures of a stage's run.json; a CPU's memory is no `gpu`, and of the process alone.

    Of several processes on a CPU `memory_peak_gb` is the highest of any one, `memory_peak_sum_gb` of all at one time.
    """
    used = run["gpu"]
    kept = {key: value for key, value in run.items() if key != "gpu"}
    if used["name"] != "cpu":
        return kept | {"gpu": used}
    several = {"processes": used["count"], "memory_peak_sum_gb": used["peak_sum"]} if "count" in used else {}
    return kept | {"memory_peak_gb": used["peak"]} | several


def process_count(run: dict[str, Any]) -> int:
    """GPUs that a stage ran on; on a CPU its processes; run: from `figures`."""
    return run["gpu"].get("count", 1) if "gpu" in run else run.get("processes", 1)


def device(run: dict[str, Any]) -> str:
    """Name of the GPU that a stage ran on, or CPU, and how many where there were several; run: from `figures`."""
    number = process_count(run)
    if "gpu" in run:
        return run["gpu"]["name"] if number == 1 else f"{number} GPUs ({run['gpu']['name']})"
    return "CPU" if number == 1 else f"CPU, {number} processes"


def summary(measured: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What runs are compared by besides their scores: seconds, and the highest memory in GB of any one GPU.

    Args:
        measured: {"base", "train", "tuned"}: each from `figures`.
    """
    train = measured["train"]
    return {
        "peak_gb_train": train["gpu"]["peak"] if "gpu" in train else train["memory_peak_gb"],
        "seconds_eval_base": measured["base"]["seconds"],
        "seconds_eval_tuned": measured["tuned"]["seconds"],
        "seconds_train": train["seconds"],
    }


def end_to_end(samples: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The samples of several stages as one table, the stages laid end to end.

    Args:
        samples: {stage: its usage.csv}, in order.

    Returns:
        the same columns, `seconds` counted from the first stage's start, and `stage`.
    """
    usage = pd.concat([table.assign(stage=stage) for stage, table in samples.items()])
    lengths = usage.groupby("stage", sort=False)["seconds"].max()
    starts = lengths.cumsum().shift(fill_value=0)
    return usage.assign(seconds=(usage["seconds"] + usage["stage"].map(starts)).round(3))
