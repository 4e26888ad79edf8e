"""Is one run better than another, or only luckier? `dvc metrics diff` with a verdict.

    python -m tools.compare HEAD grand-cedi        the others with the first: revisions, experiments, workspace
    python -m tools.compare --all                  HEAD and all experiments of it
    python -m tools.compare --all --html page.html --png picture.png

Run it in a folder with a dvc.yaml. Runs that differ in `seed` alone are one setting: three or more of each tell most
(dvc exp run --queue -S 'lora.r=8,16' -S 'seed=1,2,3'). Nothing is checked out: what a run answered is read from DVC's
cache, else from the metrics/cases.csv that Git has. All runs must have the same test rows in the same order.
"""

import argparse
import csv
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.api
import numpy as np
import pandas as pd
import yaml

from stages.analysis.multi_seed.comparison import compare_recipes
from stages.analysis.multi_seed.scores import Recipe
from stages.report import comparison_page
from stages.report.cases import FORMULA_STARTS
from stages.report.render import shorten
from stages.report.wording import interval_cautions
from stages.runtime import errors, files
from tools.git import repository_problem, run_git

WORKSPACE = "workspace"
RESULTS, CASES = "outs/results/tuned", "metrics/cases.csv"
INPUTS = ("outs/splits", "outs/base_model.json")  # what `download` brought
NO_PART = ("seed", "analysis.", "watch.")  # parameters that make no other setting
SHOWN = 40  # characters of a text in an error


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        name: as it was asked for.
        commit: short hash; empty for the workspace.
        params: {dotted key: value}.
        code, inputs: {path: hash} of what made the predictions, from dvc.lock.
        rows: columns text_…, gold, predicted (classes by name), all text; and group, where it is known.
        classes: their names in order, where they are known.
    """

    name: str
    commit: str
    params: dict[str, Any]
    code: dict[str, str]
    inputs: dict[str, str]
    rows: pd.DataFrame
    classes: tuple[str, ...] | None

    @property
    def setting(self) -> dict[str, Any]:
        """The parameters that tell settings apart."""
        return {key: value for key, value in self.params.items() if not key.startswith(NO_PART)}

    @property
    def texts(self) -> list[str]:
        """Names of the columns of texts."""
        return [column for column in self.rows if column.startswith("text_")]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("revisions", nargs="*", metavar="REV", help="revision, experiment or workspace")
    parser.add_argument("--all", action="store_true", help="HEAD and every finished experiment of it")
    parser.add_argument("--confidence", type=float, help="of intervals and verdicts; default: the first run's")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with a picture")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write the picture")
    arguments = parser.parse_args()
    if arguments.all == bool(arguments.revisions):
        parser.error("name revisions, or give --all")
    if arguments.confidence is not None and not 0.5 < arguments.confidence < 1:
        parser.error("--confidence must lie between 0.5 and 1")
    if not Path("dvc.yaml").is_file():
        raise errors.UserError("dvc.yaml: there is none in this folder; run this where the pipeline is")
    if problem := repository_problem():
        raise errors.UserError(problem)

    cache = cache_folder()
    wanted, notes = experiments() if arguments.all else (list(dict.fromkeys(arguments.revisions)), [])
    runs = [read_run(name, cache) for name in wanted]
    compared = compare(runs, arguments.confidence, notes)
    # What a file holds is made before anything is printed or written, so that a mistake leaves nothing.
    picture = comparison_page.picture(compared) if arguments.html or arguments.png else None
    page = comparison_page.html(compared, picture[1]).encode() if arguments.html else None
    for path, content in ((arguments.html, page), (arguments.png, picture and picture[0])):
        if path:
            write(path, content)
    sys.stdout.reconfigure(encoding="utf-8")
    print(comparison_page.markdown(compared), end="")


def write(path: Path, content: bytes) -> None:
    """Write a file that was asked for."""
    try:
        with files.atomic_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise errors.UserError(f"{path}: can't be written ({error.strerror})") from error


def experiments() -> tuple[list[str], list[str]]:
    """HEAD and its finished experiments, first the oldest; and a note on those that have not finished."""
    shown = [row for row in dvc.api.exp_show() if row["typ"] not in ("baseline",)]
    finished = [row["Experiment"] or row["rev"] for row in shown if row["State"] in (None, "Success")]
    left = [row["Experiment"] or row["rev"] for row in shown if row["State"] not in (None, "Success")]
    return ["HEAD", *reversed(finished)], [f"not finished, left out: {', '.join(left)}."] if left else []


def of_git(*arguments: str) -> bytes | None:
    """What a command of Git printed, or None if it failed."""
    done = run_git(*arguments)
    return done.stdout if done.returncode == 0 else None


def cache_folder() -> Path:
    """DVC's cache."""
    done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise errors.UserError(f"dvc cache dir: {done.stderr}")
    return Path(done.stdout.strip())


