"""Run many experiments on several GPUs by DVC's queue. The GPUs are simulated and the stages run on the CPU.

    python tests/faults/queued_on_gpus.py --times 3

The script queues experiments and starts the queue in a new clone, `--times` times. It prints the experiments' states by
DVC, how many stages found no free GPU, and DVC's log of each experiment that failed or never ran. The exit code is 1 if
two stages had one GPU at once, or if a recorded experiment has no result.
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
USES = 2  # stages of an experiment that use a GPU: another `lora.r` does not run eval_base again


def spans(log: Path) -> dict[str, list[tuple[float, float]]]:
    """{GPU: [(start, end) of each stage that had it]}, sorted, without killed stages."""
    starts, times = {}, defaultdict(list)
    for gpu, process, moment, seconds in map(str.split, log.read_text().splitlines()):
        if moment == "took":
            starts[process] = float(seconds)
        else:
            times[gpu].append((starts.pop(process), float(seconds)))
    return {gpu: sorted(pairs) for gpu, pairs in sorted(times.items())}


def states(clone: Clone) -> dict[str, str]:
    """{experiment's name, or its number if it has none: state} by `dvc queue status`."""
    printed = clone.dvc_in_new_processes("queue", "status").stdout
    lines = re.findall(r"^(\w{7})\s+(\S+)?.*?\s(Queued|Running|Success|Failed)$", printed, re.MULTILINE)
    return {name or number: state for number, name, state in lines}


def once(top: Path, experiments: int, jobs: int, gpus: int, seconds: int) -> list[str]:
    """Queue experiments, start the queue, wait, and print the outcome -> errors."""
    clone, log = kill.small_clone(top), top / "log"
    log.touch()
    (top / "locks").mkdir()
    names = [f"GPU-{number}" for number in range(gpus)]
    assert clone.dvc_in_new_processes("repro").returncode == 0
    clone.commit("a run")
    clone.env |= {
        "PYTHONPATH": str(STAND_INS), "STAND_IN_GPUS": " ".join(names), "STAND_IN_LOG": str(log),
        "TMPDIR": str(top / "locks"),
    }  # fmt: skip
    values = ",".join(map(str, range(1, experiments + 1)))
    queued = clone.dvc_in_new_processes("exp", "run", "--queue", "-S", f"lora.r={values}")
    assert queued.returncode == 0, queued.stderr
    start = time.monotonic()
    started = clone.dvc_in_new_processes("queue", "start", "--jobs", str(jobs))
    print(f"{jobs} jobs on {gpus} simulated GPUs: {started.stdout.strip()} {started.stderr.strip()}")
    while time.monotonic() < start + seconds:
        outcomes = states(clone)
        if not {"Queued", "Running"} & set(outcomes.values()) or not kill.living_processes(clone):
            break
        time.sleep(2)
    elapsed = time.monotonic() - start
    print(f"  {dict(Counter(outcomes.values()))} after {elapsed:.0f} s")
    gpu_spans = spans(log)
    print(f"  stages that had a GPU: { {gpu: len(times) for gpu, times in gpu_spans.items()} }")
    logs = {name: clone.dvc_in_new_processes("queue", "logs", name) for name in outcomes}
    waits = sum(done.stdout.count("waiting for a GPU: ") for done in logs.values())
    print(f"  stages that found no free GPU: {waits}")
    for name, state in outcomes.items():
        if state != "Success":
            print(f"  {name} {state}; dvc queue logs {name}: {logs[name].stdout[-600:]} {logs[name].stderr[-600:]}")
    for worker in sorted(clone.folder.rglob("dvc-exp-worker-*.out")):
        lines = re.findall(r"^.*(?:Error|CRITICAL).*$", worker.read_text(), re.MULTILINE)
        print(f"  {worker.name}: {Counter(line[-160:] for line in lines) or 'no errors'}")
    clone.dvc_in_new_processes("queue", "stop", "--kill")
    errors = [
        f"two stages had {gpu} at once"
        for gpu, times in gpu_spans.items()
        if any(end > start for (_, end), (start, _) in itertools.pairwise(times))
    ]
    refs = clone.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    recorded = [ref for ref in refs if "/celery/" not in ref and "EXEC" not in ref]
    if len(recorded) != Counter(outcomes.values())["Success"]:
        errors.append(f"{len(recorded)} experiments are recorded")
    for ref in recorded:
        clone.git("show", f"{ref}:demo/metrics/summary.json")
    if Counter(outcomes.values())["Success"] == experiments and sum(map(len, gpu_spans.values())) != experiments * USES:
        errors.append("a stage ran without a GPU")
    deadline = time.monotonic() + 60
    while kill.living_processes(clone) and time.monotonic() < deadline:
        time.sleep(1)
    return errors + [f"still running: {process.cmdline()}" for process in kill.living_processes(clone)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--experiments", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="workers of the queue")
    parser.add_argument("--gpus", type=int, default=2, help="simulated GPUs")
    parser.add_argument("--seconds", type=int, default=500, help="longest time to wait for a queue")
    arguments = parser.parse_args()
    errors = []
    for number in range(1, arguments.times + 1):
        top = Path(tempfile.mkdtemp())
        print(f"[{number}] ", end="", flush=True)
        errors += once(top, arguments.experiments, arguments.jobs, arguments.gpus, arguments.seconds)
        shutil.rmtree(top, ignore_errors=True)
    print("\n".join(errors) or "no GPU had two stages at once")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
