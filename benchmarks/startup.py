"""What a user waits for: wall seconds of `dvc repro` and of `dvc exp run -S lora.r=8`, and which part takes them.

    python benchmarks/startup.py demo --out benchmarks/results/startup-demo.json
    python benchmarks/startup.py . --model MODEL --data DATA --out benchmarks/results/startup-h100.json

Each repeat is a new repository with the files of this one, as they lie here, or as they lie in --source: another
checkout, to compare the two. In it everything is new to DVC; a model of the hub lies in the hub's cache, and the hash
of a large file may be known from an earlier run. MODEL and DATA are folders, as `model.name` and `data.name` take them.

start: from the launch of a stage's process to its `main()`, which is Python's start and the imports. load: base, head
and adapter. work: all else up to what is to be saved. save: what follows where a model was loaded, with the reading
back of the adapter in `train_qlora`. DVC: all that is no stage between launch and end of `main()`, so the end of its
process too. Processor seconds are those of all processes together; they differ less where other programs share the
cores.

The table says whether Python finds PyTorch's bytecode. pip makes it; in some images it was left out, and every start
compiles some thousand files. `python -m compileall -q FOLDER` makes it anew.
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
STAMPS = Path(__file__).with_name("stamps")  # its sitecustomize.py writes the stamps
PARTS = ("start", "load", "work", "save")
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "dvc")

# The part that ends at a moment. A stage's `ended` ends what follows its last moment: `save` after these, else `work`.
ENDS = {
    "begun": "start", "before_loading": "work", "loaded": "load", "before_training": "work", "after_training": "work",
    "after_evaluation": "work", "end": "save", "before_readback": "save", "after_readback": "save",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="the folder of its dvc.yaml: demo, or . for the published recipe")
    parser.add_argument("--model", type=Path, help="instead of the one in params.yaml")
    parser.add_argument("--data", type=Path, help="instead of those in params.yaml")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout that is measured (this one)")
    parser.add_argument("--change", default="lora.r=8", help="what `dvc exp run -S` sets (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    arguments = parser.parse_args()
    commands = {"dvc repro": ["repro"], f"dvc exp run -S {arguments.change}": ["exp", "run", "-S", arguments.change]}
    repeats = {name: [] for name in commands}
    for number in range(arguments.repeats):
        with tempfile.TemporaryDirectory(prefix="wait-") as top:
            folder = copy_of(arguments.source.resolve(), Path(top) / "repository") / arguments.pipeline
            use(folder / "params.yaml", arguments.model, arguments.data)
            commit(folder)
            for name, command in commands.items():
                repeats[name].append(timed(folder, command))
                commit(folder)  # as a user does who goes on from a result
                print(f"{number + 1} of {arguments.repeats}: {name}: {repeats[name][-1]['wall']:.1f} s", flush=True)
    result = {"pipeline": arguments.pipeline, "machine": machine(), "commands": repeats}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{table(result)}")


def copy_of(source: Path, folder: Path) -> Path:
    """A copy of a checkout's files as they lie there, without those that Git ignores and without results."""
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
    """Commit all that is in the repository of a folder."""
    name = ["-c", "user.name=wait", "-c", "user.email=wait"]
    top = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True, check=True
    )
    for arguments in (["add", "--all"], ["commit", "--quiet", "--allow-empty", "--message", "wait"]):
        subprocess.run(["git", *name, *arguments], cwd=top.stdout.strip(), check=True)


def use(params: Path, model: Path | None, data: Path | None) -> None:
    """Let a params.yaml name folders as the sources of model and data, not pinned."""
    values = yaml.safe_load(params.read_text())
    for key, folder in (("model", model), ("data", data)):
        if folder:
            values[key] |= {"name": str(folder.resolve()), "revision": "none"}
            values["watch"][key] = str(folder.resolve())
    if model or data:
        params.write_text(yaml.safe_dump(values, sort_keys=False))


def timed(folder: Path, command: Sequence[str]) -> dict:
    """Run `dvc` in a folder -> what `split` makes of it, and the processor's seconds; its output where it fails."""
    with tempfile.NamedTemporaryFile("r", prefix="wait-stamps-") as stamps:
        env = os.environ | {"WAIT_STAMPS": stamps.name}
        first = {"PYTHONPATH": STAMPS, "PATH": Path(sys.executable).parent}  # dvc.yaml says `python`
        env |= {name: f"{path}{os.pathsep}{env.get(name, '')}".rstrip(os.pathsep) for name, path in first.items()}
        begin, before = time.monotonic(), processor_seconds()
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command], cwd=folder, env=env, capture_output=True, text=True
        )
        wall, used = time.monotonic() - begin, processor_seconds() - before
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}error: dvc {' '.join(command)}: exit code {done.returncode}")
        return split(parse(stamps), wall) | {"processor": round(used, 2)}


def processor_seconds() -> float:
    """Of all processes that have run below this one and ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parse(lines: Iterable[str]) -> list[tuple[str, str, float]]:
    """(stage, moment, seconds) of each line that sitecustomize.py wrote."""
    stamps = [line.split() for line in lines]
    return [(stage, moment, float(seconds)) for stage, moment, seconds in stamps]


def split(stamps: Sequence[tuple[str, str, float]], wall: float) -> dict:
    """Seconds of each part of each stage that ran, in the order of the stages.

    Args:
        stamps: (stage, moment, seconds by a clock that all share), in the order of time.
        wall: seconds from the start of `dvc` to its end.

    Returns:
        {"wall", "dvc", "stages": {stage: {part: seconds}}}; where an adapter is read back, `readback` is that much of
        `save`.
    """
    stages, in_stages = {}, 0.0
    for stage in dict.fromkeys(stage for stage, _, _ in stamps):
        own = [(moment, seconds) for name, moment, seconds in stamps if name == stage]
        parts, last = dict.fromkeys(PARTS, 0.0), "save" if ("end" in dict(own)) else "work"
        for (_, before), (moment, seconds) in pairwise(own):
            parts[ENDS.get(moment, last)] += seconds - before
            if moment == "after_readback":
                parts["readback"] = seconds - before
        stages[stage] = {part: round(seconds, 3) for part, seconds in parts.items()}
        in_stages += own[-1][1] - own[0][1]
    return {"wall": round(wall, 3), "dvc": round(wall - in_stages, 3), "stages": stages}


def machine() -> dict:
    """What decides the seconds besides the code; above all whether Python finds its bytecode, or compiles each file."""
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
    """Name of the first GPU, by its driver: PyTorch would be imported for nothing else."""
    if not shutil.which("nvidia-smi"):
        return None
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return next(iter(done.stdout.splitlines()), None) if done.returncode == 0 else None


def table(result: dict) -> str:
    """The medians of all repeats as tables of Markdown; a whole command's seconds with their extremes."""
    machine = result["machine"]
    there = "there" if machine["bytecode_of_torch_is_there"] else "missing"
    written = "written" if machine["bytecode_is_written"] else "not written"
    lines = [f"{machine['gpu'] or 'no GPU'}, {machine['cores']} cores; PyTorch's bytecode {there}, bytecode {written}"]
    for command, repeats in result["commands"].items():
        walls = [repeat["wall"] for repeat in repeats]
        used = statistics.median(repeat["processor"] for repeat in repeats)
        lines += [
            "",
            f"`{command}`: {statistics.median(walls):.1f} s ({min(walls):.1f} to {max(walls):.1f}, {len(walls)} runs), "
            f"{used:.1f} s of the processor",
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