def commit_of(name: str) -> str:
    """The commit of a revision, or of an experiment by its name, which DVC keeps below refs/exps."""
    found = of_git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found:
        return found.decode().strip()
    listed = of_git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or b""
    refs = [line.split() for line in listed.decode().splitlines()]
    commits = {commit for commit, ref in refs if ref.rpartition("/")[2] == name}
    if len(commits) != 1:
        what = "names several experiments, give a commit's hash" if commits else "neither a revision nor an experiment"
        raise errors.UserError(f"{name}: {what}; `git log --oneline` and `dvc exp list -A` show what is there")
    return commits.pop()


def read_run(name: str, cache: Path) -> Run:
    """The finished run of a revision, without checking it out.

    Args:
        cache: DVC's cache.

    Raises:
        UserError: no finished run is there, or its results are not those of its parameters.
    """
    commit = "" if name == WORKSPACE else commit_of(name)

    def of_run(path):
        if commit:
            return of_git("show", f"{commit}:./{path}")
        return Path(path).read_bytes() if Path(path).is_file() else None

    parameters, lock = (of_yaml(name, path, of_run(path)) for path in ("params.yaml", "dvc.lock"))
    stages = lock.get("stages", {})
    outs = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs", [])}
    check_finished(name, flat(parameters), stages, outs)
    rows, classes = from_cache(cache, outs[RESULTS])
    if rows is None:
        table = of_run(CASES)
        if table is None or hashlib.md5(table).hexdigest() != outs.get(CASES):
            raise errors.UserError(
                f"{name}: its {RESULTS} is not in DVC's cache, and its {CASES} is not that of its dvc.lock; "
                + ("run `dvc repro`" if name == WORKSPACE else "fetch it by `dvc pull` or `dvc exp pull`")
            )
        rows = from_cases(name, table, parameters)
    deps = [dep for stage, entry in stages.items() if stage != "analyze" for dep in entry.get("deps", [])]
    return Run(
        name,
        commit[:7],
        flat(parameters),
        {dep["path"]: dep["md5"] for dep in deps if dep["path"].startswith("stages/")},
        {path: outs[path] for path in INPUTS},
        rows,
        classes,
    )


def of_yaml(name: str, path: str, text: bytes | None) -> dict[str, Any]:
    """A YAML file of a run."""
    if text is None:
        raise errors.UserError(f"{name}: it has no {path} in this folder; {remedy(name)}")
    try:
        read = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise errors.UserError(f"{name}: {path}: not valid YAML ({error})") from error
    if not isinstance(read, dict):
        raise errors.UserError(f"{name}: {path}: must hold keys, not {type(read).__name__}")
    return read


def remedy(name: str) -> str:
    """What to do about a run that has no results."""
    if name == WORKSPACE:
        return "run `dvc repro`"
    return f"check it out or `dvc exp apply {name}`, run `dvc repro`, and commit or name the workspace"


def check_finished(name: str, parameters: dict[str, Any], stages: dict[str, dict], outs: dict[str, str | None]) -> None:
    """Refuse a run whose lock lacks results, or whose results are of other parameters than those in its params.yaml.

    Args:
        parameters: from `flat`.
        stages: of dvc.lock.
        outs: {path: hash} of all stages.
    """
    missing = [path for path in (RESULTS, *INPUTS) if not outs.get(path)]
    if missing:
        raise errors.UserError(f"{name}: no results, its dvc.lock does not have {', '.join(missing)}; {remedy(name)}")
    for stage, entry in stages.items():
        if stage == "analyze":  # changes no answer
            continue
        for key, value in flat(entry.get("params", {}).get("params.yaml", {})).items():
            if key not in parameters or parameters[key] != value:
                there = parameters.get(key, "not there")
                raise errors.UserError(
                    f"{name}: {key} is {there} in params.yaml, but the results are of {value}; " + remedy(name)
                )


def flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested parameters; numbers that YAML takes for text, such as 2e-05, are numbers."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = number(value)
    return found


