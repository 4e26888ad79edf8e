"""`python -m tools.compare` on real Git revisions and DVC experiments, with random predictions instead of trainings."""

import csv
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import finished_run
from helpers.browser import browser
from helpers.clone import Clone
from helpers.parameters import set_key
from helpers.stages import run_module
from PIL import Image
from scipy import stats

from stages.analysis import intervals, paired_difference
from stages.analysis.case_table import build_case_table
from stages.data.task import Task
from stages.report import cases
from stages.runtime import files

pytestmark = pytest.mark.slow

ODD = "=A text, \"quoted\", with\r\nlines, a | and 'marks'"
ROWS = 400
TASK = "outs/task.json"
RIGHT = {("HEAD", 1): 0.80, ("HEAD", 2): 0.82, ("HEAD", 3): 0.81,
         ("lora.r=8", 1): 0.92, ("lora.r=8", 2): 0.93, ("lora.r=8", 3): 0.94}  # fmt: skip


def answers(gold, right, seed):
    """Predictions that are right in a share of the rows."""
    rng = np.random.default_rng((seed, round(100 * right)))
    return np.where(rng.random(ROWS) < right, gold, (gold + rng.integers(1, 3, ROWS)) % 3)


class Runs:
    """A clone whose demo/ holds finished runs."""

    def __init__(self, top):
        self.clone = Clone(top)
        self.folder = self.clone.folder / "demo"
        finished_run.make(self.folder, rows=ROWS, text=ODD)
        for path in ("outs/splits/rows.txt", "outs/adapter/weights.txt"):
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text("not read")
        self.predictions = pd.read_parquet(self.folder / "outs/results/tuned/predictions.parquet")

    def finish(self, right, **params):
        """Write a finished run with these parameters, whose predictions are right in a share of the rows."""
        path = self.folder / "params.yaml"
        raw = yaml.safe_load(path.read_text())
        for key, value in params.items():
            set_key(raw, key.replace("__", "."), value)
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        self.write(self.predictions.assign(prediction=answers(self.predictions["label"], right, raw["seed"])))

    def write(self, table):
        """Write the tuned model's predictions and the cases.csv of `analyze`, and record them by `dvc commit`."""
        table.to_parquet(self.folder / "outs/results/tuned/predictions.parquet")
        splits = {
            split: pd.read_parquet(self.folder / f"outs/tokenized/{split}.parquet") for split in ("train", "test")
        }
        base, task = (
            pd.read_parquet(self.folder / "outs/results/base/predictions.parquet"),
            Task.read(self.folder / TASK),
        )
        rows = cases.to_spreadsheet(build_case_table(base, table, splits, task, ["majority_class"]), task)
        files.write_csv(self.folder / "metrics/cases.csv", rows, quoting=csv.QUOTE_NONNUMERIC)
        done = self.clone.dvc("commit", "--force")
        assert done.returncode == 0, done.stderr

    def save(self, name):
        """Save the workspace as an experiment."""
        done = self.clone.dvc("exp", "save", "--name", name)
        assert done.returncode == 0, done.stderr

    def compare(self, *arguments):
        return run_module("tools.compare", arguments, self.folder, self.clone.env)

    def tables(self, *arguments):
        """Run `compare` -> ({recipe: {column: cell}}, the printed text)."""
        done = self.compare(*arguments)
        assert done.returncode == 0, done.stderr
        recipes, head = {}, None
        for line in done.stdout.splitlines():
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")] if line.startswith("| ") else None
            if cells is None:
                head = None
            elif head is None:
                head = cells
            elif not cells[0].startswith("--"):
                recipes.setdefault(cells[0][2:], {}).update(zip(head, cells, strict=True))
        return recipes, done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """HEAD, and experiments of it: two more seeds, three of lora.r 8, one with rows in another order."""
    runs = Runs(tmp_path_factory.mktemp("compare"))
    runs.finish(RIGHT["HEAD", 1], seed=1)
    runs.clone.commit("the first run")
    for (recipe, seed), right in RIGHT.items():
        if (recipe, seed) != ("HEAD", 1):
            runs.finish(right, seed=seed, lora__r=8 if recipe == "lora.r=8" else 16)
            runs.save(f"{'r8' if recipe == 'lora.r=8' else 'r16'}-{seed}")
    return runs


def test_all_experiments_are_compared_with_head(runs):
    recipes, printed = runs.tables("--all")
    assert list(recipes) == ["HEAD", "lora.r=8"]
    assert recipes["HEAD"]["seeds"] == recipes["lora.r=8"]["seeds"] == "1, 2, 3"
    assert recipes["lora.r=8"]["verdict"] == "better"
    assert "(these seeds)" not in printed and "trainings with equal seeds" in printed
    gap, low, high = (
        float(end) for end in re.findall(r"[+−][\d.]+", recipes["lora.r=8"]["points of accuracy above A"])
    )
    assert 0 < low < gap < high
    assert all(len(line) <= 120 for line in printed.splitlines() if not line.startswith("Signature: "))
    assert "seeds:A=1,2,3;B=1,2,3" in printed and "rows:400" in printed and "confidence:0.95" in printed


def test_two_runs_are_compared_like_base_and_tuned(runs):
    recipes, printed = runs.tables("HEAD", "r8-3")
    gold = runs.predictions["label"].to_numpy()
    first, other = answers(gold, RIGHT["HEAD", 1], 1), answers(gold, RIGHT["lora.r=8", 3], 3)
    changed = paired_difference.find_changes(gold, other, first)
    fixed, broken = (changed == 1).sum(), (changed == -1).sum()
    assert recipes["lora.r=8"]["points of accuracy above A"].startswith(f"{changed.mean() * 100:+.1f} (")
    p = stats.binomtest(int(min(fixed, broken)), int(fixed + broken)).pvalue
    assert p < 0.001 and recipes["lora.r=8"]["p"] == "<0.001"
    assert recipes["lora.r=8"]["verdict"] == "better (these seeds)"
    low, high = intervals.wilson((first == gold).sum(), ROWS, 0.95)
    assert recipes["HEAD"]["accuracy"].endswith(f"({low * 100:.1f} to {high * 100:.1f}%)")
    assert "another seed could reverse it" in printed


