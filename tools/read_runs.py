"""Read finished runs from Git revisions, DVC experiments and the workspace, without checking anything out.

A run's predictions are in DVC's cache. If they are not, metrics/cases.csv has them, which Git stores.
"""

import csv
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import dvc.api
import pandas as pd
import yaml

from stages.data.labels import Labels, SingleLabel, kind_of
from stages.report.cases import FORMULA_STARTS, escape_formula
from stages.runtime import errors, files
from tools.git import run_git
from tools.lock_params import find_changes, flatten, lock_parameters

WORKSPACE = "workspace"
RESULTS, CASES, DETAILS = "outs/results/tuned", "metrics/cases.csv", "metrics/details.json"
INPUTS = ("outs/splits", "outs/base_model.json")  # written by `download`
# Starts of the parameters in which two runs of one recipe may differ. A digest only checks the files of `inputs`.
NOT_IN_RECIPE = ("seed", "analysis.", "model.digest", "data.digest")
OTHER_STAGES = ("eval_base", "analyze")  # the tuned model's predictions don't depend on them


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        name: as given on the command line.
        commit: short hash; empty for the workspace.
        params: {dotted key: value}.
        code, inputs: {path: hash} of the files that made the predictions, from dvc.lock.
        rows: columns row (its number in the split), text_…, gold and predicted (as in cases.csv); group, if it is
            known.
        classes: all class names in order, if they are known.
        has_texts: whether `rows` has the texts. Without them, all text_… are empty.
        kind: of the labels of these rows.
        alarms: sentences of its report.
    """

    name: str
    commit: str
    params: dict[str, Any]
    code: dict[str, str]
    inputs: dict[str, str]
    rows: pd.DataFrame
    classes: tuple[str, ...] | None
    has_texts: bool = True
    kind: type[Labels] = SingleLabel
    alarms: Sequence[str] = ()

    @property
    def recipe(self) -> dict[str, Any]:
        """The parameters that are the same in all runs of a recipe."""
        return {key: value for key, value in self.params.items() if not key.startswith(NOT_IN_RECIPE)}

    @property
    def text_columns(self) -> list[str]:
        return [column for column in self.rows if column.startswith("text_")]


def list_experiments() -> tuple[list[str], list[str]]:
    """Names of HEAD and its finished experiments, the oldest first; names of its unfinished experiments."""
    experiments = [row for row in dvc.api.exp_show() if row["typ"] != "baseline"]
    names = [(row["Experiment"] or row["rev"], row["State"] in (None, "Success")) for row in experiments]
    finished = [name for name, is_finished in names if is_finished]
    return ["HEAD", *reversed(finished)], [name for name, is_finished in names if not is_finished]


def find_cache() -> Path:
    """The folder of DVC's cache."""
    process = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    if process.returncode:
        raise errors.UserError(f"dvc cache dir: {process.stderr}")
    return Path(process.stdout.strip())


def read_run(name: str, cache: Path) -> Run:
    """Read the finished run of a revision, an experiment or the workspace.

    Args:
        cache: from `find_cache`.

    Raises:
        UserError: the run is not finished, or its results were made with other parameters than it has.
    """
    commit = "" if name == WORKSPACE else find_commit(name)

    def read_file(path: str) -> bytes | None:
        if commit:
            return git_output("show", f"{commit}:./{path}")
        return Path(path).read_bytes() if Path(path).is_file() else None

    parameters, lock = (parse_yaml(name, path, read_file(path)) for path in ("params.yaml", "dvc.lock"))
    stages = lock.get("stages", {})
    outs = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs", [])}
    check_finished(name, flatten(parameters), stages, outs)
    rows, classes, kind = read_cached_rows(cache, outs[RESULTS])
    has_texts = rows is not None or lock_parameters(stages.get("analyze", {})).get("analysis.texts", "all") == "all"
    if rows is None:
        table, details = (read_locked_file(name, path, read_file(path), outs) for path in (CASES, DETAILS))
        rows = read_cases(name, table, parameters, has_texts)
        kind = kind_of(json.loads(details).get("multi_label", False))
    deps = [dep for stage, entry in stages.items() if stage not in OTHER_STAGES for dep in entry.get("deps", [])]
    return Run(
        name,
        commit[:7],
        flatten(parameters),
        {dep["path"]: dep["md5"] for dep in deps if dep["path"].startswith("stages/")},
        {path: outs[path] for path in INPUTS},
        rows,
        classes,
        has_texts,
        kind,
        read_alarms(read_file(DETAILS), outs),
    )


def read_alarms(details: bytes | None, outs: dict[str, str | None]) -> list[str]:
    """The alarms of a run's report; none if this details.json is not that of its dvc.lock."""
    if details is None or hashlib.md5(details).hexdigest() != outs.get(DETAILS):
        return []
    return json.loads(details).get("alarms", [])


def read_locked_file(name: str, path: str, content: bytes | None, outs: dict[str, str | None]) -> bytes:
    """The content of a file in Git, if it is the one of the run's dvc.lock.

    Args:
        name: of the run, for the error.
        outs: {path: hash} of all stages.
    """
    if content is None or hashlib.md5(content).hexdigest() != outs.get(path):
        raise errors.UserError(
            f"{name}: {RESULTS} is not in DVC's cache, and {path} is not the file that its dvc.lock names; "
            + ("run `dvc repro`" if name == WORKSPACE else "fetch the results by `dvc pull` or `dvc exp pull`")
        )
    return content


