"""What a run measured of itself: seconds, memory, load. No result: it differs when the same is run again."""

from typing import Any

import pandas as pd


def figures(run: dict[str, Any]) -> dict[str, Any]:
    """The figures of a stage's run.json; a CPU's memory is no `gpu`, and of the process alone."""
    used = run["gpu"]
    kept = {key: value for key, value in run.items() if key != "gpu"}
    return kept | ({"gpu": used} if used["name"] != "cpu" else {"memory_peak_gb": used["peak"]})


def device(run: dict[str, Any]) -> str:
    """Name of the GPU that a stage ran on, or CPU; run: from `figures`."""
    return run["gpu"]["name"] if "gpu" in run else "CPU"


def summary(measured: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What runs are compared by besides their scores: seconds, and the highest memory in GB.

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