def test_a_run_with_two_names_counts_once(runs):
    recipes, printed = runs.tables("r8-3", "workspace", "r16-2")  # the workspace still holds r8-3
    assert "workspace is the same run as r8-3. It is counted once." in printed
    assert list(recipes) == ["r8-3", "lora.r=16"] and recipes["r8-3"]["seeds"] == "3"


def test_without_dvcs_cache_the_cases_in_git_give_the_same_output(runs):
    _, before = runs.tables("HEAD", "r8-2", "r16-3")
    cache = runs.folder / ".dvc/cache/files/md5"
    cache.rename(cache.with_name("away"))
    try:
        _, after = runs.tables("HEAD", "r8-2", "r16-3")
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        cache.with_name("away").rename(cache)
    assert after == before


def test_the_option_confidence_sets_the_level(runs):
    _, printed = runs.tables("HEAD", "r8-2", "--confidence", "0.8")
    assert "80% confidence intervals" in printed and "confidence:0.8|" in printed
    assert runs.compare("HEAD", "--confidence", "1.5").returncode == 2


def test_a_file_that_cannot_be_written_is_named(runs, tmp_path):
    (tmp_path / "folder.html").mkdir()
    assert f"{tmp_path}/folder.html: cannot be written" in refused(runs, "HEAD", "--html", f"{tmp_path}/folder.html")


def refused(runs, *arguments):
    """The error line of a comparison that is rejected."""
    done = runs.compare(*arguments)
    assert done.returncode == 1 and not done.stdout, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_name_without_results_is_an_error_with_a_remedy(runs):
    assert "nowhere: neither a revision nor an experiment" in refused(runs, "HEAD", "nowhere")
    runs.clone.git("stash", "--quiet")
    runs.clone.git("checkout", "--quiet", "-b", "unfinished")
    runs.clone.git("rm", "--quiet", "demo/dvc.lock")
    runs.clone.git("commit", "--quiet", "--message", "no lock")
    line = refused(runs, "HEAD~1", "unfinished")
    runs.clone.git("checkout", "--quiet", "-")
    runs.clone.git("stash", "pop", "--quiet")
    assert "unfinished: it has no dvc.lock" in line and "dvc repro" in line


def test_results_of_other_parameters_are_rejected(runs):
    path = runs.folder / "params.yaml"
    text = path.read_text()
    path.write_text(re.sub(r"\n  r: 8\n", "\n  r: 4\n", text))
    try:
        line = refused(runs, "HEAD", "workspace")
    finally:
        path.write_text(text)
    assert "workspace: lora.r is 4 in params.yaml, but the results are those of 8; run `dvc repro`" in line


def test_cases_that_the_lock_does_not_name_are_rejected(runs):
    cache, table = runs.folder / ".dvc/cache/files/md5", runs.folder / "metrics/cases.csv"
    text = table.read_bytes()
    cache.rename(cache.with_name("away"))
    table.write_bytes(text.replace(b'"neutral"', b'"entailment"', 1))
    try:
        line = refused(runs, "HEAD", "workspace")
    finally:
        table.write_bytes(text)
        cache.with_name("away").rename(cache)
    assert "metrics/cases.csv is not the file that its dvc.lock names" in line


def test_a_run_with_other_code_is_another_recipe(runs):
    lock = runs.folder / "dvc.lock"
    text = lock.read_text()
    stages = yaml.safe_load(text)
    dep = next(d for d in stages["stages"]["train_qlora"]["deps"] if d["path"] == "stages/training")
    lock.write_text(text.replace(dep["md5"], "0" * 32 + ".dir"))
    try:
        _, printed = runs.tables("r8-3", "workspace")
    finally:
        lock.write_text(text)
    assert "B workspace also differs from A r8-3 in code (stages/training)." in printed


def test_the_comparison_can_be_written_as_a_page_and_a_picture(runs, tmp_path):
    page, picture = tmp_path / "page.html", tmp_path / "picture.png"
    runs.tables("--all", "--html", str(page), "--png", str(picture))
    with Image.open(picture) as image:
        assert image.width == 1000 and len(image.convert("RGB").getcolors(1 << 20)) > 8
    assert not re.search(r"""(?:src|href)="(?!#)|url\((?!#)|https?://(?!www\.w3\.org)""", page.read_text())
    with browser(400) as browser_page:
        browser_page.open(page)
        assert browser_page.run("return document.documentElement.scrollWidth") <= 400
        assert "lora.r=8" in browser_page.text("figure svg") and "better" in browser_page.text("main")
        assert browser_page.log() == []


def test_rows_in_another_order_are_rejected(runs):
    """This test must be the last one, because it changes the workspace."""
    order = np.arange(ROWS)
    order[[5, 9]] = 9, 5
    for name in ("outs/results/base/predictions", "outs/results/tuned/predictions", "outs/tokenized/test"):
        path = runs.folder / f"{name}.parquet"
        pd.read_parquet(path).iloc[order].reset_index(drop=True).to_parquet(path)
    runs.write(pd.read_parquet(runs.folder / "outs/results/tuned/predictions.parquet"))
    line = refused(runs, "HEAD", "workspace")
    assert "workspace: its test rows are not those of HEAD, but the same in another order" in line
    assert "the first difference is in row 5, counted from 0" in line
