"""Kill the pipeline at random moments and see that nothing is lost.

    python tests/kill.py --times 20 --seed 1

Works in a temporary clone, on a small cut of the embedded data. Each time `dvc repro` is killed in one of five ways at
a random moment; in the end it must finish, resume training where it was, and give the adapter and the scores of a run
that nobody disturbed. Prints a table of what was hit.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import yaml
from conftest import Clone

WAYS = ("SIGKILL to the stage", "SIGKILL to dvc", "SIGKILL to all", "SIGTERM to the stage", "Ctrl-C")
SMALL = {"data": {"train_rows": 320, "validation_rows": 60, "test_rows": 60}, "train": {"epochs": 4}}
SURVIVES_AT_MOST = 10  # seconds that a stage may outlive its dvc


def small_clone(top):
    """A clone whose embedded parameters make a run short."""
    clone = Clone(top)
    path = clone.folder / "embedded/params.yaml"
    raw = yaml.safe_load(path.read_text())
    for group, values in SMALL.items():
        raw[group].update(values)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    (clone.folder / "embedded/dvc.lock").unlink(missing_ok=True)
    clone.commit("a short run")
    return clone


def start(clone, log):
    """`dvc repro` in a process group of its own, marked so that its processes can be found."""
    env = {**clone.env, "KILL_TEST": str(clone.folder)}
    command = [sys.executable, "-m", "dvc", "repro"]
    return subprocess.Popen(
        command, cwd=clone.folder / "embedded", env=env, stdout=log, stderr=log, start_new_session=True
    )


def ours(clone):
    """All processes of a clone's `dvc repro`: {pid: its command line}."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get("KILL_TEST") == str(clone.folder):
                found[process.pid] = " ".join(process.cmdline())
    return found


def stage_of(processes):
    """(pid, name) of the stage among processes, or (None, "between stages")."""
    for pid, line in processes.items():
        if "-m stages." in line and line.split()[0].split("/")[-1].startswith("python"):
            return pid, line.split("stages.")[-1].split()[0]
    return None, "between stages"


def strike(clone, dvc, way):
    """Kill in one of `WAYS`; returns the stage that was hit, once no process is left."""
    pid, stage = stage_of(ours(clone))
    with contextlib.suppress(ProcessLookupError):
        if way == "SIGKILL to dvc":
            os.kill(dvc.pid, signal.SIGKILL)
        elif way == "SIGKILL to all":
            os.killpg(dvc.pid, signal.SIGKILL)
        elif way == "Ctrl-C":
            os.killpg(dvc.pid, signal.SIGINT)
        elif pid:
            os.kill(pid, signal.SIGKILL if way.startswith("SIGKILL") else signal.SIGTERM)
        else:
            os.kill(dvc.pid, signal.SIGTERM)
    dvc.wait(timeout=60)
    deadline = time.monotonic() + SURVIVES_AT_MOST
    while ours(clone):
        assert time.monotonic() < deadline, f"still running after {way}: {ours(clone)}"
        time.sleep(0.2)
    return stage


def whole_epochs(clone):
    """Epochs that the newest whole checkpoint holds."""
    whole = (clone.folder / "embedded/checkpoints").glob("*/checkpoint-*/whole")
    states = [json.loads((path.parent / "trainer_state.json").read_text()) for path in whole]
    return max((round(state["epoch"]) for state in states), default=0)


def results(clone):
    """What must not depend on a kill: the adapter's bytes, predictions, scores, the history of training."""
    folder = clone.folder / "embedded"
    digest = lambda path: hashlib.sha256((folder / path).read_bytes()).hexdigest()  # noqa: E731
    files = sorted((folder / "models/adapter").iterdir()) + [
        folder / name
        for name in ("runs/base/predictions.parquet", "runs/lora/predictions.parquet", "runs/train/epochs.csv",
                     "runs/train/steps.csv")
    ]  # fmt: skip
    scores = {
        f"{name} {key}": json.loads((folder / f"metrics/{name}.json").read_text())[key]
        for name in ("eval_base", "eval_lora")
        for key in ("accuracy", "f1_weighted", "f1_macro")
    }
    return {str(path.relative_to(folder)): digest(path) for path in files} | scores


def finish(clone):
    """Run to the end; returns the output."""
    done = clone.dvc("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (clone.folder / "embedded/checkpoints").exists(), "checkpoints are left after success"
    left = [str(path) for path in clone.folder.rglob(".*.tmp")]
    assert not left or all("/.dvc/" in path for path in left), f"half-written: {left}"
    return done


def killed_run(clone, hits, log):
    """Start, and kill at each of `hits` in turn [(seconds after the start, way)], then finish.

    Returns:
        [(way, stage that was hit, epochs that were whole by then)]
    """
    struck = []
    for seconds, way in hits:
        dvc = start(clone, log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            dvc.wait(timeout=seconds)
        if dvc.poll() is not None:
            break  # it was through before the hit
        struck.append((way, strike(clone, dvc, way), whole_epochs(clone)))
    done = finish(clone)
    output = done.stdout + done.stderr
    if struck and struck[-1][1] == "train_qlora":
        trained = output.count("'eval_loss'")
        assert trained == SMALL["train"]["epochs"] - struck[-1][2], f"{trained} epochs trained after {struck[-1]}"
    return struck


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    top = Path(tempfile.mkdtemp())
    clone = small_clone(top)
    begin = time.monotonic()
    finish(clone)
    length, expected = time.monotonic() - begin, results(clone)
    print(f"undisturbed: {length:.0f} s")
    count = Counter()
    for number in range(arguments.times):
        for name in ("data", "models", "runs", "metrics", "checkpoints", ".dvc/cache"):
            shutil.rmtree(clone.folder / "embedded" / name, ignore_errors=True)
        shutil.rmtree(clone.folder / ".dvc/cache", ignore_errors=True)
        (clone.folder / "embedded/dvc.lock").unlink(missing_ok=True)
        way = WAYS[number % len(WAYS)]
        with (top / "log").open("a") as log:
            struck = killed_run(clone, [(rng.uniform(0, length), way)], log)
        same = results(clone) == expected
        way, stage, epochs = struck[0] if struck else (way, "already through", 0)
        count[way, "survived" if same else "LOST"] += 1
        print(
            f"{number + 1:3} {way:22} {stage:16} epochs kept {epochs}  {'as undisturbed' if same else 'DIFFERS'}",
            flush=True,
        )
    shutil.rmtree(top)
    lost = sum(n for (_, fate), n in count.items() if fate == "LOST")
    print(SimpleNamespace(times=arguments.times, survived=arguments.times - lost, lost=lost))
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
