"""The pipeline's own adapter, asked by the README's command and for its test rows."""

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


def test_the_readmes_example_is_answered_as_it_says(repro):
    """The README's own command lines, in the folder that they name; the answer it prints below them."""
    block = re.search(r"```\n((?:\$ .*\n)+)(.*\n(?: +[\d.]+% \w+\n)+)```", README)
    commands = re.findall(r"^\$ (.*)$", block[1], re.MULTILINE)
    assert commands[0] == ". .venv/bin/activate && cd demo"  # stage_env's PATH has the packages
    done = subprocess.run(
        ["bash", "-ec", "\n".join(["cd demo", *commands[1:]])], cwd=repro.clone.folder, env=stage_env(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    label, *shares = done.stdout.splitlines()
    shown_label, *shown_shares = block[2].splitlines()
    assert label == shown_label
    for line, shown in zip(shares, shown_shares, strict=True):
        (share, name), (shown_share, shown_name) = line.split(), shown.split()
        assert name == shown_name
        assert float(share.rstrip("%")) == pytest.approx(float(shown_share.rstrip("%")), abs=1)
    premise, hypothesis = re.findall(r'"(.*?)"', commands[-1])
    rows = pd.read_parquet(repro.clone.folder / "demo/outs/results/tuned/predictions.parquet")
    row = rows[(rows["text_premise"] == premise) & (rows["text_hypothesis"] == hypothesis)]
    assert [CLASSES[gold] for gold in row["label"]] == [label], "one of its test rows, answered rightly"


def test_answers_what_eval_lora_wrote(repro):
    """The pipeline's own adapter, asked for its first test rows."""
    folder = repro.clone.folder / "demo"
    rows = pd.read_parquet(folder / "outs/results/tuned/predictions.parquet").head(100)
    lines = "".join(
        json.dumps({"premise": r.text_premise, "hypothesis": r.text_hypothesis}) + "\n" for r in rows.itertuples()
    )
    done = run_module("tools.predict", [], folder, repro.clone.env, stdin=lines)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["prediction"] for answer in answers] == [CLASSES[label] for label in rows["prediction"]]
    ours = np.array([list(answer["probabilities"].values()) for answer in answers])
    assert ours == pytest.approx(rows[[f"p_{name}" for name in CLASSES]].to_numpy(), abs=1e-3)
