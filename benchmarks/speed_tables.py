"""Print the tables of docs/speed.md from a result of benchmarks/compare.py.

python benchmarks/speed_tables.py benchmarks/results/h100.json
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = {
    "notebook": "the notebook's: padded to 128, fp32 activations, checkpointing",
    "trainer at its best": "HF Trainer: bf16, similar lengths together, no checkpointing, not compiled",
    "trainer with Liger Kernel": "the HF Trainer with Liger Kernel's norms, rotary embedding and gated MLP",
    "trainer, compiled": "the HF Trainer, compiled (`torch_compile=True`)",
    "ours, eager": "ours, eager (`train.cuda_graphs: false`)",
    "ours": "**ours**",
    "ours, dequantizing each": "ours, dequantizing at each use (`train.dequantize_once: false`)",
    "ours, checkpointing": "ours, gradient checkpointing",
}
AGAIN = "the notebook's, again at the end"


def training(results: list[dict]) -> Iterator[str]:
    """The table of trainings in Markdown, a row for each recipe."""
    yield "| batch | recipe | ms a step | rows/s | times the notebook | first step, s | peak GB | GB in use |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    notebook, variants = notebook_ms(results), set()
    for r in results:
        key = r["variant"], r["batch_size"]
        start = f"| {r['batch_size']} | {AGAIN if key in variants else NAMES[r['variant']]} |"
        variants.add(key)
        if "error" in r:
            yield f"{start} {r['error']} | | | | | |"
            continue
        yield (
            f"{start} {ms(r['ms_per_step'])} ({ms(r['ms_fastest'])}–{ms(r['ms_slowest'])}) "
            f"| {r['rows_per_second']:.0f} | {times_the_notebook(r, notebook)} | {tenths(r, 'first_step_seconds')} "
            f"| {tenths(r, 'peak_allocated_gb')} | {tenths(r, 'nvml_used_gb')} |"
        )


def notebook_ms(results: list[dict]) -> dict[int, float]:
    """{batch size: ms a step of the notebook's recipe in its fastest run}."""
    runs = [r for r in results if r["variant"] == "notebook" and "error" not in r]
    return {r["batch_size"]: r["ms_per_step"] for r in sorted(runs, key=lambda r: -r["ms_per_step"])}


def times_the_notebook(result: dict, notebook: dict[int, float]) -> str:
    """The speed relative to the notebook's recipe; empty if that was not timed at this batch size."""
    size = result["batch_size"]
    return f"{notebook[size] / result['ms_per_step']:.1f}" if size in notebook else ""


def evaluation(results: list[dict]) -> Iterator[str]:
    """The table of evaluations in Markdown, a row for base and tuned."""
    yield "| evaluation | the notebook's, rows/s | ours, rows/s | times the notebook |"
    yield "| --- | ---: | ---: | ---: |"
    by_name = {r["variant"]: r for r in results}
    for name in ("base", "tuned"):
        notebook, ours = by_name[f"notebook, {name}"], by_name[f"ours, {name}"]
        times = ours["rows_per_second"] / notebook["rows_per_second"]
        yield f"| {name} | {speed(notebook)} | {speed(ours)} | {times:.0f} |"


def speed(result: dict) -> str:
    digits = 1 if result["rows_per_second"] < 100 else 0
    median, low, high = (f"{result[key]:,.{digits}f}" for key in ("rows_per_second", "slowest", "fastest"))
    return f"{median} ({low}–{high})"


def ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def tenths(result: dict, key: str) -> str:
    """A value with one decimal; empty if the result of an earlier version lacks it."""
    return f"{result[key]:.1f}" if key in result else ""


def tables(path: Path | str) -> list[str]:
    """All lines of the tables of a result."""
    results = json.loads(Path(path).read_text())
    return [*training(results["training"]), "", *evaluation(results["evaluation"])]


def show(results: dict) -> None:
    """Print all measurements to the terminal."""
    print(f"\n{'training':26}{'batch':>6}{'ms a step':>11}{'spread':>16}{'rows/s':>8}{'tokens/s':>10}"
          f"{'times':>7}{'first s':>9}{'capture s':>10}{'peak GB':>9}{'reserved':>9}{'NVML':>7}")  # fmt: skip
    notebook = notebook_ms(results["training"])
    for r in results["training"]:
        if "error" in r:
            print(f"{r['variant']:26}{r['batch_size']:6}  {r['error']}")
            continue
        print(f"{r['variant']:26}{r['batch_size']:6}{r['ms_per_step']:11.2f}"
              f"{r['ms_fastest']:8.1f}–{r['ms_slowest']:<7.1f}{r['rows_per_second']:8.0f}{r['tokens_per_second']:10.0f}"
              f"{times_the_notebook(r, notebook):>7}{r['first_step_seconds']:9.1f}{r['capture_seconds']:10.1f}"
              f"{r['peak_allocated_gb']:9.2f}{r['peak_reserved_gb']:9.2f}{r['nvml_used_gb']:7.2f}")  # fmt: skip
    print(f"\n{'evaluation':26}{'batch':>6}{'rows/s':>9}{'spread':>16}{'peak GB':>9}")
    for r in results["evaluation"]:
        print(f"{r['variant']:26}{r['batch_size']:6}{r['rows_per_second']:9.1f}{r['slowest']:8.1f}–{r['fastest']:<7.1f}"
              f"{r['peak_allocated_gb']:9.2f}")  # fmt: skip
    for name in ("recorder", "limits"):
        if name in results:
            print(f"\n{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in results[name].items()))


if __name__ == "__main__":
    print("\n".join(tables(sys.argv[1])))
