"""README's figures are those of the files that it names."""

import json
import sys

import pytest
from helpers.project import COMMITTED, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import table

from stages.analysis.metrics import METRICS

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks/results"


@pytest.mark.parametrize("line", [line for line in table.tables(RESULTS / "h100.json") if line])
def test_a_line_of_the_speed_tables_is_the_results(line):
    assert line in README.splitlines()


def results_of(name):
    """(all of a result, {(variant, batch size): its first line})."""
    results = json.loads((RESULTS / name).read_text())
    return results, {(r["variant"], r["batch_size"]): r for r in reversed(results["training"]) if "error" not in r}


def test_what_the_text_says_of_speed_is_the_results():
    results, lines = results_of("h100.json")
    text = " ".join(README.split())
    peer, ours, checkpointing = (lines[name, 16] for name in ("trainer at its best", "ours", "ours, checkpointing"))
    notebook = table.notebook_ms(results["training"])[16]
    assert f"is {notebook / ours['ms_per_step']:.1f} times as fast as the notebook's" in text
    assert f"and {peer['ms_per_step'] / ours['ms_per_step']:.1f} times as the HF Trainer's" in text
    medians = [r["ms_median"] for r in results["training"] if (r["variant"], r["batch_size"]) == ("notebook", 16)]
    by_medians = [value / ours["ms_median"] for value in (min(medians), peer["ms_median"])]
    assert "(by the median blocks, {:.1f} and {:.1f})".format(*by_medians) in text
    assert f"with checkpointing {notebook / checkpointing['ms_per_step']:.1f} times" in text
    assert checkpointing["peak_allocated_gb"] < lines["notebook", 16]["peak_allocated_gb"]
    minutes = 549_367 / lines["ours", 128]["rows_per_second"] / 60
    assert f"{lines['ours', 128]['rows_per_second']:.0f} rows/s" in text and f"would take {minutes:.0f} minutes" in text
    comments = (COMMITTED / "params.yaml").read_text()
    less, more = (r["peak_allocated_gb"] for r in (checkpointing, ours))
    times = checkpointing["ms_per_step"] / ours["ms_per_step"]
    assert f"{less:.1f} GB instead of {more:.1f}, {times:.1f} times the time" in comments
    recorder, limits = results["recorder"], results["limits"]
    assert (
        f"{recorder['ms_per_step_with']:.1f} ms a step with it, {recorder['ms_per_step_without']:.1f} without" in text
    )
    assert f"{recorder['ms_per_sample']:.2f} ms for each of its samples" in text
    assert f"{limits['product_ms']:.1f} ms for its matrix products" in text
    assert f"{limits['matrix_tflops']:.0f} TFLOP/s), and {limits['moved_ms']:.1f} ms for reading" in text


def test_the_other_machines_figures_are_its_results():
    _, lines = results_of("h100-other-host.json")
    notebook, peer, ours, checkpointing = (
        lines[name, 16]["ms_per_step"] for name in ("notebook", "trainer at its best", "ours", "ours, checkpointing")
    )
    text = " ".join(README.split())
    assert f"the notebook's step took {notebook:.0f} ms" in text
    assert f"ours {ours:.1f}: {notebook / ours:.1f} and {peer / ours:.1f} times" in text
    assert f"with checkpointing {notebook / checkpointing:.1f}" in text


def test_the_small_pipelines_scores_are_its_metrics():
    report = (COMMITTED / "embedded/metrics/report.md").read_text().splitlines()
    for start in ("**", *(f"| {metric.title} |" for metric in METRICS[:2])):
        line = next(line for line in report if line.startswith(start))
        assert line in README.splitlines()
