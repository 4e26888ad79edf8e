"""The pictures of the report, each drawn twice by the same code: PNG on white, and SVG in the colours of the page.

The SVG names its colours as CSS variables (`var(--tuned)`), so that one picture serves a light and a dark page.
"""

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from stages.analysis.metrics import confusion_counts
from stages.task.labels import LABELS

ON_WHITE = {
    "ink": "#1f2933",
    "muted": "#66717f",
    "line": "#d5dae1",
    "base": "#b4610a",
    "tuned": "#1f66d0",
    "paper": "#ffffff",
}
STAND_INS = {name: f"#0a0b{number:02x}" for number, name in enumerate(ON_WHITE, start=0xC0)}  # found again in the SVG
WIDTH = 4.2  # inches; narrow, so that a phone does not shrink the words
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
}


def of_results(
    details: dict[str, Any], tables: dict[str, pd.DataFrame], cases: pd.DataFrame
) -> dict[str, tuple[bytes, str]]:
    """The pictures of what was found, rendered: {name: (PNG bytes, SVG text)}.

    Args:
        details, tables, cases: as `document.context` takes them.
    """
    kept = details["train"]["best_epoch"]
    shown = {
        "always one class": (details["comparison"]["majority_class"], "muted"),
        "hypothesis alone": (details["comparison"]["hypothesis_only"], "muted"),
        "base": (details["base"], "base"),
        "tuned": (details["tuned"], "tuned"),
    }
    points = [(name, m["accuracy"], tuple(m["accuracy_interval"].values()), c) for name, (m, c) in shown.items()]
    confusions = [confusion_counts(cases["gold"], cases[name]) for name in ("base", "tuned")]
    drawings = {
        "accuracy": partial(accuracy, points),
        "loss": partial(loss, tables["epochs"], tables["steps"], kept),
        "validation": partial(validation, tables["epochs"], kept),
        "confusion": partial(confusion, *confusions),
        "slices": partial(slices, tables["slices_base"], tables["slices_tuned"]),
        "reliability": partial(reliability, tables["reliability_base"], tables["reliability_tuned"]),
    }
    return {name: render(draw) for name, draw in drawings.items()}


def of_usage(table: pd.DataFrame, on_gpu: bool) -> tuple[bytes, str]:
    """The picture of what the run measured of itself, rendered: (PNG bytes, SVG text); both as `usage` takes them."""
    return render(partial(usage, table, on_gpu))


def render(draw: Callable[[dict[str, str]], Figure]) -> tuple[bytes, str]:
    """Draw a picture both ways.

    Args:
        draw: function of the colours {name: colour} that returns a `Figure`.

    Returns:
        (PNG bytes, SVG text): the same bytes for the same picture, on any day.
    """
    with matplotlib.rc_context(STYLE | themed(ON_WHITE)):
        png = io.BytesIO()
        draw(ON_WHITE).savefig(png, format="png", dpi=140, facecolor=ON_WHITE["paper"], metadata={"Software": None})
    with matplotlib.rc_context(STYLE | themed(STAND_INS)):
        svg = io.StringIO()
        draw(STAND_INS).savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return png.getvalue(), inline(svg.getvalue())


def themed(colours: dict[str, str]) -> dict[str, str]:
    """Matplotlib's settings for a set of colours."""
    ink, muted, line = colours["ink"], colours["muted"], colours["line"]
    return {
        "text.color": ink, "axes.labelcolor": muted, "axes.edgecolor": line, "axes.titlecolor": ink,
        "xtick.color": line, "xtick.labelcolor": muted, "ytick.color": line, "ytick.labelcolor": ink,
        "grid.color": line,
    }  # fmt: skip


