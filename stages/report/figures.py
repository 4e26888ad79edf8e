"""The pictures of the report: what each shows, and the drawing of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from stages.data.confusion import confusion_counts
from stages.data.task import Task
from stages.report.fonts import can_draw, without_unknown
from stages.report.formatting import percent, whole_percent
from stages.report.render import WIDTH, render, shorten, width
from stages.report.tables import FEW_CLASSES
from stages.report.wording import guesses

SIDE_BY_SIDE = 4  # classes; the matrices of more stand one above the other
NAMED = 30  # classes; the axes of more show numbers
NAME = 24  # characters of a name beside a picture
LOWEST = 10  # classes in the picture of the slices
LABELLED = 8  # GPUs; of more, the first and the last are


def of_results(
    details: dict[str, Any], tables: dict[str, pd.DataFrame], cases: pd.DataFrame, task: Task
) -> dict[str, tuple[bytes, str]]:
    """The pictures of what was found, rendered: {name: (PNG bytes, SVG text)}.

    Args:
        details, tables, cases: as `document.context` takes them.
    """
    kept = details["train"]["best_epoch"]
    shown = [(name, found, "muted") for name, found in guesses(details["comparison"])]
    shown += [(name, details[name], name) for name in ("base", "tuned")]
    points = [(name, m["accuracy"], tuple(m["accuracy_interval"].values()), colour) for name, m, colour in shown]
    confusions = [confusion_counts(cases["gold"], cases[name], len(task.classes)) for name in ("base", "tuned")]
    drawings = {
        "accuracy": partial(accuracy, points),
        "loss": partial(loss, tables["epochs"], tables["steps"], kept),
        "validation": partial(validation, tables["epochs"], kept),
        "confusion": partial(confusion, *confusions, task.classes),
        "slices": partial(slices, *worth_drawing(tables["slices_base"], tables["slices_tuned"])),
        "reliability": partial(reliability, tables["reliability_base"], tables["reliability_tuned"]),
    }
    names = (*task.classes, *task.columns)
    return {name: render(draw, names) for name, draw in drawings.items()}


def of_usage(table: pd.DataFrame, on_gpu: bool) -> tuple[bytes, str]:
    """The picture of what the run measured of itself, rendered: (PNG bytes, SVG text); both as `usage` takes them."""
    return render(partial(usage, table, on_gpu))


def named(classes: tuple[str, ...]) -> bool:
    """Whether a picture shows the classes by their names; else by their numbers, which the table of every class has."""
    return len(classes) <= NAMED and can_draw(classes)


def drawn(name: str, length: int) -> str:
    """A name as a picture shows it: no wider than `length` letters, of characters that there is a font for."""
    return shorten(without_unknown(name), length)


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
        axes.annotate(percent(value), (1.04, y), xycoords=("axes fraction", "data"), va="center")
    axes.set_yticks(range(len(table)), [shorten(name, NAME + 6) for name, *_ in table])
    axes.set_ylim(len(table) - 0.5, -0.5)
    whole_share_axis(axes)
    axes.set_xlabel("accuracy on the test rows")
    return figure


def whole_share_axis(axes: Axes) -> None:
    """A horizontal axis from 0 to 100%."""
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
    axes.xaxis.grid(True, linewidth=0.6)


def share_axis(
    axis: Axis, set_limits: Callable[[float, float], object], values: np.ndarray, least: float, ticks: int = 6
) -> None:
    """An axis of shares that is no wider than its values need.

    Args:
        values: what has to lie on it; any shape, NaN is left out.
        least: how wide it is at least, so that what is next to nothing does not look like much.
        ticks: how many intervals between its ticks at most.
    """
    set_limits(*room(values, least))
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda share, _: f"{share * 100:g}%")
    axis.grid(True, linewidth=0.6)


def room(values: np.ndarray, least: float) -> tuple[float, float]:
    """Ends of an axis for shares, 0 to 1; arguments: as of `share_axis`."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = values.min(), values.max()
    beside = max(0.1 * (high - low), (least - (high - low)) / 2)
    return max(0.0, low - beside), min(1.0, high + beside)


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
        "validation_f1_weighted": ("weighted F1", "base", "x--"),
    }
    by_epoch(axes, epochs, lines, kept, colours)
    share_axis(axes.yaxis, axes.set_ylim, epochs[list(lines)].to_numpy(), least=0.05)
    axes.set_ylabel("on the validation rows")
    return figure


