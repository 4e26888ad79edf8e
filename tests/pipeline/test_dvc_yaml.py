"""dvc.yaml lists as deps the modules that a stage imports, and as params the values that it reads."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from helpers.project import COMMITTED, DEMO, ROOT

from stages.runtime.params import NO_EFFECT_ON_RESULTS
from stages.runtime.stage_table import GPU_STAGES
from stages.sources import fetch

DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = DVC_YAML["stages"]
PARAMS = yaml.safe_load((COMMITTED / "params.yaml").read_text())


def imported_files(path):
    """The project's files that a file imports, directly or indirectly, with the file and its packages."""
    files, queue = set(), [path]
    while queue:
        file = queue.pop()
        if file in files or not file.is_file():
            continue
        files.add(file)
        queue += [ROOT / folder / "__init__.py" for folder in file.relative_to(ROOT).parents if folder.name]
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            queue += [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("stages.")]
    return files


def leaves(value, name):
    """Dotted names of all leaves of `value`, whose own name is `name`."""
    if not isinstance(value, dict):
        return {name}
    return {leaf for key, child in value.items() for leaf in leaves(child, f"{name}.{key}")}


def listed_leaves(stage):
    """Dotted names of all leaves of params.yaml that a stage lists, by themselves or by their group."""
    listed = set()
    for name in STAGES[stage].get("params", []):
        value = PARAMS
        for part in name.split("."):
            value = value[part]
        listed |= leaves(value, name)
    return listed


def test_the_two_pipelines_are_the_same_file():
    assert (DEMO / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()


def test_plots_are_called_what_they_are_with_several_labels_a_row_too():
    """Such a row counts in several cells of `confusion`, and its answer is no class."""
    plots = [values for plot in DVC_YAML["plots"] for values in plot.values()]
    texts = " ".join(text for plot in plots for key, text in plot.items() if key in ("title", "x_label", "y_label"))
    assert not re.search("confusion matrix|of the predicted class", texts)


def test_there_are_six_stages_and_each_has_a_description():
    assert list(STAGES) == ["download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"]
    assert all(stage["desc"] for stage in STAGES.values())


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_files_and_packages_that_a_stage_imports(stage):
    """A stage lists whole packages, so a new file in a package needs no entry."""
    code = {dep for dep in STAGES[stage]["deps"] if dep.startswith("stages/")}
    files = {path.relative_to(ROOT) for path in imported_files(ROOT / f"stages/{stage}.py")}
    assert code == {str(Path(*file.parts[:2])) for file in files}


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


def test_only_analyze_has_outs_that_are_not_cached():
    """One such out turns DVC's run cache off for its stage: a return to old parameters would then train again."""
    options = {name: [out for out in stage["outs"] if isinstance(out, dict)] for name, stage in STAGES.items()}
    assert [name for name, outs in options.items() if any("cache" in next(iter(out.values())) for out in outs)] == [
        "analyze"
    ]


def test_the_outs_are_in_folders_that_hold_nothing_else():
    """DVC deletes an out before its stage runs, so an out must not be a folder where users may keep files."""
    outs = [out if isinstance(out, str) else next(iter(out)) for stage in STAGES.values() for out in stage["outs"]]
    assert {out.split("/")[0] for out in outs} == set(fetch.OUTPUT_FOLDERS) == {"outs", "metrics"}


def test_every_parameter_is_used_by_a_stage():
    listed = set().union(*(listed_leaves(stage) for stage in STAGES))
    listed |= {name for stage in STAGES.values() for name in re.findall(r"\$\{(.+?)\}", stage["cmd"])}
    unlisted = {f"train.{key}" for key in NO_EFFECT_ON_RESULTS}
    assert {leaf for key, value in PARAMS.items() for leaf in leaves(value, key)} - unlisted == listed


def test_the_launcher_starts_exactly_the_stages_that_use_a_gpu():
    assert tuple(name for name, stage in STAGES.items() if "${launcher}" in stage["cmd"]) == tuple(GPU_STAGES)


def test_metrics_and_plots_are_outs_of_analyze():
    outs = [next(iter(out)) for out in STAGES["analyze"]["outs"]]
    assert set(DVC_YAML["metrics"]) <= set(outs)
    files = [file for plot in DVC_YAML["plots"] for body in plot.values() for file in body["y"]]
    assert files
    assert all(any(file.startswith(out) for out in outs) for file in files)


# Keys that a stage reads only for the hub, for csv files, or if rows are held out. The demo has folders with parquet
# files, and a file for each split.
UNREAD_IN_DEMO = {
    "download": {"model.name", "model.revision", "data.name", "data.revision", "data.read.names"},
    "analyze": {"data.holdout.columns", "data.holdout.seed"},
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_parameters_that_it_reads(short_run, stage):
    read = short_run.reads[stage] - {f"train.{key}" for key in NO_EFFECT_ON_RESULTS}
    listed = listed_leaves(stage)
    assert read - listed == set(), "read, but not listed: after a change DVC would not run the stage again"
    assert listed - read == UNREAD_IN_DEMO.get(stage, set()), (
        "listed, but not read: after a change DVC would run the stage again without need"
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_files_that_a_stage_opens(short_run, stage):
    """A stage reads files that it does not import, such as templates: they have to be listed too."""
    folder = (short_run.clone.folder / "demo").resolve()
    paths = {(folder / path).resolve() for path in short_run.reads[f"{stage}.files"]}
    opened = {path for path in paths if path.is_relative_to(folder.parent) and path.is_file()}
    opened = {path for path in opened if "__pycache__" not in path.parts}
    values = {"model.folder": "assets/nano-phi", "data.folder": "assets/everyday-nli"}
    listed = {re.sub(r"\$\{(.+?)\}", lambda name: values[name[1]], dep) for dep in STAGES[stage]["deps"]}
    listed |= {"params.yaml"}  # the test above checks its keys
    listed |= {next(iter(out)) if isinstance(out, dict) else out for out in STAGES[stage]["outs"]}
    if "outs/base_model.json" in listed:
        listed.add("assets/nano-phi")  # that file has their hashes, which each load compares
    listed = {(folder / name).resolve() for name in listed}  # stages/ is a link
    assert folder.parent / f"stages/{stage}.py" in opened, "else this test checks nothing"
    assert {path for path in opened if not listed & {path, *path.parents}} == set()


def test_the_committed_tables_have_the_plotted_columns():
    """Before the first run, the root's tables have only headings."""
    assert_plotted_columns_exist(COMMITTED)
    assert_plotted_columns_exist(COMMITTED / "demo")


@pytest.mark.slow
def test_each_metric_file_and_plotted_column_exists(repro):
    folder = repro.clone.folder / "demo"
    for name in DVC_YAML["metrics"]:
        assert json.loads((folder / name).read_text()), name
    assert_plotted_columns_exist(folder)


def assert_plotted_columns_exist(folder):
    for plot in DVC_YAML["plots"]:
        for body in plot.values():
            for file, columns in body["y"].items():
                header = (folder / file).read_text().splitlines()[0].split(",")
                columns = [columns] if isinstance(columns, str) else columns
                assert {body["x"], *columns} <= set(header), file
