"""Run many variants of the pipeline in one process, around one base in memory; each becomes an experiment of DVC.

    python -m tools.sweep -S lora.r=4,8,16 -S seed=1,2,3                    nine variants
    python -m tools.sweep -S 'train.epochs=range(1,6)' -S lora.alpha=32     five

`-S` is that of `dvc exp run --queue`: lists and ranges give one variant for each combination. DVC does what it does for
`dvc exp run -S`: it says which stages have changed, takes from its cache what has run before and keeps what runs now.
Only, a stage's `main()` is called in this process instead of a new one, and the quantised base is read once.

All of it happens in a copy of the repository: the last commit with the workspace's changes. Files that Git does not
know stay behind, except the folders of model and data. So you can go on editing, and after a kill everything is as it
was.
What was through is recorded, and the same command goes on with the rest; of what was through it runs `analyze` alone
again, which DVC's run cache leaves out since its outs are in Git, and records nothing twice.

Exit code 1 where a variant failed.
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

# Nothing of `stages` is imported up here: its code has to come from the copy, where nobody edits it meanwhile.

COMMAND = re.compile(r"exec env DVC_PID=\$PPID python -m (stages\.\w+)")
SCORE = "accuracy_tuned"  # of metrics/summary.json

Variant = tuple[str, ...]  # `key=value` or `file:key=value`, with one value each


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-S", "--set-param", action="append", required=True, metavar="KEY=VALUES", help="as `dvc exp run` has it"
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
    """Yield this folder in a copy of the repository that shares its Git objects and DVC's cache; gone afterwards.

    The copy is a clone with the same last commit, so that an experiment in it has the same baseline. Nothing is stashed
    on the way, as DVC does in the workspace itself: a kill may come at any moment. It lies as deep in its folder as the
    repository in the file system, so that a relative path out of it ends in that folder: `link`.
    """
    if problem := repository_problem():
        raise DvcException(problem)
    with Repo(".") as repo:
        cache, temporary, config = repo.cache.local_cache_dir, Path(repo.tmp_dir), Path(repo.dvc_dir, "config.local")
    top, head = Path(git("rev-parse", "--show-toplevel")), git("rev-parse", "HEAD")
    state = git("stash", "create") or head  # a commit of the workspace's changes, which stay where they are
    copies = temporary / "exps/sweep"
    for left in copies.glob("[0-9]*"):
        if int(left.name) == os.getpid() or not psutil.pid_exists(int(left.name)):  # whoever made it was killed
            shutil.rmtree(left)
    mine = copies / str(os.getpid())
    copy = mine / top.relative_to(top.anchor)
    try:
        git("clone", "--quiet", "--shared", "--no-checkout", str(top), str(copy))
        git("fetch", "--quiet", "origin", f"{namespace(head)}/*:{namespace(head)}/*", at=copy)  # their names are taken
        for key in ("user.name", "user.email"):
            if value := git("config", "--default", "", key):
                git("config", key, value, at=copy)
        take(state, copy)
        here = copy / Path.cwd().relative_to(top)
        if config.exists():
            shutil.copy(config, here / ".dvc")
        with Repo(here) as repo, repo.config.edit("local") as settings:
            settings["cache"]["dir"] = cache
        yield here
    finally:
        os.chdir(top)
        shutil.rmtree(mine, ignore_errors=True)


def git(*arguments: str, at: str | Path = ".") -> str:
    """Run `git` in a folder -> what it printed, without the last line's end; DvcException where it fails."""
    done = run_git(*arguments, at=at)
    if done.returncode:
        raise DvcException(f"git {' '.join(arguments)}: {stderr_line(done)}")
    return os.fsdecode(done.stdout).rstrip("\n")


def take(state: str, copy: Path) -> None:
    """Make the files that Git knows in a copy those of a commit or a tree, whatever they are."""
    git("restore", f"--source={state}", "--staged", "--worktree", ":/", at=copy)


def namespace(commit: str) -> str:
    """Where DVC keeps the experiments on a commit, among Git's references."""
    return f"refs/exps/{commit[:2]}/{commit[2:]}"


def sweep(overrides: Sequence[str], workspace: Path) -> None:
    """Run all variants in this folder, which is in a copy, and record them where it was copied from: `workspace`."""
    from stages.runtime import gpu_selection
    from stages.runtime.errors import UserError

    copy, start = Path(git("rev-parse", "--show-toplevel")), git("write-tree")
    variants = variants_of(overrides)
    for variant in variants:
        for name in check(variant):
            link(name, workspace)
    gpu_selection.select_gpu_from_params()  # one for all variants
    from stages.model.base_cache import cache_base  # only now: CUDA is asked for its GPUs while libraries are imported

    lines, failed = [], 0
    with cache_base() as kept:
        run = InProcess(dvc.stage.run.cmd_run, kept.check)
        for number, variant in enumerate(variants, start=1):
            began, name, score = time.perf_counter(), "-", "-"
            take(start, copy)
            run.stages.clear()
            try:
                # The one seam: DVC calls this function, by its name, to run the command of a stage.
                with mock.patch.object(dvc.stage.run, "cmd_run", run), contextlib.redirect_stdout(io.StringIO()):
                    name = record(variant)
                score = f"{json.loads(Path('metrics/summary.json').read_text())[SCORE]:.4f}"
                what = f"{SCORE} {score}, {name}"
            except Exception as error:  # whatever it is, the others go on
                failed += 1
                what = f"FAILED: {cause(error)}"
            how = f"ran {', '.join(run.stages)}" if run.stages else "nothing had to run"
            seconds = time.perf_counter() - began
            print(f"[{number}/{len(variants)}] {' '.join(variant)}: {what} ({seconds:.1f} s, {how})", flush=True)
            lines.append({"experiment": name, **dict(part.split("=", 1) for part in variant), SCORE: score})
    print(f"\n{pd.DataFrame(lines).to_string(index=False)}\n")
    if failed < len(lines):
        print("`dvc exp show` compares them, `dvc exp apply NAME` brings one into your workspace.")
    if failed:
        raise UserError(f"{failed} of {len(lines)} variants failed")


