"""From somebody's file to a report in two commands, `python -m tools.init FILE` and `dvc repro`, for ten kinds of file.

One file goes through `dvc repro`. The others go through the stages without DVC, which saves time: four through all
six, the rest through the two that read the file. What these two write for the rest differs in nothing that a later
stage reads from what they write for the demo and for the other files.
"""

import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from helpers.clone import Clone
from helpers.own_files import MAKERS, SPLIT_VALUES
from helpers.parameters import unpinned_params, use
from helpers.project import NANO, ROOT
from helpers.stages import run_module, run_stage_in_each, stage_env

from stages.data.task import parse_columns

pytestmark = pytest.mark.slow

STAGES = ["download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"]
WITH_DVC = ["semicolons, cp1252 and '"]
WITHOUT_DVC = ["77 classes", "87 to 13", "Chinese", "leading zeros"]  # through all stages
FILES = pytest.mark.parametrize("kind", list(MAKERS))


def make_params():
    """The demo's parameters, with little training and the references that cost nothing."""
    raw = unpinned_params()
    raw["train"] |= {"epochs": 1, "batch_size": 64}
    raw["lora"] |= {"target_modules": ["q_proj", "v_proj"], "dropout": 0.0}  # half of the time
    raw["model"]["quantization"] = "none"
    raw["analysis"]["references"] = ["majority_class", "bag_of_words"]
    return raw


def run_with_dvc(clone, kind):
    """Run the two commands in demo/ of a clone, with a file outside of it -> the outcome."""
    demo, file = clone.folder / "demo", MAKERS[kind]()
    path = file.write(clone.folder.parent)
    init = run_module("tools.init", [path], demo, clone.env)
    outcome = SimpleNamespace(file=file, init=init, ran=[], folder=clone.folder.parent / kind, stages=init)
    if init.returncode == 0:
        outcome.stages = clone.dvc("repro")
        outcome.ran = outcome.stages.ran
        clone.commit(kind)
    for name in ("params.yaml", "outs", "metrics"):  # the next file replaces them
        if (demo / name).is_dir():
            shutil.copytree(demo / name, outcome.folder / name)
        elif (demo / name).exists():
            outcome.folder.mkdir(exist_ok=True)
            shutil.copy(demo / name, outcome.folder)
    return outcome


