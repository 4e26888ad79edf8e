"""Experiments side by side: queued, in a temporary folder, and two `dvc repro` at once in one clone.

    python tests/faults/side_by_side.py --seed 1

Each must leave the workspace as it was, and give the numbers of a run alone. Prints what happened; exits 1 if one did
not.
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


def alone(top, ranks):
    """{rank: metrics of a run of the stages alone, without DVC}."""
    folders = {}
    for rank in ranks:
        (top / f"alone{rank}").mkdir()
        folders[rank] = kill.small_clone(top / f"alone{rank}").folder / "demo"
        change(folders[rank], r=rank)
    found = {}
    for rank, folder in folders.items():
        done = run_stage_in_each(",".join(kill.STAGES), [folder])["demo"]
        assert done.returncode == 0, done.stderr
        found[rank] = metrics(lambda name, folder=folder: (folder / f"metrics/{name}.json").read_text())
    return found


def metrics(read):
    return {name: json.loads(read(name)) for name in ("details",)}


def workspace(clone):
    """What an experiment elsewhere must not touch."""
    status = clone.git("status", "--porcelain")
    files = {p: p.read_bytes() for p in (clone.folder / "demo").rglob("*") if p.is_file() and p.name != "usage.csv"}
    return status, files


def experiments(clone):
    """{rank: metrics} of all experiments that DVC recorded."""
    found = {}
    for ref in clone.git("for-each-ref", "--format=%(refname)", "refs/exps").split():
        if "/celery/" in ref or "EXEC" in ref:
            continue
        raw = yaml.safe_load(clone.git("show", f"{ref}:demo/params.yaml"))
        found[raw["lora"]["r"]] = metrics(lambda name, ref=ref: clone.git("show", f"{ref}:demo/metrics/{name}.json"))
    return found


def two_at_once(clone, top):
    """Start `dvc repro` twice -> [(exit code, its last line)]."""
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
    expected = alone(top, [*queued, temporary, both])
    (top / "together").mkdir()
    clone = kill.small_clone(top / "together")
    change(clone.folder / "demo", r=both)
    outcomes = two_at_once(clone, top)
    for number, (code, log) in enumerate(outcomes, start=1):
        said = [line for line in log.splitlines() if line.startswith("ERROR")]
        print(f"dvc repro {number} of two at once: exit {code}; {' '.join(said)}")
    wrong = []
    if not any(code == 0 for code, _ in outcomes):
        wrong.append("neither of two dvc repro came through")
    again = clone.dvc("repro")
    if again.returncode or any("Traceback" in log for _, log in outcomes):
        wrong.append(f"dvc repro after two at once: {again.stderr}")
    read = lambda name: (clone.folder / f"demo/metrics/{name}.json").read_text()  # noqa: E731
    if metrics(read) != expected[both]:
        wrong.append("two at once: other numbers")
    clone.commit("a run")
    before = workspace(clone)
    done = clone.dvc("exp", "run", "--temp", "-S", f"lora.r={temporary}")
    if done.returncode:
        wrong.append(f"--temp: {done.stdout} {done.stderr}")
    same = workspace(clone) == before
    print(f"dvc exp run --temp -S lora.r={temporary}: exit {done.returncode}; workspace as before: {same}")
    for rank in queued:
        assert clone.dvc("exp", "run", "--queue", "-S", f"lora.r={rank}").returncode == 0
    print(clone.dvc("queue", "start", "--jobs", "2").stdout.strip())
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        status = clone.dvc("queue", "status").stdout
        if "Queued" not in status and "Running" not in status:
            break
        time.sleep(3)
    states = [word for word in status.split() if word in ("Success", "Failed", "Queued", "Running")]
    print(f"dvc queue start, lora.r={queued}: {states}; workspace as before: {workspace(clone) == before}")
    if workspace(clone) != before:
        now = workspace(clone)
        changed = [str(p) for p in before[1].keys() | now[1].keys() if before[1].get(p) != now[1].get(p)]
        wrong.append(f"the workspace changed: {now[0]} {changed[:9]}")
    clone.dvc("queue", "stop", "--kill")
    found = experiments(clone)
    for rank in [*queued, temporary]:
        if found.get(rank) != expected[rank]:
            wrong.append(f"lora.r={rank}: {'other numbers' if rank in found else 'no experiment'}")
        else:
            print(f"lora.r={rank}: the numbers of a run alone")
    deadline = time.monotonic() + 60
    while kill.ours(clone) and time.monotonic() < deadline:
        time.sleep(1)
    if kill.ours(clone):
        wrong.append(f"still running: {[process.cmdline() for process in kill.ours(clone)]}")
    shutil.rmtree(top, ignore_errors=True)
    print("\n".join(wrong) or "all as alone")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