def inline(svg: str) -> str:
    """Matplotlib's SVG as an element of a page: no prolog, no metadata, no ids but those referred to, CSS colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1))
    for name, colour in STAND_INS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()


def plot(height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def accuracy(table: list[tuple], colours: dict[str, str]) -> Figure:
    """Points with intervals, one a line.

    Args:
        table: list of (name, share, (low, high), colour name), drawn from the top.
    """
    figure, axes = plot(0.62 + 0.34 * len(table))
    for y, (_, value, (low, high), colour) in enumerate(table):
        axes.plot([low, high], [y, y], color=colours[colour], linewidth=5, alpha=0.3, solid_capstyle="round")
        axes.plot(value, y, "o", color=colours[colour], clip_on=False)
        axes.annotate(f"{value:.1%}", (1.02, y), xycoords=("axes fraction", "data"), va="center")
    axes.set_yticks(range(len(table)), [name for name, *_ in table])
    axes.set_ylim(len(table) - 0.5, -0.5)
    share_axis(axes.xaxis, axes.set_xlim)
    axes.set_xlabel("accuracy on the test rows")
    return figure


def share_axis(axis: Axis, set_limits: Callable[[float, float], object]) -> None:
    """An axis from 0 to 100%."""
    set_limits(0, 1)
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
    axis.grid(True, linewidth=0.6)


def loss(epochs: pd.DataFrame, steps: pd.DataFrame, kept: int, colours: dict[str, str]) -> Figure:
    """Loss by epoch, the steps' own behind it, the kept epoch marked."""
    figure, axes = plot(2.9)
    per_epoch = steps["step"].max() / epochs["epoch"].max()
    axes.plot(steps["step"] / per_epoch, steps["loss"], color=colours["muted"], alpha=0.35, linewidth=0.8)
    by_epoch(axes, epochs, {"train_loss": ("training", "base", "s-"), "validation_loss": ("validation", "tuned", "o-")},
             kept, colours)  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_ylabel("cross-entropy")
    return figure


def validation(epochs: pd.DataFrame, kept: int, colours: dict[str, str]) -> Figure:
    """Validation accuracy and weighted F1 by epoch."""
    figure, axes = plot(2.9)
    lines = {
        "validation_accuracy": ("accuracy", "tuned", "o-"),
        "validation_f1_weighted": ("weighted F1", "base", "s--"),
    }
    by_epoch(axes, epochs, lines, kept, colours)
    share_axis(axes.yaxis, axes.set_ylim)
    axes.set_ylabel("on the validation rows")
    return figure


def by_epoch(axes: Axes, epochs: pd.DataFrame, lines: dict[str, tuple], kept: int, colours: dict[str, str]) -> None:
    for column, (name, colour, mark) in lines.items():
        axes.plot(epochs["epoch"], epochs[column], mark, color=colours[colour], label=name, markersize=4.5)
    axes.axvline(kept, color=colours["muted"], linewidth=0.8, linestyle=":", label="kept")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=8))
    axes.grid(True, axis="y", linewidth=0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)


def confusion(base: np.ndarray, tuned: np.ndarray, colours: dict[str, str]) -> Figure:
    """The two confusion matrices side by side; a cell is shaded by its share of the gold class."""
    figure = Figure(figsize=(WIDTH, 2.35), layout="constrained")
    for axes, (title, colour, counts) in zip(
        figure.subplots(1, 2, sharey=True), (("Base", "base", base), ("Tuned", "tuned", tuned)), strict=True
    ):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for gold, predicted in np.ndindex(counts.shape):
            corner = (predicted - 0.48, gold - 0.48)
            shade = 0.06 + 0.5 * shares[gold, predicted]
            axes.add_patch(matplotlib.patches.Rectangle(corner, 0.96, 0.96, color=colours[colour], alpha=shade, lw=0))
            axes.text(predicted, gold, f"{counts[gold, predicted]:,}", ha="center", va="center")
        axes.set(xlim=(-0.5, 2.5), ylim=(2.5, -0.5), title=title, xlabel="prediction", aspect="equal")
        axes.set_xticks(range(len(LABELS)), [name[:7] + "." * (len(name) > 7) for name in LABELS], fontsize=8)
        axes.set_yticks(range(len(LABELS)), LABELS)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.axes[0].set_ylabel("gold label")
    return figure


