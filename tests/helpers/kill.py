"""`dvc repro`, killed on its way through, on a small cut of the demo data in a temporary clone.

It is killed in one of five ways, at a second of a stage, or at a chosen moment: in mid-save, between two files. After
each kill no process may be left, and each file that is there must be the one of an undisturbed run; the next
`dvc repro` goes on. In the end the adapter's bytes, the predictions and all scores must be those of the undisturbed
run.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import psutil
import yaml

from helpers.clone import Clone
from tools.verify import is_measured

STAGES = ["download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"]
WAYS = ["SIGKILL to the stage", "SIGKILL to dvc", "SIGKILL to all", "SIGTERM to the stage", "Ctrl-C"]
EPOCHS = 4
SMALL = {
    "model": {"revision": "none"},
    "data": {"revision": "none", "train_rows": 160, "validation_rows": 60, "test_rows": 60},
    "train": {"epochs": EPOCHS},
}
STEPS = 10  # an epoch's, of 160 rows less those without a gold label
MADE = ("outs", "metrics")  # folders that the stages write
SURVIVES_AT_MOST = 10  # seconds that a stage may outlive its dvc
CUT = {  # DVC's own files, which it writes in place, and what it says of one that a kill has cut
    "demo/dvc.lock": r"dvc\.lock' validation failed",
    "demo/.dvc/tmp/rwlock": r"rwlock'\. JSON structure is corrupted",
}

# Where a stage stops itself to be killed: (stage, what is going on, the file operation that is about to happen).
MOMENTS = [
    ("download", "before the tables get their name", r"os.rename \S+ outs/splits "),
    ("download", "between two outs", r"os.rename \S+ outs/data_source.json "),
    ("tokenize", "before the tables get their name", r"os.rename \S+ outs/tokenized "),
    ("eval_base", "between results and measurements", r"os.rename \S+ outs/measurements/base "),
    ("train_qlora", "in the first checkpoint's save", rf"open \S+/checkpoint-{STEPS}/trainer_state.json "),
    ("train_qlora", "in a later checkpoint's save", rf"open \S+/checkpoint-{2 * STEPS}/adapter_config.json "),
    ("train_qlora", "before a checkpoint is marked as whole", rf"open \S+/checkpoint-{3 * STEPS}/whole "),
    ("train_qlora", "while an old checkpoint is removed", "os.remove optimizer.pt "),
    ("train_qlora", "between training and the adapter", r"os.mkdir outs/\.adapter"),
    ("train_qlora", "before the adapter gets its name", r"os.rename \S+ outs/adapter "),
    ("train_qlora", "before the checkpoints are removed", r"os.rename outs/checkpoints/\w+ "),
    ("train_qlora", "while the checkpoints are removed", r"shutil.rmtree outs/checkpoints/\.\w+\.old"),
    ("eval_lora", "before the predictions get their name", r"os.rename \S+ outs/results/tuned "),
    ("analyze", "between two metrics", r"os.rename \S+ metrics/model_card.md "),
    ("analyze", "while the report is written", r"open metrics/\.report.html"),
]  # fmt: skip


def small_clone(top: Path) -> Clone:
    """A clone whose demo parameters make a run short."""
    clone = Clone(top)
    path = clone.folder / "demo/params.yaml"
    raw = yaml.safe_load(path.read_text())
    for group, values in SMALL.items():
        raw[group].update(values)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    (clone.folder / "demo/dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(clone.folder / "demo/metrics", ignore_errors=True)
    del clone.env["RECORD_READS"]
    clone.env |= {"KILL_TEST": str(clone.folder), "PYTHONUNBUFFERED": "1"}
    clone.commit("a short run")
    return clone


# --- what is there ---


def contents(clone: Clone) -> dict[str, str]:
    """{file of an out: digest of what must not depend on a kill}; of what a run measured of itself, the end."""
    folder = clone.folder / "demo"
    found = {}
    for path in sorted(path for top in MADE for path in (folder / top).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or re.search(r"/\.[^/]*\.tmp(/|$)|^outs/checkpoints/", name):
            continue
        content = path.read_bytes()
        if name.endswith(".json"):
            json.loads(content)  # a half-written one is no JSON
        if is_measured(name):
            content = content[-1:] if path.suffix in (".csv", ".json") else content[-8:]
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def whole_epochs(clone: Clone) -> int:
    """Epochs that the newest whole checkpoint holds."""
    whole = (clone.folder / "demo/outs/checkpoints").glob("[!.]*/checkpoint-*/whole")  # a hidden one is being removed
    return max((int(path.parent.name.split("-")[1]) // STEPS for path in whole), default=0)


# --- killing ---


def start(clone: Clone, log: IO, moment: str = "") -> subprocess.Popen:
    """`dvc repro` in a process group of its own; its stages stop at a moment of `MOMENTS`."""
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"], cwd=clone.folder / "demo", env={**clone.env, "STOP_AT": moment},
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip


def ours(clone: Clone) -> list[psutil.Process]:
    """All living processes of a clone's `dvc repro`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mine = process.environ().get("KILL_TEST") == str(clone.folder)
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def stage_process(clone: Clone) -> tuple[psutil.Process | None, str]:
    """(process, stage) of the stage that is running, or (None, "between stages")."""
    for process in ours(clone):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if len(words) > 2 and words[1] == "-m" and words[2].startswith("stages."):
                return process, words[2].removeprefix("stages.")
    return None, "between stages"


