"""Run many variants of the pipeline in one process. The base is loaded once; each variant becomes a DVC experiment.

    python -m tools.sweep -S lora.r=4,8,16 -S seed=1,2,3                    nine variants
    python -m tools.sweep -S 'train.epochs=range(1,6)' -S lora.alpha=32     five

Example: `python -m tools.sweep -S train.epochs=2 -S seed=1,2` in demo/ prints a line when a variant ends, and then

    experiment train.epochs seed accuracy
    soapy-mold            2    1   0.9670
    gawsy-nosh            2    2   0.9690

    `dvc exp show` compares them, `dvc exp apply NAME` brings one into your workspace.

`-S` works as in `dvc exp run --queue`: lists and ranges give one variant for each combination. DVC decides which stages
have changed, restores cached results and stores new ones, as in `dvc exp run -S`. The difference: this process calls a
stage's `main()` itself, so the quantised base is read once.

The variants run in a copy of the repository: the last commit with the workspace's changes. The copy has no files that
Git does not track, except those of model and data. You can go on editing meanwhile, and a kill leaves the
workspace unchanged.

After a kill, the same command goes on. Finished variants are already recorded and are not recorded twice. Only their
`analyze` runs again: its outs are in Git, so DVC's run cache does not hold them.

The exit code is 1 if a variant failed.
"""

import argparse
import contextlib
import gc
import importlib
import io
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import dvc.stage.run
import pandas as pd
import psutil
import torch
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps, to_hydra_overrides

from tools.git import repository_problem, run_git, stderr_line
from tools.run_alarms import describe_alarms

# `stages` is imported later, from the copy: nobody edits the code there during the sweep.

COMMAND = re.compile(r"exec env DVC_PID=\$PPID python -m (stages\.\w+)")

Variant = tuple[str, ...]  # of `key=value` or `file:key=value`, one value each


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-S", "--set-param", action="append", required=True, metavar="KEY=VALUES", help="as in `dvc exp run`"
    )
    overrides = parser.parse_args().set_param
    logging.getLogger("dvc").setLevel(logging.WARNING)
    workspace = Path.cwd()
    try:
        with workspace_copy() as copy:
            os.chdir(copy)
            sys.path.insert(0, str(copy))
            from stages.runtime import errors

            errors.run(lambda: sweep(overrides, workspace))
    except DvcException as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


@contextlib.contextmanager
def workspace_copy() -> Iterator[Path]:
    """Yield this folder in a copy of the repository, which shares Git's objects and DVC's cache. Remove it afterwards.

    The copy is a clone with the same last commit, so an experiment in it has the same baseline. DVC would stash the
    workspace's changes; this function does not, because a kill would leave them in the stash.
    """
    if problem := repository_problem():
        raise DvcException(problem)
    with Repo(".") as repo:
        cache, temporary, config = repo.cache.local_cache_dir, Path(repo.tmp_dir), Path(repo.dvc_dir, "config.local")
    top, head = Path(git("rev-parse", "--show-toplevel")), git("rev-parse", "HEAD")
    changed = git("stash", "create") or head  # a commit of the workspace's changes, which stay in the workspace too
    copies = temporary / "exps/sweep"
    for other in copies.glob("[0-9]*"):
        if int(other.name) == os.getpid() or not psutil.pid_exists(int(other.name)):  # a killed sweep left it
            shutil.rmtree(other)
    own_folder = copies / str(os.getpid())
    copy = own_folder / "repository"
    try:
        git("clone", "--quiet", "--shared", "--no-checkout", str(top), str(copy))
        references = f"{namespace(head)}/*"
        git("fetch", "--quiet", "origin", f"{references}:{references}", at=copy)  # DVC then reuses no name
        for key in ("user.name", "user.email"):
            if value := git("config", "--default", "", key):
                git("config", key, value, at=copy)
        restore(changed, copy)
        folder = copy / Path.cwd().relative_to(top)
        if config.exists():
            shutil.copy(config, folder / ".dvc")
        with Repo(folder) as repo, repo.config.edit("local") as settings:
            settings["cache"]["dir"] = cache
        yield folder
    finally:
        os.chdir(top)
        shutil.rmtree(own_folder, ignore_errors=True)


def git(*arguments: str, at: str | Path = ".") -> str:
    """Run `git` in a folder -> its output without the final line break. Raises DvcException if it fails."""
    process = run_git(*arguments, at=at)
    if process.returncode:
        raise DvcException(f"git {' '.join(arguments)}: {stderr_line(process)}")
    return os.fsdecode(process.stdout).rstrip("\n")