def variants_of(overrides: Sequence[str]) -> list[Variant]:
    """Each combination of the values, as `dvc exp run --queue` makes them.

    Args:
        overrides: of `-S`, in Hydra's grammar: a value may be a list, a range or a choice.
    """
    from stages.runtime.errors import UserError

    by_file = to_path_overrides(overrides)
    try:
        parsed = [override for texts in by_file.values() for override in to_hydra_overrides(texts)]
        combinations = get_hydra_sweeps(by_file) if any(o.is_sweep_override() for o in parsed) else [by_file]
    except Exception as error:  # Hydra's and DVC's, of several classes
        raise UserError(f"-S {' '.join(overrides)}: {error}") from error
    named = [
        tuple(text if file == "params.yaml" else f"{file}:{text}" for file, texts in by.items() for text in texts)
        for by in combinations
    ]
    return list(dict.fromkeys(named))


def check(variant: Variant) -> set[str]:
    """Refuse what the stages would refuse, before any of them runs -> the folders, or names, of model and data."""
    from stages.runtime import params
    from stages.runtime.errors import UserError, first_line

    by_file = to_path_overrides(variant)
    before = {Path(file): Path(file).read_bytes() for file in by_file if Path(file).is_file()}
    try:
        for file, texts in by_file.items():
            apply_overrides(file, texts)
        p = params.load()
        if p.launcher != "python":
            raise UserError(f"params.yaml: launcher: {p.launcher}; a sweep is one process: add -S launcher=python")
        return {p.model.name, p.data.name, p.watch.model, p.watch.data}
    except UserError as error:
        raise UserError(f"-S {' '.join(variant)}: {error}") from error
    except Exception as error:  # no such key, no such file: Hydra's and DVC's classes
        raise UserError(f"-S {' '.join(variant)}: {first_line(error.__cause__ or error)}") from error
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def link(name: str, workspace: Path) -> None:
    """Let a relative path to a folder that Git does not have lead from this copy to where it leads in the workspace.

    Args:
        name: a folder, or a name on the hub, which is left alone.
    """
    folder = workspace / name
    here = Path(os.path.normpath(Path.cwd() / name))
    if folder.is_dir() and not here.exists():
        here.parent.mkdir(parents=True, exist_ok=True)
        here.symlink_to(folder.resolve())


class InProcess:
    """Runs a stage's command for DVC: its `main()` here, in the stage's folder.

    Args:
        otherwise: DVC's own way, for a command that starts none of this project's stages.
        check: called after each stage, before DVC keeps what came of it.

    Attributes:
        stages: names of those that have run.
    """

    def __init__(self, otherwise: Callable[..., None], check: Callable[[], None]) -> None:
        self.otherwise, self.check, self.stages = otherwise, check, []
        self.threads = torch.get_num_threads()

    def __call__(self, stage: PipelineStage, dry: bool = False, run_env: dict[str, str] | None = None) -> None:
        self.stages.append(stage.name)
        command = COMMAND.fullmatch(stage.cmd)
        if not command:
            return self.otherwise(stage, dry=dry, run_env=run_env)
        # As in a new process: no memory of the stage before it, nor its threads and peaks. Seeds a stage sets itself.
        gc.collect()
        torch.set_num_threads(self.threads)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with contextlib.chdir(stage.wdir), mock.patch.dict(os.environ):
            importlib.import_module(command[1]).main()
        self.check()


def record(variant: Variant) -> str:
    """Run one variant by DVC and hand its experiment to the repository that this one was copied from -> its name.

    Where an experiment with the same files is there already nothing is added, and the name is that one's.
    """
    known = {tree: reference for _, tree, reference in experiments()}
    with Repo() as repo:
        (commit,) = repo.experiments.run(params=variant)
    ((tree, reference),) = (found[1:] for found in experiments() if found[0] == commit)
    if tree in known:
        git("update-ref", "-d", reference)
        reference = known[tree]
    else:
        git("push", "--quiet", "origin", reference)
    return reference.rpartition("/")[2]


def experiments() -> list[tuple[str, str, str]]:
    """(commit, tree, reference) of each experiment on the last commit."""
    listed = git("for-each-ref", "--format=%(objectname) %(tree) %(refname)", namespace(git("rev-parse", "HEAD")))
    return [tuple(line.split(" ", 2)) for line in listed.splitlines()]


def cause(error: BaseException) -> str:
    """What a failed run says: the line of the stage where it has one, else what was raised first."""
    from stages.runtime.errors import UserError, one_line, type_and_first_line

    while error.__cause__ and not isinstance(error, UserError):
        error = error.__cause__
    return one_line(error) if isinstance(error, UserError) else type_and_first_line(error)


if __name__ == "__main__":
    main()