def is_stopped(clone: Clone) -> bool:
    """Whether the running stage has stopped itself, at a moment of `MOMENTS`."""
    process, _ = stage_process(clone)
    try:
        return process is not None and process.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def is_through(stage: str, output: str) -> bool:
    """Whether `dvc repro`, by its output, has gone on to a stage after this one."""
    return any(f"Running stage '{later}'" in output for later in STAGES[STAGES.index(stage) + 1 :])


def has_passed(hit: SimpleNamespace, kept: int) -> bool:
    """Whether a hit is at the save of a checkpoint that is whole: a stage lives half a second longer than its dvc."""
    checkpoint = hit.moment and re.search(r"checkpoint-(\d+)/", hit.moment[2])
    return bool(checkpoint) and int(checkpoint[1]) // STEPS <= kept


def strike(clone: Clone, dvc: subprocess.Popen, way: str) -> tuple[str, str, int]:
    """Kill in one of `WAYS`: everything is stopped, looked at, hit, and what is left goes on until it ends itself.

    Returns:
        (way in which it was killed: no stage can be hit between stages, stage that was hit, epochs that are whole)
    """
    os.killpg(dvc.pid, signal.SIGSTOP)
    process, stage = stage_process(clone)
    if process is None and way.endswith("to the stage"):
        way = "SIGKILL to dvc"
    if way == "SIGKILL to all":
        os.killpg(dvc.pid, signal.SIGKILL)
    elif way == "Ctrl-C":
        os.killpg(dvc.pid, signal.SIGINT)
    elif way == "SIGKILL to dvc":
        os.kill(dvc.pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL if way.startswith("SIGKILL") else signal.SIGTERM)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(dvc.pid, signal.SIGCONT)
    code = dvc.wait(timeout=60)
    assert code != 0 or process is None, f"dvc took a killed stage for a finished one after {way}"
    deadline = time.monotonic() + SURVIVES_AT_MOST
    while ours(clone):
        assert time.monotonic() < deadline, f"still running after {way}: {[p.cmdline() for p in ours(clone)]}"
        time.sleep(0.1)
    return way, stage, whole_epochs(clone)


def remove_cut(clone: Clone, output: str) -> str | None:
    """Do what docs/reliability.md says: remove the file of `CUT` that DVC's output complains of; returns its name."""
    for name, complaint in CUT.items():
        if re.search(complaint, output):
            (clone.folder / name).unlink()
            return name
    return None


def killed_run(
    clone: Clone,
    hits: Iterable[SimpleNamespace],
    expected: dict[str, str],
    report: Callable[[SimpleNamespace, str, str, int], None] = lambda *_: None,
) -> None:
    """Run, be killed, run again, until a run comes through.

    Args:
        hits: list of namespaces, in the order of the stages: `stage`, `way`, and `moment`, one of `MOMENTS`, or
            `after`, seconds after the stage's start.
        expected: `contents` of an undisturbed run.
        report: called after each kill with the hit, the way it went, the stage that it met, and the epochs that were
            whole.

    Raises:
        AssertionError: something was lost.
    """
    log = clone.folder.parent / "log"
    left, resume_at = list(hits), 0
    while True:
        hit = left[0] if left else None
        with log.open("w") as file:
            dvc = start(clone, file, hit.moment[2] if hit and hit.moment else "")
        begun = None
        while dvc.poll() is None:
            if hit and not hit.moment and is_through(hit.stage, log.read_text()):
                left.pop(0)  # the stage was quicker than when its seconds were drawn
                hit, begun = left[0] if left else None, None
            if hit:
                if begun is None and f"Running stage '{hit.stage}'" in log.read_text():
                    begun = time.monotonic()
                if begun and (is_stopped(clone) if hit.moment else time.monotonic() > begun + hit.after):
                    break
            time.sleep(0.02)
        running = dvc.poll() is None
        way, stage, kept = strike(clone, dvc, hit.way) if running else (None, None, 0)
        struck = running and dvc.returncode != 0  # else it was through, or at its very end
        output = log.read_text()
        if resume_at:
            trained = len(re.findall(r"^epoch \d+ of \d+: ", output, re.MULTILINE))
            resumed = re.search(r"resuming from \S+/checkpoint-(\d+)\n", output)
            if resumed or trained or stage != "train_qlora":  # not hit again before it began
                assert resumed and int(resumed[1]) == resume_at * STEPS, f"not resumed where it was:\n{output}"
            killed_after = kept + 1 if stage == "train_qlora" and kept else EPOCHS  # no checkpoint: it was through
            assert trained <= killed_after - resume_at, f"{trained} epochs trained from {resume_at} to {killed_after}"
        resume_at = kept if stage == "train_qlora" else 0
        there = contents(clone)
        other = [name for name in there if there[name] != expected.get(name)]
        assert not other, f"not the files of an undisturbed run: {other}, after {hit}"
        if not struck:
            if dvc.returncode and (name := remove_cut(clone, output)):
                print(f"  {name} was cut, and is removed", flush=True)
                continue
            assert dvc.returncode == 0, output
            assert not hit or not hit.moment, f"the moment never came: {hit}"
            break
        left.pop(0)
        left = [other for other in left if not has_passed(other, kept)]
        report(hit, way, stage, kept)
    assert there == expected, f"missing: {set(expected) - set(there)}"
    remains = [path for path in (clone.folder / "demo").rglob("*") if re.search(r"^\..*\.tmp$", path.name)]
    assert not remains, f"left behind: {remains}"
    assert not (clone.folder / "demo/outs/checkpoints").exists(), "checkpoints are left after success"