def by_epoch(axes: Axes, epochs: pd.DataFrame, lines: dict[str, tuple], kept: int, colours: dict[str, str]) -> None:
    """Lines by epoch; a ring around each at the epoch that was kept, and a dashed line there."""
    at = epochs["epoch"] == kept
    axes.axvline(kept, color=colours["ink"], linewidth=1, linestyle="--")
    for column, (name, colour, mark) in lines.items():
        axes.plot(epochs["epoch"], epochs[column], mark, color=colours[colour], label=name, markersize=4.5)
        axes.plot(epochs["epoch"][at], epochs[column][at], "o", markersize=11, markerfacecolor="none",
                  markeredgecolor=colours["ink"], clip_on=False)  # fmt: skip
    axes.plot([], [], "o--", color=colours["ink"], markersize=8, markerfacecolor="none", label=f"kept, epoch {kept}")
    axes.update_datalim([(epoch, 0) for epoch in epochs["epoch"]], updatey=False)  # one without a finite value too
    axes.autoscale_view(scaley=False)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, nbins=8))
    axes.grid(True, axis="y", linewidth=0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, columnspacing=1.2)


def confusion(base: np.ndarray, tuned: np.ndarray, classes: tuple[str, ...], colours: dict[str, str]) -> Figure:
    """The two confusion matrices: counts and shares of the gold class in the cells, or a heat map of many classes.

    Args:
        base, tuned: from `confusion_counts`.
    """
    count, beside = len(classes), len(classes) <= SIDE_BY_SIDE
    shown = classes if named(classes) else map(str, range(count))
    names = [drawn(name, NAME) for name in shown] if count <= NAMED else None
    longest = 0.075 * max(map(width, names)) if names else 0.1  # inches
    side = min(3.4, 0.45 * count) if beside else min(2.9, 0.42 * count)
    height = longest + (0.65 + side if beside else 0.9 + 2 * side)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    matrices = (("Base", "base", base), ("Tuned", "tuned", tuned))
    pairs = figure.subplots(*((1, 2) if beside else (2, 1)), sharex=not beside, sharey=beside)
    for axes, (title, colour, counts) in zip(pairs, matrices, strict=True):
        (cells if count <= FEW_CLASSES else heat_map)(axes, counts, colours[colour])
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), title=title)
        if names:
            size = min(8, 60 * side / count)
            fits = longest < (1.4 if beside else 2.6) / count
            axes.set_xticks(range(count), names, fontsize=size, rotation=0 if fits else 90)
            axes.set_yticks(range(count), names, fontsize=size)
        axes.tick_params(length=0 if names else 3)
        axes.spines[:].set_visible(count > FEW_CLASSES)
    what = "" if named(classes) else ", by its number"
    figure.supxlabel(f"predicted class{what}", fontsize=9, color=colours["muted"])
    figure.supylabel(f"gold class{what}", fontsize=9, color=colours["muted"])
    return figure


def cells(axes: Axes, counts: np.ndarray, colour: str) -> None:
    """A matrix with the rows of each cell and their share of the gold class, which is its shade too."""
    shares = gold_shares(counts)
    size = min(9, 44 / len(counts) + 2.2)
    for gold, predicted in np.ndindex(counts.shape):
        count, share = counts[gold, predicted], shares[gold, predicted]
        corner = (predicted - 0.48, gold - 0.48)
        axes.add_patch(
            matplotlib.patches.Rectangle(corner, 0.96, 0.96, color=colour, alpha=0.06 + 0.5 * share, linewidth=0)
        )
        words = f"{count:,}\n{whole_percent(share)}" if count else "0"
        axes.text(predicted, gold, words, ha="center", va="center", fontsize=size, linespacing=1.1)


