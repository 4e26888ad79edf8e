"""Checkpoints: where a run's are kept, which one it goes on from, when they go."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from modulefinder import ModuleFinder
from pathlib import Path

from transformers import TrainerCallback, TrainerState

from stages.runtime import distributed
from stages.runtime.errors import DiskFull, report_full_disk
from stages.runtime.files import remove_folder, sha256

TOP = Path("outs/checkpoints")
WHOLE = "whole"  # marks a checkpoint that was written to its end


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole once it is; keeps the best and the last."""

    def on_save(self, args, state, control, **kwargs) -> None:
        if not distributed.is_main():
            return
        folder = Path(args.output_dir)
        last = folder / f"checkpoint-{state.global_step}"
        (last / WHOLE).touch()
        best = Path(state.best_model_checkpoint or last)
        for old in folder.glob("checkpoint-*"):
            if old.name not in (last.name, best.name):
                _discard(old)


def _discard(checkpoint):
    (checkpoint / WHOLE).unlink(missing_ok=True)  # first, so that one half removed is never resumed
    shutil.rmtree(checkpoint)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Save a checkpoint below `folder` inside; where the disk is too full for it, nothing of it is left."""
    try:
        with report_full_disk(folder):
            yield
    except DiskFull:
        _remove_broken(folder)
        raise


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest whole checkpoint below `folder`, or None; broken ones are removed."""
    _remove_broken(folder)
    return max(Path(folder).glob("checkpoint-*"), key=_step, default=None)


def _remove_broken(folder):
    for checkpoint in Path(folder).glob("checkpoint-*"):
        if not (checkpoint / WHOLE).exists():
            shutil.rmtree(checkpoint)


def _step(checkpoint):
    return int(checkpoint.name.split("-")[1])


def seconds_before(checkpoint: Path | None, state: TrainerState) -> float:
    """Seconds of the epochs that a run resumed from `checkpoint` did not train again; 0 where it is None.

    An epoch's seconds are those of its steps and its validation. The part of an epoch that a kill cut off is not in
    them, nor what loading and saving took.

    Args:
        state: the `TrainerState` of the run, resumed.
    """
    if checkpoint is None:
        return 0.0
    epochs = [entry for entry in state.log_history if "epoch_seconds" in entry]
    return sum(epoch["epoch_seconds"] for epoch in epochs if epoch["step"] <= _step(checkpoint))


def remove_checkpoints(folder: Path) -> None:
    """Remove a run's checkpoints, and what a kill left of such a removal; say which other runs' stay beside them."""
    remove_folder(folder)
    top = folder.parent
    for remains in top.glob(".*.tmp"):
        shutil.rmtree(remains)
    others = sorted(top.iterdir())
    if others:
        names = ", ".join(f"{other} ({_megabytes(other):.1f} MB)" for other in others)
        print(f"checkpoints of runs that were broken off are kept for them: {names}; `rm -r {top}` removes them")
    else:
        top.rmdir()


def _megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def run_digest(*values: object) -> str:
    """Digest of all that determines a run; names the folder of its checkpoints."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class _Imports(ModuleFinder):
    """A ModuleFinder that passes over folders without `__init__.py`, which it can't read."""

    def find_module(self, name, path, parent=None):
        spec = PathFinder.find_spec(name, path or self.path)
        if spec and spec.loader is None:
            raise ImportError(name)
        return super().find_module(name, path, parent)


def code_digests(script: str | Path) -> dict[str, str]:
    """{file, seen from the root: SHA-256} of a stage's script and of every file of this repository that it imports.

    Imports inside functions count too; nothing is run.
    """
    script = Path(script).resolve()
    root = script.parent.parent
    imports = _Imports([str(root)])
    imports.run_script(str(script))
    paths = [Path(module.__file__) for module in imports.modules.values() if module.__file__]  # a built-in one has none
    return {path.relative_to(root).as_posix(): sha256(path) for path in paths}
