"""Kill `dvc repro` while it runs, in a temporary clone with a part of the demo data, and check its files.

A kill comes in one of five ways. It comes some seconds after a stage's start or after its first training step, or at a
chosen moment, such as before the second of two files is written. After each kill no process may be left, and each file
must equal that of an undisturbed run. The next `dvc repro` resumes. Only the training steps of the last interval may be
lost. In the end the adapter, the predictions and all scores must equal those of the undisturbed run, byte for byte.
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
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import psutil
import yaml

from helpers.clone import Clone
from helpers.stages import StartedModule
from tools.verify import is_measured

STAGES = ["download", "tokenize", "eval_base", "train_qlora", "eval_lora", "analyze"]
WAYS = ["SIGKILL to the stage", "SIGKILL to dvc", "SIGKILL to all", "SIGTERM to the stage", "Ctrl-C"]
EPOCHS = 4
INTERVAL = 0.3  # seconds between checkpoints: some in the middle of each epoch
SMALL = {
    "model": {"digest": None},
    "data": {"digest": None, "train_rows": 160, "validation_rows": 60, "test_rows": 60},
    "train": {"epochs": EPOCHS, "checkpoint_minutes": INTERVAL / 60},
}
STEPS = 10  # per epoch: 160 rows, without those that have no label
WRITTEN = ("outs", "metrics")  # folders that the stages write
MAX_SURVIVAL = 10  # seconds that a stage may outlive its dvc
DVC_ERRORS = {  # {a file that DVC writes in place: DVC's error when a kill has cut the file}
    "demo/dvc.lock": r"dvc\.lock' validation failed",
    "demo/.dvc/tmp/rwlock": r"rwlock'\. JSON structure is corrupted",
}

MIDDLE = r"checkpoint-\d*[1-9]"  # a checkpoint in the middle of an epoch: STEPS is 10

# Moments at which a stage stops itself to be killed: (stage, description, pattern of the next file operation).
MOMENTS = [
    ("download", "before the tables get their name", r"os.rename \S+ outs/splits "),
    ("download", "between two outs", r"os.rename \S+ outs/data_source.json "),
    ("tokenize", "before the tables get their name", r"os.rename \S+ outs/tokenized "),
    ("eval_base", "between results and measurements", r"os.rename \S+ outs/measurements/base "),
    ("train_qlora", "in a save in an epoch's middle", rf"open \S+/{MIDDLE}/trainer_state.json "),
    ("train_qlora", "in the first epoch's save", rf"open \S+/checkpoint-{STEPS}/trainer_state.json "),
    ("train_qlora", "before a checkpoint of an epoch's middle is marked as whole", rf"open \S+/{MIDDLE}/whole "),
    ("train_qlora", "in a later epoch's save", rf"open \S+/checkpoint-{2 * STEPS}/adapter_config.json "),
    ("train_qlora", "before the scores are saved", rf"os.rename \S+ \S+/checkpoint-{2 * STEPS}/trainer_state.json "),
    ("train_qlora", "while an old checkpoint is removed", "os.remove optimizer.pt "),
    ("train_qlora", "before an epoch's checkpoint is marked as whole", rf"open \S+/checkpoint-{3 * STEPS}/whole "),
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
    clone.env |= {"KILL_TEST": str(clone.folder), "PYTHONUNBUFFERED": "1", "STEP_LOG": str(top / "steps")}
    clone.commit("a short run")
    return clone


# --- the state of the clone ---


def contents(clone: Clone) -> dict[str, str]:
    """{file of an out: digest}. Measurements differ each time, so their digest covers only the last bytes."""
    folder = clone.folder / "demo"
    digests = {}
    for path in sorted(path for top in WRITTEN for path in (folder / top).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or re.search(r"/\.[^/]*\.tmp(/|$)|^outs/checkpoints/", name):
            continue
        content = path.read_bytes()
        if name.endswith(".json"):
            json.loads(content)  # fails for a half-written file
        if is_measured(name):
            content = content[-1:] if path.suffix in (".csv", ".json") else content[-8:]
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def saved_step(clone: Clone) -> int:
    """The last step in the newest complete checkpoint; 0 without one."""
    whole = (clone.folder / "demo/outs/checkpoints").glob("[!.]*/checkpoint-*/whole")  # a hidden one is being removed
    return max((int(path.parent.name.split("-")[1]) for path in whole), default=0)


def started_steps(clone: Clone) -> list[tuple[int, float]]:
    """(number, start in seconds since 1970) of the training steps of the current `dvc repro`."""
    path = Path(clone.env["STEP_LOG"])
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [(int(number), float(start)) for number, start in (line.split() for line in lines if line.endswith("\n"))]


def lost_seconds(steps: list[tuple[int, float]], saved: int, killed_at: float) -> float:
    """Seconds of training before a kill that the next run has to repeat.

    Args:
        steps: of `started_steps`.
        saved: of `saved_step`, after the kill.
        killed_at: seconds since 1970.

    Raises:
        AssertionError: more than the interval, with the step, the save or the validation that was running.
    """
    lost = killed_at - min((start for number, start in steps if number > saved), default=killed_at)
    longest = max((after - before for (_, before), (_, after) in pairwise(steps)), default=0.0)
    last = killed_at - steps[-1][1] if steps else 0.0
    assert lost <= INTERVAL + longest + last + 0.1, (
        f"lost {lost:.2f} s, longest step {longest:.2f} s, last {last:.2f} s"
    )
    return max(lost, 0.0)


# --- killing ---


def start(
    clone: Clone, log: IO, moment: str = "", target: str = "", forks: bool = False
) -> subprocess.Popen | StartedModule:
    """Start `dvc repro` in its own session. Its stage stops at a moment, a pattern of `MOMENTS`.

    Args:
        target: the last stage to run; "": all stages.
        forks: whether `dvc` and the stages are forks of a process that has imported the libraries, else new processes.
    """
    Path(clone.env["STEP_LOG"]).unlink(missing_ok=True)
    arguments, env = ["repro", *filter(None, [target])], {**clone.env, "STOP_AT": moment}
    if forks:
        dvc = StartedModule("dvc", arguments, clone.folder / "demo", env, stdout=log.name, stderr=log.name)
        clone.session = dvc.pid
        return dvc
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=clone.folder / "demo", env=env, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip


def living_processes(clone: Clone) -> list[psutil.Process]:
    """All processes of a clone's `dvc repro`, without zombies. Those that are forks are known by their session."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            belongs = process.environ().get("KILL_TEST") == str(clone.folder)
            belongs = belongs or os.getsid(process.pid) == getattr(clone, "session", None)
            if belongs and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def stage_process(clone: Clone) -> tuple[psutil.Process | None, str]:
    """(process, name) of the running stage, or (None, "between stages")."""
    for process in living_processes(clone):
        with contextlib.suppress(psutil.Error):
            if process.name() in STAGES:  # a fork
                return process, process.name()
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


