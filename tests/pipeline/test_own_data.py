"""Other data sets in the whole pipeline: the examples of docs/own-data.md, and the same rows in two file formats."""

import contextlib
import json
import re
import sys
from unittest import mock

import datasets
import pandas as pd
import pytest
import yaml
from helpers.clone import Clone
from helpers.parameters import unpinned_params, use
from helpers.project import NANO, ROOT
from helpers.stages import run_stage_in_each

from tools.init import __main__ as init

pytestmark = pytest.mark.slow

DOCUMENT = (ROOT / "docs/own-data.md").read_text()
NAMES = ("score", "metric", "verdict", "reference", "reference_score")  # the groups of HEADLINE; scores in percent
HEADLINE = (
    r"\*\*([\d.]+)%\*\* ([\w ]+?) of the tuned model \([^\n]+\)\.\s+"
    r"\*\*([\w ]+):\*\* [^\n]+? the best reference, ([^\n]+?) \(([\d.]+)%\)\."
)
# [(arguments of tools.init, more changes as "KEY=VALUE …", *NAMES)]
EXAMPLES = re.findall(
    rf"^\$ python -m tools\.init (assets/\S+)\n(?:\$ dvc repro|\$ dvc exp run -S (\S+))\n{HEADLINE}",
    DOCUMENT,
    re.MULTILINE,
)
STAGES = ["download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"]


def initialize(clone, folder):
    """Run `tools.init` in demo/, on the committed params.yaml."""
    clone.git("checkout", "--", "demo/params.yaml")
    with contextlib.chdir(clone.folder / "demo"), mock.patch.object(sys, "argv", ["init", folder]):
        init.main()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return Clone(tmp_path_factory.mktemp("own"), figures=False)


def test_the_document_has_three_examples():
    assert len(EXAMPLES) == 3


# The first is not run, to save 40 s: its rows are like those of the demo, which other tests run.
@pytest.mark.parametrize(("folder", "change", *NAMES), EXAMPLES[1:], ids=[e[0] for e in EXAMPLES[1:]])
def test_an_example_ends_with_the_verdict_in_the_document(
    clone, capsys, folder, change, score, metric, verdict, reference, reference_score
):
    initialize(clone, folder)
    found = capsys.readouterr().out.partition("\n\n")[0]  # before the keys
    assert folder != "assets/everyday-moods" or f"tools.init {folder}\n{found}\n…\n" in DOCUMENT
    done = clone.dvc("exp", "run", "-S", change) if change else clone.dvc("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.ran == STAGES

    demo = clone.folder / "demo"
    report = (demo / "metrics/report.md").read_text()
    task = json.loads((demo / "outs/task.json").read_text())
    line = re.search(r"^- classes: `(\d+): (.+?)(, …)?`$", report, re.MULTILINE)
    assert int(line[1]) == len(task["classes"])
    assert ", ".join(task["classes"]).startswith(line[2]) and (line[3] or line[2].endswith(task["classes"][-1]))

    comparison = clone.metrics()["details"]["comparison"]
    summary = clone.metrics()["summary"]
    assert summary["accuracy"] > comparison["references"]["majority_class"]["accuracy"] + 0.1
    headline = dict(zip(NAMES, re.search(HEADLINE, report).groups(), strict=True))
    expected = {"metric": metric, "verdict": verdict, "reference": reference}
    assert {name: headline[name] for name in expected} == expected
    # Another processor may compute other last digits, and so predict another class for a row or two.
    assert float(headline["score"]) == pytest.approx(float(score), abs=3)
    assert float(headline["reference_score"]) == pytest.approx(float(reference_score), abs=3)


def test_the_same_rows_in_csv_and_as_classlabel_in_parquet_have_the_same_predictions(tmp_path):
    """Predictions of text labels and of codes are equal, though the codes have another order than the classes."""
    rows = pd.read_csv(ROOT / "demo/assets/everyday-moods/moods.csv")
    parts = {"train": rows[:96], "validation": rows[96:126], "test": rows[126:186]}
    features = datasets.Features(
        {"text": datasets.Value("string"), "sentiment": datasets.ClassLabel(names=["positive", "negative"])}
    )
    for kind in ("csv", "parquet"):
        folder = tmp_path / kind
        (folder / "own").mkdir(parents=True)
        for split, part in parts.items():
            if kind == "csv":
                part.to_csv(folder / f"own/{split}.csv", index=False)
            else:
                data = datasets.Dataset.from_dict(part.to_dict("list"), features=features)
                data.to_parquet(folder / f"own/{split}.parquet")
        raw = unpinned_params()
        use(raw, "model", str(NANO))
        use(raw, "data", "./own")
        raw["data"] |= {"label": "sentiment", "group": None, "classes": ["negative", "positive"]}
        raw["tokenize"]["template"], raw["train"]["epochs"] = "{text}\nMood:", 1
        (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    done = run_stage_in_each(",".join(STAGES[:-1]), [tmp_path / "csv", tmp_path / "parquet"])
    assert {kind: outcome.returncode for kind, outcome in done.items()} == {"csv": 0, "parquet": 0}
    for name in ("results/base/predictions.parquet", "adapter/adapter_model.safetensors"):
        csv, parquet = ((tmp_path / kind / "outs" / name).read_bytes() for kind in done)
        assert csv == parquet
    tuned = {kind: pd.read_parquet(tmp_path / kind / "outs/results/tuned/predictions.parquet") for kind in done}
    places = ["file", "file_row"]  # the only difference: a csv file has a header
    pd.testing.assert_frame_equal(*(table.drop(columns=places) for table in tuned.values()), check_exact=True)
    assert (tuned["csv"]["file_row"] == tuned["parquet"]["file_row"] + 1).all()