def number(value: Any) -> Any:
    """The number that a text is, or the value as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def from_cache(cache: Path, md5: str) -> tuple[pd.DataFrame | None, tuple[str, ...] | None]:
    """Rows and classes of a run's predictions, from the cache; (None, None) where they are not there.

    Args:
        md5: of the folder `RESULTS`, from dvc.lock.
    """

    def stored(digest):
        return cache / "files/md5" / digest[:2] / digest[2:]

    if not stored(md5).is_file():
        return None, None
    listed = {file["relpath"]: file["md5"] for file in json.loads(stored(md5).read_text())}
    path = stored(listed["predictions.parquet"])
    if not path.is_file():
        return None, None
    table = files.read_table(path)
    classes = tuple(column.removeprefix("p_") for column in table if column.startswith("p_"))
    texts = [column for column in table if column.startswith("text_")]
    rows = table[[*texts, "group"]].assign(
        gold=table["label"].map(dict(enumerate(classes))), predicted=table["prediction"].map(dict(enumerate(classes)))
    )
    for column in (*texts, "gold", "predicted"):  # as cases.csv has them
        rows[column] = [quoted(text) for text in rows[column]]
    return rows, tuple(map(quoted, classes))


def quoted(text: str) -> str:
    """A text as cases.csv has it."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def from_cases(name: str, table: bytes, parameters: dict[str, Any]) -> pd.DataFrame:
    """Rows of a run from its cases.csv, which names no group: rows of a group are found by the text that they share."""
    with io.StringIO(table.decode("utf-8"), newline="") as file:
        head, *lines = csv.reader(file)
    read = pd.DataFrame(lines, columns=head)
    texts = [column for column in read if column.startswith("text_")]
    if not texts or not {"gold", "tuned"} <= set(read):
        raise errors.UserError(f"{name}: its {CASES} was written by another version of this project; {remedy(name)}")
    rows = read[[*texts, "gold", "tuned"]].rename(columns={"tuned": "predicted"})
    group = parameters.get("data", {}).get("group")
    shared = [f"text_{group}"] if group else texts
    return rows.assign(group=read.groupby(shared).ngroup()) if set(shared) <= set(texts) else rows


def check_same_rows(first: Run, other: Run) -> None:
    """Refuse runs of other test rows, classes or columns: nothing can be said of their difference."""
    if first.texts != other.texts:
        raise errors.UserError(
            f"{other.name}: its texts are {', '.join(other.texts)}, not {', '.join(first.texts)} as in {first.name}"
        )
    if first.classes and other.classes and first.classes != other.classes:
        raise errors.UserError(
            f"{other.name}: its classes are {', '.join(other.classes)}, not {', '.join(first.classes)} "
            f"as in {first.name}"
        )
    columns = [*first.texts, "gold"]
    ours, theirs = first.rows[columns], other.rows[columns]
    count = min(len(ours), len(theirs))
    differing = np.flatnonzero((ours[:count].to_numpy() != theirs[:count].to_numpy()).any(axis=1))
    if len(ours) == len(theirs) and not len(differing):
        return
    same = len(ours) == len(theirs) and sorted(map(tuple, ours.to_numpy())) == sorted(map(tuple, theirs.to_numpy()))
    row = int(differing[0]) if len(differing) else count
    shown = [shorten(" / ".join(table.iloc[row]), SHOWN) if row < len(table) else "nothing" for table in (theirs, ours)]
    raise errors.UserError(
        f"{other.name}: its test rows are not those of {first.name}"
        + (", but in another order" if same else f" ({len(theirs):,} and {len(ours):,})")
        + f"; the first that differs is row {row}: {shown[0]!r}, not {shown[1]!r}. "
        "Only runs of the same test rows in the same order can be compared"
    )


