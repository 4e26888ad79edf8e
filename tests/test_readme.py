"""README's figures are those of the files that it names."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import table

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks/results"


@pytest.mark.parametrize("line", [line for line in table.tables(RESULTS / "h100.json") if line])
def test_a_line_of_the_speed_tables_is_the_results(line):
    assert line in README.splitlines()


def test_the_other_machines_figures_are_its_results():
    results = json.loads((RESULTS / "h100-other-host.json").read_text())
    first = {(r["variant"], r["batch_size"]): r for r in reversed(results["training"]) if "error" not in r}
    notebook, peer, ours, checkpointing = (
        first[name, 16]["ms_per_step"] for name in ("notebook", "trainer at its best", "ours", "ours, checkpointing")
    )
    text = " ".join(README.split())
    assert f"the notebook's step took {notebook:.0f} ms" in text
    assert f"ours {ours:.1f}: {notebook / ours:.1f} and {peer / ours:.1f} times" in text
    assert f"with checkpointing {notebook / checkpointing:.1f}" in text
    assert f"{results['limits']['product_ms']:.1f} ms for its matrix products" in text


def test_the_small_pipelines_scores_are_its_metrics():
    report = (ROOT / "embedded/metrics/report.md").read_text().splitlines()
    for start in ("**", "| accuracy", "| weighted F1"):
        line = next(line for line in report if line.startswith(start))
        assert line in README.splitlines()