def heat_map(axes: Axes, counts: np.ndarray, colour: str) -> None:
    """A matrix without words: one path for each of a few shades, which is small where classes are many."""
    shares = gold_shares(counts)
    shades = np.ceil(np.sqrt(shares) * 6).astype(int)  # the root, so that a single row of many is seen
    for shade in range(1, 7):
        squares = [
            matplotlib.path.Path.unit_rectangle().transformed(
                matplotlib.transforms.Affine2D().translate(predicted - 0.5, gold - 0.5)
            )
            for gold, predicted in np.argwhere(shades == shade)
        ]
        if squares:
            path = matplotlib.path.Path.make_compound_path(*squares)
            axes.add_patch(matplotlib.patches.PathPatch(path, color=colour, alpha=0.1 + 0.15 * shade, linewidth=0))


def gold_shares(counts: np.ndarray) -> np.ndarray:
    """Each cell's share of its gold class's rows, 0 where it has none; counts: from `confusion_counts`."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def worth_drawing(base: pd.DataFrame, tuned: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of slices without slices that have no row, and of many classes only those with the lowest tuned
    accuracy, first the lowest.
    """
    there = tuned.index[(base["rows"] > 0) | (tuned["rows"] > 0)]
    classes = tuned.loc[there].query("cut == 'class'")
    if len(classes) > LOWEST:
        lowest = classes.sort_values("accuracy", kind="stable").index[:LOWEST]
        there = [*lowest, *there.difference(classes.index)]
    return base.loc[there], tuned.loc[there]