def compare(runs: Sequence[Run], confidence: float | None, notes: Sequence[str]) -> comparison_page.Compared:
    """Settings, their scores and differences.

    Args:
        runs: one or more.
        confidence: None: that of the first run's parameters.
        notes: what a reader must know already.
    """
    first, notes = runs[0], list(notes)
    for run in runs[1:]:
        check_same_rows(first, run)
    group = next((run.rows["group"] for run in runs if "group" in run.rows), None)
    if group is None:
        raise errors.UserError(
            f"{first.name}: its rows share {first.params['data.group']!r}, which is neither in {CASES} nor in DVC's "
            "cache; fetch the predictions by `dvc pull` or `dvc exp pull`"
        )
    grouped, said = by_setting(runs)
    notes += said
    names = [name_of(place, members, grouped[0][0]) for place, members in enumerate(grouped)]
    lettered = [f"{comparison_page.mark(place)} {name}" for place, name in enumerate(names)]
    notes += [
        f"{name} differs from {lettered[0]} in {found} too."
        for name, members in zip(lettered, grouped, strict=True)
        if (found := beside(members[0], first))
    ]
    classes = sorted({*first.rows["gold"], *(answer for run in runs for answer in run.rows["predicted"])})
    numbers = {name: number for number, name in enumerate(classes)}
    gold = first.rows["gold"].map(numbers).to_numpy()
    known = next((run.classes for run in runs if run.classes), classes)
    rows = first.rows["gold"].value_counts().reindex(known, fill_value=0).to_dict()
    notes += interval_cautions(rows, group.nunique(), first.params.get("data.group"))
    made = [
        Recipe(
            name,
            tuple(run.params["seed"] for run in members),
            np.array([run.rows["predicted"].map(numbers) for run in members]),
        )
        for name, members in zip(names, grouped, strict=True)
    ]
    level = confidence or float(first.params["analysis.confidence"])
    scores, differences = compare_recipes(made, gold, group.to_numpy(), len(classes), level)
    return comparison_page.Compared(
        scores,
        differences,
        [
            ("" if name == members[0].name else f"{name}: ") + ", ".join(map(shown, members))
            for name, members in zip(names, grouped, strict=True)
        ],
        notes,
        level,
        len(gold),
        group.nunique(),
        first.params.get("data.group"),
        digest(first),
    )


def by_setting(runs: Sequence[Run]) -> tuple[list[list[Run]], list[str]]:
    """The runs of each setting, in the order in which settings first come, and notes on runs that are no others.

    Of one setting are runs that differ in seed alone, code and inputs included. A run with the same seed and the same
    answers is the same run; one with other answers, as another machine gives, is a setting of its own.
    """
    grouped: list[list[Run]] = []
    notes = []
    for run in runs:
        for members in (g for g in grouped if alike(g[0], run)):
            twin = next((other for other in members if other.params["seed"] == run.params["seed"]), None)
            if twin is None:
                members.append(run)
                break
            if (twin.rows["predicted"] == run.rows["predicted"]).all():
                notes.append(f"{run.name} is the same run as {twin.name}, and counts once.")
                break
            notes.append(
                f"{run.name} has the parameters, seed, code and inputs of {twin.name}, but other answers: another "
                "machine or other versions. It stands as a setting of its own."
            )
        else:
            grouped.append([run])
    return grouped, notes


def alike(run: Run, other: Run) -> bool:
    """Whether two runs differ in seed alone, if in anything."""
    return (run.setting, run.code, run.inputs) == (other.setting, other.code, other.inputs)


def name_of(place: int, members: Sequence[Run], first: Run) -> str:
    """A setting's name: the parameters in which it differs from the first one, which is named by its run."""
    run = members[0]
    changed = differing(run.setting, first.setting)
    if place == 0 or not changed:
        return run.name
    return ", ".join(f"{key}={run.setting.get(key, 'none')}" for key in changed)


def differing(values: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Keys at which two dicts differ, in their order."""
    return [key for key in dict.fromkeys([*others, *values]) if values.get(key) != others.get(key)]


def beside(run: Run, first: Run) -> str:
    """In what a run differs from the first besides its parameters; empty if in nothing."""
    code, changed = differing(run.code, first.code), differing(run.setting, first.setting)
    inputs = [
        path
        for path, group in zip(INPUTS, ("data.", "model."), strict=True)
        if run.inputs[path] != first.inputs[path] and not any(key.startswith(group) for key in changed)
    ]
    found = {"code": code, "inputs": inputs}
    return " and ".join(f"{what} ({', '.join(paths)})" for what, paths in found.items() if paths)


def shown(run: Run) -> str:
    """A run with its seed and its commit."""
    commit = f", {run.commit}" if run.commit and not run.name.startswith(run.commit) else ""
    return f"{run.name} (seed {run.params['seed']}{commit})"


def digest(run: Run) -> str:
    """The start of the SHA-256 of texts and gold, which tells other rows or another order."""
    lines = run.rows[[*run.texts, "gold"]].to_numpy().tolist()
    return hashlib.sha256(json.dumps(lines, ensure_ascii=False).encode()).hexdigest()[:16]


if __name__ == "__main__":
    errors.run(main)
