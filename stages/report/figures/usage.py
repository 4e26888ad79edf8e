"""Memory and load of the GPUs, or of the process, over time."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.report.render import WIDTH

MAX_LABELLED_GPUS = 8  # with more GPUs, only the first and the last have a label


def draw_usage(table: pd.DataFrame, on_gpu: bool, colours: dict[str, str]) -> Figure:
    """Draw memory and load over time, one stage after the other.

    With several GPUs there is a line for each, and a third panel with the memory of all.

    Args:
        table: `stage`, `seconds`, `gpu`, `memory_gb`, `memory_sum_gb`, `utilization_percent`, and on a GPU
            `allocated_gb`, which is drawn only if there is one GPU.
        on_gpu: whether `table` has a GPU's memory and load, not those of a process.
    """
    gpus = sorted(table["gpu"].unique())
    several = len(gpus) > 1
    figure = Figure(figsize=(WIDTH, 4.6 if several else 3.4), layout="constrained")
    panels = figure.subplots(2 + several, 1, sharex=True, height_ratios=[2, 1.3, 1] if several else [2, 1])
    memory, *total, load = panels
    lines = lines_of_each_gpu(gpus, on_gpu) if several else lines_of_one_gpu(gpus[0], on_gpu, colours)
    unit, seconds = ("minutes", 60) if table["seconds"].max() > 180 else ("seconds", 1)
    for number, (stage, rows) in enumerate(table.groupby("stage", sort=False)):
        times = rows["seconds"] / seconds
        for gpu, column, colour, label in lines:
            of_gpu = rows["gpu"] == gpu
            axes, width = (load, 0.8) if column == "utilization_percent" else (memory, 1.4)
            axes.plot(times[of_gpu], rows[column][of_gpu], color=colour, lw=width, label=None if number else label)
        for axes in total:
            axes.plot(times, rows["memory_sum_gb"], color=colours["ink"], lw=1.4)
            axes.set(ylim=(0, 1.08 * table["memory_sum_gb"].max()), ylabel="of all, GB")
        is_late = rows["seconds"].min() > 0.7 * table["seconds"].max()  # its name would not fit on the right
        memory.annotate(f" {number + 1} {stage} ", (times.min(), 1.03 + 0.1 * (number % 2)), fontsize=8,
                        xycoords=("data", "axes fraction"), ha="right" if is_late else "left",
                        color=colours["muted"])  # fmt: skip
        for axes in panels:
            axes.axvline(times.min(), color=colours["line"], linewidth=0.8)
    memory.set(ylim=(0, 1.08 * table["memory_gb"].max()), ylabel="memory, GB")
    load.set(ylim=(0, 105), ylabel="load, %", xlabel=unit)
    for axes in panels:
        axes.grid(True, axis="y", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=4 if several else 2)
    return figure


def lines_of_one_gpu(gpu: int, on_gpu: bool, colours: dict[str, str]) -> list[tuple[int, str, str, str | None]]:
    """Lines for one GPU or process: (gpu, column, colour, label) each."""
    allocated = [(gpu, "allocated_gb", colours["base"], "allocated by PyTorch")] if on_gpu else []
    return [
        (gpu, "memory_gb", colours["tuned"], "in use" if on_gpu else "used by the process"),
        *allocated,
        (gpu, "utilization_percent", colours["tuned"], None),
    ]


def lines_of_each_gpu(gpus: list[int], on_gpu: bool) -> list[tuple[int, str, str, str | None]]:
    """Lines for several GPUs or processes, like those of `lines_of_one_gpu`."""
    device = "GPU" if on_gpu else "process"
    lines: list[tuple[int, str, str, str | None]] = []
    for gpu, colour in zip(gpus, matplotlib.colormaps["turbo"](np.linspace(0.1, 0.9, len(gpus))), strict=True):
        has_label = len(gpus) <= MAX_LABELLED_GPUS or gpu in (gpus[0], gpus[-1])
        lines.append((gpu, "memory_gb", colour, f"{device} {gpu}" if has_label else None))
        lines.append((gpu, "utilization_percent", colour, None))
    return lines
