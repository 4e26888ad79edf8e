"""Run experiments at the same time: queued, in a temporary folder, and by two `dvc repro` in one clone.

    python tests/faults/side_by_side.py --seed 1

Each must leave the workspace unchanged and give the numbers of a separate run. The script prints the outcomes. The exit
code is 1 if an experiment fails this.
"""
# ruff: noqa: E402 -- the path comes first

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # helpers, stages

import yaml
from helpers import kill
from helpers.stages import run_stage_in_each


def change(folder, **values):
    """Set keys of the group `lora`, and one epoch, in a folder's params.yaml."""
    path = folder / "params.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["lora"].update(values)
    raw["train"]["epochs"] = 1
    path.write_text(yaml.safe_dump(raw, sort_keys=False))


def run_separately(top, lora_ranks):
    """{lora.r: metrics} of separate runs of the stages, without DVC."""
    folders = {}
    for r in lora_ranks:
        (top / f"separate{r}").mkdir()
        folders[r] = kill.small_clone(top / f"separate{r}").folder / "demo"
        change(folders[r], r=r)
    results = {}
    for r, folder in folders.items():
        done = run_stage_in_each(",".join(kill.STAGES), [folder])["demo"]
        assert done.returncode == 0, done.stderr
        results[r] = metrics(lambda name, folder=folder: (folder / f"metrics/{name}.json").read_text())
    return results


def metrics(read):
    return {name: json.loads(read(name)) for name in ("details",)}


def workspace(clone):
    """Git's status and the files of demo/: an experiment elsewhere must not change them."""
    status = clone.git("status", "--porcelain")
    files = {p: p.read_bytes() for p in (clone.folder / "demo").rglob("*") if p.is_file() and p.name != "usage.csv"}
    return status, files


def experiments(clone):
    """{lora.r: metrics} of all experiments that DVC recorded."""
    results = {}
    for ref in clone.git("for-each-ref", "--format=%(refname)", "refs/exps").split():
        if "/celery/" in ref or "EXEC" in ref:
            continue
        raw = yaml.safe_load(clone.git("show", f"{ref}:demo/params.yaml"))
        results[raw["lora"]["r"]] = metrics(lambda name, ref=ref: clone.git("show", f"{ref}:demo/metrics/{name}.json"))
    return results


def two_at_once(clone, top):
    """Start `dvc repro` twice at once -> [(exit code, output)]."""
    logs = [top / f"repro{i}" for i in range(2)]
    with logs[0].open("w") as one, logs[1].open("w") as two:
        started = [kill.start(clone, one), kill.start(clone, two)]
        codes = [process.wait() for process in started]
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    rng = random.Random(parser.parse_args().seed)
    *queued, temporary, both = rng.sample(range(1, 16), 5)
    top = Path(tempfile.mkdtemp())
    expected = run_separately(top, [*queued, temporary, both])
    (top / "together").mkdir()
    clone = kill.small_clone(top / "together")
    change(clone.folder / "demo", r=both)
    outcomes = two_at_once(clone, top)
    for number, (code, log) in enumerate(outcomes, start=1):
        lines = [line for line in log.splitlines() if line.startswith("ERROR")]
        print(f"dvc repro {number} of two at once: exit {code}; {' '.join(lines)}")
    errors = []
    if not any(code == 0 for code, _ in outcomes):
        errors.append("neither of two `dvc repro` succeeded")
    again = clone.dvc_in_new_processes("repro")
    if again.returncode or any("Traceback" in log for _, log in outcomes):
        errors.append(f"`dvc repro` after two at once: {again.stderr}")
    read = lambda name: (clone.folder / f"demo/metrics/{name}.json").read_text()  # noqa: E731
    if metrics(read) != expected[both]:
        errors.append("two at once: other numbers")
    clone.commit("a run")
    before = workspace(clone)
    done = clone.dvc_in_new_processes("exp", "run", "--temp", "-S", f"lora.r={temporary}")
    if done.returncode:
        errors.append(f"--temp: {done.stdout} {done.stderr}")
    unchanged = workspace(clone) == before
    print(f"dvc exp run --temp -S lora.r={temporary}: exit {done.returncode}; workspace unchanged: {unchanged}")
    for r in queued:
        assert clone.dvc_in_new_processes("exp", "run", "--queue", "-S", f"lora.r={r}").returncode == 0
    print(clone.dvc_in_new_processes("queue", "start", "--jobs", "2").stdout.strip())
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        status = clone.dvc_in_new_processes("queue", "status").stdout
        if "Queued" not in status and "Running" not in status:
            break
        time.sleep(3)
    states = [word for word in status.split() if word in ("Success", "Failed", "Queued", "Running")]
    print(f"dvc queue start, lora.r={queued}: {states}; workspace unchanged: {workspace(clone) == before}")
    if workspace(clone) != before:
        now = workspace(clone)
        changed = [str(p) for p in before[1].keys() | now[1].keys() if before[1].get(p) != now[1].get(p)]
        errors.append(f"the workspace changed: {now[0]} {changed[:9]}")
    clone.dvc_in_new_processes("queue", "stop", "--kill")
    results = experiments(clone)
    for r in [*queued, temporary]:
        if results.get(r) != expected[r]:
            errors.append(f"lora.r={r}: {'other numbers' if r in results else 'no experiment'}")
        else:
            print(f"lora.r={r}: the numbers of a separate run")
    deadline = time.monotonic() + 60
    while kill.living_processes(clone) and time.monotonic() < deadline:
        time.sleep(1)
    if kill.living_processes(clone):
        errors.append(f"still running: {[process.cmdline() for process in kill.living_processes(clone)]}")
    shutil.rmtree(top, ignore_errors=True)
    print("\n".join(errors) or "all numbers equal those of separate runs")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
