"""Measure the wall time of `dvc repro` and of `dvc exp run -S lora.r=8`, and the parts of each stage.

    python benchmarks/startup.py demo --out benchmarks/results/startup-demo.json
    python benchmarks/startup.py . --model MODEL --data DATA --out benchmarks/results/startup-h200.json

Each repeat runs in a new repository with the files of this checkout, or of another one (--source), so that you can
compare the two. DVC has an empty cache there. A model from the hub is in the hub's cache, and the hash of a large file
may be known from an earlier run. MODEL and DATA are folders.

The parts of a stage:
start  from the launch of the process to `main()`: Python's start and the imports
load   base, head and adapter
work   everything else, up to the outs
save   writing the outs; in `train_qlora` also loading and comparing the saved adapter
DVC    everything outside of the stages' `main()`, with the ends of their processes

CPU time counts all processes. It varies less than wall time if other programs share the cores.

The table says whether Python finds PyTorch's bytecode. pip writes it, but some images omit it, and then every start
compiles some thousand files. `python -m compileall -q FOLDER` writes it.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
STAMPS = Path(__file__).with_name("stamps")  # its sitecustomize.py writes the time stamps
PARTS = ("start", "load", "work", "save")
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "dvc")

# The part that ends at each moment. The last part ends at `ended`: it is `save` if the stage has an `end`, else `work`.
ENDS = {
    "begun": "start", "before_loading": "work", "loaded": "load", "before_training": "work", "after_training": "work",
    "after_evaluation": "work", "end": "save", "before_readback": "save", "after_readback": "save",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="the folder of dvc.yaml: demo, or . for the published recipe")
    parser.add_argument("--model", type=Path, help="a model to use instead of that in params.yaml")
    parser.add_argument("--data", type=Path, help="a data set to use instead of that in params.yaml")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout to measure (default: this one)")
    parser.add_argument("--change", default="lora.r=8", help="the change for `dvc exp run -S` (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    arguments = parser.parse_args()
    commands = {"dvc repro": ["repro"], f"dvc exp run -S {arguments.change}": ["exp", "run", "-S", arguments.change]}
    repeats = {name: [] for name in commands}
    for number in range(arguments.repeats):
        with tempfile.TemporaryDirectory(prefix="startup-") as top:
            folder = copy_checkout(arguments.source.resolve(), Path(top) / "repository") / arguments.pipeline
            set_sources(folder / "params.yaml", arguments.model, arguments.data)
            commit(folder)
            for name, command in commands.items():
                repeats[name].append(time_command(folder, command))
                commit(folder)  # a user who continues from a result commits it first
                print(f"{number + 1} of {arguments.repeats}: {name}: {repeats[name][-1]['wall']:.1f} s", flush=True)
    result = {"pipeline": arguments.pipeline, "machine": machine(), "commands": repeats}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{table(result)}")


def copy_checkout(source: Path, folder: Path) -> Path:
    """Copy a checkout's files, committed or not, without ignored files and without dvc.lock."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=source, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        path = source / name
        if (path.is_file() or path.is_symlink()) and path.name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name, follow_symlinks=False)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def commit(folder: Path) -> None:
    """Commit everything in the repository of a folder."""
    name = ["-c", "user.name=startup", "-c", "user.email=startup"]
    top = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True, check=True
    )
    for arguments in (["add", "--all"], ["commit", "--quiet", "--allow-empty", "--message", "startup benchmark"]):
        subprocess.run(["git", *name, *arguments], cwd=top.stdout.strip(), check=True)


def set_sources(params: Path, model: Path | None, data: Path | None) -> None:
    """Set model and data in a params.yaml to folders, without pins."""
    values = yaml.safe_load(params.read_text())
    for key, folder in (("model", model), ("data", data)):
        if folder:
            values[key] |= {"folder": str(folder.resolve()), "digest": None}
    if model or data:
        params.write_text(yaml.safe_dump(values, sort_keys=False))