def slices(base: pd.DataFrame, tuned: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Accuracy with interval in each slice, base and tuned.

    Args:
        base, tuned: from `slices.slice_table`, of the same slices.
    """
    cuts = list(base["cut"].unique())
    figure, axes = plot(0.75 + 0.23 * (len(base) + len(cuts)))
    y, ticks = 0, []
    for cut in cuts:
        ticks.append((y, cut))
        for (_, first), (_, second) in zip(
            base[base["cut"] == cut].iterrows(), tuned[tuned["cut"] == cut].iterrows(), strict=True
        ):
            y += 1
            rows = {f"{first['rows']:,}": None, f"{second['rows']:,}": None}  # one number where they are the same
            ticks.append((y, f"{first['slice'].removeprefix(f'{cut}: ')} ({' / '.join(rows)})"))
            for row, colour, offset in ((first, "base", -0.16), (second, "tuned", 0.16)):
                if row["rows"]:
                    axes.plot([row["low"], row["high"]], [y + offset] * 2, color=colours[colour], linewidth=3.5,
                              alpha=0.3, solid_capstyle="round")  # fmt: skip
                    axes.plot(row["accuracy"], y + offset, "o", color=colours[colour], markersize=4, clip_on=False)
        y += 1
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in cuts else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.4, -0.6)
    share_axis(axes.xaxis, axes.set_xlim)
    axes.set_xlabel("accuracy")
    model_legend(axes, colours)
    return figure


def model_legend(axes: Axes, colours: dict[str, str]) -> None:
    for name in ("base", "tuned"):
        axes.plot([], [], "o", color=colours[name], label=name)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def reliability(base: pd.DataFrame, tuned: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Accuracy beside confidence; the area of a dot is its bin's share of the rows.

    Args:
        base, tuned: from `metrics.reliability`, the bins that have rows.
    """
    figure, axes = plot(3.3)
    axes.plot([0, 1], [0, 1], color=colours["muted"], linewidth=0.8, linestyle=":")
    for bins, colour in ((base, "base"), (tuned, "tuned")):
        axes.plot(bins["confidence"], bins["accuracy"], color=colours[colour], alpha=0.5, linewidth=1)
        area = 15 + 300 * bins["rows"] / bins["rows"].sum()
        axes.scatter(bins["confidence"], bins["accuracy"], area, color=colours[colour], alpha=0.75, lw=0, clip_on=False)
    share_axis(axes.xaxis, axes.set_xlim)
    share_axis(axes.yaxis, axes.set_ylim)
    axes.set(xlabel="confidence: probability of the predicted class", ylabel="accuracy")
    model_legend(axes, colours)
    return figure


def usage(table: pd.DataFrame, on_gpu: bool, colours: dict[str, str]) -> Figure:
    """Memory and load over time, the stages laid end to end.

    Args:
        table: `stage`, `seconds`, `memory_gb`, `utilization_percent`, and `allocated_gb` on a GPU.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    memory, load = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    names = {"memory_gb": ("tuned", "in use" if on_gpu else "of the process"),
             "allocated_gb": ("base", "allocated by PyTorch")}  # fmt: skip
    for number, (stage, inside) in enumerate(table.groupby("stage", sort=False)):
        minutes = inside["seconds"] / 60
        for column in ("memory_gb", "allocated_gb")[: 1 + on_gpu]:
            colour, label = names[column]
            memory.plot(minutes, inside[column], color=colours[colour], lw=1.4, label=None if number else label)
        load.plot(minutes, inside["utilization_percent"], color=colours["tuned"], lw=0.8)
        memory.annotate(f" {number + 1} {stage}", (minutes.min(), 1.03 + 0.09 * (number % 2)), fontsize=8,
                        xycoords=("data", "axes fraction"), color=colours["muted"])  # fmt: skip
        for axes in (memory, load):
            axes.axvline(minutes.min(), color=colours["line"], linewidth=0.8)
    memory.set(ylim=(0, 1.08 * table["memory_gb"].max()), ylabel="memory, GB")
    load.set(ylim=(0, 105), ylabel="load, %", xlabel="minutes")
    for axes in (memory, load):
        axes.grid(True, axis="y", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
