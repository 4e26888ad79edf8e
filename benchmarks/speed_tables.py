"""Print the tables and sentences with figures of docs/speed.md, docs/gpu-memory.md, README.md and params.yaml, or write
them there.

    python benchmarks/speed_tables.py           # prints
    python benchmarks/speed_tables.py --write   # replaces what is between <!-- NAME --> and <!-- end -->

They come from the results of benchmarks/compare.py and benchmarks/what_fits.py.
"""

import argparse
import json
import math
import re
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks/results"
RESULTS, EARLIER, FITS, TURNS = (FOLDER / f"{name}.json" for name in ("h200", "h100", "h200-what-fits", "h200-turns"))
DOCUMENTS = ("docs/speed.md", "docs/gpu-memory.md", "README.md", "params.yaml")
BLOCK = re.compile(r"(<!-- ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
GPUS = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA H200": "H200"}
MODELS = {
    "random-phi": "phi-2's shape",
    "phi-2": "phi-2's shape",
    "llama-3-8b": "Llama-3-8B's shape",
    "qwen3-14b": "Qwen3-14B's shape",
    "gemma": "Gemma 3 270M",
}
CARDS = (8, 16, 24, 40)  # GB, rows of README's table
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


def training(results: list[dict], earlier: Sequence[dict] = (), gpu: str = "") -> Iterator[str]:
    """The table of trainings in Markdown, a row for each recipe.

    Args:
        results: lines of compare.py.
        earlier: lines measured on another GPU, named `gpu`; their times are the last column.
    """
    before = {(r["variant"], r["batch_size"]): r for r in reversed(earlier)}
    last = [f" {gpu}, ms a step |", " ---: |"] if earlier else ["", ""]
    yield f"| batch | recipe | ms a step | rows/s | times the notebook | first step, s | peak GB | GB in use |{last[0]}"
    yield f"| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |{last[1]}"
    notebook, variants = notebook_ms(results), set()
    for r in results:
        key = r["variant"], r["batch_size"]
        start = f"| {r['batch_size']} | {AGAIN if key in variants else NAMES[r['variant']]} |"
        end = f" {'' if key in variants else cell_of_ms(before.get(key))} |" if earlier else ""
        variants.add(key)
        if "error" in r:
            yield f"{start} {r['error']} | | | | | |{end}"
            continue
        yield (
            f"{start} {ms(r['ms_per_step'])} ({ms(r['ms_fastest'])}–{ms(r['ms_slowest'])}) "
            f"| {r['rows_per_second']:.0f} | {times_the_notebook(r, notebook)} | {tenths(r, 'first_step_seconds')} "
            f"| {tenths(r, 'peak_allocated_gb')} | {tenths(r, 'nvml_used_gb')} |{end}"
        )


def others(results: dict) -> Iterator[str]:
    """The table of trainings with long texts and of other models, and of these models' evaluations."""
    if all(is_main(line, results) for line in results["training"] + results["evaluation"]):
        return
    yield "| model | texts | batch | recipe | ms a step | rows/s | tokens/s | peak GB | GB in use |"
    yield "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    names = {name: name for name in NAMES} | {"ours": "**ours**", "trainer at its best": "HF Trainer"}
    names |= {f"ours, {model}": f"ours, evaluation, {model}" for model in ("base", "tuned")}
    for r in results["training"] + results["evaluation"]:
        if is_main(r, results):
            continue
        start = (
            f"| {MODELS[r['model']]} | {name_texts(r['texts'])} | {r.get('batch_size', '')} | {names[r['variant']]} |"
        )
        if "error" in r:
            yield f"{start} {r['error']} | | | | |"
            continue
        step = ms(r["ms_per_step"]) if "ms_per_step" in r else ""
        tokens = f"{r['tokens_per_second']:,.0f}" if "tokens_per_second" in r else ""
        yield (
            f"{start} {step} | {r['rows_per_second']:,.0f} | {tokens} "
            f"| {tenths(r, 'peak_allocated_gb')} | {tenths(r, 'nvml_used_gb')} |"
        )


def turns(results: dict) -> Iterator[str]:
    """The table of two versions of our code that compare.py timed alternately; the first line is of the earlier one."""
    lines = results["training"]
    before, now = dict.fromkeys(line["commit"] for line in lines)
    yield (
        f"| model | texts | batch | {before}, ms a step | {now[:7]}, ms a step | times as fast | GB in use: before "
        "| now |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for key in dict.fromkeys((line["model"], line["texts"], line["batch_size"]) for line in lines):
        model, texts, size = key
        same = [line for line in lines if (line["model"], line["texts"], line["batch_size"]) == key]
        times, used = (
            [statistics.median(line[key] for line in same if line["commit"] == commit) for commit in (before, now)]
            for key in ("ms_per_step", "nvml_used_gb")
        )
        yield (
            f"| {MODELS[model]} | {name_texts(texts)} | {size} | {ms(times[0])} | {ms(times[1])} "
            f"| {times[0] / times[1]:.2f} | {used[0]:.1f} | {used[1]:.1f} |"
        )


def is_main(line: dict, results: dict) -> bool:
    """Whether a line is of the result's first model and SNLI's own texts, as all lines of earlier versions are."""
    model = results.get("model")
    return line.get("texts", "snli") == "snli" and line.get("model", model) == model


def name_texts(texts: str | int) -> str:
    return "SNLI" if texts == "snli" else f"to {texts:,} tokens"


def fits(results: dict) -> Iterator[str]:
    """The table of what_fits.py, a row for each model and kind of texts, a column for each size of free memory."""
    sizes = sorted({line["free_gb"] for line in results["lines"]})
    yield f"| model | texts | {' | '.join(f'{size:g} GB free' for size in sizes)} |"
    yield f"| --- | --- |{' --- |' * len(sizes)}"
    for model, precision, texts in list_rows(results["lines"]):
        name = MODELS[model] + (", fp16" if precision == "fp16" else "")
        cells = [describe_fit(find_fit(results["lines"], model, texts, size, precision), size) for size in sizes]
        yield f"| {name} | {name_texts(texts)} | {' | '.join(cells)} |"


def list_rows(lines: Iterable[dict]) -> list[tuple[str, str, str | int]]:
    return list(dict.fromkeys((line["model"], line["precision"], line["texts"]) for line in lines))


def find_fit(
    lines: Iterable[dict], model: str, texts: str | int, free_gb: float, precision: str = "auto"
) -> dict | None:
    """The line of this size; or, if a smaller one had the largest plan, that one."""
    key = model, texts, precision
    same = [line for line in lines if (line["model"], line["texts"], line["precision"]) == key]
    smaller = [line for line in same if line["free_gb"] <= free_gb]
    last = max(smaller, key=lambda line: line["free_gb"], default=None)
    return last if last and (last["free_gb"] == free_gb or is_largest(last)) else None


def is_largest(line: dict) -> bool:
    """Whether a training would be the same with more memory: what_fits.py then leaves out the larger sizes."""
    planned = line.get("keep_weights"), line.get("checkpointing"), line.get("parts_per_step")
    return "error" not in line and planned == (True, False, 1)


def describe_fit(line: dict | None, free_gb: float) -> str:
    """The cell of a line: time, memory in use and plan. The cell of a size that was left out says so."""
    if line is None:
        return ""
    if line["free_gb"] != free_gb:
        return f"as with {line['free_gb']:g} GB"
    if "error" in line:
        return "out of memory" if is_out_of_memory(line) else line["error"]
    parts = math.ceil(line.get("parts_per_step", 1))
    words = ["kept"] if line.get("keep_weights") else []
    words += ["checkpointed"] if line.get("checkpointing") else []
    words += [f"{parts} parts"] if parts > 1 else []
    return f"{ms(line['ms_median'])} ms, {line['used_gb']:.1f} GB{': ' if words else ''}{', '.join(words)}"


def cards(results: dict) -> Iterator[str]:
    """README's table: which GPU trains what. A cell has the milliseconds of a step with each kind of texts.

    It has the models that were measured with all of them.
    """
    models = list(dict.fromkeys(line["model"] for line in results["lines"] if line["texts"] == 2048))
    yield wrap(
        "Milliseconds a step with 16 rows of SNLI / 16 rows of up to 512 tokens / 8 rows of up to 2,048 (–: out of "
        "memory, see [gpu-memory.md](docs/gpu-memory.md)). Another process held the rest of an "
        "H200's memory, so a smaller GPU needs more time:"
    )
    yield ""
    yield f"| free memory | {' | '.join(MODELS[model] for model in models)} |"
    yield f"| --- |{' ---: |' * len(models)}"
    for size in CARDS:
        rows = ([find_fit(results["lines"], model, texts, size) for texts in ("snli", 512, 2048)] for model in models)
        cells = (" / ".join(map(cell_of_fit, row)) if any(row) else "not measured" for row in rows)
        yield f"| {size} GB | {' | '.join(cells)} |"


def cell_of_fit(line: dict | None) -> str:
    """Milliseconds of a step in README's table."""
    if line is None:
        return "not measured"
    return "–" if is_out_of_memory(line) else line.get("error") or ms(line["ms_median"])


def is_out_of_memory(line: dict) -> bool:
    """Whether a line of what_fits.py ended with out of memory, or with the error of `train_qlora` about it."""
    error = line.get("error", "")
    return error == "out of memory" or "does not fit this GPU's memory" in error


def notebook_ms(results: list[dict]) -> dict[int, float]:
    """{batch size: ms a step of the notebook's recipe in its fastest run}."""
    runs = [r for r in results if r["variant"] == "notebook" and "error" not in r]
    return {r["batch_size"]: r["ms_per_step"] for r in sorted(runs, key=lambda r: -r["ms_per_step"])}


def times_the_notebook(result: dict, notebook: dict[int, float]) -> str:
    """The speed relative to the notebook's recipe; empty if that was not timed at this batch size."""
    size = result["batch_size"]
    return f"{notebook[size] / result['ms_per_step']:.1f}" if size in notebook else ""


def evaluation(results: list[dict], earlier: Sequence[dict] = (), gpu: str = "") -> Iterator[str]:
    """The table of evaluations in Markdown, a row for base and tuned; arguments as for `training`."""
    last = [f" {gpu}, rows/s |", " ---: |"] if earlier else ["", ""]
    yield f"| evaluation | the notebook's, rows/s | ours, rows/s | times the notebook |{last[0]}"
    yield f"| --- | ---: | ---: | ---: |{last[1]}"
    by_name, before = ({r["variant"]: r for r in lines} for lines in (results, earlier))
    for name in ("base", "tuned"):
        notebook, ours = by_name[f"notebook, {name}"], by_name[f"ours, {name}"]
        times = ours["rows_per_second"] / notebook["rows_per_second"]
        end = f" {before[f'ours, {name}']['rows_per_second']:,.0f} |" if earlier else ""
        yield f"| {name} | {speed(notebook)} | {speed(ours)} | {times:.0f} |{end}"


def speed(result: dict) -> str:
    digits = 1 if result["rows_per_second"] < 100 else 0
    median, low, high = (f"{result[key]:,.{digits}f}" for key in ("rows_per_second", "slowest", "fastest"))
    return f"{median} ({low}–{high})"


def ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def tenths(result: dict, key: str) -> str:
    """A value with one decimal; empty if the result of an earlier version lacks it."""
    return f"{result[key]:.1f}" if key in result else ""


def cell_of_ms(result: dict | None) -> str:
    """Milliseconds of a step, the error, or nothing."""
    return "" if result is None else result.get("error") or ms(result["ms_per_step"])


def machine(results: dict) -> str:
    versions = results["versions"]
    torch, transformers = (versions[name].rpartition(".")[0] for name in ("torch", "transformers"))
    return (
        "Unless a table says otherwise, the model has phi-2's full shape and random weights, and the rows are SNLI's. "
        f"The machine has one {results['gpu']}, torch {torch}, transformers {transformers} and peft {versions['peft']}."
    )


def main_lines(results: dict) -> dict[tuple[str, int], dict]:
    """{(recipe, batch size): its first line that is no error}."""
    lines = [r for r in results["training"] if is_main(r, results) and "error" not in r]
    return {(r["variant"], r["batch_size"]): r for r in reversed(lines)}


def facts(results: dict) -> Iterator[str]:
    """The sentences about the training table."""
    lines = main_lines(results)
    ours, peer, checkpointing = (lines[name, 16] for name in ("ours", "trainer at its best", "ours, checkpointing"))
    notebooks = [r for r in results["training"] if is_main(r, results) and r["variant"] == "notebook"]
    notebooks = [r for r in notebooks if r["batch_size"] == 16]
    mean, median = (min(r[key] for r in notebooks) for key in ("ms_per_step", "ms_median"))
    limits, recorder, fast = results["limits"], results["recorder"], lines["ours", 128]["rows_per_second"]
    yield (
        f"Our training step is {mean / ours['ms_per_step']:.1f} times as fast as the notebook's and "
        f"{peer['ms_per_step'] / ours['ms_per_step']:.1f} times as fast as the HF Trainer's. By the medians of the "
        f"blocks it is {median / ours['ms_median']:.1f} and {peer['ms_median'] / ours['ms_median']:.1f} times. With "
        f"checkpointing it is {mean / checkpointing['ms_per_step']:.1f} times as fast as the notebook's, in "
        f"{checkpointing['peak_allocated_gb']:.1f} GB."
    )
    compiled = lines["trainer, compiled", 16]["ms_per_step"] / ours["ms_per_step"]
    yield (
        f"The compiled HF Trainer's step takes {compiled:.1f} times as long as ours, once it is compiled for every "
        "length of a batch."
    )
    yield (
        f"At batch 16, the matrix products of a step need at least {limits['product_ms']:.1f} ms, at the rate measured "
        f"there ({limits['matrix_tflops']:.0f} TFLOP/s). Reading the 4-bit weights twice needs "
        f"{limits['moved_ms']:.1f} ms more."
    )
    yield (
        f"At batch 128 and {fast:.0f} rows/s, an epoch over all 549,367 labelled rows of SNLI would take "
        f"{549_367 / fast / 60:.0f} minutes."
    )
    yield (
        "The recorder of memory and load has no measurable cost: "
        f"{recorder['ms_per_step_with']:.1f} ms a step with it, {recorder['ms_per_step_without']:.1f} without it. Each "
        f"of its samples takes {recorder['ms_per_sample']:.2f} ms, and it takes one a second."
    )


def effects(results: dict) -> Iterator[str]:
    """The table of the parameters with the largest effects."""
    lines = main_lines(results)
    ours, large = lines["ours", 16], lines["ours", 128]
    yield "| parameter | effect at batch 16 |"
    yield "| --- | --- |"
    for parameter, name, text in (
        ("train.cuda_graphs: false", "ours, eager", ": Python launches every kernel"),
        ("train.dequantize_once: false", "ours, dequantizing each", None),
        ("train.gradient_checkpointing: true", "ours, checkpointing", None),
    ):
        line = lines[name, 16]
        memory = f", in {line['peak_allocated_gb']:.1f} instead of {ours['peak_allocated_gb']:.1f} GB"
        times = f"{ms(line['ms_per_step'])} instead of {ms(ours['ms_per_step'])} ms a step"
        yield f"| `{parameter}` | {times}{memory if text is None else text} |"
    rows = f"{large['rows_per_second']:.0f} instead of {ours['rows_per_second']:.0f} rows/s"
    yield f"| `train.batch_size: 128` | {rows} |"


def step_sentences(results: dict) -> str:
    """README's sentences about a step."""
    names = ("ours", "trainer at its best", "trainer, compiled")
    ours, peer, compiled = (ms(main_lines(results)[name, 16]["ms_per_step"]) for name in names)
    return (
        f"On an {GPUS[results['gpu']]} with phi-2's shape and random weights, a training step takes {ours} ms. The "
        f"Hugging Face Trainer takes {peer} ms, and {compiled} ms after it has compiled for minutes."
    )


def blocks(results: dict, earlier: dict | None, what_fits: dict | None, alternating: dict) -> dict[str, str]:
    """{name: text} of the blocks of the documents."""
    other = GPUS[earlier["gpu"]] if earlier else ""
    main = [line for line in results["training"] if is_main(line, results)]
    evaluated = [line for line in results["evaluation"] if is_main(line, results)]
    before = earlier or {"training": (), "evaluation": ()}
    texts = {
        "machine": [wrap(machine(results))],
        "training": training(main, before["training"], other),
        "long": others(results),
        "turns": turns(alternating),
        "evaluation": evaluation(evaluated, before["evaluation"], other),
        "facts": [wrap(sentences, "- ") for sentences in facts(results)],
        "effects": effects(results),
        "step": [wrap(step_sentences(results))],
    }
    if what_fits:
        texts |= {"what-fits": fits(what_fits), "gpus": cards(what_fits)}
    return {name: "\n".join(lines) for name, lines in texts.items()}


def wrap(sentences: str, bullet: str = "") -> str:
    """Break a paragraph, or an item of a list, into lines of a document's width."""
    indents = {"initial_indent": bullet, "subsequent_indent": " " * len(bullet)}
    return textwrap.fill(sentences, 120, break_on_hyphens=False, break_long_words=False, **indents)


def fill(text: str, new: dict[str, str]) -> str:
    """Replace the blocks of a document that `new` has."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{new[match[2]]}\n\n{match[3]}" if match[2] in new else match[0], text)


def replace_figures(text: str, results: dict) -> str:
    """Replace the figures in README's table of requirements and in a comment of params.yaml."""
    lines = main_lines(results)
    ours, each, less = (lines[f"ours{suffix}", 16] for suffix in ("", ", dequantizing each", ", checkpointing"))
    used = (
        f"in use: {less['nvml_used_gb']:.1f} GB with checkpointing, {each['nvml_used_gb']:.1f} without, "
        f"{ours['nvml_used_gb']:.1f} at the highest speed; training chooses by what is free"
    )
    cost = (
        f"{less['peak_allocated_gb']:.1f} GB instead of {ours['peak_allocated_gb']:.1f}, "
        f"{less['ms_per_step'] / ours['ms_per_step']:.1f} times the time"
    )
    text = re.sub(r"(?<=^\| GPU memory \| ).*(?= \|$)", used, text, flags=re.MULTILINE)
    return re.sub(r"[\d.]+ GB instead of [\d.]+, [\d.]+ times the time", cost, text)


def find_results() -> list[Path]:
    """The results of compare.py in the documents: the newest, and those of the GPU before."""
    return [path for path in (RESULTS, EARLIER) if path.exists()]


def make_blocks() -> dict[str, str]:
    """`blocks` of the committed results."""
    newest, *before = (json.loads(path.read_text()) for path in find_results())
    what_fits = json.loads(FITS.read_text()) if FITS.exists() else None
    return blocks(newest, before[0] if before else None, what_fits, json.loads(TURNS.read_text()))


def describe_data(line: dict) -> str:
    """A line's model and texts. The results of earlier versions name neither."""
    return f"{line.get('model', '')} {line.get('texts', '')}".strip()


def show(results: dict) -> None:
    """Print all measurements to the terminal."""
    print(f"\n{'training':26}{'model, texts':>18}{'batch':>6}{'ms a step':>11}{'spread':>16}{'rows/s':>8}"
          f"{'tokens/s':>10}{'times':>7}{'first s':>9}{'capture s':>10}"
          f"{'peak GB':>9}{'reserved':>9}{'NVML':>7}")  # fmt: skip
    trainings = results.get("training", [])
    notebook = notebook_ms([r for r in trainings if is_main(r, results)])
    for r in trainings:
        start = f"{r['variant']:26}{describe_data(r):>18}{r['batch_size']:6}"
        if "error" in r:
            print(f"{start}  {r['error']}")
            continue
        times = times_the_notebook(r, notebook) if is_main(r, results) else ""
        print(f"{start}{r['ms_per_step']:11.2f}"
              f"{r['ms_fastest']:8.1f}–{r['ms_slowest']:<7.1f}{r['rows_per_second']:8.0f}{r['tokens_per_second']:10.0f}"
              f"{times:>7}{r['first_step_seconds']:9.1f}{r['capture_seconds']:10.1f}"
              f"{r['peak_allocated_gb']:9.2f}{r['peak_reserved_gb']:9.2f}{r['nvml_used_gb']:7.2f}")  # fmt: skip
    print(f"\n{'evaluation':26}{'model, texts':>18}{'batch':>6}{'rows/s':>9}{'spread':>16}{'peak GB':>9}")
    for r in results.get("evaluation", []):
        if "error" in r:
            print(f"{r['variant']:26}{describe_data(r):>18}  {r['error']}")
            continue
        print(f"{r['variant']:26}{describe_data(r):>18}{r['batch_size']:6}"
              f"{r['rows_per_second']:9.1f}{r['slowest']:8.1f}–{r['fastest']:<7.1f}"
              f"{r['peak_allocated_gb']:9.2f}")  # fmt: skip
    for name in ("recorder", "limits"):
        if name in results:
            print(f"\n{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in results[name].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {', '.join(DOCUMENTS)}")
    new = make_blocks()
    if parser.parse_args().write:
        newest = json.loads(find_results()[0].read_text())
        for path in (ROOT / name for name in DOCUMENTS):
            path.write_text(replace_figures(fill(path.read_text(), new), newest))
    else:
        for name, text in new.items():
            print(f"<!-- {name} -->\n{text}\n")


if __name__ == "__main__":
    main()