def time_command(folder: Path, command: Sequence[str]) -> dict:
    """Run `dvc` in a folder -> the result of `split_stages`, and the CPU time. If `dvc` fails, print its output."""
    with tempfile.NamedTemporaryFile("r", prefix="startup-stamps-") as stamps:
        env = os.environ | {"STARTUP_STAMPS": stamps.name}
        prefixes = {"PYTHONPATH": STAMPS, "PATH": Path(sys.executable).parent}  # dvc.yaml runs `python`
        env |= {name: f"{path}{os.pathsep}{env.get(name, '')}".rstrip(os.pathsep) for name, path in prefixes.items()}
        begin, before = time.monotonic(), processor_seconds()
        process = subprocess.run(
            [sys.executable, "-m", "dvc", *command], cwd=folder, env=env, capture_output=True, text=True
        )
        wall, processor = time.monotonic() - begin, processor_seconds() - before
        if process.returncode:
            sys.exit(f"{process.stdout}{process.stderr}error: dvc {' '.join(command)}: exit code {process.returncode}")
        return split_stages(parse(stamps), wall) | {"processor": round(processor, 2)}


def processor_seconds() -> float:
    """CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parse(lines: Iterable[str]) -> list[tuple[str, str, float]]:
    """Read the lines of sitecustomize.py -> (stage, moment, seconds) of each."""
    stamps = [line.split() for line in lines]
    return [(stage, moment, float(seconds)) for stage, moment, seconds in stamps]


def split_stages(stamps: Sequence[tuple[str, str, float]], wall: float) -> dict:
    """Seconds of each part of each stage, in the order of the stages.

    Args:
        stamps: (stage, moment, seconds of a clock that all processes share), ordered by time.
        wall: seconds from the start of `dvc` to its end.

    Returns:
        {"wall", "dvc", "stages": {stage: {part: seconds}}}. `readback` is the part of `save` that verifies the adapter.
    """
    stages, in_stages = {}, 0.0
    for stage in dict.fromkeys(stage for stage, _, _ in stamps):
        moments = [(moment, seconds) for name, moment, seconds in stamps if name == stage]
        parts, last = dict.fromkeys(PARTS, 0.0), "save" if ("end" in dict(moments)) else "work"
        for (_, before), (moment, seconds) in pairwise(moments):
            parts[ENDS.get(moment, last)] += seconds - before
            if moment == "after_readback":
                parts["readback"] = seconds - before
        stages[stage] = {part: round(seconds, 3) for part, seconds in parts.items()}
        in_stages += moments[-1][1] - moments[0][1]
    return {"wall": round(wall, 3), "dvc": round(wall - in_stages, 3), "stages": stages}


def machine() -> dict:
    """The facts about the machine that affect the seconds, such as whether Python finds PyTorch's bytecode."""
    cached = importlib.util.find_spec("torch").cached
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "bytecode_is_written": not sys.dont_write_bytecode,
        "bytecode_of_torch_is_there": cached is not None and Path(cached).is_file(),
    }


def gpu() -> str | None:
    """The name of the first GPU, from its driver. This avoids an import of PyTorch."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    process = subprocess.run(query, capture_output=True, text=True)
    return next(iter(process.stdout.splitlines()), None) if process.returncode == 0 else None


def table(result: dict) -> str:
    """Markdown tables with the medians of all repeats, and the extremes of each command's wall time."""
    machine = result["machine"]
    presence = "present" if machine["bytecode_of_torch_is_there"] else "missing"
    writing = "on" if machine["bytecode_is_written"] else "off"
    hardware = f"{machine['gpu'] or 'no GPU'}, {machine['cores']} cores"
    lines = [f"{hardware}; PyTorch's bytecode {presence}, bytecode writing {writing}"]
    for command, repeats in result["commands"].items():
        walls = [repeat["wall"] for repeat in repeats]
        processor = statistics.median(repeat["processor"] for repeat in repeats)
        lines += [
            "",
            f"`{command}`: {statistics.median(walls):.1f} s ({min(walls):.1f} to {max(walls):.1f}, {len(walls)} runs), "
            f"{processor:.1f} s of CPU time",
            "",
            f"| seconds | {' | '.join(PARTS)} | all |",
            "| --- " * (len(PARTS) + 2) + "|",
        ]
        for stage in repeats[0]["stages"]:
            medians = [statistics.median(repeat["stages"][stage][part] for repeat in repeats) for part in PARTS]
            lines.append(row(stage, [*medians, sum(medians)]))
        lines.append(row("DVC", [*[None] * len(PARTS), statistics.median(repeat["dvc"] for repeat in repeats)]))
    return "\n".join(lines)


def row(name: str, values: Iterable[float | None]) -> str:
    return f"| {name} | {' | '.join('' if value is None else f'{value:.1f}' for value in values)} |"


if __name__ == "__main__":
    main()
