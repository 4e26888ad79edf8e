"""Seconds, memory and load of a run. Unlike results, they differ between runs with equal inputs."""

from dataclasses import dataclass
from typing import Any, Self

import pandas as pd


@dataclass(frozen=True)
class RunUsage:
    """The figures of one stage.

    Attributes:
        record: its entry in metrics/measurements/stages.json.
    """

    record: dict[str, Any]

    @classmethod
    def from_run(cls, run: dict[str, Any]) -> Self:
        """Read the figures of a run.json. On a CPU there is no `gpu`, and the memory is that of the process.

        With several processes on a CPU, `memory_peak_gb` is the highest of one process. `memory_peak_sum_gb` is the
        highest of all together.
        """
        gpu, record = run["gpu"], {key: value for key, value in run.items() if key != "gpu"}
        if gpu["name"] != "cpu":
            return cls(record | {"gpu": gpu})
        several = {"processes": gpu["count"], "memory_peak_sum_gb": gpu["peak_sum"]} if "count" in gpu else {}
        return cls(record | {"memory_peak_gb": gpu["peak"]} | several)

    @property
    def seconds(self) -> float:
        return self.record["seconds"]

    @property
    def versions(self) -> dict[str, str]:
        return self.record["versions"]

    @property
    def on_gpu(self) -> bool:
        return "gpu" in self.record

    @property
    def peak_gb(self) -> float:
        """The highest memory of one GPU; on a CPU, of one process."""
        return self.record["gpu"]["peak"] if self.on_gpu else self.record["memory_peak_gb"]

    @property
    def process_count(self) -> int:
        """Number of GPUs; on a CPU, of processes."""
        return process_count(self.record)

    @property
    def device(self) -> str:
        """Name of the GPU, or CPU, with the number if there are several."""
        count = self.process_count
        if self.on_gpu:
            name = self.record["gpu"]["name"]
            return name if count == 1 else f"{count} GPUs ({name})"
        return "CPU" if count == 1 else f"CPU, {count} processes"


@dataclass(frozen=True)
class Usage:
    """The figures of the stages that run the model."""

    base: RunUsage
    train: RunUsage
    tuned: RunUsage

    def to_json(self) -> dict[str, dict[str, Any]]:
        """metrics/measurements/stages.json."""
        return {"base": self.base.record, "train": self.train.record, "tuned": self.tuned.record}

    def summarize(self) -> dict[str, float]:
        """The seconds and the memory by which runs are compared; `Results.summarize` has the scores."""
        return {
            "peak_gb_train": self.train.peak_gb,
            "seconds_eval_base": self.base.seconds,
            "seconds_eval_tuned": self.tuned.seconds,
            "seconds_train": self.train.seconds,
        }


def process_count(record: dict[str, Any]) -> int:
    """Number of GPUs, or on a CPU of processes, in an entry of metrics/measurements/stages.json."""
    return record["gpu"].get("count", 1) if "gpu" in record else record.get("processes", 1)


def join_samples(samples: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Join the samples of several stages, one stage after the other.

    Args:
        samples: {stage: its usage.csv}, in order.

    Returns:
        the same columns and `stage`. `seconds` counts from the start of the first stage.
    """
    usage = pd.concat([table.assign(stage=stage) for stage, table in samples.items()])
    lengths = usage.groupby("stage", sort=False)["seconds"].max()
    starts = lengths.cumsum().shift(fill_value=0)
    return usage.assign(seconds=(usage["seconds"] + usage["stage"].map(starts)).round(3))