def find_commit(name: str) -> str:
    """The commit of a revision or of an experiment. DVC stores experiments below refs/exps in Git."""
    revision = git_output("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if revision:
        return revision.decode().strip()
    listing = git_output("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or b""
    refs = [line.split() for line in listing.decode().splitlines()]
    commits = {commit for commit, ref in refs if ref.rpartition("/")[2] == name}
    if len(commits) != 1:
        problem = (
            "the name of several experiments; give a commit's hash"
            if commits
            else "neither a revision nor an experiment"
        )
        raise errors.UserError(f"{name}: {problem}. `git log --oneline` and `dvc exp list -A` list them")
    return commits.pop()


def git_output(*arguments: str) -> bytes | None:
    """What a Git command printed, or None if it failed."""
    process = run_git(*arguments)
    return process.stdout if process.returncode == 0 else None


def parse_yaml(name: str, path: str, text: bytes | None) -> dict[str, Any]:
    """Parse a YAML file of a run.

    Args:
        name: of the run, for the error.
    """
    if text is None:
        raise errors.UserError(f"{name}: it has no {path} in this folder; {suggest_fix(name)}")
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise errors.UserError(f"{name}: {path}: not valid YAML ({error})") from error
    if not isinstance(values, dict):
        raise errors.UserError(f"{name}: {path}: must hold keys and values, not {type(values).__name__}")
    return values


def suggest_fix(name: str) -> str:
    """What to do if a run has no usable results."""
    if name == WORKSPACE:
        return "run `dvc repro`"
    return f"check it out or `dvc exp apply {quote(name)}`, run `dvc repro`, then commit it or compare the workspace"


def check_finished(name: str, parameters: dict[str, Any], stages: dict[str, dict], outs: dict[str, str | None]) -> None:
    """Reject a run without results, or with results of other parameters than those in its params.yaml.

    Args:
        parameters: from `flatten`.
        stages: of dvc.lock.
        outs: {path: hash} of all stages.
    """
    missing = [path for path in (RESULTS, *INPUTS) if not outs.get(path)]
    if missing:
        raise errors.UserError(f"{name}: no results: its dvc.lock lacks {', '.join(missing)}; {suggest_fix(name)}")
    for stage, entry in stages.items():
        if stage in OTHER_STAGES:
            continue
        for key, value in find_changes(parameters, entry).items():
            current = parameters.get(key, "missing")
            raise errors.UserError(
                f"{name}: {key} is {current} in params.yaml, but the results are those of {value}; " + suggest_fix(name)
            )


def read_cached_rows(cache: Path, md5: str) -> tuple[pd.DataFrame | None, tuple[str, ...] | None, type[Labels]]:
    """Rows, classes and kind of labels of a run's predictions from DVC's cache.

    Without these predictions in the cache, rows and classes are None, and the kind is unknown.

    Args:
        md5: of the folder `RESULTS`, from dvc.lock.
    """

    def cached_path(digest: str) -> Path:
        return cache / "files/md5" / digest[:2] / digest[2:]

    if not cached_path(md5).is_file():
        return None, None, SingleLabel
    digests = {file["relpath"]: file["md5"] for file in json.loads(cached_path(md5).read_text())}
    path = cached_path(digests["predictions.parquet"])
    if not path.is_file():
        return None, None, SingleLabel
    table = files.read_table(path)
    kind = kind_of(not pd.api.types.is_integer_dtype(table["label"]))
    classes = tuple(column.removeprefix("p_") for column in table if column.startswith("p_"))
    text_columns = [column for column in table if column.startswith("text_")]
    labels = kind(classes)
    codes = labels.from_lists(table[["label", "prediction"]])
    rows = table[["row", *text_columns, "group"]].assign(
        gold=labels.names(codes["label"]), predicted=labels.names(codes["prediction"])
    )
    # As in cases.csv, so that both files of a run have equal texts.
    for column in (*text_columns, "gold", "predicted"):
        rows[column] = [escape_formula(text) for text in rows[column]]
    return rows, tuple(map(escape_formula, classes)), kind


def split_labels(text: str, kind: type[Labels]) -> list[str]:
    """The labels of a row of `Run.rows`, escaped as in `Run.classes`."""
    whole = text[1:] if text.startswith("'") and text[1:].startswith(FORMULA_STARTS) else text  # see `escape_formula`
    return [escape_formula(name) for name in kind.split(whole)]


def read_cases(name: str, table: bytes, parameters: dict[str, Any], has_texts: bool) -> pd.DataFrame:
    """Rows of a run from its cases.csv. The file has no groups: rows of a group are found by the text that they share.

    With `analysis.texts: errors` or `none`, it has no groups at all, and all texts are left out.

    Args:
        name: of the run, for the error.
        table: content of the file.
        parameters: of the run, nested.
        has_texts: whether the file has the texts of all rows.
    """
    with io.StringIO(table.decode("utf-8"), newline="") as file:
        header, *lines = csv.reader(file)
    cases = pd.DataFrame(lines, columns=header)
    text_columns = [column for column in cases if column.startswith("text_")]
    if not text_columns or not {"row", "gold", "tuned"} <= set(cases):
        raise errors.UserError(f"{name}: {CASES} was written by another version of this project; {suggest_fix(name)}")
    rows = cases[["row", *text_columns, "gold", "tuned"]].rename(columns={"tuned": "predicted"}).astype({"row": int})
    if not has_texts:
        return rows.assign(**dict.fromkeys(text_columns, ""))
    group = parameters.get("data", {}).get("group")
    shared = [f"text_{group}"] if group else text_columns
    return rows.assign(group=cases.groupby(shared).ngroup()) if set(shared) <= set(text_columns) else rows