def has_finished(stage: str, output: str) -> bool:
    """Whether `dvc repro` has started a later stage, by its output."""
    return any(f"Running stage '{later}'" in output for later in STAGES[STAGES.index(stage) + 1 :])


def has_passed(hit: SimpleNamespace, saved: int) -> bool:
    """Whether a kill's moment is the save of a checkpoint that exists already, or of one in the last epoch's middle.

    A stage outlives its dvc by up to half a second, and may save later checkpoints in that time.
    """
    checkpoint = hit.moment and re.search(r"checkpoint-(\d+)/", hit.moment[2])
    if hit.moment and MIDDLE in hit.moment[2]:
        return saved >= (EPOCHS - 1) * STEPS
    return bool(checkpoint) and int(checkpoint[1]) <= saved


def strike(clone: Clone, dvc: subprocess.Popen | StartedModule, way: str) -> tuple[str, str, int, float]:
    """Stop all processes, kill in one of `WAYS`, and let the others continue until they end themselves.

    Returns:
        (way: another one if no stage was running, stage that was running, step of the newest checkpoint, seconds lost)
    """
    killed_at = time.time()
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
    deadline = time.monotonic() + MAX_SURVIVAL
    while living_processes(clone):
        assert time.monotonic() < deadline, (
            f"still running after {way}: {[p.cmdline() for p in living_processes(clone)]}"
        )
        time.sleep(0.1)
    saved = saved_step(clone)
    training = stage == "train_qlora" and not (clone.folder / "demo/outs/measurements/train").exists()  # the last out
    steps = [step for step in started_steps(clone) if step[1] <= killed_at]
    return way, stage, saved, lost_seconds(steps, saved, killed_at) if training else 0.0


