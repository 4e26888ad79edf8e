"""`tools.predict` with the demo pipeline's adapter: the README's example, and the test rows."""

import json
import re
import subprocess

import numpy as np
import pandas as pd
import pytest
from helpers.project import ROOT
from helpers.stages import run_module, stage_env
from helpers.tables import CLASSES

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()


def test_the_readmes_commands_print_the_answer_in_the_readme(repro):
    """The commands run in the folder that they name."""
    block = re.search(r"```\n((?:\$ .*\n)+)(.*\n(?: +[\d.]+% \w+\n)+)```", README)
    commands = re.findall(r"^\$ (.*)$", block[1], re.MULTILINE)
    assert commands[0] == ". .venv/bin/activate && cd demo"  # stage_env's PATH has the packages
    done = subprocess.run(
        ["bash", "-ec", "\n".join(["cd demo", *commands[1:]])], cwd=repro.clone.folder, env=stage_env(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    label, *lines = done.stdout.splitlines()
    expected_label, *expected_lines = block[2].splitlines()
    assert label == expected_label
    for line, expected in zip(lines, expected_lines, strict=True):
        (percentage, name), (expected_percentage, expected_name) = line.split(), expected.split()
        assert name == expected_name
        assert float(percentage.rstrip("%")) == pytest.approx(float(expected_percentage.rstrip("%")), abs=1)
    premise, hypothesis = re.findall(r'"(.*?)"', commands[-1])
    rows = pd.read_parquet(repro.clone.folder / "demo/outs/results/tuned/predictions.parquet")
    row = rows[(rows["text_premise"] == premise) & (rows["text_hypothesis"] == hypothesis)]
    assert [CLASSES[gold] for gold in row["label"]] == [label], (
        "the example is not a test row, or its gold label differs"
    )


def test_it_predicts_test_rows_as_eval_lora_does(repro):
    folder = repro.clone.folder / "demo"
    rows = pd.read_parquet(folder / "outs/results/tuned/predictions.parquet").head(100)
    lines = "".join(
        json.dumps({"premise": r.text_premise, "hypothesis": r.text_hypothesis}) + "\n" for r in rows.itertuples()
    )
    done = run_module("tools.predict", [], folder, repro.clone.env, stdin=lines)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["prediction"] for answer in answers] == [CLASSES[label] for label in rows["prediction"]]
    probabilities = np.array([list(answer["probabilities"].values()) for answer in answers])
    assert probabilities == pytest.approx(rows[[f"p_{name}" for name in CLASSES]].to_numpy(), abs=1e-3)