def slices(base: pd.DataFrame, tuned: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Accuracy with interval in each slice, base and tuned.

    Args:
        base, tuned: from `slices.slice_table`, of the same slices; the classes come first there, so that the index is
            a class's number.
    """
    cuts = list(base["cut"].unique())
    figure, axes = plot(0.75 + 0.23 * (len(base) + len(cuts)))
    y, ticks, headings = 0, [], []
    for cut in cuts:
        headings.append(len(ticks))
        inside = base[base["cut"] == cut]
        by_number = cut == "class" and not can_draw(inside["slice"])
        ticks.append((y, drawn(f"{cut}, by its number" if by_number else cut, NAME + 6)))
        for (number, first), (_, second) in zip(inside.iterrows(), tuned[tuned["cut"] == cut].iterrows(), strict=True):
            y += 1
            rows = {f"{first['rows']:,}": None, f"{second['rows']:,}": None}  # one number where they are the same
            name = str(number) if by_number else drawn(first["slice"].removeprefix(f"{cut}: "), NAME)
            ticks.append((y, f"{name} ({' / '.join(rows)})"))
            for row, colour, offset in ((first, "base", -0.16), (second, "tuned", 0.16)):
                if row["rows"]:
                    axes.plot([row["low"], row["high"]], [y + offset] * 2, color=colours[colour], linewidth=3.5,
                              alpha=0.3, solid_capstyle="round")  # fmt: skip
                    axes.plot(row["accuracy"], y + offset, "o", color=colours[colour], markersize=4, clip_on=False)
        y += 1
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    for number, label in enumerate(axes.get_yticklabels()):
        label.set_fontweight("bold" if number in headings else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.4, -0.6)
    whole_share_axis(axes)
    axes.set_xlabel("accuracy")
    model_legend(axes, colours)
    return figure


def model_legend(axes: Axes, colours: dict[str, str]) -> None:
    for name in ("base", "tuned"):
        axes.plot([], [], "o", color=colours[name], label=name)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def reliability(base: pd.DataFrame, tuned: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Accuracy with its interval beside confidence, each model on axes of its own, which need not be the same.

    Args:
        base, tuned: from `metrics.calibration_curve`.
    """
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    for axes, bins, name in zip(figure.subplots(1, 2), (base, tuned), ("base", "tuned"), strict=True):
        axes.plot([0, 1], [0, 1], color=colours["muted"], linewidth=0.8, linestyle=":")
        ends = np.abs(bins[["low", "high"]].to_numpy().T - bins["accuracy"].to_numpy())
        axes.errorbar(bins["confidence"], bins["accuracy"], yerr=ends, fmt="o", markersize=4, color=colours[name],
                      elinewidth=1.2, clip_on=False)  # fmt: skip
        share_axis(axes.xaxis, axes.set_xlim, bins["confidence"], least=0.1, ticks=3)
        share_axis(axes.yaxis, axes.set_ylim, bins[["low", "high", "confidence"]], least=0.1)
        axes.set(title=name.capitalize(), xlabel="confidence")
    figure.axes[0].set_ylabel("accuracy")
    return figure


def usage(table: pd.DataFrame, on_gpu: bool, colours: dict[str, str]) -> Figure:
    """Memory and load over time, the stages laid end to end; of several GPUs each one's, and the memory of all.

    Args:
        table: `stage`, `seconds`, `gpu`, `memory_gb`, `memory_sum_gb`, `utilization_percent`, and `allocated_gb` on a
            GPU, which is drawn of one alone.
    """
    gpus = sorted(table["gpu"].unique())
    several = len(gpus) > 1
    figure = Figure(figsize=(WIDTH, 4.6 if several else 3.4), layout="constrained")
    panels = figure.subplots(2 + several, 1, sharex=True, height_ratios=[2, 1.3, 1] if several else [2, 1])
    memory, *summed, load = panels
    lines = of_each_gpu(gpus, on_gpu) if several else of_one_gpu(gpus[0], on_gpu, colours)
    unit, seconds = ("minutes", 60) if table["seconds"].max() > 180 else ("seconds", 1)
    for number, (stage, inside) in enumerate(table.groupby("stage", sort=False)):
        times = inside["seconds"] / seconds
        for gpu, column, colour, label in lines:
            mine = inside["gpu"] == gpu
            axes, width = (load, 0.8) if column == "utilization_percent" else (memory, 1.4)
            axes.plot(times[mine], inside[column][mine], color=colour, lw=width, label=None if number else label)
        for axes in summed:
            axes.plot(times, inside["memory_sum_gb"], color=colours["ink"], lw=1.4)
            axes.set(ylim=(0, 1.08 * table["memory_sum_gb"].max()), ylabel="of all, GB")
        late = inside["seconds"].min() > 0.7 * table["seconds"].max()  # its name would stick out on the right
        memory.annotate(f" {number + 1} {stage} ", (times.min(), 1.03 + 0.1 * (number % 2)), fontsize=8,
                        xycoords=("data", "axes fraction"), ha="right" if late else "left",
                        color=colours["muted"])  # fmt: skip
        for axes in panels:
            axes.axvline(times.min(), color=colours["line"], linewidth=0.8)
    memory.set(ylim=(0, 1.08 * table["memory_gb"].max()), ylabel="memory, GB")
    load.set(ylim=(0, 105), ylabel="load, %", xlabel=unit)
    for axes in panels:
        axes.grid(True, axis="y", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=4 if several else 2)
    return figure


def of_one_gpu(gpu: int, on_gpu: bool, colours: dict[str, str]) -> list[tuple[int, str, str, str | None]]:
    """Lines of the picture of one GPU's usage: (gpu, column, colour, label) each."""
    allocated = [(gpu, "allocated_gb", colours["base"], "allocated by PyTorch")] if on_gpu else []
    return [
        (gpu, "memory_gb", colours["tuned"], "in use" if on_gpu else "used by the process"),
        *allocated,
        (gpu, "utilization_percent", colours["tuned"], None),
    ]


def of_each_gpu(gpus: list[int], on_gpu: bool) -> list[tuple[int, str, str, str | None]]:
    """Lines of the picture of several GPUs' usage, as of `of_one_gpu`; of many the first and the last have a label."""
    what, lines = "GPU" if on_gpu else "process", []
    for gpu, colour in zip(gpus, matplotlib.colormaps["turbo"](np.linspace(0.1, 0.9, len(gpus))), strict=True):
        named = len(gpus) <= LABELLED or gpu in (gpus[0], gpus[-1])
        lines.append((gpu, "memory_gb", colour, f"{what} {gpu}" if named else None))
        lines.append((gpu, "utilization_percent", colour, None))
    return lines