def run_without_dvc(top, kinds):
    """Run `tools.init` and the six stages in a folder for each file, which is in that folder -> {kind: outcome}."""
    top.mkdir()
    env = stage_env()
    subprocess.run(["git", "init", "--quiet"], cwd=top, check=True)
    raw, outcomes = make_params(), {}
    use(raw, "model", str(NANO))
    for kind in kinds:
        folder, file = top / kind.replace(" ", "_"), MAKERS[kind]()
        folder.mkdir()
        (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        shutil.copy(ROOT / "dvc.yaml", folder)
        outcomes[kind] = SimpleNamespace(file=file, folder=folder, path=file.write(folder))
    subprocess.run(["git", "add", "--all"], cwd=top, check=True)
    author = ["-c", "user.name=test", "-c", "user.email=test"]
    subprocess.run(["git", *author, "commit", "--quiet", "--message", "files"], cwd=top, check=True)
    for outcome in outcomes.values():
        outcome.init = run_module("tools.init", [outcome.path.name], outcome.folder, env)
    for stages, some in ((STAGES, WITHOUT_DVC), (STAGES[:2], [kind for kind in kinds if kind not in WITHOUT_DVC])):
        ready = [outcomes[kind].folder for kind in some if outcomes[kind].init.returncode == 0]
        done = run_stage_in_each(",".join(stages), ready, BLANK_FIGURES="1")
        for kind in some:
            outcomes[kind].stages, outcomes[kind].ran = done.get(outcomes[kind].folder.name), stages
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{kind of file: outcome with file, init, stages, ran and the folder with params.yaml, outs and metrics}."""
    top = tmp_path_factory.mktemp("init")
    clone = Clone(top, figures=False)
    (clone.folder / "demo/params.yaml").write_text(yaml.safe_dump(make_params(), sort_keys=False))
    clone.commit("little training")
    with_dvc = {kind: run_with_dvc(clone, kind) for kind in WITH_DVC}
    return with_dvc | run_without_dvc(top / "without_dvc", [kind for kind in MAKERS if kind not in WITH_DVC])


@pytest.fixture
def finished(outcomes, kind):
    """The outcome of a file for which both commands ended well."""
    outcome = outcomes[kind]
    for command in (outcome.init, outcome.stages):
        code, printed = command.returncode, command.stdout + command.stderr
        assert code == 0, printed
    return outcome


def read_params(outcome):
    return yaml.safe_load((outcome.folder / "params.yaml").read_text())


def read_splits(outcome):
    """{split: the file's rows that are in it}, found by their texts, with the column `predicted_from` for the label."""
    classes = json.loads((outcome.folder / "outs/task.json").read_text())["classes"]
    columns = [f"text_{name}" for name in outcome.file.texts]
    rows = outcome.file.rows.set_index(list(outcome.file.texts), drop=False)
    splits = {}
    for split in ("train", "validation", "test"):
        tokenized = pd.read_parquet(outcome.folder / f"outs/tokenized/{split}.parquet")
        keys = tokenized[columns[0]] if len(columns) == 1 else pd.MultiIndex.from_frame(tokenized[columns])
        splits[split] = rows.loc[keys].assign(read_label=[classes[number] for number in tokenized["label"]])
    return splits


@pytest.mark.parametrize("kind", [*WITH_DVC, *WITHOUT_DVC])
def test_two_commands_end_with_a_headline_and_a_verdict(finished, kind):
    assert finished.ran == STAGES
    report = (finished.folder / "metrics/report.md").read_text()
    assert re.search(r"^\*\*[\d.]+%\*\* .+ of the tuned model", report, re.MULTILINE), report[:1000]
    assert re.search(r"^\*\*[\w ]+:\*\* .+ the best reference", report, re.MULTILINE), report[:1000]


@FILES
def test_label_classes_and_texts_are_the_file_s(finished, kind):
    file, raw = finished.file, read_params(finished)
    task = json.loads((finished.folder / "outs/task.json").read_text())
    assert raw["data"]["label"] == file.label
    assert tuple(task["classes"]) == file.classes
    assert parse_columns(raw["tokenize"]["template"]) == file.texts
    assert raw["data"]["group"] == task["group"] == file.group


@FILES
def test_the_dialect_is_in_params_yaml(finished, kind):
    file, read = finished.file, read_params(finished)["data"]["read"]
    assert {key: read[key] for key in file.dialect} == file.dialect
    assert read["names"] == (None if file.has_header else list(file.rows.columns))


@FILES
def test_each_row_is_in_one_split_with_its_own_label(finished, kind):
    splits = read_splits(finished)
    rows = pd.concat(splits.values())
    assert len(rows) == len(finished.file.rows)
    assert not rows.index.duplicated().any()
    assert (rows["read_label"] == rows[finished.file.label]).all()


@FILES
def test_each_split_is_as_large_as_it_should_be_and_has_the_classes(finished, kind):
    """Each class has 10% of its rows in each of the two held-out splits, rounded: 1 of 5, and 1 of 14."""
    file, splits = finished.file, read_splits(finished)
    if file.split:
        for split, value in SPLIT_VALUES.items():
            assert set(splits[split][file.split]) == {value}
        return
    for split in ("validation", "test"):
        shares = (file.rows[file.label].value_counts() / 10 + 0.5).astype(int)
        assert splits[split][file.label].value_counts().to_dict() == pytest.approx(
            shares.to_dict(), abs=3 if file.group else 0
        )
    assert set(splits["train"][file.label]) == set(file.classes)
    if file.group:
        groups = [set(rows[file.group]) for rows in splits.values()]
        assert sum(map(len, groups)) == file.rows[file.group].nunique()