def restore(source: str, copy: Path) -> None:
    """Restore all files that Git tracks in a copy from a commit or a tree."""
    git("restore", f"--source={source}", "--staged", "--worktree", ":/", at=copy)


def namespace(commit: str) -> str:
    """The prefix of Git's references to the DVC experiments on a commit."""
    return f"refs/exps/{commit[:2]}/{commit[2:]}"


def sweep(overrides: Sequence[str], workspace: Path) -> None:
    """Run all variants in this folder of the copy, and record their experiments in the workspace."""
    from stages.runtime import gpu_selection
    from stages.runtime.errors import UserError

    copy, start_tree = Path(git("rev-parse", "--show-toplevel")), git("write-tree")
    variants = variants_of(overrides)
    for variant in variants:
        for section, folder in check(variant, workspace):
            link(folder, section, workspace)
    gpu_selection.select_gpu_from_params()  # one for all variants
    from stages.model.base_cache import cache_base  # after the GPU is chosen: libraries list CUDA's GPUs on import

    table, failures = [], 0
    alarms: list[tuple[str, list[str]]] = []  # of each experiment
    with cache_base() as base_cache:
        run = InProcess(dvc.stage.run.cmd_run, base_cache.check)
        for number, variant in enumerate(variants, start=1):
            start, name, scores = time.perf_counter(), "-", {}
            restore(start_tree, copy)
            run.stages.clear()
            try:
                # DVC calls this function by its name to run a stage's command: the only part of DVC that is replaced.
                with mock.patch.object(dvc.stage.run, "cmd_run", run), contextlib.redirect_stdout(io.StringIO()):
                    name = record(variant)
                metric, score = read_score()
                outcome, scores = f"{metric} {score}, {name}", {metric: score}
                alarms.append((name, json.loads(Path("metrics/details.json").read_text())["alarms"]))
            except Exception as error:  # of any class: the other variants still run
                failures += 1
                outcome = f"FAILED: {cause(error)}"
            stages = f"ran {', '.join(run.stages)}" if run.stages else "no stage had to run"
            seconds = time.perf_counter() - start
            print(f"[{number}/{len(variants)}] {' '.join(variant)}: {outcome} ({seconds:.1f} s, {stages})", flush=True)
            table.append({"experiment": name, **dict(part.split("=", 1) for part in variant), **scores})
    print(f"\n{pd.DataFrame(table).fillna('-').to_string(index=False)}\n")
    for line in describe_alarms(alarms):
        print(f"{line}\n")
    if failures < len(table):
        print("`dvc exp show` compares them, `dvc exp apply NAME` brings one into your workspace.")
    if failures:
        raise UserError(f"{failures} of {len(table)} variants failed")


def read_score() -> tuple[str, str]:
    """The name and the value of the leading metric in metrics/summary.json."""
    summary = json.loads(Path("metrics/summary.json").read_text())
    (metric,) = (key.removeprefix("gain_") for key in summary if key.startswith("gain_"))
    return metric, f"{summary[metric]:.4f}"


def variants_of(overrides: Sequence[str]) -> list[Variant]:
    """Each combination of the values once, as `dvc exp run --queue` combines them.

    Args:
        overrides: the values of `-S`, in Hydra's grammar: lists, ranges or choices.
    """
    from stages.runtime.errors import UserError

    by_file = to_path_overrides(overrides)
    try:
        parsed = [override for texts in by_file.values() for override in to_hydra_overrides(texts)]
        combinations = get_hydra_sweeps(by_file) if any(o.is_sweep_override() for o in parsed) else [by_file]
    except Exception as error:  # of several classes, Hydra's and DVC's
        raise UserError(f"-S {' '.join(overrides)}: {error}") from error
    variants = [
        tuple(text if file == "params.yaml" else f"{file}:{text}" for file, texts in by_file.items() for text in texts)
        for by_file in combinations
    ]
    return list(dict.fromkeys(variants))


