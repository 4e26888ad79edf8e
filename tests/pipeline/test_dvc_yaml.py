"""dvc.yaml: its deps are the modules that a stage imports, its params the values that a stage reads."""

import ast
import json
import re

import pytest
import yaml
from helpers.project import COMMITTED, DEMO, ROOT

from stages.runtime.stage_table import GPU_STAGES
from stages.sources import fetch

DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = DVC_YAML["stages"]
PARAMS = yaml.safe_load((COMMITTED / "params.yaml").read_text())


def imported(path):
    """Files of the project that a file imports, itself and its package included, directly or by way of others."""
    found, open_ends = set(), [path]
    while open_ends:
        file = open_ends.pop()
        if file in found or not file.is_file():
            continue
        found.add(file)
        open_ends += [ROOT / folder / "__init__.py" for folder in file.relative_to(ROOT).parents if folder.name]
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            open_ends += [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("stages.")]
    return found


def leaves(value, name):
    """Dotted names of the leaves below `name`."""
    if not isinstance(value, dict):
        return {name}
    return {leaf for key, below in value.items() for leaf in leaves(below, f"{name}.{key}")}


def listed_leaves(stage):
    """Leaves of params.yaml that a stage depends on, groups opened."""
    found = set()
    for name in STAGES[stage].get("params", []):
        value = PARAMS
        for part in name.split("."):
            value = value[part]
        found |= leaves(value, name)
    return found


def test_the_two_pipelines_are_the_same_file():
    assert (DEMO / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()


def test_the_stages_are_these_six_and_each_says_what_it_does():
    assert list(STAGES) == ["download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"]
    assert all(stage["desc"] for stage in STAGES.values())


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_files_and_rooms_that_a_stage_imports(stage):
    """A file of a room stands for the whole room, so that a new file in it needs no entry."""
    code = {dep for dep in STAGES[stage]["deps"] if dep.startswith("stages/")}
    files = {path.relative_to(ROOT) for path in imported(ROOT / f"stages/{stage}.py")}
    assert code == {str(file if len(file.parts) == 2 else file.parent) for file in files}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_and_params_are_listed_once(stage):
    for kind in ("deps", "params"):
        listed = STAGES[stage].get(kind, [])
        assert len(listed) == len(set(listed))


def test_each_dep_on_data_is_the_out_of_an_earlier_stage():
    made = set()
    for stage in STAGES.values():
        data = {dep for dep in stage["deps"] if not dep.startswith(("${", "stages/"))}
        assert data <= made
        made |= {out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]}


def test_only_analyze_has_outs_outside_of_the_cache():
    """One such out switches DVC's run cache off for its stage, and going back to old parameters would train again."""
    options = {name: [out for out in stage["outs"] if isinstance(out, dict)] for name, stage in STAGES.items()}
    assert [name for name, outs in options.items() if any("cache" in next(iter(out.values())) for out in outs)] == [
        "analyze"
    ]


def test_the_outs_are_in_folders_that_nobody_else_uses():
    """DVC deletes an out before its stage runs: `data/raw`, say, may be where a user keeps the originals."""
    outs = [out if isinstance(out, str) else next(iter(out)) for stage in STAGES.values() for out in stage["outs"]]
    assert {out.split("/")[0] for out in outs} == set(fetch.OUTPUT_FOLDERS) == {"outs", "metrics"}


def test_every_parameter_belongs_to_some_stage():
    everywhere = set().union(*(listed_leaves(stage) for stage in STAGES))
    everywhere |= {name for stage in STAGES.values() for name in re.findall(r"\$\{(.+?)\}", stage["cmd"])}
    assert {leaf for key, value in PARAMS.items() for leaf in leaves(value, key)} == everywhere


def test_the_stages_that_the_launcher_starts_are_those_that_hold_a_gpu():
    assert tuple(name for name, stage in STAGES.items() if "${launcher}" in stage["cmd"]) == tuple(GPU_STAGES)


def test_metrics_and_plots_are_outs_of_analyze():
    outs = [next(iter(out)) for out in STAGES["analyze"]["outs"]]
    assert set(DVC_YAML["metrics"]) <= set(outs)
    files = [file for plot in DVC_YAML["plots"] for body in plot.values() for file in body["y"]]
    assert files
    assert all(any(file.startswith(out) for out in outs) for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_parameters_that_it_reads(repro, stage):
    read = repro.reads[stage]
    listed = listed_leaves(stage)
    assert read - listed == set(), "read, but not listed: DVC would not run the stage again"
    assert listed - read == set(), "listed, but not read: DVC would run the stage again for nothing"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_files_that_a_stage_opens(repro, stage):
    """Not by its imports alone: a template that is read and not listed could change and nothing would run again."""
    folder = (repro.clone.folder / "demo").resolve()
    paths = {(folder / path).resolve() for path in repro.reads[f"{stage}.files"]}
    opened = {path for path in paths if path.is_relative_to(folder.parent) and path.is_file()}
    opened = {path for path in opened if "__pycache__" not in path.parts}
    values = {"watch.model": "assets/nano-phi", "watch.data": "assets/everyday-nli"}
    listed = {re.sub(r"\$\{(.+?)\}", lambda name: values[name[1]], dep) for dep in STAGES[stage]["deps"]}
    listed |= {"params.yaml"}  # by its keys: the test above
    listed |= {next(iter(out)) if isinstance(out, dict) else out for out in STAGES[stage]["outs"]}
    if "outs/base_model.json" in listed:
        listed.add("assets/nano-phi")  # by their hashes in that file, compared at each load
    listed = {(folder / name).resolve() for name in listed}  # stages/ is a link
    assert folder.parent / f"stages/{stage}.py" in opened, "or this test sees nothing"
    assert {path for path in opened if not listed & {path, *path.parents}} == set()


@pytest.mark.slow
def test_each_metric_file_and_plotted_column_is_there(repro):
    folder = repro.clone.folder / "demo"
    for name in DVC_YAML["metrics"]:
        assert json.loads((folder / name).read_text()), name
    for plot in DVC_YAML["plots"]:
        for body in plot.values():
            for file, columns in body["y"].items():
                header = (folder / file).read_text().splitlines()[0].split(",")
                columns = [columns] if isinstance(columns, str) else columns
                assert {body["x"], *columns} <= set(header), file