def remove_cut(clone: Clone, output: str) -> str | None:
    """Remove the file of `DVC_ERRORS` that DVC's output names, as docs/reliability.md says -> its name."""
    for name, complaint in DVC_ERRORS.items():
        if re.search(complaint, output):
            (clone.folder / name).unlink()
            return name
    return None


def killed_run(
    clone: Clone,
    hits: Iterable[SimpleNamespace],
    expected: dict[str, str],
    report: Callable[[SimpleNamespace, str, str, int, float], None] = lambda *_: None,
    target: str = "",
    forks: bool = False,
) -> None:
    """Run and kill `dvc repro` until a run finishes.

    Args:
        hits: the kills, in the order of the stages: namespaces of `stage`, `way`, and `moment`, one of `MOMENTS`, or
            `after`, seconds after the stage's start; with `in_training` after its first step.
        expected: `contents` of an undisturbed run.
        report: called after each kill with the hit and with what `strike` returned.
        target: the last stage to run; "": all stages.
        forks: as of `start`.

    Raises:
        AssertionError: a process survived, or a file differs from that of the undisturbed run.
    """
    log = clone.folder.parent / "log"
    remaining, resume_at = list(hits), 0
    while True:
        hit = remaining[0] if remaining else None
        with log.open("w") as file:
            dvc = start(clone, file, hit.moment[2] if hit and hit.moment else "", target, forks)
        started = None
        while dvc.poll() is None:
            if hit and not hit.moment and has_finished(hit.stage, log.read_text()):
                remaining.pop(0)  # the stage ended before the random second
                hit, started = remaining[0] if remaining else None, None
            if hit:
                runs = f"Running stage '{hit.stage}'" in log.read_text()
                if started is None and runs and (not hit.in_training or started_steps(clone)):
                    started = time.monotonic()
                if started and (is_stopped(clone) if hit.moment else time.monotonic() > started + hit.after):
                    break
            time.sleep(0.02)
        running = dvc.poll() is None
        way, stage, saved, lost = strike(clone, dvc, hit.way) if running else (None, None, 0, 0.0)
        killed = running and dvc.returncode != 0  # else it had finished
        output = log.read_text()
        if resume_at:
            trained = len(re.findall(r"^epoch \d+ of \d+: ", output, re.MULTILINE))
            resumed = re.search(r"resuming from \S+/checkpoint-(\d+): ", output)
            if resumed or trained or stage != "train_qlora":  # else it was killed again before its training began
                assert resumed and int(resumed[1]) == resume_at, f"not resumed where it was:\n{output}"
            last = saved // STEPS + 1 if stage == "train_qlora" and saved else EPOCHS  # else training had finished
            validated = (resume_at - 1) // STEPS  # the validation of the checkpoint's epoch may be missing
            assert trained <= last - validated, f"{trained} epochs trained from {resume_at} to {saved}"
        resume_at = saved if stage == "train_qlora" else 0
        files = contents(clone)
        different = [name for name in files if files[name] != expected.get(name)]
        assert not different, f"not the files of an undisturbed run: {different}, after {hit}"
        if not killed:
            if dvc.returncode and (name := remove_cut(clone, output)):
                print(f"  {name} was cut; it is removed", flush=True)
                continue
            assert dvc.returncode == 0, output
            assert not hit or not hit.moment, f"the moment never came: {hit}"
            break
        remaining = [later for later in remaining[1:] if not has_passed(later, saved)]
        report(hit, way, stage, saved, lost)
    assert files == expected, f"missing: {set(expected) - set(files)}"
    temporary = [path for path in (clone.folder / "demo").rglob("*") if re.search(r"^\..*\.tmp$", path.name)]
    assert not temporary, f"temporary files are left: {temporary}"
    assert not (clone.folder / "demo/outs/checkpoints").exists(), "checkpoints are left after success"
