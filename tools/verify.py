"""Run a pipeline again and report which of its results equal those of the committed dvc.lock.

    make verify                                     the pipeline of demo/
    python -m tools.verify                          the pipeline in the current folder

Example: `make verify` ends with a line for each stage. The first and the last ones are

    download: equal: outs/base_model.json, outs/data_source.json, outs/splits
    tokenize: equal: outs/data_summary.json, outs/task.json, outs/tokenized
    …
    Every result is byte for byte that of the committed dvc.lock; seconds and memory were measured anew.

dvc.lock records the hash of every file that a run read or wrote. On the same kind of machine, with the same versions,
equal code, parameters and inputs give equal results, byte for byte. Measurements, such as
seconds and memory, differ each time and are not compared. The exit code is 0 if every result is equal.

The new dvc.lock and metrics stay in the workspace; `git restore .` brings the committed ones back.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from stages.analysis import usage
from stages.runtime import errors
from stages.runtime.stage_table import GPU_STAGES
from tools.git import repository_problem, run_git

LOCK = "dvc.lock"
MEASURED = ("outs/measurements", "metrics/measurements", "metrics/summary.json", "metrics/report.html")
VERSIONS = "metrics/measurements/stages.json"


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m tools.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    if problem := repository_problem():
        raise errors.UserError(problem)
    committed = yaml.safe_load(read_committed(LOCK))["stages"]
    committed_versions = json.loads(read_committed(VERSIONS))
    if subprocess.run([sys.executable, "-m", "dvc", "repro", "--force"], check=False).returncode:
        raise errors.UserError("`dvc repro` failed, so there are no results to compare; its error is above")
    current = yaml.safe_load(Path(LOCK).read_text())["stages"]
    differences = {name: compare_stage(committed.get(name, {}), stage) for name, stage in current.items()}
    print("\n" + "\n".join(describe(differences, committed_versions, json.loads(Path(VERSIONS).read_text()))))
    sys.exit(1 if any(stage["outs"] for stage in differences.values()) else 0)


def read_committed(path: str) -> str:
    """A file of this folder, as it is in the last commit."""
    process = run_git("show", f"HEAD:./{path}")
    if process.returncode:
        raise errors.UserError(f"{path}: not in the last commit; run the pipeline and commit what it wrote")
    return process.stdout.decode()


def compare_stage(committed: dict[str, Any], current: dict[str, Any]) -> dict[str, list[str]]:
    """Compare two entries of dvc.lock for one stage.

    Returns:
        {"code", "inputs", "params", "outs": names that differ; "equal": names of equal outs; "cmd": both commands if
        they differ}. Files that hold measurements are left out.
    """

    def hashes(entry: dict[str, Any], kind: str) -> dict[str, str]:
        return {file["path"]: file["md5"] for file in entry.get(kind, []) if not is_measured(file["path"])}

    def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
        return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))

    deps = changed(hashes(committed, "deps"), hashes(current, "deps"))
    outs = changed(hashes(committed, "outs"), hashes(current, "outs"))
    return {
        "code": [path for path in deps if path.startswith("stages/")],
        "inputs": [path for path in deps if not path.startswith("stages/")],
        "params": changed(*(entry.get("params", {}).get("params.yaml", {}) for entry in (committed, current))),
        "cmd": [] if committed.get("cmd") == current["cmd"] else [committed.get("cmd", "none"), current["cmd"]],
        "outs": outs,
        "equal": [path for path in hashes(current, "outs") if path not in outs],
    }


def is_measured(path: str) -> bool:
    """Whether a file holds measurements, such as seconds and memory."""
    return f"{path}/".startswith(tuple(f"{name}/" for name in MEASURED))


def describe(
    differences: dict[str, dict[str, list[str]]], committed: dict[str, Any], current: dict[str, Any]
) -> list[str]:
    """The lines to print.

    Args:
        differences: {stage: result of `compare_stage`}, in the pipeline's order.
        committed, current: contents of VERSIONS, of the committed run and of this run.
    """
    lines = []
    for stage, difference in differences.items():
        lines += [f"{stage}: equal: {', '.join(difference['equal'])}"] if difference["equal"] else []
        lines += [f"{stage}: DIFFERENT: {', '.join(difference['outs'])}"] if difference["outs"] else []
    first = next((stage for stage, difference in differences.items() if difference["outs"]), None)
    if first is None:
        return [
            *lines,
            "Every result is byte for byte that of the committed dvc.lock; seconds and memory were measured anew.",
        ]
    difference, measured = differences[first], GPU_STAGES.get(first, "train")
    then, now = (
        run[measured]["versions"]
        | {"processes": usage.process_count(run[measured]), "memory plan": run[measured].get("memory_plan")}
        for run in (committed, current)
    )
    reasons = [f"{kind}: {', '.join(difference[kind])}" for kind in ("code", "params", "inputs") if difference[kind]]
    reasons += [f"command: {' then, '.join(difference['cmd'])} now"] if difference["cmd"] else []
    reasons += [
        f"{name}: {then.get(name, 'none')} then, {now.get(name, 'none')} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    cause = "; ".join(reasons) or (
        "nothing that is recorded (code, parameters, inputs, command, processes, these versions). So the cause is the "
        "machine, whose processor or GPU rounds sums differently, or another version of another package"
    )
    return [*lines, f"The first stage to differ is {first}. What differs before it: {cause}."]


if __name__ == "__main__":
    errors.run(main)