def check(variant: Variant, workspace: Path) -> list[tuple[str, str]]:
    """Raise the error that a stage would raise, before any stage runs -> ("model", its folder), ("data", its)."""
    from stages.runtime import params
    from stages.runtime.errors import UserError, first_line
    from stages.sources.fetch import check_place

    by_file = to_path_overrides(variant)
    before = {Path(file): Path(file).read_bytes() for file in by_file if Path(file).is_file()}
    try:
        for file, texts in by_file.items():
            if file == "params.yaml":  # ++ adds a key that does not exist, and `load` says so: DVC's error says less
                texts = [text if text[0] in "+~" else f"++{text}" for text in texts]
            apply_overrides(file, texts)
        p = params.load()
        if p.launcher != "python":
            raise UserError(f"params.yaml: launcher: {p.launcher}; a sweep is one process: add -S launcher=python")
        folders = [("model", p.model.folder), ("data", p.data.folder)]
        for section, folder in folders:
            check_place(folder, section, workspace)
        return folders
    except UserError as error:
        raise UserError(f"-S {' '.join(variant)}: {error}") from error
    except Exception as error:  # of several classes, Hydra's and DVC's: an unknown key, a missing file
        raise UserError(f"-S {' '.join(variant)}: {first_line(error.__cause__ or error)}") from error
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def link(folder: str, section: str, workspace: Path) -> None:
    """Link a folder or a file that Git does not track into this copy: its relative path is valid in the copy too.

    Raises:
        UserError: Git tracks only some of the folder's files, so the copy has only these.
    """
    from stages.runtime.errors import UserError
    from stages.sources.manifest import build_manifest

    source = workspace / folder
    in_copy = Path(os.path.normpath(Path.cwd() / folder))
    if source.exists() and not in_copy.exists():
        in_copy.parent.mkdir(parents=True, exist_ok=True)
        in_copy.symlink_to(source.resolve())
    elif source.is_dir() and source != in_copy:
        files, copied = (build_manifest(path, folder, None, section)["files"] for path in (source, in_copy))
        if lacking := next((name for name in files if files[name] != copied.get(name)), None):
            raise UserError(
                f"params.yaml: {section}.folder: {folder}: Git tracks only some of its files, and not {lacking}; a "
                f"sweep runs in a copy without it: add it to Git, or set the whole path, {source}"
            )


class InProcess:
    """Runs a stage for DVC by calling its `main()` in this process, in the stage's folder.

    Args:
        run_command: DVC's own function, for a command that starts none of this project's stages.
        check: called after each stage, before DVC stores its outs.

    Attributes:
        stages: names of the stages that have run.
    """

    def __init__(self, run_command: Callable[..., None], check: Callable[[], None]) -> None:
        self.run_command, self.check = run_command, check
        self.stages: list[str] = []
        self.threads = torch.get_num_threads()

    def __call__(self, stage: PipelineStage, dry: bool = False, run_env: dict[str, str] | None = None) -> None:
        self.stages.append(stage.name)
        command = COMMAND.fullmatch(stage.cmd)
        if not command:
            return self.run_command(stage, dry=dry, run_env=run_env)
        # Reset the previous stage's memory, threads and peak, as a new process would. A stage sets its seeds itself.
        gc.collect()
        torch.set_num_threads(self.threads)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        from stages.runtime import shutdown

        # A killed sweep starts its variant again, so a training saves nothing for it. The sweep removes its copy.
        no_shutdown = mock.patch.object(shutdown, "graceful", lambda *_: contextlib.nullcontext())
        with contextlib.chdir(stage.wdir), mock.patch.dict(os.environ), no_shutdown:
            importlib.import_module(command[1]).main()
        self.check()


def record(variant: Variant) -> str:
    """Have DVC run one variant, and push its experiment to the workspace's repository -> the experiment's name.

    If an experiment with the same files exists already, its name is returned and the new one is dropped.
    """
    known = {tree: reference for _, tree, reference in experiments()}
    with Repo() as repo:
        (commit,) = repo.experiments.run(params=variant)
    ((tree, reference),) = (experiment[1:] for experiment in experiments() if experiment[0] == commit)
    if tree in known:
        git("update-ref", "-d", reference)
        reference = known[tree]
    else:
        git("push", "--quiet", "origin", reference)
    return reference.rpartition("/")[2]


def experiments() -> list[tuple[str, str, str]]:
    """(commit, tree, reference) of each experiment on the last commit."""
    listing = git("for-each-ref", "--format=%(objectname) %(tree) %(refname)", namespace(git("rev-parse", "HEAD")))
    lines = [line.split(" ", 2) for line in listing.splitlines()]
    return [(commit, tree, reference) for commit, tree, reference in lines]


def cause(error: BaseException) -> str:
    """Why a run failed: a stage's own error line, else the exception that was raised first."""
    from stages.runtime.errors import UserError, one_line, type_and_first_line

    while error.__cause__ and not isinstance(error, UserError):
        error = error.__cause__
    return one_line(error) if isinstance(error, UserError) else type_and_first_line(error)


if __name__ == "__main__":
    main()
