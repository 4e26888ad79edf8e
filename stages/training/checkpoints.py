"""Checkpoints: the folder of a run's checkpoints, the one to resume from, and their removal."""

import ast
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from stages.runtime import distributed
from stages.runtime.errors import DiskFull, report_full_disk
from stages.runtime.files import remove_folder, sha256

ROOT = Path("outs/checkpoints")
WHOLE = "whole"  # a file that marks a checkpoint as completely written


class WholeCheckpoints(TrainerCallback):
    """Marks each complete checkpoint, then removes all but the best and the last (`on_save`)."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not distributed.is_main():
            return
        folder = Path(args.output_dir)  # type: ignore[arg-type]  # `make_trainer` sets it
        last = folder / f"checkpoint-{state.global_step}"
        (last / WHOLE).touch()
        best = Path(state.best_model_checkpoint or last)
        for old in folder.glob("checkpoint-*"):
            if old.name not in (last.name, best.name):
                _discard(old)


def _discard(checkpoint: Path) -> None:
    (checkpoint / WHOLE).unlink(missing_ok=True)  # first: a partly removed checkpoint is never resumed
    shutil.rmtree(checkpoint)


@contextmanager
def remove_partial_if_disk_is_full(folder: Path) -> Iterator[None]:
    """Save a checkpoint below `folder` in this block. If the disk is full, no partial checkpoint is left."""
    try:
        with report_full_disk(folder):
            yield
    except DiskFull:
        _remove_partial(folder)
        raise


def checkpoint_to_resume(folder: Path) -> Path | None:
    """Remove partial checkpoints below `folder`, and return the newest complete one or None."""
    _remove_partial(folder)
    return max(Path(folder).glob("checkpoint-*"), key=_step, default=None)


def _remove_partial(folder: Path) -> None:
    for checkpoint in Path(folder).glob("checkpoint-*"):
        if not (checkpoint / WHOLE).exists():
            shutil.rmtree(checkpoint)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def read_state(checkpoint: Path) -> TrainerState:
    """The Trainer's state in a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def describe_next_run(folder: Path) -> str:
    """What the next run will do with the checkpoints below `folder`, for the last line of this one."""
    whole = [checkpoint for checkpoint in folder.glob("checkpoint-*") if (checkpoint / WHOLE).exists()]
    if not whole:
        return "no checkpoint yet; `dvc repro` starts the training again"
    return f"checkpoint of step {max(map(_step, whole))} written; `dvc repro` continues there"


def remove_checkpoints(folder: Path) -> None:
    """Remove a run's checkpoints and the remains of a killed removal. Print which checkpoints of other runs stay."""
    remove_folder(folder)
    root = folder.parent
    for remains in root.glob(".*.tmp"):
        shutil.rmtree(remains)
    others = sorted(root.iterdir())
    if others:
        names = ", ".join(f"{other} ({_megabytes(other):.1f} MB)" for other in others)
        print(f"checkpoints of other, unfinished runs are kept: {names}; `rm -r {root}` removes them")
    else:
        root.rmdir()


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def compute_run_digest(*values: object) -> str:
    """Digest of the values that determine a run. It names the folder of the run's checkpoints."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def hash_code(script: str | Path) -> dict[str, str]:
    """Hash a stage's script and every file of this repository that it imports -> {file, from the root: SHA-256}.

    Imports inside functions count too. No code is run.
    """
    script = Path(script).resolve()
    root, hashes, waiting = script.parent.parent, dict[str, str](), [script]
    while waiting:
        path = waiting.pop(0)
        name = path.relative_to(root).as_posix()
        if name not in hashes:
            hashes[name] = sha256(path)
            for module in _list_imports(ast.parse(path.read_bytes()), path.relative_to(root).parts[:-1]):
                waiting += _find_files(root, module)
    return hashes


def _list_imports(tree: ast.Module, package: Sequence[str]) -> Iterator[list[str]]:
    """Yield each name that a package's file imports, split at its dots. It may end with an object in a module."""
    for node in _walk_statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else []
            module = node.module.split(".") if node.module else []
            yield from ([*parents, *module, alias.name] for alias in node.names)


def _walk_statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements below a node, at any depth. `ast.walk` yields expressions too, ten times as many nodes."""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            yield child
            yield from _walk_statements(child)


def _find_files(root: Path, name: list[str]) -> list[Path]:
    """The files that Python runs for an import, if they are in the repository: of the packages, and of the module."""
    files, folder = list[Path](), root
    for part in name:
        folder /= part
        if not (folder / "__init__.py").is_file():
            module = folder.with_name(f"{part}.py")
            return [*files, module] if module.is_file() else files
        files.append(folder / "__init__.py")
    return files
