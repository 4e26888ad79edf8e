"""Many experiments on several GPUs, by DVC's queue: stand-ins for the GPUs, stages on the CPU, all else real.

    python tests/faults/queued_on_gpus.py --times 3

Queues experiments and starts the queue as often as asked, each time in a new clone. Prints how DVC says they ended, how
many stages found no GPU free, and what the queue lost: experiments that failed or never ran, and what DVC prints of
them. Exits 1 if two stages had one GPU at once, or if an experiment that is recorded has no result.
"""
# ruff: noqa: E402 -- the path comes first

import argparse
import itertools
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # helpers, stages

from helpers import kill
from helpers.clone import Clone

STAND_INS = Path(__file__).resolve().parents[1] / "helpers/stand_in_gpus"
USES = 2  # stages of an experiment that use a GPU: with another rank the base is not evaluated again


def spans(log: Path) -> dict[str, list[tuple[float, float]]]:
    """{GPU: when each stage had it, in order}; one that was killed had it for no time."""
    took, found = {}, defaultdict(list)
    for gpu, process, moment, seconds in map(str.split, log.read_text().splitlines()):
        if moment == "took":
            took[process] = float(seconds)
        else:
            found[gpu].append((took.pop(process), float(seconds)))
    return {gpu: sorted(times) for gpu, times in sorted(found.items())}


def states(clone: Clone) -> dict[str, str]:
    """{name, or number where it has none: state} as `dvc queue status` has them."""
    printed = clone.dvc("queue", "status").stdout
    lines = re.findall(r"^(\w{7})\s+(\S+)?.*?\s(Queued|Running|Success|Failed)$", printed, re.MULTILINE)
    return {name or number: state for number, name, state in lines}


def once(top: Path, experiments: int, jobs: int, gpus: int, seconds: int) -> list[str]:
    """Queue, start, wait, and print -> what was wrong."""
    clone, log = kill.small_clone(top), top / "log"
    log.touch()
    (top / "locks").mkdir()
    names = [f"GPU-{number}" for number in range(gpus)]
    assert clone.dvc("repro").returncode == 0
    clone.commit("a run")
    clone.env |= {
        "PYTHONPATH": str(STAND_INS), "STAND_IN_GPUS": " ".join(names), "STAND_IN_LOG": str(log),
        "TMPDIR": str(top / "locks"),
    }  # fmt: skip
    ranks = ",".join(str(rank) for rank in range(1, experiments + 1))
    queued = clone.dvc("exp", "run", "--queue", "-S", f"lora.r={ranks}")
    assert queued.returncode == 0, queued.stderr
    begun = time.monotonic()
    started = clone.dvc("queue", "start", "--jobs", str(jobs))
    print(f"{jobs} jobs on {gpus} stand-ins: {started.stdout.strip()} {started.stderr.strip()}")
    while time.monotonic() < begun + seconds:
        found = states(clone)
        if not {"Queued", "Running"} & set(found.values()) or not kill.ours(clone):
            break
        time.sleep(2)
    took = time.monotonic() - begun
    print(f"  {dict(Counter(found.values()))} after {took:.0f} s")
    had = spans(log)
    print(f"  stages that had a GPU: { {gpu: len(times) for gpu, times in had.items()} }")
    logs = {name: clone.dvc("queue", "logs", name) for name in found}
    waited = sum(done.stdout.count("waiting for a GPU: ") for done in logs.values())
    print(f"  stages that found none free: {waited}")
    for name, state in found.items():
        if state != "Success":
            print(f"  {name} {state}; dvc queue logs {name}: {logs[name].stdout[-600:]} {logs[name].stderr[-600:]}")
    for worker in sorted(clone.folder.rglob("dvc-exp-worker-*.out")):
        errors = re.findall(r"^.*(?:Error|CRITICAL).*$", worker.read_text(), re.MULTILINE)
        print(f"  {worker.name}: {Counter(line[-160:] for line in errors) or 'no errors'}")
    clone.dvc("queue", "stop", "--kill")
    wrong = [
        f"two stages had {gpu} at once"
        for gpu, times in had.items()
        if any(ended > begun for (_, ended), (begun, _) in itertools.pairwise(times))
    ]
    refs = clone.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    kept = [ref for ref in refs if "/celery/" not in ref and "EXEC" not in ref]
    if len(kept) != Counter(found.values())["Success"]:
        wrong.append(f"{len(kept)} experiments are recorded")
    for ref in kept:
        clone.git("show", f"{ref}:demo/metrics/summary.json")
    if Counter(found.values())["Success"] == experiments and sum(map(len, had.values())) != experiments * USES:
        wrong.append("a stage ran without a GPU")
    deadline = time.monotonic() + 60
    while kill.ours(clone) and time.monotonic() < deadline:
        time.sleep(1)
    return wrong + [f"still running: {process.cmdline()}" for process in kill.ours(clone)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--experiments", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="of the queue")
    parser.add_argument("--gpus", type=int, default=2, help="stand-ins")
    parser.add_argument("--seconds", type=int, default=500, help="to wait at most for a queue")
    arguments = parser.parse_args()
    wrong = []
    for number in range(1, arguments.times + 1):
        top = Path(tempfile.mkdtemp())
        print(f"[{number}] ", end="", flush=True)
        wrong += once(top, arguments.experiments, arguments.jobs, arguments.gpus, arguments.seconds)
        shutil.rmtree(top, ignore_errors=True)
    print("\n".join(wrong) or "no GPU had two stages at once")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
