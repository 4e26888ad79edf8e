"""README's tables of speed and memory, made from a result of benchmarks/compare.py.

python benchmarks/table.py benchmarks/results/h100.json
"""

import json
import sys
from pathlib import Path

NAMES = {
    "notebook": "the notebook's: padded to 128, fp32 activations, checkpointing",
    "trainer at its best": "HF Trainer: bf16, like lengths together, no checkpointing, not compiled",
    "ours, eager": "ours, eager (`train.cuda_graphs: false`)",
    "ours": "**ours**",
    "ours, dequantizing each": "ours, dequantizing at each use (`train.dequantize_once: false`)",
    "ours, checkpointing": "ours, gradient checkpointing",
}
AGAIN = "the first once more, at the end"


def training(results):
    """A row for each recipe, in Markdown."""
    yield "| batch | recipe | ms a step | rows/s | times the notebook | peak GB | GB in use |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    notebook, seen = notebook_ms(results), set()
    for r in results:
        key = r["variant"], r["batch_size"]
        start = f"| {r['batch_size']} | {AGAIN if key in seen else NAMES[r['variant']]} |"
        seen.add(key)
        if "error" in r:
            yield f"{start} {r['error']} | | | | |"
            continue
        times = notebook[r["batch_size"]] / r["ms_per_step"]
        yield (
            f"{start} {ms(r['ms_per_step'])} ({ms(r['ms_fastest'])}–{ms(r['ms_slowest'])}) "
            f"| {r['rows_per_second']:.0f} | {times:.1f} | {gb(r, 'peak_allocated_gb')} | {gb(r, 'nvml_used_gb')} |"
        )


def notebook_ms(results):
    """{batch size: ms a step of the notebook's recipe}, its fastest run's."""
    runs = sorted((r for r in results if r["variant"] == "notebook"), key=lambda r: -r["ms_per_step"])
    return {r["batch_size"]: r["ms_per_step"] for r in runs}


def evaluation(results):
    """A row for each model, in Markdown."""
    yield "| evaluation | the notebook's, rows/s | ours, rows/s | times the notebook |"
    yield "| --- | ---: | ---: | ---: |"
    by_name = {r["variant"]: r for r in results}
    for name in ("base", "tuned"):
        theirs, ours = by_name[f"notebook, {name}"], by_name[f"ours, {name}"]
        times = ours["rows_per_second"] / theirs["rows_per_second"]
        yield f"| {name} | {speed(theirs)} | {speed(ours)} | {times:.0f} |"


def speed(result):
    digits = 1 if result["rows_per_second"] < 100 else 0
    median, low, high = (f"{result[key]:,.{digits}f}" for key in ("rows_per_second", "slowest", "fastest"))
    return f"{median} ({low}–{high})"


def ms(value):
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def gb(result, key):
    return f"{result[key]:.1f}" if key in result else ""


def tables(path):
    """All lines of a result's tables."""
    results = json.loads(Path(path).read_text())
    return [*training(results["training"]), "", *evaluation(results["evaluation"])]


if __name__ == "__main__":
    print("\n".join(tables(sys.argv[1])))
