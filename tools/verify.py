"""Run a pipeline anew and say which of its results came out as its committed dvc.lock has them.

    make verify                                     the small pipeline of demo/
    python -m tools.verify                          the pipeline of the folder where you are

dvc.lock names every file that a run read and wrote by its hash, so that it is the proof of a run: the same code,
parameters and inputs give the same results, byte for byte, on the same kind of machine with the same versions. What a
run measures of itself, seconds and memory, differs each time and is left out. Exit code 0: every result is equal.
The run's own dvc.lock and metrics are left in the workspace; `git restore .` brings the committed ones back.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

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
    committed = yaml.safe_load(of_git(LOCK))["stages"]
    versions = json.loads(of_git(VERSIONS))
    if subprocess.run([sys.executable, "-m", "dvc", "repro", "--force"], check=False).returncode:
        raise errors.UserError("the pipeline did not run to its end; nothing can be said of its results")
    now = yaml.safe_load(Path(LOCK).read_text())["stages"]
    differing = {name: differences(committed.get(name, {}), stage) for name, stage in now.items()}
    print("\n" + "\n".join(lines(differing, versions, json.loads(Path(VERSIONS).read_text()))))
    sys.exit(1 if any(found["outs"] for found in differing.values()) else 0)


def of_git(path: str) -> str:
    """A file of this folder as the last commit has it."""
    done = run_git("show", f"HEAD:./{path}")
    if done.returncode:
        raise errors.UserError(f"{path}: the last commit has none here; run the pipeline and commit what it wrote")
    return done.stdout.decode()


def differences(committed: dict, now: dict) -> dict[str, list[str]]:
    """What differs between two entries of dvc.lock for one stage.

    Returns:
        {"code", "inputs", "params", "cmd", "outs", "equal": names}; `outs` and `equal` are the results, without what
        was measured; `cmd` is both commands, where a launcher makes them differ.
    """

    def hashes(entry, kind):
        return {file["path"]: file["md5"] for file in entry.get(kind, [])}

    def changed(before, after):
        return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))

    deps = [path for path in changed(hashes(committed, "deps"), hashes(now, "deps")) if not is_measured(path)]
    before, after = ({n: h for n, h in hashes(e, "outs").items() if not is_measured(n)} for e in (committed, now))
    outs = changed(before, after)
    return {
        "code": [path for path in deps if path.startswith("stages/")],
        "inputs": [path for path in deps if not path.startswith("stages/")],
        "params": changed(*(entry.get("params", {}).get("params.yaml", {}) for entry in (committed, now))),
        "cmd": [] if committed.get("cmd") == now["cmd"] else [committed.get("cmd", "none"), now["cmd"]],
        "outs": outs,
        "equal": [name for name in after if name not in outs],
    }


def is_measured(path: str) -> bool:
    """Whether a file holds what a run measured of itself."""
    return f"{path}/".startswith(tuple(f"{name}/" for name in MEASURED))


def lines(differing: dict[str, dict], then: dict[str, dict], now: dict[str, dict]) -> list[str]:
    """What to say of a run, in words.

    Args:
        differing: {stage, in their order: `differences`}.
        then, now: metrics/measurements/stages.json of the committed run and of this one, for their versions.
    """
    said = []
    for stage, found in differing.items():
        said += [f"{stage}: equal: {', '.join(found['equal'])}"] if found["equal"] else []
        said += [f"{stage}: DIFFERENT: {', '.join(found['outs'])}"] if found["outs"] else []
    first = next((stage for stage, found in differing.items() if found["outs"]), None)
    if first is None:
        return [
            *said,
            "Every result is byte for byte that of the committed dvc.lock; seconds and memory were measured anew.",
        ]
    found, measured = differing[first], GPU_STAGES.get(first, "train")
    then, now = (run[measured]["versions"] | {"processes": usage.process_count(run[measured])} for run in (then, now))
    reasons = [f"{kind}: {', '.join(found[kind])}" for kind in ("code", "params", "inputs") if found[kind]]
    reasons += [f"command: {' then, '.join(found['cmd'])} now"] if found["cmd"] else []
    reasons += [
        f"{name}: {then.get(name, 'none')} then, {now.get(name, 'none')} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    because = "; ".join(reasons) or (
        "nothing that is recorded (code, parameters, inputs, command, processes, these versions); so it is the "
        "machine, whose processor or GPU rounds sums otherwise, or the version of another package"
    )
    return [*said, f"The first stage to differ is {first}. What differs before it: {because}."]


if __name__ == "__main__":
    errors.run(main)
