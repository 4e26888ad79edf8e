"""docs/examples: the script that writes a pull request's comment, and the workflow that runs it."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.clone import Clone
from helpers.project import ROOT

SCRIPT = ROOT / "docs/examples/compare_with_base.sh"
WORKFLOW = yaml.safe_load((ROOT / "docs/examples/pull-request.yml").read_text())
CI = (ROOT / ".github/workflows/ci.yml").read_text()
CLASSES = ["entailment", "neutral", "contradiction"]
WORSE = 60  # rows


@pytest.fixture(scope="module")
def change(tmp_path_factory):
    """A clone: its HEAD has the committed run of demo/, its workspace a finished run with lora.r 8.

    HEAD~1 has no results. DVC's cache is empty, as in a fresh clone.
    """
    clone = Clone(tmp_path_factory.mktemp("pull_request"))
    demo = clone.folder / "demo"
    clone.git("rm", "-r", "--quiet", "--cached", "demo/metrics")
    clone.git("commit", "--quiet", "--amend", "--no-edit")
    clone.commit("a finished run")
    cases = demo / "metrics/cases.csv"
    before = hashlib.md5(cases.read_bytes()).hexdigest()
    make_worse(cases)
    lock = (demo / "dvc.lock").read_text().replace(before, hashlib.md5(cases.read_bytes()).hexdigest())
    (demo / "dvc.lock").write_text(re.sub(r"(?m)^( +r:) 16$", r"\1 8", lock))
    params = (demo / "params.yaml").read_text()
    (demo / "params.yaml").write_text(re.sub(r"(?m)^  r: 16$", "  r: 8", params))
    summary = json.loads((demo / "metrics/summary.json").read_text())
    (demo / "metrics/summary.json").write_text(json.dumps(summary | {"accuracy": summary["accuracy"] - WORSE / 1000}))
    return clone


def make_worse(cases):
    """Change right answers of the tuned model into wrong ones, in WORSE rows."""
    with cases.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in [row for row in rows if row["tuned"] == row["gold"]][:WORSE]:
        row["tuned"] = CLASSES[(CLASSES.index(row["gold"]) + 1) % 3]
    with cases.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run_script(clone, *arguments, below="demo"):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], cwd=clone.folder / below, env=clone.env | {"PATH": path},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_comment_has_the_verdict_the_metrics_and_the_comparison(change, tmp_path):
    done = run_script(change, "HEAD", str(tmp_path / "comment.md"))
    assert done.returncode == 0 and done.stdout == "", done.stderr
    verdict, metrics, comparison = re.split(r"^### .*$", (tmp_path / "comment.md").read_text(), flags=re.MULTILINE)
    report = (change.folder / "demo/metrics/report.md").read_text()
    assert verdict.startswith("## What was tuning worth? nano-phi on everyday-nli\n")
    sentence = next(line for line in report.splitlines() if line.startswith("**Worth it:**"))
    assert sentence in verdict and "- seed:" not in verdict
    assert re.search(r"^\| metrics/summary\.json \| accuracy +\|.*\| -0\.06 +\|$", metrics, re.MULTILINE)
    assert re.search(r"^\| B lora\.r=8 +\| −6\.0 .* \| worse \(these seeds\) +\|", comparison, re.MULTILINE)


def test_a_base_without_results_is_named(change, tmp_path):
    done = run_script(change, "HEAD~1", str(tmp_path / "comment.md"))
    assert done.returncode == 0, done.stderr
    comment = (tmp_path / "comment.md").read_text()
    assert "**Worth it:**" in comment
    assert "In `HEAD~1` this folder has no `metrics/summary.json`, so there is nothing to compare" in comment


@pytest.mark.parametrize(
    ("base", "below", "message"),
    [
        (
            "origin/none",
            "demo",
            "error: origin/none: no such Git revision here; fetch it (actions/checkout: fetch-depth: 0)",
        ),
        ("HEAD", "docs", "error: dvc.yaml: not in this folder; run this script in the folder of the pipeline"),
        ("HEAD", ".", "error: metrics/report.md: no such file; run `dvc repro` first"),
    ],
)
def test_an_error_is_one_line_and_no_comment_is_written(change, tmp_path, base, below, message):
    done = run_script(change, base, str(tmp_path / "comment.md"), below=below)
    assert done.returncode == 1 and done.stderr == f"{message}\n"
    assert not (tmp_path / "comment.md").exists()


def test_the_workflow_runs_the_code_of_a_pull_request_without_write_access():
    assert list(WORKFLOW[True]) == ["pull_request"]  # YAML reads `on` as true; pull_request_target would have secrets
    assert WORKFLOW["permissions"] == {}
    compare, comment = WORKFLOW["jobs"]["compare"], WORKFLOW["jobs"]["comment"]
    assert compare["permissions"] == {"contents": "read"} and comment["permissions"] == {"pull-requests": "write"}
    assert compare["steps"][0]["with"] == {"fetch-depth": 0, "persist-credentials": False}
    assert not [step for step in comment["steps"] if "checkout" in step.get("uses", "")]


def test_the_workflows_commands_exist_and_its_actions_have_the_versions_of_ci():
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    for name in ("actions/checkout", "actions/setup-python"):
        (used,) = (step["uses"] for step in steps if step.get("uses", "").startswith(name))
        assert f"uses: {used}\n" in CI
    commands = "\n".join(step.get("run", "") for step in steps)
    assert "${{" not in commands, "a branch's name could be a command: expressions are in `env` only"
    for target in re.findall(r"^make (\S+)$", commands, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (script,) = re.findall(r"bash (\S+)", commands)
    assert (ROOT / "demo" / script).resolve() == SCRIPT
    assert subprocess.run(["bash", "-n", "-c", commands]).returncode == 0
